"""What an engine is given and what it gives back: a corpus to count in, counts out.

`Work` decides every figure, `Running` none of them: engines differ in time and place alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.partitions import Plan
from engram_cli.errors import CorpusError
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.registry import Registry
from engram_cli.stats.collector_set import CollectorOptions, CollectorSet, make_collectors
from engram_cli.stats.count import CorpusCounter
from engram_cli.stats.memory import MemoryPlan
from engram_cli.stats.partial import Partial
from engram_cli.stats.totals import Counts
from engram_cli.vocab.tokenizer import TokenizerFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be counted, and how.

    `tokenizer`: None where no file holds texts. `source_of`: the source of each file by its key,
    None without groups of files.
    """

    plan: Plan
    options: CorpusOptions
    layout: HashLayout
    tokenizer: TokenizerFile | None
    collector_options: CollectorOptions
    source_of: Mapping[str, str] | None
    sample_size: int
    join_documents: bool

    def collector_set(self) -> CollectorSet:
        """Fresh collectors."""
        return make_collectors(
            self.collector_options, self.layout, self.source_of, self.sample_size
        )

    def counter(self, collector_set: CollectorSet, threads: int) -> CorpusCounter:
        """Return a counter that has counted nothing yet."""
        return CorpusCounter(
            self.layout,
            sample_size=self.sample_size,
            threads=threads,
            join_documents=self.join_documents,
            collectors=collector_set.collectors,
            holdout=collector_set.holdout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """How it is done.

    `encoder`: "auto", "tokenizers" or "fast". `threads`: of a counter. `memory`: what one counter
    takes. `checkpoints`: where they lie; `fingerprint`: of the request, None when nothing can be
    resumed; `restart`, `checkpoint_seconds`: as in `HashStatsRequest`. `address`: of a
    cluster, None for the one that the engine finds or makes.
    """

    encoder: str
    threads: int
    memory: MemoryPlan
    checkpoints: Path
    fingerprint: str | None
    restart: bool = False
    checkpoint_seconds: float = 30.0
    address: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Counted:
    """What was counted.

    `encoder`: the package that encoded at the end, None without texts; `seconds` of this run, which
    found `resumed_tokens` counted before; `cuts`: where long documents were cut.
    """

    partial: Partial
    empty_files: int
    cuts: int
    encoder: str | None
    seconds: float
    resumed_tokens: int = 0

    @property
    def counts(self) -> Counts:
        """The counts without what the collectors found."""
        return self.partial.counts

    def checked(self, work: Work, progress: Progress) -> Counted:
        """Itself; says what is worth saying. Raises CorpusError for a corpus without a token."""
        files = work.plan.files
        if not self.counts.tokens:
            count, first = len(files), files[0].name
            what = first if count == 1 else f"the corpus of {count} files, from {first} on,"
            raise CorpusError(f"{what} holds no token", "give files with text")
        if self.empty_files:
            progress.note(f"{self.empty_files} empty files were skipped")
        if self.cuts:
            progress.note(
                f"long documents were tokenised in pieces, cut at {self.cuts:,} line ends; n-grams "
                "run across the cuts"
            )
        return self


Engine: TypeAlias = Callable[[Work, Running, Progress], Counted]

ENGINES: Registry[Engine] = Registry(
    "engine",
    {
        "local": "engram_cli.engines.local:count",
        "ray": "engram_cli.engines.ray_counting:count",
    },
)
