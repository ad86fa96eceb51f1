"""Who fills rows from a corpus: the same tokens and the same sums, here or on a cluster.

In: a corpus and a `CorpusFill`. Out: its token file, and a fill that makes the same rows elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.encode import make_encoder
from engram_cli.corpus.partitions import Plan
from engram_cli.corpus.stream import TokenStream
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.registry import Registry
from engram_cli.table.inits.corpus.filled import CorpusFill
from engram_cli.table.inits.corpus.tokens import TokenWriter
from engram_cli.vocab.tokenizer import TokenizerFile


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenWork:
    """A corpus to be written as tokens. `tokenizer`: None where no file holds texts; `encoder`:
    "auto", "tokenizers" or "fast"; `insisted`: a run that goes on must take the same one."""

    plan: Plan
    options: CorpusOptions
    layout: HashLayout
    tokenizer: TokenizerFile | None
    encoder: str
    insisted: bool = False


class FillEngine(Protocol):
    """Makes tokens and rows."""

    def write_tokens(self, work: TokenWork, writer: TokenWriter, progress: Progress) -> None:
        """Write the corpus into `writer`, from where it stands.

        Raises CorpusError and TokenIdError naming the file and the place, EncoderDiffers,
        OutputError; EngineError where a cluster fails.
        """

    def placed(self, fill: CorpusFill) -> CorpusFill:
        """The fill that makes the rows of `fill` with this engine."""


class LocalFill:
    """This machine's processors."""

    def write_tokens(self, work: TokenWork, writer: TokenWriter, progress: Progress) -> None:
        """As `FillEngine` says; goes on in the middle of a file."""
        encoder = None
        name = work.encoder if work.insisted else writer.encoder or work.encoder
        if work.tokenizer is not None:
            encoder = make_encoder(work.tokenizer, name, progress, size=work.plan.size)
        plan = work.plan
        stream = TokenStream(
            plan.files, work.options, encoder, writer.read_position, begins=plan.begins
        )
        keep = work.encoder if work.insisted else writer.encoder
        try:
            writer.write(stream.blocks(), work.layout, keep, progress)
        finally:
            if encoder is not None:
                encoder.close()

    def placed(self, fill: CorpusFill) -> CorpusFill:
        """Itself."""
        return fill


@contextmanager
def local_fill(address: str | None, threads: int, progress: Progress) -> Iterator[FillEngine]:
    """The local engine, which has no address."""
    yield LocalFill()


FILL_ENGINES: Registry[Callable[[str | None, int, Progress], AbstractContextManager[FillEngine]]]
FILL_ENGINES = Registry(
    "engine",
    {
        "local": "engram_cli.engines.filling:local_fill",
        "ray": "engram_cli.engines.ray_filling:ray_fill",
    },
)
