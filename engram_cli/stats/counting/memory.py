"""Computes how much memory counting takes, and refuses a run that has too little."""

from __future__ import annotations

from dataclasses import dataclass

from engram_cli.errors import InputError
from engram_cli.hashing.layout import HashLayout
from engram_cli.numbers import bytes_text
from engram_cli.stats.counting.counters import buffer_bytes
from engram_cli.stats.counting.thread_pool import MOST_THREADS
from engram_cli.stats.sampling.distinct import sampler_bytes

# The interpreter and its libraries, and what is on its way, with two tokenizers and their caches or
# without: measured 540 MB on 2 GB of text, and 360 MB; 20 MB more from Python, where nothing bounds
# the arenas of the heap.
_WITH_TEXT, _WITHOUT_TEXT = 560 * 10**6, 360 * 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes of row counters, n-gram samples and collectors (`more`); `buffers`: about the rest."""

    counters: int
    samples: int
    buffers: int
    more: int = 0

    @property
    def total(self) -> int:
        """The sum."""
        return self.counters + self.samples + self.more + self.buffers

    def __str__(self) -> str:
        return (
            f"memory: {bytes_text(self.counters)} counters + "
            f"{bytes_text(self.samples + self.more)} samples + "
            f"about {bytes_text(self.buffers)} for everything else, whatever the corpus"
        )


def plan_memory(
    layout: HashLayout,
    sample_size: int,
    threads: int,
    *,
    text: bool,
    more: int = 0,
    of_thread: int = 0,
) -> MemoryPlan:
    """Return what counting with `layout` takes, which does not depend on the size of the corpus.

    `text`: the corpus must be tokenised. `more`: what collectors take,
    `of_thread`: those of each thread.
    """
    lanes = min(threads, MOST_THREADS)
    return MemoryPlan(
        counters=4 * sum(entry.rows for entry in layout.layers),
        samples=sum(sampler_bytes(order, sample_size) for order in layout.orders),
        more=more,
        buffers=base_bytes(text=text) + buffer_bytes(layout, lanes) + lanes * of_thread,
    )


def base_bytes(*, text: bool) -> int:
    """Return about what the interpreter, its libraries and the corpus being read take.

    `text`: the corpus must be tokenised.
    """
    return _WITH_TEXT if text else _WITHOUT_TEXT


def check_memory(plan: MemoryPlan, available: int | None) -> None:
    """Raise InputError if counters and samples do not fit in the available memory."""
    needed = plan.counters + plan.samples + plan.more
    if available is not None and needed > available:
        raise InputError(
            f"the counters and samples of this layout take {bytes_text(needed)}, "
            f"{bytes_text(available)} of memory are available",
            "count fewer layers with --layers, or rows with --rows-per-head, or a smaller "
            "--sample-size",
        )
