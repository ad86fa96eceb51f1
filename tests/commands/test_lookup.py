"""lookup says of each token and head what hashing, the table and the sample say one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.made import GEOMETRY, Made
from small_tokenizers import PROSE

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.lookup.command import LookupRequest, LookupResult, lookup
from engram_cli.errors import InputError, MismatchError, OutputError, TokenIdError
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.store import open_table
from engram_cli.vocab.tokenizer import load_tokenizer

TEXT = "An apple, an Apple fell"


def looked(path: Path, **options: Any) -> LookupResult:
    return lookup(LookupRequest(path=path, **options))


def rows_of(result: LookupResult) -> list[list[int]]:
    return [[h.table_row for o in token.orders for h in o.heads] for token in result.tokens]


@pytest.mark.parametrize("layer", [1, 2])
def test_rows_hits_and_norms_are_those_of_the_table(made_once: Made, layer: int) -> None:
    result = looked(made_once.table, text=TEXT, layer=layer)
    table = open_table(made_once.table)
    ids = load_tokenizer(made_once.folder / "tokenizer.json").encode(TEXT)
    rows = hash_tokens(table.layout, ids, layer)
    assert rows_of(result) == rows.tolist()
    assert [t.token_id for t in result.tokens] == ids
    lookup_map = table.layout.lookup
    assert lookup_map is not None
    assert [t.compressed_id for t in result.tokens] == lookup_map[ids].tolist()
    assert "".join(t.text for t in result.tokens).replace("␣", " ") == TEXT
    hits = table.hits(layer)
    assert hits is not None
    heads = [h for token in result.tokens for o in token.orders for h in o.heads]
    assert [h.hits for h in heads] == hits[rows.reshape(-1)].tolist()
    norms = np.linalg.norm(table.rows(layer, rows.reshape(-1)), axis=1)
    np.testing.assert_allclose([h.norm for h in heads], norms, rtol=1e-6)


def test_others_on_a_row_are_those_a_search_of_the_sample_finds(made_once: Made) -> None:
    result = looked(made_once.table, text="\n".join(PROSE), limit=200)
    statistics = read_stats(made_once.stats)
    assert result.sample_exact is True
    entry = statistics.layout.layer(1)
    met = 0
    for index, sample in enumerate(statistics.samples()):
        on_row: dict[tuple[int, int], list[int]] = {}
        for at, tokens in enumerate(sample.tokens):
            # Compressed ids hashed again, one n-gram at a time, by the plain definition.
            mix = 0
            for lag, token in enumerate(tokens[::-1].tolist()):
                mix ^= token * entry.multipliers[lag]
            for head in range(4):
                row = mix % entry.moduli[index * 4 + head]
                on_row.setdefault((head, row), []).append(at)
        for token in result.tokens:
            order = token.orders[index]
            for head in order.heads:
                there = on_row.get((head.head, head.row), [])
                assert sum(int(sample.counts[at]) for at in there) == head.hits
                assert head.others_known == len(there) - (order.sampled is not None)
                met += head.others_known
                counts = sorted((int(sample.counts[at]) for at in there), reverse=True)
                assert all(other.count in counts for other in head.others)
    assert met > 20


def test_the_count_of_the_n_gram_itself_comes_from_the_sample(made_once: Made) -> None:
    result = looked(made_once.stats, text="the horse Bucephalus.")
    orders = [order for token in result.tokens for order in token.orders]
    assert any(order.sampled is None for order in orders)  # it begins a text nowhere
    known = [order for order in orders if order.sampled is not None]
    assert known
    assert all(order.sampled >= 3 for order in known if order.sampled)
    assert all(head.norm is None for order in orders for head in order.heads)
    assert result.dim is None


def test_two_texts_share_rows_by_n_gram_and_by_chance(made_once: Made) -> None:
    same = looked(made_once.table, text=TEXT, against=TEXT.upper())
    # The vocabulary folds case, though the tokens are others.
    assert {t.token_id for t in same.tokens} != {t.token_id for t in same.against}
    result = looked(made_once.table, text="the horse Bucephalus", against="tame the horse")
    for shared, order in zip(result.shared, (2, 3), strict=True):
        heads = [h for t in result.tokens for o in t.orders if o.order == order for h in o.heads]
        assert shared.lookups == len(heads)
        assert shared.same + shared.chance == sum(bool(h.shared_with) for h in heads)
    assert result.shared[0].same > 0
    rows = {
        (o.order, h.head, h.row): t.position
        for t in result.against
        for o in t.orders
        for h in o.heads
    }
    for token in result.tokens:
        for order in token.orders:
            for head in order.heads:
                assert bool(head.shared_with) == ((order.order, head.head, head.row) in rows)


def test_vectors_are_the_rows_of_all_heads(made_once: Made, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    for path in (made_once.table, made_once.bundle):
        result = looked(path, text=TEXT, vectors=out, force=True)
        vectors = np.load(out)
        table = open_table(made_once.table)
        rows = np.array(rows_of(result))
        assert vectors.dtype == np.float32
        assert vectors.shape == result.vectors_shape == (len(rows), 8 * 6)
        np.testing.assert_array_equal(
            vectors, table.rows(1, rows.reshape(-1)).reshape(len(rows), -1)
        )
    with pytest.raises(OutputError, match="already exists"):
        looked(made_once.table, text=TEXT, vectors=out)
    with pytest.raises(InputError, match="holds no vectors"):
        looked(made_once.stats, text=TEXT, vectors=tmp_path / "other.npy")
    assert not (tmp_path / "other.npy").exists()


def test_force_replaces_only_vectors(made_once: Made, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    foreign = (
        np.arange(6),
        np.zeros((2, 3)),
        np.zeros((2, 3), "<f4", order="F"),
        np.zeros(6, "<f4"),
    )
    for array in foreign:
        np.save(out, array)
        before = out.read_bytes()
        with pytest.raises(OutputError, match=r"out\.npy is no file of vectors"):
            looked(made_once.table, text=TEXT, vectors=out, force=True)
        assert out.read_bytes() == before
    out.write_bytes(b"letters")
    with pytest.raises(OutputError, match=r"out\.npy is no file of vectors"):
        looked(made_once.table, text=TEXT, vectors=out, force=True)
    out.write_bytes(b"")
    for text in (TEXT, TEXT * 2):
        result = looked(made_once.table, text=text, vectors=out, force=True)
        assert np.load(out).shape == result.vectors_shape
    out.write_bytes(out.read_bytes()[:-4])
    with pytest.raises(OutputError, match=r"out\.npy is no file of vectors"):
        looked(made_once.table, text=TEXT, vectors=out, force=True)


def test_a_vocabulary_shows_where_a_geometry_would_look(made_once: Made) -> None:
    tried = looked(made_once.vocab, text=TEXT, geometry=GEOMETRY)
    assert rows_of(tried) == rows_of(looked(made_once.table, text=TEXT))
    other = looked(made_once.vocab, text=TEXT, geometry=dataclasses.replace(GEOMETRY, seed=7))
    assert rows_of(other) != rows_of(tried)
    with pytest.raises(InputError, match="has its own geometry"):
        looked(made_once.table, text=TEXT, geometry=GEOMETRY)


def test_ids_need_no_tokenizer(made_once: Made, made: Made) -> None:
    ids = tuple(load_tokenizer(made_once.folder / "tokenizer.json").encode(TEXT))
    made.vocab.unlink()
    result = looked(made.table, ids=ids)
    assert rows_of(result) == rows_of(looked(made_once.table, text=TEXT))
    assert result.tokens[0].text == f"#{ids[0]}"
    # Without a vocabulary a tokenizer is known by what its compression gives.
    assert rows_of(looked(made.table, text=TEXT)) == rows_of(result)


def test_a_bundle_finds_the_tokenizer_of_its_checkpoint(made_once: Made) -> None:
    result = looked(made_once.bundle, text=TEXT, layer=2)
    assert rows_of(result) == rows_of(looked(made_once.table, text=TEXT, layer=2))


def test_only_the_first_tokens_of_a_long_text_are_told_of(made_once: Made, tmp_path: Path) -> None:
    result = looked(made_once.table, text=TEXT * 50, limit=5, vectors=tmp_path / "v.npy")
    assert len(result.tokens) == 5
    assert result.tokens_total == np.load(tmp_path / "v.npy").shape[0] > 5


def test_what_cannot_be_looked_up_is_refused(
    made_once: Made, deepseek_tokenizer_file: Path, made: Made
) -> None:
    with pytest.raises(InputError, match="either a text or ids"):
        looked(made_once.table)
    with pytest.raises(InputError, match="either a text or ids"):
        looked(made_once.table, text="a", ids=(1,))
    with pytest.raises(InputError, match="has no token"):
        looked(made_once.table, text="")
    with pytest.raises(TokenIdError, match="beyond the vocabulary"):
        looked(made_once.table, ids=(10**6,))
    with pytest.raises(InputError, match="no layer 7"):
        looked(made_once.table, text="a", layer=7)
    with pytest.raises(MismatchError, match="is not the tokenizer that"):
        looked(made_once.table, text="a", tokenizer=deepseek_tokenizer_file)
    made.vocab.unlink()
    with pytest.raises(MismatchError, match="gives vocabulary"):
        looked(made.table, text="a", tokenizer=deepseek_tokenizer_file)
    with pytest.raises(InputError, match="was counted with"):
        looked(made_once.vocab, text="a", geometry=Geometry(seed=3), stats=made_once.stats)
    with pytest.raises(InputError, match="was not written by engram"):
        looked(made_once.folder / "corpus.txt", text="a")
    with pytest.raises(InputError, match="limit"):
        looked(made_once.table, text="a", limit=0)
