"""Adapters of engram-peft: their rows, their config, and a hash that is the package's own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from formats.small_artifacts import engram_peft
from formats.test_foreign import opened, results, same_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engram_cli import hash_tokens
from engram_cli.commands.lookup.command import LookupRequest, lookup
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.formats.engram_peft import FORMAT
from engram_cli.formats.model_folder import bare_map
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY, HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.lookup import VocabMap

# What engram-peft 1.2.7 gives: head-local rows, by position.
IDS = [5, 299, 17, 17, 7, 250, 0]
VECTORS = {
    1: [[125, 268, 544, 620, 322, 20], [125, 268, 573, 309, 264, 316],
        [348, 181, 763, 19, 675, 550], [27, 330, 719, 349, 371, 575],
        [364, 23, 37, 193, 705, 398], [388, 275, 493, 155, 395, 15],
        [182, 15, 456, 453, 512, 785]],
    3: [[42, 182, 696, 518, 90, 140], [42, 182, 657, 562, 655, 405], [95, 277, 247, 174, 773, 33],
        [404, 175, 491, 270, 539, 117], [98, 47, 517, 87, 290, 218], [103, 167, 383, 504, 322, 75],
        [143, 268, 462, 630, 40, 403]],
}  # fmt: skip


def local_rows(layout: HashLayout, ids: list[int], layer: int) -> np.ndarray:
    """Head-local rows [T, C]."""
    rows = hash_tokens(layout, ids, layer=layer).astype(np.int64)
    return rows - np.array(layout.layer(layer).offsets)


def package() -> ModuleType:
    """The package's hashing module, alone: the rest of it needs Python 3.12 and transformers."""
    found = importlib.util.find_spec("engram_peft")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("engram-peft is not installed")
    place = Path(found.submodule_search_locations[0]) / "hashing.py"
    spec = importlib.util.spec_from_file_location("engram_peft_hashing", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_vectors_of_the_package() -> None:
    layout = hash_layout("engram-peft", bare_map(300), orders=(2, 3, 4), heads=2,
                         rows_per_head=(400, 800, 800), layers=(3, 1), pad_id=7,
                         seed=5)  # fmt: skip
    assert layout.layer_ids == (1, 3)
    assert layout.layer(1).moduli == (401, 409, 809, 811, 821, 823)
    for layer, rows in VECTORS.items():
        assert local_rows(layout, IDS, layer).tolist() == rows
    first = hash_layout("engram-peft", bare_map(97812), pad_id=2)
    assert first.layer(14).moduli[0] == 141619
    expected = [36067, 136795, 131396, 77904, 62803, 134503, 41360, 135205]
    assert local_rows(first, [5], 1)[0, :8].tolist() == expected


@pytest.mark.parametrize("orders", [(2, 3), (2, 4, 5), (3,)])
def test_the_installed_package(orders: tuple[int, ...]) -> None:
    random = np.random.default_rng(len(orders))
    mapping = package().NgramHashMapping(
        compressed_vocab_size=997, engram_vocab_size_per_ngram=[4000] * len(orders),
        ngram_sizes=list(orders), n_head_per_ngram=4, layer_ids=[7, 2], pad_id=3, seed=11,
    )  # fmt: skip
    layout = hash_layout("engram-peft", bare_map(997), orders=orders, heads=4, rows_per_head=1000,
                         layers=(7, 2), pad_id=3, seed=11)  # fmt: skip
    ids = random.integers(0, 997, 400)
    theirs = mapping.hash(ids[None])
    for layer in (2, 7):
        assert np.array_equal(local_rows(layout, ids.tolist(), layer), theirs[layer][0])


def test_the_base_vocabulary_of_deepseek(
    tmp_path: Path, deepseek_vocab: CompressedVocab, deepseek_tokenizer_file: Path
) -> None:
    """The package says 97,812; ids beyond the base are hashed as they are."""
    base = deepseek_vocab.lookup[:128000]
    vocab = VocabMap(lookup=base, size=int(base.max()) + 1)
    assert vocab.size == 97812
    written = engram_peft(tmp_path / "m", vocab, pad_id=2)
    source = opened(written.path, "engram-peft", deepseek_tokenizer_file)
    assert not results(source, "differs")
    assert [e.multipliers for e in source.layout.layers] == [
        e.multipliers for e in written.layout.layers
    ]
    assert source.layout.lookup is not None
    assert source.layout.lookup[128000:].tolist() == list(range(128000, 129280))


def test_an_adapter(tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path) -> None:
    written = engram_peft(tmp_path / "m", small_vocab)
    bare = opened(written.path, "engram-peft")
    assert bare.layout.vocab_digest == UNKNOWN_VOCABULARY
    assert not results(bare, "differs")
    assert set(results(bare, "undecided")) == {"compressed size", "multipliers", "pad token"}
    same_rows(bare, written, "float32")
    assert verify(VerifyRequest(path=written.path, folder=tmp_path)).ok


def test_a_text(tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path) -> None:
    """With the tokenizer: its base is compressed, and a text is looked up."""
    base = Tokenizer.from_file(str(tokenizer_file)).get_vocab_size(with_added_tokens=False)
    assert base < len(small_vocab.lookup)
    own = small_vocab.lookup[:base]
    vocab = VocabMap(lookup=own, size=int(own.max()) + 1)
    written = engram_peft(tmp_path / "m", vocab, changes={"pad_id": base})  # beyond the base
    source = opened(written.path, "engram-peft", tokenizer_file)
    assert not results(source, "differs")
    assert source.layout.filler_id == base
    request = LookupRequest(
        path=written.path, text="an Apple", folder=tmp_path, tokenizer=tokenizer_file
    )
    assert lookup(request).layer == 1


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"engram_vocab_size_per_ngram": [97 * 8, 223 * 8]}, "layer 1: rows of each head"),
        ({"embedding_dim": 256}, "layer 14: module"),
        ({"target_layers": [1, 14, 20]}, "layers"),
        ({"hc_mult": 3}, "layer 1: module"),
    ],
)
def test_a_config_that_does_not_fit(
    tmp_path: Path, small_vocab: CompressedVocab, changes: dict[str, Any], check: str
) -> None:
    source = opened(engram_peft(tmp_path / "m", small_vocab, changes=changes).path, "engram-peft")
    assert check in "; ".join(results(source, "differs"))


def test_another_engine_is_undecided(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    changes = {"engine": "qwen_ple", "table_spec": "PLE_QWEN_V1"}
    written = engram_peft(tmp_path / "m", small_vocab, changes=changes)
    source = opened(written.path, "engram-peft")
    assert "hash" in results(source, "undecided")
    assert np.array_equal(source.vectors(14, [3]), written.rows[14][[3]])


def test_without_compression_ids_are_hashed_as_they_are(tmp_path: Path) -> None:
    changes = {"enable_tokenizer_compression": False}
    written = engram_peft(tmp_path / "m", bare_map(300), pad_id=7, changes=changes)
    source = opened(written.path, "engram-peft")
    assert source.layout.fingerprint == written.layout.fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"pad_id": None}, {"n_head_per_ngram": 0}, {"ngram_sizes": [3, 2]}, {"ngram_sizes": 3},
     {"target_layers": [2**40]}, {"compressed_vocab_size": 2**60}, {"seed": -1}, {"hc_mult": "x"}],
)  # fmt: skip
def test_values_that_cannot_be(
    tmp_path: Path, small_vocab: CompressedVocab, changes: dict[str, Any]
) -> None:
    written = engram_peft(tmp_path / "m", small_vocab, changes=changes)
    with pytest.raises((ArtifactError, InputError)):
        opened(written.path, "engram-peft")


def test_a_pickled_adapter(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    written = engram_peft(tmp_path / "m", small_vocab)
    (written.path / "engram_adapters.safetensors").rename(written.path / "engram_weights.pt")
    with pytest.raises(InputError, match="has no engram_adapters"):
        opened(written.path, "engram-peft")


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_our_own_errors(
    tmp_path: Path, small_vocab: CompressedVocab, data: st.DataObject
) -> None:
    written = engram_peft(tmp_path / "m", small_vocab)
    path, config = written.path, json.loads((written.path / "config.json").read_text())
    wrong = st.sampled_from([None, -1, 0, 1, 2**63, "x", [], [5], {}, 1.5, True])
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(wrong)
    (path / "config.json").write_text(json.dumps(config))
    file = path / "engram_adapters.safetensors"
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, 3000))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    with contextlib.suppress(EngramError):
        source = FORMAT.open(path, None)
        for layer in source.layers:
            source.vectors(layer, [0, 1])
