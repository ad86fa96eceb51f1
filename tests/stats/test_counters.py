"""Row hits equal what NumPy counts, whatever the blocks and the threads."""

from __future__ import annotations

import threading
from collections.abc import Generator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stats.truth import blocks_of, count, layout_of, rows_of, zipf_documents

from engram_cli.corpus.base import ReadPosition, TokenBlock
from engram_cli.errors import CorpusError, MismatchError, TokenIdError
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.jit import kernel, prefetch
from engram_cli.stats.counting import counters, kernels
from engram_cli.stats.counting.count import CorpusCounter, count_blocks
from engram_cli.stats.counting.counters import Counter, SamplingTask
from engram_cli.stats.counting.thread_pool import ThreadPool
from engram_cli.stats.counting.token_chunk import SegmentSplitter, TokenChunk
from engram_cli.stats.totals import FULL, Counts

LAYOUT = layout_of(moduli=(101, 103, 107, 10007, 9973, 8209), heads=3, layers=(1, 4))
DOCUMENTS = zipf_documents(seed=1, count=40, length=60, size=50)


def same(one: Counts, other: Counts) -> bool:
    """Equal to the last bit."""
    arrays = [(one.hits[layer], other.hits[layer]) for layer in one.hits]
    for a, b in zip(one.samples, other.samples, strict=True):
        if (a.order, a.size, a.threshold) != (b.order, b.size, b.threshold):
            return False
        arrays += [(a.hashes, b.hashes), (a.counts, b.counts), (a.tokens, b.tokens)]
    figures = (one.tokens, one.documents) == (other.tokens, other.documents)
    return figures and all(np.array_equal(a, b) for a, b in arrays)


def test_hits_are_those_of_the_reference() -> None:
    counts = count(DOCUMENTS, LAYOUT)
    assert counts.tokens == sum(map(len, DOCUMENTS))
    assert counts.documents == len(DOCUMENTS)
    for layer in LAYOUT.layers:
        rows = rows_of(DOCUMENTS, LAYOUT, layer)
        expected = np.bincount(rows.reshape(-1), minlength=layer.rows)
        assert np.array_equal(counts.hits[layer.layer], expected)
        assert counts.hits[layer.layer].sum() == counts.tokens * LAYOUT.columns


@given(
    block=st.integers(1, 3000),
    threads=st.integers(1, 20),
    step=st.integers(1, 3000),
    size=st.sampled_from([16, 50, 10_000]),
)
@settings(max_examples=30, deadline=None)
def test_blocks_threads_and_steps_change_nothing(
    block: int, threads: int, step: int, size: int
) -> None:
    expected = count(DOCUMENTS, LAYOUT, sample_size=size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counters, "STEP", step)
        found = count(DOCUMENTS, LAYOUT, sample_size=size, block=block, threads=threads)
    assert same(found, expected)


@pytest.mark.parametrize("moduli", [(101,) * 6, (2**21,) * 6])
def test_every_column_has_one_counter(moduli: tuple[int, ...]) -> None:
    layout = layout_of(moduli=moduli, heads=3, layers=(1, 4))
    counter = Counter(layout, 16)
    columns = [
        (id(layer.hits), column)
        for each in counter.counters
        for layer in each.layers
        for column in layer.indices
    ]
    assert len(columns) == len(set(columns)) == 12
    assert counter.ordered == counter.unordered == ()


def test_ngrams_without_a_key_are_sampled_at_every_position() -> None:
    layout = layout_of(moduli=(101,) * 3, heads=1, orders=(2, 4, 5))
    counter = Counter(layout, 16)
    samplers = [task.sampler for task in counter.unordered if isinstance(task, SamplingTask)]
    assert samplers == [counter.samplers[2]]
    assert counter.samplers[2].order == 5


def test_joined_documents_are_one_sequence() -> None:
    joined = count(DOCUMENTS, LAYOUT, join_documents=True)
    whole = count([np.concatenate(DOCUMENTS)], LAYOUT)
    assert same(joined, Counts(**_fields(whole) | {"documents": len(DOCUMENTS)}))
    assert not same(joined, count(DOCUMENTS, LAYOUT))


@given(cut=st.integers(0, len(DOCUMENTS)), size=st.sampled_from([16, 60, 10_000]))
@settings(max_examples=20, deadline=None)
def test_counts_of_parts_merge_into_those_of_the_whole(cut: int, size: int) -> None:
    parts = [part for part in (DOCUMENTS[:cut], DOCUMENTS[cut:]) if part]
    counted = [count(part, LAYOUT, sample_size=size) for part in parts]
    whole = count(DOCUMENTS, LAYOUT, sample_size=size)
    if len(counted) == 2:
        one, two = counted
        assert same(one.merge(two), whole)
        assert same(two.merge(one), whole)
    else:
        assert same(counted[0], whole)


def test_merging_is_associative_and_keeps_its_parts() -> None:
    one, two, three = (count(DOCUMENTS[k::3], LAYOUT, sample_size=30) for k in range(3))
    before = one.hits[1].copy()
    assert same(one.merge(two).merge(three), one.merge(two.merge(three)))
    assert np.array_equal(one.hits[1], before)


def test_counts_of_different_layouts_do_not_merge() -> None:
    one = count(DOCUMENTS, LAYOUT)
    other = layout_of(moduli=(101, 103, 107, 10007, 9973, 8221), heads=3, layers=(1, 4))
    for wrong in (
        count(DOCUMENTS, other),
        count(DOCUMENTS, LAYOUT, join_documents=True),
        count(DOCUMENTS, LAYOUT, sample_size=32),
    ):
        with pytest.raises(MismatchError, match="do not merge"):
            one.merge(wrong)


def test_full_counters_stay_full() -> None:
    hits = np.array([FULL, 5, FULL], dtype=np.uint32)
    kernels.add_hits(hits, np.array([1, FULL, FULL], dtype=np.uint32))
    assert hits.tolist() == [FULL, FULL, FULL]


def test_sums_of_a_column() -> None:
    hits = np.array([0, 3, FULL, 0, FULL, 1], dtype=np.uint32)
    sums = np.zeros(6, dtype=np.uint64)
    kernels.sum_column(hits, sums)
    used, largest, full, total, high, low = map(int, sums)
    assert (used, largest, full, total) == (4, FULL, 2, 2 * FULL + 4)
    assert high * 2**32 + low == 2 * FULL**2 + 10


def test_prefetch_changes_nothing_and_is_compiled() -> None:
    @kernel("int64(uint32[::1], int64)", cache=False)
    def ask(array, index):  # type: ignore[no-untyped-def]
        prefetch(array, index)
        return array.size

    array = np.arange(1000, dtype=np.uint32)
    for index in (0, 999, 10**12, -(10**12)):  # a hint may point anywhere
        assert ask(array, index) == 1000
    assert array.tolist() == list(range(1000))
    (code,) = ask.inspect_llvm().values()
    assert "llvm.prefetch" in code


@pytest.mark.parametrize(
    ("bad", "message"),
    [(50, "token id 50 is beyond the vocabulary of 50"), (-1, "token id -1 is negative")],
)
def test_a_bad_id_is_placed(bad: int, message: str) -> None:
    ids = np.arange(20, dtype=np.int64)
    ids[7] = bad
    starts = np.zeros(20, dtype=bool)

    def blocks() -> Generator[TokenBlock, None, None]:
        yield TokenBlock(
            ids=ids, starts=starts, size=1, locate=lambda index: f"x.npy, position {index}"
        )

    before = threading.active_count()
    with pytest.raises(TokenIdError, match=rf"^x.npy, position 7 \(counted from 0\): {message} - "):
        count_blocks(blocks(), LAYOUT)
    assert threading.active_count() == before


@pytest.mark.parametrize("unreadable", [False, True])
def test_of_several_faults_the_first_is_reported(unreadable: bool) -> None:
    """However long its thread takes, and whatever is found behind it meanwhile."""

    def blocks() -> Generator[TokenBlock, None, None]:
        for number in range(12):
            ids = np.arange(2000, dtype=np.int64) % 50
            ids[-1] = 50 if number >= 3 else 0
            if number == 3:
                ids[5] = 51
            yield TokenBlock(
                ids=ids,
                starts=np.zeros(len(ids), dtype=bool),
                size=1,
                locate=lambda index, number=number: f"block {number}, position {index}",  # type: ignore[misc]
            )
            if unreadable and number == 6:
                raise CorpusError("the rest cannot be read", "copy it again")

    for _ in range(5):
        with pytest.raises(TokenIdError, match=r"^block 3, position 5 "):
            count_blocks(blocks(), LAYOUT, threads=4)


def test_a_bad_id_is_not_passed_by_in_a_checkpoint() -> None:
    """A block whose last tokens are bad must be found before the state is saved."""
    counter = CorpusCounter(LAYOUT, threads=2)
    block = TokenBlock(
        ids=np.array([1, 2, 3, 50]),
        starts=np.zeros(4, dtype=bool),
        size=1,
        locate=str,
        read_position=ReadPosition(items=1),
    )
    saved = []

    class Checkpointer:
        def due(self) -> bool:
            return True

        def save(self, read_position: ReadPosition, counter: CorpusCounter) -> None:
            saved.append(read_position)

        save_last = save

    with pytest.raises(TokenIdError, match="token id 50"):
        counter.count((each for each in [block]), checkpointer=Checkpointer())
    assert not saved


def test_an_interrupt_stops_the_threads() -> None:
    def blocks() -> Generator[TokenBlock, None, None]:
        yield from blocks_of(DOCUMENTS, 100)
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        count_blocks(blocks(), LAYOUT, threads=4)
    assert threading.active_count() == before


def test_a_thread_that_fails_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, chunk: object, lane: object) -> None:
        raise RuntimeError("a counter broke")

    monkeypatch.setattr(Counter, "count", broken)
    with pytest.raises(RuntimeError, match="a counter broke"):
        push_forever(ThreadPool(Counter(LAYOUT, 16), 2))


def push_forever(pool: ThreadPool) -> None:
    starts = np.zeros(len(DOCUMENTS[0]), dtype=bool)
    chunk = TokenChunk(
        window=StreamHasher(LAYOUT).push(DOCUMENTS[0]),
        ids=DOCUMENTS[0],
        starts=starts,
        segments=SegmentSplitter().push(starts, ((0, ""),)),
        files=((0, ""),),
        position=0,
    )
    with pool:
        while True:
            pool.push(lambda hasher: chunk)


def _fields(counts: Counts) -> dict[str, object]:
    return {name: getattr(counts, name) for name in counts.__slots__}
