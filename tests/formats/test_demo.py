"""State dicts of the paper's demo: recognised by their tensors, checked against the scheme."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from formats import small_artifacts
from formats.test_foreign import opened, results, same_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_cli import hash_tokens
from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.formats.demo import FORMAT
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY
from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("sizes", "orders"), [((97, 211), (2, 3)), (97, (2, 3)), ((97, 400, 900), (2, 3, 4))]
)
def test_a_state_dict(
    tmp_path: Path,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    dtype: str,
    sizes: int | Sequence[int],
    orders: Sequence[int],
) -> None:
    written = small_artifacts.demo(
        tmp_path / "m", small_vocab, dtype=dtype, rows_per_head=sizes, orders=orders
    )
    for path in (written.path, written.path / "model.safetensors"):
        source = opened(path, "demo", tokenizer_file)
        assert source.layout.fingerprint == written.layout.fingerprint
        assert source.layers == (1, 15)
        assert not results(source, "differs")
        assert set(results(source, "undecided")) == {"orders and heads", "multipliers"}
        same_rows(source, written, dtype)
    shutil.copy(tokenizer_file, written.path / "tokenizer.json")
    assert opened(written.path, "demo").layout.fingerprint == written.layout.fingerprint


def test_without_a_tokenizer_no_token_is_hashed(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    source = opened(small_artifacts.demo(tmp_path / "m", small_vocab).path, "demo")
    assert source.layout.vocab_digest == UNKNOWN_VOCABULARY
    assert not any(source.layout.layers[0].multipliers)
    assert "ids" not in dict(FORMAT.facts(source))
    with pytest.raises(EngramError):
        hash_tokens(source.layout, [1, 2, 3], layer=1)


def test_without_a_layers_number_no_token_is_hashed(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    written = small_artifacts.demo(tmp_path / "m", small_vocab, layers=(1,), prefix="engram.")
    source = opened(written.path, "demo", tokenizer_file)
    assert source.layers == (0,)
    assert source.layout.vocab_digest == UNKNOWN_VOCABULARY
    assert "decoder layer" in results(source, "undecided")
    assert np.array_equal(source.vectors(0, [0, 5]), written.rows[1][[0, 5]])


def test_other_heads_and_modules_differ(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    written = small_artifacts.demo(tmp_path / "m", small_vocab, leave_out="norm2.1.weight")
    assert "norm2.1.weight missing" in str(results(opened(written.path, "demo"), "differs"))
    raw = (written.path / "model.safetensors").read_bytes()
    offsets = np.array(written.layout.layers[1].offsets)
    at = raw.index(offsets.astype("<i8").tobytes())
    offsets[1:] -= 2
    raw = raw[:at] + offsets.astype("<i8").tobytes() + raw[at + offsets.nbytes :]
    (written.path / "model.safetensors").write_bytes(raw)
    source = opened(written.path, "demo")
    assert "layer 15: rows of each head" in results(source, "differs")
    assert source.layout.layers[1].offsets == tuple(offsets)


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ArtifactError, match="is a damaged archive"):
        opened(path, "demo")
    path.write_bytes(b"\x80\x02}.")
    with pytest.raises(InputError, match=r"pickled as torch did before 1\.6"):
        opened(path, "demo")


def test_two_memories_of_one_layer(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    written = small_artifacts.demo(tmp_path / "m", small_vocab, prefix="{}.x.3.")
    with pytest.raises(InputError, match="both are layer 3"):
        opened(written.path, "demo")


def test_without_rows(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    written = small_artifacts.demo(tmp_path / "m", small_vocab, leave_out="embedding.weight")
    with pytest.raises(ArtifactError, match="lacks the rows"):
        opened(written.path, "demo")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_our_own_errors(
    tmp_path: Path, small_vocab: CompressedVocab, data: st.DataObject
) -> None:
    path = small_artifacts.demo(tmp_path / "m", small_vocab).path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    header = int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, header + 8))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    with contextlib.suppress(EngramError):
        source = FORMAT.open(path, None)
        for layer in source.layers:
            source.vectors(layer, [0, 1])
