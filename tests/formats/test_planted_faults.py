"""Every fault that verify claims to find, planted in small checkpoints of real formats and found.

Sound ones of every format have nothing that differs, with a sample and with all rows.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from formats import checkpoints, small_artifacts

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import VerifyResult, verify
from engram_cli.errors import InputError
from engram_cli.formats.model_folder import CheckpointRows
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.vocab.compress import CompressedVocab

Maker = Callable[[Path, CompressedVocab], object]
SOUND: dict[str, Maker] = {
    "deepseek-v4.1": lambda p, v: checkpoints.deepseek_v41(p, v, None),
    "qwen-ple": lambda p, v: checkpoints.qwen_ple(p),
    "qwen-ple, fp8": lambda p, v: checkpoints.qwen_ple(p, dtype="float8_e4m3fn"),
    "qwen-ple, nvfp4": lambda p, v: checkpoints.qwen_ple(p, dtype="nvfp4"),
    "longcat": lambda p, v: checkpoints.longcat(p),
    "demo": lambda p, v: small_artifacts.demo(p, v),
    "engramdb": lambda p, v: small_artifacts.store(p),
    "engram-peft": lambda p, v: small_artifacts.engram_peft(p, v),
    **{
        f"gguf, {dialect}": lambda p, v, d=dialect: checkpoints.deepseek_gguf(p, v, d)
        for dialect in ("llama.cpp", "ds4", "tensors", "upper case", "side-car")
    },
}


def verified(path: Path, *, full: bool = True, share: float = 0.05) -> VerifyResult:
    return verify(VerifyRequest(path=path, folder=path.parent, full=full, fault_share=share))


def differing(result: VerifyResult) -> dict[str, str]:
    assert result.ok == (not result.problems)
    return {check.name: check.found for check in result.checks if check.result == "differs"}


@pytest.fixture(scope="module")
def sound(
    tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab
) -> Callable[[str], Path]:
    folder, made = tmp_path_factory.mktemp("sound"), dict[str, Path]()

    def path_of(name: str) -> Path:
        if name not in made:
            made[name] = folder / name.replace(" ", "-")
            SOUND[name](made[name], small_vocab)
        return made[name]

    return path_of


@pytest.fixture
def copied(sound: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    def path_of(name: str) -> Path:
        source = sound(name)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        return Path(copy(source, tmp_path / source.name))

    return path_of


@pytest.mark.parametrize("name", SOUND)
def test_sound_checkpoints_differ_in_nothing(sound: Callable[[str], Path], name: str) -> None:
    for full in (True, False):
        result = verified(sound(name), full=full)
        assert not differing(result)
        assert result.ok
        assert result.coverage is not None
        assert (result.coverage.rows_read == result.coverage.rows) == full
        assert "values" in {check.name.partition(": ")[2] for check in result.checks}


def plant(path: Path, part: str, layer: int, row: int, values: bytes | int, rows: int = 1) -> None:
    """Write `values` over rows of a part; an int fills them."""
    source = find_artifact(path).open()
    assert isinstance(source, CheckpointRows) or hasattr(source, "parts")
    array = source.parts[layer, part]
    own = bytes([values]) * array.row_bytes if isinstance(values, int) else values
    for index in range(row, row + rows):
        span = next(s for s in array.spans if index < s.first + s.rows)
        with span.file.open("r+b") as file:
            file.seek(span.begin + (index - span.first) * (span.stride or array.row_bytes))
            file.write(own)


NAN = {
    "deepseek-v4.1": (1, b"\x7f"),
    "qwen-ple": (2, b"\xc0\x7f"),
    "qwen-ple, fp8": (2, b"\xff"),
    "longcat": (0, b"\x80\x7f"),
    "demo": (1, b"\x00\x00\xc0\x7f"),
    "engramdb": (2, b"\xff"),
    "engram-peft": (14, b"\x00\x00\x80\xff"),
    "gguf, ds4": (3, b"\x7f"),
    "gguf, upper case": (3, b"\x7f"),
    "gguf, side-car": (1, b"\x78\xff"),  # after the block's scale
}


@pytest.mark.parametrize("name", NAN)
def test_one_code_that_is_no_number(copied: Callable[[str], Path], name: str) -> None:
    path, (layer, code) = copied(name), NAN[name]
    plant(path, ROWS, layer, 77, code)
    found = differing(verified(path))
    assert list(found) == [f"layer {layer}: values"]
    assert found[f"layer {layer}: values"] == "1 row is not finite, the first is row 77"


@pytest.mark.parametrize("name", ["deepseek-v4.1", "gguf, ds4"])
@pytest.mark.parametrize(
    ("byte", "said"),
    [
        (255, "2 of 7,396 NaN or infinite"),
        (0, "2 of 7,396 0 where items are not"),
        (160, "values up to"),
    ],
)
def test_scales_that_cannot_be(
    copied: Callable[[str], Path], name: str, byte: int, said: str
) -> None:
    path = copied(name)
    plant(path, SCALES, 1, 100, byte)
    found = differing(verified(path))
    if name == "gguf, ds4":
        said = said.replace("2 of 7,396", "8 of 29,584")
    assert said in found["layer 1: scales"]
    assert set(found) - {"layer 1: values"} == {"layer 1: scales"}


def test_a_scale_of_nvfp4_that_is_no_number(copied: Callable[[str], Path]) -> None:
    path = copied("qwen-ple, nvfp4")
    plant(path, SCALES, 2, 700, 0x7F)
    found = differing(verified(path))
    assert found["layer 2: scales"].startswith("10 of 21,760 NaN")
    assert found["layer 2: values"] == "1 row is not finite, the first is row 700"


@pytest.mark.parametrize(
    ("scale", "said"), [(0.0, "0 where"), (np.nan, "NaN"), (-1.0, "below 0"), (1e4, "values up")]
)
def test_the_one_scale_of_a_layer(copied: Callable[[str], Path], scale: float, said: str) -> None:
    path = copied("qwen-ple, fp8")
    (file, place) = next(
        (t.file, t.place.begin)
        for name, t in find_artifact(path).open().folder.tensors.items()  # type: ignore[attr-defined]
        if name.endswith("weight_scale")
    )
    with file.open("r+b") as opened:
        opened.seek(place)
        opened.write(checkpoints.bfloat16(np.array([scale])).tobytes())
    assert said in differing(verified(path))["layer 2: scales"]


@pytest.mark.parametrize("full", [True, False])
def test_a_hole_in_a_file(copied: Callable[[str], Path], full: bool) -> None:
    for name, layer in (("deepseek-v4.1", 3), ("qwen-ple", 2), ("gguf, llama.cpp", 1)):
        path = copied(name)
        plant(path, ROWS, layer, 400, 0, rows=300)
        found = differing(verified(path, full=full))
        assert set(found) == {f"layer {layer}: zero rows"}
        if full:
            assert "300 rows are zero, rows 400 to 699" in found[f"layer {layer}: zero rows"]


def test_a_table_of_zeros(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None, sparse=True)
    found = differing(verified(made.path))
    assert found["layer 1: zero rows"] == "every row that was read is zero"


def test_single_zero_rows_are_no_hole(copied: Callable[[str], Path]) -> None:
    path = copied("deepseek-v4.1")
    for row in (5, 6, 900, 1500):
        plant(path, ROWS, 1, row, 0)
    result = verified(path)
    assert not differing(result)
    said = {check.name: check.found for check in result.checks}
    assert said["layer 1: zero rows"] == "4 rows are zero"


def test_values_that_were_cut_off(copied: Callable[[str], Path]) -> None:
    for name, layer in (("deepseek-v4.1", 1), ("qwen-ple, fp8", 2)):
        path = copied(name)
        plant(path, ROWS, layer, 0, 0x7E, rows=500)
        assert f"layer {layer}: items at the limit" in differing(verified(path))


def test_values_beyond_reason(copied: Callable[[str], Path]) -> None:
    path = copied("longcat")
    plant(path, ROWS, 0, 9, b"\x80\x47")  # 65,536 as bfloat16
    assert differing(verified(path)) == {"layer 0: sizes": "largest 6.554e+04"}


@pytest.mark.parametrize("full", [True, False])
def test_a_shard_that_was_uploaded_twice(copied: Callable[[str], Path], full: bool) -> None:
    path = copied("engramdb")
    shutil.copy(path / "shard_001.bin", path / "shard_003.bin")
    found = differing(verified(path, full=full))["repeated rows"]
    assert "shard 3 from row 1,632 (shard_003.bin) has" in found
    assert "shard 1 from row 544 (shard_001.bin)" in found


@pytest.mark.parametrize("full", [True, False])
def test_a_layer_that_has_the_rows_of_another(
    tmp_path: Path, small_vocab: CompressedVocab, full: bool
) -> None:
    made = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, None)
    height = len(made.rows[1])
    source = find_artifact(made.path).open()
    for part, values in ((ROWS, made.rows[1]), (SCALES, made.scales[1])):
        (span,) = source.spans(3, part)
        with span.file.open("r+b") as file:
            file.seek(span.begin)
            file.write(values[:height].tobytes())
    found = differing(verified(made.path, full=full))["repeated rows"]
    assert "layer 3 from row 0 (model-00002-of-00002.safetensors) has 64 rows" in found


def test_a_shard_of_another_height(tmp_path: Path) -> None:
    made = checkpoints.qwen_ple(tmp_path / "m", changes={"split_ngram_parts": 8})
    assert "layer 2: number of shards" in differing(verified(made.path))


@pytest.mark.parametrize("full", [True, False])
def test_a_shard_under_the_name_of_another(tmp_path: Path, full: bool) -> None:
    """The padding, which nothing trains, is at the end of another shard."""
    made = small_artifacts.store(tmp_path / "m")
    padding = len(made.rows) - sum(made.layout.layers[0].moduli)
    assert 0 < padding < 544
    name = "layer 2: order of the shards"

    def said() -> tuple[str, str]:
        found = {check.name: check for check in verified(made.path, full=full).checks}[name]
        return found.result, found.found

    assert said() == ("undecided", "nothing in the rows tells")
    rows = made.rows[-544:].copy()
    rows[-padding:] = 0
    (made.path / "shard_003.bin").write_bytes(rows.tobytes())
    assert said() == ("ok", f"{padding} zero rows at the end of shard 3")
    (made.path / "shard_003.bin").rename(made.path / "x")
    (made.path / "shard_002.bin").rename(made.path / "shard_003.bin")
    (made.path / "x").rename(made.path / "shard_002.bin")
    assert said() == ("differs", f"{padding} zero rows at the end of shard 2")


def test_what_was_read_is_said(sound: Callable[[str], Path]) -> None:
    result = verified(sound("deepseek-v4.1"), full=False, share=0.01)
    assert result.coverage is not None
    assert replace(result.coverage, read_bytes=0).rows_read == 2 * 688
    assert str(result.coverage) == (
        "1,376 of 10,636 rows, evenly spread: a fault in 1 % of a layer's rows is found with "
        "99.9 %, one in fewer rows may be missed; --full reads all"
    )
    for share in (0, -1, 0.6, float("nan")):
        with pytest.raises(InputError, match="--fault-share"):
            verified(sound("deepseek-v4.1"), full=False, share=share)


def test_the_result_is_plain_data(sound: Callable[[str], Path]) -> None:
    """Layers with their tensors, and checks, as --json prints them."""
    from dataclasses import asdict

    result = verified(sound("qwen-ple"))
    shown = json.loads(json.dumps(asdict(result), default=str))
    assert (shown["format"], shown["dialect"]) == ("qwen-ple", "4 shards")
    assert set(shown["checks"][0]) == {"name", "result", "found", "expected"}
    (layer,) = shown["layers"]
    assert (layer["layer"], layer["number"]) == (1, 2)
    assert layer["bytes_per_token"] == 16 * 320
