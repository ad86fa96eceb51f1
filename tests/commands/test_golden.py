"""Golden vectors: what is written, and the fault that is found in those of a port."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.golden_port import port_case
from formats import checkpoints

from engram_cli import HashLayout, hash_layout
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.golden.cases import Case, decimal, document_of, make_cases
from engram_cli.commands.golden.command import GoldenCheck, check_golden, golden
from engram_cli.commands.requests.reading import GoldenRequest
from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.rows import DTYPES
from engram_cli.rows.gather import FileRows
from engram_cli.vocab.compress import CompressedVocab

QWEN = Geometry(
    scheme="qwen-ple", vocab_size=500, eos_id=7, heads=2, rows_per_head=(401,), layers=(2, 5)
)


def layout_of(scheme: str, vocab: CompressedVocab) -> HashLayout:
    """A small layout; the pad id of those with a vocabulary is one that compressing changes."""
    if scheme == "qwen-ple":
        return hash_layout(
            scheme, vocab_size=500, eos_id=7, heads=2, rows_per_head=401, layers=(2, 5)
        )
    if scheme == "longcat":
        return hash_layout(scheme, vocab_size=500, eos_id=7, rows_per_head=401)
    if scheme == "tutorial":
        return hash_layout(scheme, vocab_size=500)
    pad = next(t for t, own in enumerate(vocab.lookup.tolist()) if own not in (t, t - 1, -1))
    return hash_layout(scheme, vocab, heads=2, rows_per_head=401, layers=(1, 3), pad_id=pad)


def source_of(layout: HashLayout) -> FileRows:
    return FileRows(format="vocabulary", path=Path("v"), layout=layout, layers=layout.layer_ids)


class Checked:
    """Golden vectors of a layout, and a check of changed ones."""

    def __init__(self, layout: HashLayout, folder: Path) -> None:
        self.layout, self.source = layout, source_of(layout)
        self.cases: tuple[Case, ...] = make_cases(layout, None)
        self.document: dict[str, Any] = document_of(self.source, self.cases)
        self._path = folder / "theirs.json"

    @property
    def lookup(self) -> list[int]:
        lookup = self.layout.lookup
        return list(range(self.layout.vocab_size)) if lookup is None else lookup.tolist()

    def port(self, *faults: str) -> dict[str, Any]:
        """What a port with these faults would write: names, ids, masks and rows."""
        made = json.loads(json.dumps(self.document))
        for case in made["cases"]:
            del case["compressed"], case["why"]
            for layer in case["rows"]:
                own = port_case(made["layout"], self.lookup, case, int(layer), frozenset(faults))
                case["rows"][layer] = own
        del made["layout"], made["values"], made["rows"]
        return made

    def check(self, document: Any) -> GoldenCheck:
        self._path.write_text(json.dumps(document))
        return check_golden(self.source, self.cases, self._path)


@pytest.fixture
def checked(tmp_path: Path, small_vocab: CompressedVocab) -> Callable[[str], Checked]:
    return lambda scheme: Checked(layout_of(scheme, small_vocab), tmp_path)


SCHEMES = ["engram-v1", "deepseek-v4.1", "qwen-ple", "longcat", "tutorial"]
FAULTS = [
    ("deepseek-v4.1", "raw ids", "vocabulary map", "if raw ids are hashed, not compressed ones"),
    ("engram-v1", "pad 0", "pad id", "if the pad id is 0"),
    ("deepseek-v4.1", "oldest first", "window", "if the window is read oldest first"),
    ("qwen-ple", "oldest first", "window", "if the window is read oldest first"),
    ("longcat", "oldest first", "window", "if the window is read oldest first"),
    ("tutorial", "oldest first", "window", "if the window is read newest first"),
    ("engram-v1", "further back", "window", "if n-grams look one token further back"),
    ("longcat", "further back", "window", "if n-grams look one token further back"),
    ("engram-v1", "shorter", "window", "if every n-gram is one token shorter"),
    ("qwen-ple", "no EOS", "window", "if EOS does not end n-grams"),
    ("longcat", "no EOS", "window", "if EOS does not end n-grams"),
    ("engram-v1", "pad ends", "window", "if the pad token inside a text ends n-grams"),
    ("deepseek-v4.1", "dead", "window", "if dead tokens are hashed like any other"),
    ("deepseek-v4.1", "dead alone", "window",
     "if a dead token blocks itself but not what is older"),
    ("qwen-ple", "padding", "window", "if n-grams reach into the padding in front"),
    ("engram-v1", "moduli per order", "moduli", "if every order has the moduli of the first one"),
    ("deepseek-v4.1", "head rows", "offsets", "if rows are counted within a head"),
    ("tutorial", "head rows", "offsets", "if rows are counted within a head"),
    ("qwen-ple", "order offsets", "offsets", "if rows are counted within an order"),
    ("deepseek-v4.1", "last", "multipliers", "if a short n-gram takes the last multipliers"),
    ("qwen-ple", "32 bits", "multipliers", "if products are cut to 32 bits"),
    ("engram-v1", "other layer", "multipliers", "with the layers' multipliers in reverse order"),
]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_our_own_file_and_a_right_port_are_equal(checked: Any, scheme: str) -> None:
    ours = checked(scheme)
    for document in (ours.document, ours.port()):
        found = ours.check(document)
        assert found.equal
        assert found.first is None
        assert not found.explanations
        assert found.rows == found.rows_equal > 0


@pytest.mark.parametrize(("scheme", "fault", "step", "text"), FAULTS)
def test_a_fault_is_named(checked: Any, scheme: str, fault: str, step: str, text: str) -> None:
    ours = checked(scheme)
    found = ours.check(ours.port(fault))
    assert not found.equal
    assert found.rows_equal < found.rows
    assert found.first == step
    assert found.explanations[0] == f"equal {text}"


def test_one_layer_with_the_multipliers_of_another(checked: Any) -> None:
    ours = checked("deepseek-v4.1")
    for fault, step in (("other layer", "multipliers"), ("other moduli", "moduli")):
        document = ours.port(fault)
        for case in document["cases"]:
            del case["rows"]["3"]
        found = ours.check(document)
        assert found.first == step
        assert found.explanations == (f"equal with the {step} of layer 3",)


@pytest.mark.parametrize(
    ("scheme", "draw", "text"),
    [
        ("engram-v1", lambda layout, layer: numpy_draw(layout.compressed_size, layer + 1),
         "with layer numbers + 1 as seeds of multipliers"),
        ("engram-v1", lambda layout, layer: numpy_draw(layout.compressed_size, layer - 1),
         "with layer numbers - 1 as seeds of multipliers"),
        ("engram-v1", lambda layout, layer: numpy_draw(layout.vocab_size, layer),
         "with multipliers drawn for "),
        ("engram-v1", lambda layout, layer: numpy_draw(layout.compressed_size, 0),
         "with the seed alone"),
    ],
)  # fmt: skip
def test_multipliers_that_were_drawn_otherwise(
    checked: Any, scheme: str, draw: Callable[[HashLayout, int], list[int]], text: str
) -> None:
    ours = checked(scheme)
    document = json.loads(json.dumps(ours.document))
    for entry in document["layout"]["layers"]:
        entry["multipliers"] = draw(ours.layout, entry["layer"])
    for case in document["cases"]:
        for layer in case["rows"]:
            case["rows"][layer] = port_case(
                document["layout"], ours.lookup, case, int(layer), frozenset()
            )
    del document["layout"]
    found = ours.check(document)
    assert found.first == "multipliers"
    assert found.explanations[0].startswith(f"equal {text}")


def numpy_draw(size: int, layer: int) -> list[int]:
    """The multipliers of engram-v1 with seed 0, as published."""
    random = np.random.default_rng(10007 * layer)
    return [2 * int(r) + 1 for r in random.integers(0, (2**63 - 1) // size // 2, size=3)]


@pytest.mark.parametrize(
    ("faults", "step", "texts"),
    [
        (("oldest first", "head rows"), "window", ("read oldest first", "within a head")),
        (("raw ids", "head rows"), "vocabulary map", ("raw ids", "within a head")),
        (("dead", "padding"), "window", ("dead tokens are hashed", "padding")),
    ],
)
def test_two_faults_are_named(
    checked: Any, faults: tuple[str, ...], step: str, texts: tuple[str, ...]
) -> None:
    ours = checked("deepseek-v4.1")
    found = ours.check(ours.port(*faults))
    assert found.first == step
    assert all(text in found.explanations[0] for text in texts)


def test_a_map_that_is_not_ours(checked: Any) -> None:
    """The file's compressed ids tell a wrong map from a wrong hash."""
    ours = checked("engram-v1")
    document = json.loads(json.dumps(ours.document))
    lookup = [max(0, own - 1) for own in ours.lookup]
    for case in document["cases"]:
        case["compressed"] = [lookup[token] for token in case["ids"]]
        for layer in case["rows"]:
            case["rows"][layer] = port_case(
                document["layout"], lookup, case, int(layer), frozenset()
            )
    found = ours.check(document)
    assert found.first == "vocabulary map"
    assert found.explanations == ("equal with their compressed ids",)
    assert found.steps[0].found.startswith("token ")


def test_a_fault_that_nobody_knows(checked: Any) -> None:
    """The closest fault is named, and how far it goes."""
    ours = checked("engram-v1")
    document = ours.port("oldest first")
    document["cases"][0]["rows"]["1"][2][3] += 1
    found = ours.check(document)
    assert found.explanations == ()
    assert found.first == "rows"
    assert found.closest == "if the window is read oldest first"
    assert found.closest_equal == found.rows - 1


def test_what_their_layout_says_is_compared(checked: Any) -> None:
    ours = checked("engram-v1")
    document = json.loads(json.dumps(ours.document))
    document["layout"]["layers"][1]["multipliers"][0] = "3"
    document["layout"]["filler_id"] = 0
    found = ours.check(document)
    steps = {step.name: step for step in found.steps}
    assert found.first == "pad id"
    assert steps["multipliers"].found == "layer 3: [0] 3"
    assert steps["moduli"].result == steps["rows"].result == "equal"


def test_a_case_of_their_own(checked: Any) -> None:
    ours = checked("qwen-ple")
    case = {"name": "mine", "ids": [1, 7, 7, 2, 499]}
    rows = port_case(ours.document["layout"], ours.lookup, case, 5, frozenset({"no EOS"}))
    found = ours.check({"cases": [case | {"rows": {"5": rows}}]})
    assert found.explanations[0] == "equal if EOS does not end n-grams"


@pytest.mark.parametrize(
    ("preset", "layer", "multipliers"),
    [
        ("engram-v1-demo", 15, ["28919099099511", "56020370062535", "53929037264533"]),
        (
            "deepseek-v4.1",
            14,
            ["67716810739261", "51510806800915", "30921347202721", "82619226485591"],
        ),
    ],
)
def test_the_vectors_of_the_specification(
    preset: str, layer: int, multipliers: list[str], tmp_path: Path
) -> None:
    """docs/reference/schemes.md: multipliers, and the rows of the sentence's first position."""
    out = tmp_path / "golden.json"
    golden(GoldenRequest(preset=preset, out=out, folder=tmp_path))
    document = json.loads(out.read_bytes())
    first, second = document["layout"]["layers"]
    assert second["layer"] == layer
    assert second["multipliers"] == multipliers
    assert document["layout"]["compressed_size"] == 99_092
    if preset == "engram-v1-demo":
        sentence = document["cases"][-1]
        assert sentence["name"] == "sentence"
        assert (np.array(sentence["rows"]["1"][0]) - first["offsets"]).tolist() == [
            *(417228, 479277, 11032, 383138, 46642, 17954, 102944, 15908),
            *(1336, 311707, 83314, 17558, 239192, 502156, 402774, 357036),
        ]


def test_a_preset_of_raw_ids(tmp_path: Path) -> None:
    out = tmp_path / "golden.json"
    result = golden(GoldenRequest(preset="qwen-ple", out=out, folder=tmp_path))
    layout = json.loads(out.read_bytes())["layout"]["layers"][0]
    assert layout["multipliers"] == ["23703573157769", "20109073645365", "8052911324071"]
    assert layout["moduli"][:3] == [20000003, 20000023, 20000033]
    assert layout["rows"] == 320001536
    assert "EOS inside" in result.cases
    assert "sentence" not in result.cases
    first = out.read_bytes()
    golden(GoldenRequest(preset="qwen-ple", out=out, folder=tmp_path, force=True))
    assert out.read_bytes() == first
    out.write_text("{}")
    with pytest.raises(OutputError, match="golden vectors"):
        golden(GoldenRequest(preset="qwen-ple", out=out, folder=tmp_path, force=True))


def test_a_checkpoint_of_another_program(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    written = checkpoints.deepseek_v41(tmp_path / "m", small_vocab, tokenizer_file)
    out = tmp_path / "golden.json"
    result = golden(GoldenRequest(path=written.path, out=out))
    assert result.cases[-1] == "sentence"
    document = json.loads(out.read_bytes())
    assert {each["layer"] for each in document["values"]} == {1, 3}
    for each in document["values"]:
        stored = np.frombuffer(bytearray.fromhex(each["stored"]), dtype=np.uint8)
        scales = np.frombuffer(bytearray.fromhex(each["scales"]), dtype=np.uint8)
        assert np.array_equal(stored, written.rows[each["layer"]][each["row"]])
        assert np.array_equal(scales, written.scales[each["layer"]][each["row"]])
        values = np.empty((1, len(stored)), dtype=np.float32)
        DTYPES.load("fp8_e8m0").decode(stored[None], scales[None], values)
        assert each["values"] == [decimal(value) for value in values[0]]
        each["values"] = [None if value is None else value / 2 for value in each["values"]]
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps(document))
    check = golden(GoldenRequest(path=written.path, check=theirs)).check
    assert check is not None
    assert check.first == "dequantisation"
    assert check.explanations[0] == "equal if the exponent bias of the scale is 128"
    assert golden(GoldenRequest(path=written.path, check=out)).check.equal  # type: ignore[union-attr]
    (written.path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        golden(GoldenRequest(path=written.path, out=tmp_path / "o.json", folder=tmp_path))


def rounded(values: np.ndarray) -> np.ndarray:
    """Round float32 to bfloat16, by float arithmetic: half of the neighbours' distance away."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(np.float32)


def test_a_table_and_a_gguf_file(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    """What is written for an artifact checks as equal, whatever it is."""
    table = tmp_path / "t.zarr"
    build_table(BuildTableRequest(geometry=QWEN, out=table, dim=8, dtype="int8", init="normal"))
    gguf = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "ds4").path
    for path in (table, gguf):
        out = tmp_path / f"{path.name}.json"
        golden(GoldenRequest(path=path, out=out, folder=tmp_path))
        check = golden(GoldenRequest(path=path, check=out, folder=tmp_path)).check
        assert check is not None
        assert check.equal
        assert check.values == check.values_equal > 0


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cases": [{"name": "x", "ids": [500]}]}, r"cases\[0\]\.ids holds 500"),
        ({"cases": [{"name": "x"}]}, "'x' has no ids"),
        ({"cases": [{"name": "x", "ids": [1], "rows": {"9": []}}]}, "names layer 9"),
        ({"cases": [{"name": "x", "ids": [1], "rows": {"2": [[1]]}}]}, "1 entries, not 4"),
        ({"cases": [{"name": "x", "ids": [1], "compressed": []}]}, "0 entries, not 1"),
        ({"cases": [{"name": "x", "ids": [1] * 16385}]}, "at most 16,384"),
        ({"cases": [{"name": "x", "ids": [1] * 9000}] * 2}, "more than 16,384 tokens"),
        ({"cases": []}, "no cases"),
        ({"cases": [{"name": "x", "ids": [1]}] * 2}, "a case twice"),
        ({"version": 2, "cases": []}, "newer than 1"),
    ],
)
def test_a_wrong_file_is_refused(checked: Any, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ArtifactError, match=match):
        checked("qwen-ple").check(change)


def test_a_request_that_says_too_little() -> None:
    with pytest.raises(InputError, match="--out or --check"):
        GoldenRequest(preset="qwen-ple")
    with pytest.raises(InputError, match="nothing to make vectors of"):
        GoldenRequest(out=Path("golden.json"))
