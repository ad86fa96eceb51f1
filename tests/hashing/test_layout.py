"""Layouts: what is refused, what travels, what the fingerprint sees."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hashing.layouts import layouts
from hypothesis import given

from engram_cli import hash_layout, hash_tokens
from engram_cli.errors import ArtifactError, InputError, LayoutError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.vocab.compress import CompressedVocab


@given(layouts())
def test_json_round_trip(layout: HashLayout) -> None:
    text = json.dumps(layout.to_json())
    again = HashLayout.from_json(json.loads(text))
    assert again == layout
    assert again.fingerprint == layout.fingerprint
    # Every integer a JSON reader may round stands as a string.
    assert all(abs(n) < 2**53 for n in _numbers(json.loads(text)))


def _numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [n for entry in value for n in _numbers(entry)]
    return [value] if isinstance(value, int) else []


def test_the_vocabulary_travels_by_digest(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=100, layers=(0,))
    stored = layout.to_json()
    alone = HashLayout.from_json(stored)
    with pytest.raises(LayoutError, match="no vocabulary map"):
        hash_tokens(alone, [1])
    bound = HashLayout.from_json(stored, small_vocab.lookup)
    assert np.array_equal(hash_tokens(bound, [1, 2]), hash_tokens(layout, [1, 2]))
    other = small_vocab.lookup.copy()
    other[[0, 1]] = other[[1, 0]]
    with pytest.raises(MismatchError, match="was made for vocabulary"):
        alone.bind(other)


def test_the_fingerprint_sees_all_that_decides_rows(small_vocab: CompressedVocab) -> None:
    base = hash_layout("engram-v1", small_vocab, rows_per_head=1000, layers=(1, 2))
    layer = base.layers[0]
    others = [
        replace(base, filler_id=base.filler_id + 1),
        replace(base, eos_id=0),
        replace(base, fold="oldest-first"),
        replace(base, vocab_digest=None, lookup=None),
        replace(base, layers=base.layers[:1]),
        replace(base, layers=(replace(layer, rows=layer.rows + 1), base.layers[1])),
        replace(base, layers=(replace(layer, layer=9), base.layers[1])),
        hash_layout("engram-v1", small_vocab, rows_per_head=1000, layers=(1, 2), seed=1),
        hash_layout("engram-v1", small_vocab, rows_per_head=1000, layers=(2, 1)),
        hash_layout("engram-v1", small_vocab, rows_per_head=(1000, 1100), layers=(1, 2)),
    ]
    prints = {layout.fingerprint for layout in [base, *others]}
    assert len(prints) == len(others) + 1
    assert replace(base, scheme="renamed", parameters={}).fingerprint == base.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"orders": (3, 2)},
        {"orders": (2, 2)},
        {"orders": ()},
        {"orders": (0, 2)},
        {"orders": (2, 17)},
        {"heads": 0},
        {"heads": 1000},
        {"rows_per_head": 0},
        {"rows_per_head": 2**33},
        {"rows_per_head": (100, 200, 300)},
        {"layers": ()},
        {"layers": (1, 1)},
        {"layers": (-1,)},
        {"pad_id": 10**9},
        {"pad_id": -1},
        {"seed": -1},
        {"heads": 10**9},
        {"heads": 1.5},
        {"orders": (2, "3")},
        {"rows_per_head": "55"},
        {"rows_per_head": 1e6},
    ],
)
def test_geometries_that_cannot_be(change: dict, small_vocab: CompressedVocab) -> None:
    with pytest.raises(LayoutError) as caught:
        hash_layout("engram-v1", small_vocab, **({"rows_per_head": 100} | change))
    assert caught.value.hint


def test_one_integer_stands_for_a_list_of_one(small_vocab: CompressedVocab) -> None:
    one = hash_layout("engram-v1", small_vocab, orders=2, layers=1, rows_per_head=100)
    assert one == hash_layout("engram-v1", small_vocab, orders=[2], layers=[1], rows_per_head=100)


def test_what_is_no_vocabulary(small_vocab: CompressedVocab) -> None:
    with pytest.raises(InputError, match="vocab is a str"):
        hash_layout("engram-v1", "tokenizer.json")


def test_unknown_schemes_and_parameters(small_vocab: CompressedVocab) -> None:
    with pytest.raises(InputError, match="unknown scheme 'engram-v2'") as caught:
        hash_layout("engram-v2", small_vocab)
    assert "deepseek-v4.1" in caught.value.hint
    with pytest.raises(InputError, match="tables"):
        hash_layout("engram-v1", small_vocab, tables=3)
    with pytest.raises(InputError, match="vocab"):
        hash_layout("engram-v1")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"version": "1"},
        {"orders": "23"},
        {"heads": -8},
        {"fold": "sideways"},
        {"filler_id": 10**9},
        {"layers": []},
        {"layers": [{"layer": 1}]},
        {"compressed_size": 0},
        {"parameters": 5},
    ],
)
def test_stored_layouts_are_not_trusted(change: dict, small_vocab: CompressedVocab) -> None:
    stored = hash_layout("engram-v1", small_vocab, rows_per_head=100).to_json()
    with pytest.raises(ArtifactError):
        HashLayout.from_json(stored | change)


@pytest.mark.parametrize("value", [None, [], 5, {"version": 1}])
def test_what_is_no_layout(value: object) -> None:
    with pytest.raises(ArtifactError):
        HashLayout.from_json(value)


def test_multipliers_and_moduli_of_a_stored_layout_are_checked(
    small_vocab: CompressedVocab,
) -> None:
    stored = hash_layout("engram-v1", small_vocab, rows_per_head=100, layers=(0,)).to_json()
    for name, value in (
        ("multipliers", ["1"]),
        ("multipliers", [str(2**63), "1", "1"]),
        ("moduli", [100] * 3),
        ("moduli", [1, *stored["layers"][0]["moduli"][1:]]),
        ("rows", 5),
        ("rows", 2**62),
    ):
        changed = [stored["layers"][0] | {name: value}]
        with pytest.raises(ArtifactError):
            HashLayout.from_json(stored | {"layers": changed})
