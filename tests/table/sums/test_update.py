"""Updates of tables that keep sums: the bytes of a build from the other corpus, or a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table import updated as tables
from table.filled import matrix_vectors, random_vectors
from table.tables import mapped_layout, raw_layout
from table.updated import built, content, documents, prepared, updated

from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.formats.zarr_table import verify_table
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import DTYPES
from engram_cli.table.sums import layer as layers
from engram_cli.table.sums.opened import open_for_update
from engram_cli.vocab.compress import CompressedVocab

LAYOUTS = {"mapped": mapped_layout, "raw": raw_layout}


@given(data=st.data())
@settings(max_examples=3, deadline=None)
def test_an_update_is_a_build_from_the_other_corpus(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Every file is equal, those of the sums too: nothing of a removed document is left."""
    folder = tmp_path_factory.mktemp("t")
    layout = LAYOUTS[data.draw(st.sampled_from(sorted(LAYOUTS)))]()
    name = data.draw(st.sampled_from(["next-token", "token-mean"]))
    centres = ["corpus", "vocabulary"] if name == "next-token" else ["corpus"]
    vectors = data.draw(st.sampled_from([random_vectors, matrix_vectors]))(layout)
    how: dict[str, Any] = {
        "name": name,
        "centre": data.draw(st.sampled_from(centres)),
        "dtype": data.draw(st.sampled_from(["float32", "bfloat16", "fp8", "int8", "fp8_e8m0"])),
        "dim": 16,
        "chunk_rows": data.draw(st.sampled_from([None, 53, 200])),
        "inner_size": data.draw(st.sampled_from([None, 160])),
        "vectors": vectors,
    }
    texts = documents(layout.vocab_size, 40, data.draw(st.integers(0, 1000)))
    cut, end = sorted(data.draw(st.tuples(st.integers(1, 20), st.integers(21, 40))))
    stay, gone, new = texts[:cut], texts[cut:end], texts[end:]
    built(folder / "a.zarr", layout, [*stay, *gone], **how)
    digest = built(folder / "b.zarr", layout, [*new, *stay], **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "BLOCK_ENTRIES", data.draw(st.sampled_from([40, 2**24])))
        threads = data.draw(st.integers(1, 3))
        assert updated(folder / "a.zarr", new, gone, vectors=vectors, threads=threads) == digest
    assert content(folder / "a.zarr") == content(folder / "b.zarr")


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_adding_then_removing_gives_the_same_bytes(tmp_path: Path, dtype: str) -> None:
    layout = mapped_layout()
    texts = documents(layout.vocab_size, 30, 1)
    built(tmp_path / "a.zarr", layout, texts[:25], dtype=dtype, dim=32, chunk_rows=None)
    before = content(tmp_path / "a.zarr")
    updated(tmp_path / "a.zarr", texts[25:], [])
    assert verify_table(tmp_path / "a.zarr").ok
    assert content(tmp_path / "a.zarr") != before
    updated(tmp_path / "a.zarr", [], texts[25:])
    assert content(tmp_path / "a.zarr") == before


def test_orders_up_to_four_and_hot_rows(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    """A row with more vectors than an int32 sum takes, before and after."""
    layout = hash_layout(
        "deepseek-v4.1", small_vocab, rows_per_head=(40, 9000, 50), heads=2, layers=(1,), pad_id=2
    )
    hot = np.full(70_000, 3, dtype=np.int32)
    texts = [hot, *documents(layout.vocab_size, 10, 2)]
    digest = built(tmp_path / "b.zarr", layout, texts, chunk_rows=None)
    built(tmp_path / "a.zarr", layout, [*texts, hot], chunk_rows=None)
    assert updated(tmp_path / "a.zarr", [], [hot]) == digest
    assert updated(tmp_path / "a.zarr", [hot], [hot]) == digest


def test_sums_do_not_change_what_a_build_makes(tmp_path: Path) -> None:
    layout: HashLayout = mapped_layout()
    texts = documents(layout.vocab_size, 30, 3)
    with_sums = built(tmp_path / "a.zarr", layout, texts)
    assert with_sums == built(tmp_path / "b.zarr", layout, texts[::-1], sums=False)
    rest = {k: v for k, v in content(tmp_path / "a.zarr").items() if not k.startswith("sums/")}
    assert rest == content(tmp_path / "b.zarr")


def test_documents_around_a_fixed_centre_change_only_the_rows_they_touch(tmp_path: Path) -> None:
    layout = mapped_layout()
    texts = documents(layout.vocab_size, 30, 4)
    built(tmp_path / "a.zarr", layout, texts, centre="vocabulary")
    new = [np.array([3, 5], dtype=np.int32)]
    work = prepared(tmp_path / "a.zarr", new, [])
    touched, patches = work.check(wanted=True)
    assert not work.every_row
    assert touched == sum(len(patch) for patch in patches.values()) == layout.columns * 2


def test_what_never_filled_the_table_is_not_removed(tmp_path: Path) -> None:
    layout = mapped_layout()
    texts = documents(layout.vocab_size, 30, 5)
    built(tmp_path / "a.zarr", layout, texts)
    before = content(tmp_path / "a.zarr")
    strange = [texts[0], np.array([1, 2, 3], dtype=np.int32)]
    with pytest.raises(MismatchError, match="1 of 2 documents to remove are not among"):
        updated(tmp_path / "a.zarr", [], strange)
    with pytest.raises(MismatchError, match="1 of 2 documents"):
        updated(tmp_path / "a.zarr", [], [texts[20], texts[20]])  # it is there once
    with pytest.raises(InputError, match="no document would be left"):
        updated(tmp_path / "a.zarr", [], texts)
    assert content(tmp_path / "a.zarr") == before


def test_a_table_without_sums_says_how_to_update_it(tmp_path: Path) -> None:
    layout = mapped_layout()
    built(tmp_path / "a.zarr", layout, documents(layout.vocab_size, 9, 6), sums=False)
    with pytest.raises(InputError, match="keeps no sums") as error:
        open_for_update(tmp_path / "a.zarr")
    assert "--corpus" in str(error.value.hint)


def _of(path: Path, name: str) -> Path:
    return path / "sums" / name


def test_damaged_sums_are_refused_before_anything_changes(tmp_path: Path) -> None:
    layout = mapped_layout()
    texts = documents(layout.vocab_size, 30, 7)
    built(tmp_path / "a.zarr", layout, texts)
    whole = content(tmp_path / "a.zarr")
    new = documents(layout.vocab_size, 30, 8)

    def refused(file: str, raw: bytes, match: str) -> None:
        (tmp_path / "a.zarr" / file).write_bytes(raw)
        changed = content(tmp_path / "a.zarr")
        with pytest.raises(ArtifactError, match=match):
            updated(tmp_path / "a.zarr", new, [])
        assert content(tmp_path / "a.zarr") == changed
        (tmp_path / "a.zarr" / file).write_bytes(whole[file])

    rows = whole["sums/3/c.0.0"]
    words = np.frombuffer(rows, dtype="<i8").copy()
    words[7 * 20 + 1 :: 7] += 1000  # a sum of every row from the 20th on
    refused("sums/3/c.0.0", words.tobytes(), "do not make the row that is stored")
    refused("sums/3/c.0.0", rows[:-8], "has .* bytes")
    hashes = np.frombuffer(whole["sums/documents/c.0"], dtype="<u8").copy()
    hashes[3] += 1
    refused("sums/documents/c.0", hashes.tobytes(), "does not hold the documents")
    said = whole["sums/zarr.json"]
    for old, other, match in (
        (b'"version": 1', b'"version": 9', "version 9"),
        (b'"dim": 6', b'"dim": 7', "values"),
        (b'"engram-sums"', b'"other"', "damaged"),
        (b'"scale": ', b'"scale": -', "a scale is"),
        (b'"largest": ', b'"largest": 1', "a number is"),
        (b'"next-token"', b'"token-mean"', "another table"),
    ):
        assert old in said
        refused("sums/zarr.json", said.replace(old, other), match)
    assert content(tmp_path / "a.zarr") == whole


def test_another_update_does_not_complete_an_interrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = mapped_layout()
    texts = documents(layout.vocab_size, 30, 9)
    built(tmp_path / "a.zarr", layout, texts[:20])
    digest = built(tmp_path / "b.zarr", layout, texts[:25])
    with monkeypatch.context() as patch:
        patch.setattr(layers.LayerUpdate, "put", _stop)
        with pytest.raises(KeyboardInterrupt):
            updated(tmp_path / "a.zarr", texts[20:25], [])
    with pytest.raises(OutputError, match="half-updated with other documents"):
        updated(tmp_path / "a.zarr", texts[25:], [])
    with monkeypatch.context() as patch:
        patch.setattr("engram_cli.table.sums.journal.boot_id", lambda: "another")
        with pytest.raises(OutputError, match="when the machine stopped"):
            updated(tmp_path / "a.zarr", texts[20:25], [])
    assert updated(tmp_path / "a.zarr", texts[20:25], []) == digest
    assert content(tmp_path / "a.zarr") == content(tmp_path / "b.zarr")


def _stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_document_hashes_are_xxh64_of_the_words(tmp_path: Path) -> None:
    """`xxhsum` prints the same of the same bytes; their sum is in the table."""
    from engram_cli.rows.checksum import Checksum
    from engram_cli.table.inits.corpus.documents import document_hashes, documents_digest

    layout = mapped_layout()
    texts = [np.arange(n, dtype=np.int32) % 40 for n in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 70)]
    file = tables.token_file(tmp_path / "tokens", layout, texts)
    expected = []
    for ids in texts:
        words = ids.astype("<u4")
        words[0] |= np.uint32(2**31)
        checksum = Checksum()
        checksum.update(words.view(np.uint8))
        expected.append(int(checksum.hexdigest(), 16))
    assert document_hashes(file.map()).tolist() == sorted(expected)
    assert int(documents_digest(file.map()), 16) == sum(expected) % 2**64
    for threads in (1, 2, 3, 200):
        assert file.documents_digest == documents_digest(file.map(), threads)
