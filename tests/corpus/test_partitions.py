"""Partitions: which files they are, and that large files divide into the same documents."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus.written import VARIANTS, Corpus
from hypothesis import given
from hypothesis import strategies as st

from engram_cli.corpus import partitions, stream
from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.encode import Encoder, make_encoder
from engram_cli.corpus.partitions import PARTITION_BYTES, Plan, plan_partitions
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stream import TokenStream
from engram_cli.errors import CorpusError, InputError
from engram_cli.progress import SILENT
from engram_cli.vocab.tokenizer import load_tokenizer

DIVIDED = {
    *("parquet", "arrow-file-text", "feather", "npy", "megatron", "megatron-i32", "datatrove"),
    *("datatrove-u32", "mds", "mds-uint16", "mds-bytes", "mds-text", "mds-zstd", "mds-gz"),
}
MARK = "</s>"
TEXTS = [
    f"{number} an apple fell from the tree {'the café ' * (number % 3)}" for number in range(9)
]


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> Iterator[Encoder]:
    made = make_encoder(load_tokenizer(tokenizer_file), "tokenizers", SILENT, size=None)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "LEAST_BYTES", 1)


def written(kind: str, folder: Path, tokenizer_file: Path) -> tuple[list[str], CorpusOptions]:
    """A corpus of that kind, its documents ended by the mark where nothing else says it."""
    tokenizer = load_tokenizer(tokenizer_file)
    marks = VARIANTS[kind].marks
    texts = {"after": [t + MARK for t in TEXTS], "before": [MARK + t for t in TEXTS]}.get(
        marks or "", TEXTS
    )
    ids = [list(map(int, tokenizer.encode(text))) for text in texts]
    if kind == "npy":
        ids = [each[:6] for each in ids]
    corpus = Corpus(texts=texts, ids=ids, mark=int(tokenizer.encode(MARK)[0]))
    if kind == "npy":
        np.save(folder / "a.npy", np.array(ids, dtype=np.uint16))
        return [str(folder / "a.npy")], CorpusOptions()
    options = VARIANTS[kind].options | ({"document_end_id": corpus.mark} if marks else {})
    names = VARIANTS[kind].write(folder, corpus)
    return [str(folder / name) for name in names], CorpusOptions(**options)


def documents(plan: Plan, options: CorpusOptions, encoder: Encoder) -> list[tuple[Any, ...]]:
    """(partition, file, ids) of all documents; no block may be of two partitions."""
    found: list[tuple[Any, ...]] = []
    made = TokenStream(plan.files, options, encoder, begins=plan.begins)
    for block in made.blocks():
        ends = [at for at, _ in block.files[1:]] + [len(block.ids)]
        names = [
            name for (at, name), end in zip(block.files, ends, strict=True) for _ in range(at, end)
        ]
        for token, start, name in zip(
            block.ids.tolist(), block.starts.tolist(), names, strict=True
        ):
            if start:
                found.append((block.partition, name, []))
            assert found[-1][:2] == (block.partition, name)
            found[-1][2].append(int(token))
    return found


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("size", [1, 60])
def test_sections_hold_the_documents_of_the_file(
    kind: str,
    size: int,
    tmp_path: Path,
    tokenizer_file: Path,
    encoder: Encoder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, options = written(kind, tmp_path, tokenizer_file)
    files = find_sources(names, options).files
    whole, divided = (plan_partitions(files, options, each) for each in (2**30, size))
    assert (len(divided) > len(files)) == (kind in DIVIDED)
    expected = documents(whole, options, encoder)
    found = documents(divided, options, encoder)
    assert [each[2] for each in found] == [each[2] for each in expected]
    assert [each[0] for each in found] == sorted(each[0] for each in found)
    monkeypatch.setattr(stream, "_FIRST_BATCH", 1)
    apart = []
    for number in range(len(divided)):
        part = divided.part(number, number + 1)
        assert part.begins == (0,)
        apart += [(number, *each[1:]) for each in documents(part, options, encoder)]
    assert apart == found
    if kind in DIVIDED:
        keys = [file.key for file in divided.files]
        assert len(set(keys)) == len(keys)
        assert keys[0] == files[0].name
        if not kind.startswith("mds"):
            assert divided.size == whole.size


@pytest.mark.parametrize("kind", sorted(DIVIDED))
def test_places_in_sections_are_those_of_the_file(
    kind: str, tmp_path: Path, tokenizer_file: Path, encoder: Encoder
) -> None:
    names, options = written(kind, tmp_path, tokenizer_file)
    files = find_sources(names, options).files

    def places(size: int) -> list[str]:
        plan = plan_partitions(files, options, size)
        made = TokenStream(plan.files, options, encoder, begins=plan.begins)
        return [b.locate(at) for b in made.blocks() for at in range(len(b.ids))]

    if kind in ("arrow-file-text", "feather"):  # how many rows are before is not in the index
        assert re.search(r", from batch \d, row \d, position \d+$", places(1)[-1])
    else:
        assert places(1) == places(2**30)


@pytest.mark.parametrize("kind", sorted(kind for kind in DIVIDED if not kind.startswith("mds")))
def test_a_file_that_shrank_since_is_told(kind: str, tmp_path: Path, tokenizer_file: Path) -> None:
    names, options = written(kind, tmp_path, tokenizer_file)
    plan = plan_partitions(find_sources(names, options).files, options, 1)
    last = plan.files[-1]
    assert last.section is not None
    moved = replace(last, section=replace(last.section, end=last.section.end + 5))
    with pytest.raises(CorpusError, match="has changed"):
        list(READERS.load(moved.format).read(moved, options))


def file(name: str, size: int | None) -> CorpusFile:
    return CorpusFile(name=name, path=Path(name), size=size, format="text")


@given(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=30), st.integers(1, 60))
def test_files_fill_partitions_in_order(sizes: list[int | None], size: int) -> None:
    files = [file(str(number), each) for number, each in enumerate(sizes)]
    plan = plan_partitions(files, CorpusOptions(), size)
    assert list(plan.files) == files
    parts = [plan.part(number, number + 1).files for number in range(len(plan))]
    assert [each for part in parts for each in part] == files
    for number, part in enumerate(parts):
        total = sum(each.size or 0 for each in part)
        assert len(part) == 1 or (total <= size and all(each.size is not None for each in part))
        assert {plan.partition(files.index(each)) for each in part} == {number}
    for one, two in itertools.pairwise(parts):  # no neighbours that would have fitted
        unknown = any(each.size is None for each in (*one, *two))
        assert unknown or sum(each.size or 0 for each in one) + (two[0].size or 0) > size
    assert plan.size == (None if None in sizes else sum(each or 0 for each in sizes))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 200))
def test_units_are_weighed(weights: list[int], size: int) -> None:
    whole = file("a", 10 * sum(weights))
    found = partitions.by_weight(whole, weights, size)
    assert sum(each.size or 0 for each in found) == whole.size
    if found == [whole]:
        return
    bounds = [each.section for each in found if each.section is not None]
    assert [each.number for each in bounds] == list(range(len(found)))
    assert (bounds[0].begin, bounds[-1].end) == (0, len(weights))
    assert all(one.end == two.begin for one, two in itertools.pairwise(bounds))
    assert all(10 * sum(weights[each.begin : each.end - 1]) < 2 * size for each in bounds)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.integers(1, 200))
def test_units_are_searched(lengths: list[int], size: int) -> None:
    begins = np.cumsum([0, *lengths]).tolist()
    whole = file("a", begins[-1])
    found = partitions.by_search(whole, len(lengths), begins.__getitem__, size)
    assert sum(each.size or 0 for each in found) == whole.size
    for each in found[1:]:
        assert each.section is not None
        # The first document at or after a multiple of the size.
        place = begins[each.section.begin]
        assert each.section.begin
        assert place // size > (begins[each.section.begin - 1] - 1) // size


def test_a_size_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert PARTITION_BYTES == 2**28
    with pytest.raises(InputError, match="--partition-size 5 is too small"):
        plan_partitions([file("a", 3)], CorpusOptions(), 5)
