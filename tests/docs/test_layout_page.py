"""docs/reference/layout-format.md suffices to check a fingerprint and to find rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs.blocks import ROOT, blocks_of

from engram_cli import BuildTableRequest, CompressedVocab, HashLayout, build_table, write_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.hashing.layout import FOLDS
from engram_cli.hashing.schemes import hash_layout

PAGE = ROOT / "docs" / "reference" / "layout-format.md"


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """The names that the page's Python defines; it imports nothing of engram."""
    code = "\n".join(each.text for each in blocks_of(PAGE) if each.language == "python")
    assert "engram_cli" not in code
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def layouts(vocab: CompressedVocab) -> dict[str, HashLayout]:
    """A small layout of every scheme whose hash the page describes."""
    raw = {"vocab_size": 300, "eos_id": 7}
    return {
        "engram-v1": hash_layout("engram-v1", vocab, rows_per_head=97, layers=(1, 2)),
        "deepseek-v4.1": hash_layout("deepseek-v4.1", vocab, rows_per_head=97, layers=(1, 3)),
        "qwen-ple": hash_layout("qwen-ple", **raw, rows_per_head=97, layers=(2, 5)),
        "longcat": hash_layout("longcat", **raw, rows_per_head=97),
        "engram-peft": hash_layout("engram-peft", vocab, rows_per_head=97, layers=(2, 14)),
        "tutorial": hash_layout("tutorial", vocab_size=300, rows_per_head=97),
    }


@pytest.mark.parametrize("scheme", ["engram-v1", "deepseek-v4.1", "qwen-ple", "longcat",
                                    "engram-peft", "tutorial"])  # fmt: skip
def test_the_pages_rules_give_every_schemes_fingerprint_and_rows(
    page: dict[str, Any], small_vocab: CompressedVocab, scheme: str
) -> None:
    layout = layouts(small_vocab)[scheme]
    stored = json.loads(json.dumps(layout.to_json()))
    assert page["fingerprint"](stored) == layout.fingerprint
    random = np.random.default_rng(3)
    ids = random.integers(0, layout.vocab_size, 40)
    ids[[5, 6, 20]] = 7  # an EOS for the schemes that have one
    for entry in stored["layers"]:
        compressed = ids if layout.lookup is None else layout.lookup[ids]
        expected = hash_tokens(layout, ids[None], layer=entry["layer"])[0]
        found = page["rows_of"](stored, entry, [int(each) for each in compressed])
        assert found == expected.tolist()


def test_every_fold_is_among_those_schemes(small_vocab: CompressedVocab) -> None:
    assert {each.fold for each in layouts(small_vocab).values()} == set(FOLDS)


def test_the_keys_and_the_test_vector_are_those_of_the_page(page: dict[str, Any]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    vector = json.loads(next(each.text for each in blocks_of(PAGE) if each.language == "json"))
    assert f"`{page['fingerprint'](vector)}`" in text
    assert HashLayout.from_json(vector).fingerprint == page["fingerprint"](vector)
    for key in (*vector, *vector["layers"][0]):
        assert f"| `{key}` | " in text


def test_the_fingerprint_of_a_table_on_the_disk(
    page: dict[str, Any], small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    write_vocab(small_vocab, tmp_path / "vocab.parquet")
    request = BuildTableRequest(
        geometry=Geometry(rows_per_head=(97,), layers=(1,)),
        dim=4,
        vocab=tmp_path / "vocab.parquet",
        stats=tmp_path / "none",
        out=tmp_path / "table.zarr",
    )
    build_table(request)
    stored = json.loads((tmp_path / "table.zarr" / "zarr.json").read_text())["attributes"]
    assert page["fingerprint"](stored["layout"]) == stored["fingerprint"]
