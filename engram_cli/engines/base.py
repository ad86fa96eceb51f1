"""The interface of an engine, and how its tasks read a corpus.

An engine maps functions over partitions of a corpus, or over other calls, and merges mergeable
partials. Two jobs use it: `engines.counting` and `engines.filling`. Engines differ in time and
place alone: every figure and every row is the same to the bit.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, astuple, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from engram_cli.corpus.base import CorpusFile, CorpusOptions, ReadPosition
from engram_cli.corpus.encode import Encoder, FastLoader, make_encoder
from engram_cli.corpus.partitions import Plan
from engram_cli.corpus.stamps import Stamps, request_of
from engram_cli.corpus.stream import TokenStream
from engram_cli.errors import InputError
from engram_cli.files import sha256_bytes
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT, Progress
from engram_cli.registry import Registry
from engram_cli.version import __version__
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer

Call: TypeAlias = tuple[tuple[Any, ...], int]
"""The arguments of a task, and how much progress it is worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A function that workers can import, and the CPUs and bytes of memory that a call takes."""

    function: Callable[..., Any]
    memory: int
    cpus: int = 1


class Job(Protocol):
    """Work over a corpus whose partials merge in any order and grouping."""

    @property
    def what(self) -> str:
        """What is done, for the progress bar."""

    @property
    def memory(self) -> int:
        """The bytes that `run` takes."""

    @property
    def merge_memory(self) -> int:
        """The bytes that `merge` takes."""

    def sent(self) -> Job:
        """Return the job as it travels to workers."""

    def run(self, plan: Plan) -> Any:
        """Return the result of some partitions."""

    def partial(self, result: Any) -> Any:
        """Return a result as it travels between workers."""

    def merge(self, *partials: Any) -> Any:
        """Return the partial of all parts."""

    def result(self, partial: Any) -> Any:
        """Return the result that a partial stands for."""


class Engine(Protocol):
    """Runs tasks. A reference stands for a value that may lie elsewhere.

    Methods raise the EngramError that a task raised, and EngineError where a cluster fails.
    """

    @property
    def remote(self) -> bool:
        """Whether tasks run in other processes: without progress, checkpoints or this disk."""

    @property
    def threads(self) -> int:
        """How many threads a task that reads a corpus may use."""

    @property
    def store_bytes(self) -> int:
        """How many bytes references may stand for together."""

    @property
    def fetch(self) -> Callable[[Any], Any]:
        """The function that gives a writable array for a reference inside a task."""

    def slots(self, task: Task) -> int:
        """Return how many calls run at a time. Raises InputError where none could run."""

    def put(self, value: Any) -> Any:
        """Return a reference to `value`, for any number of tasks."""

    def get(self, reference: Any) -> Any:
        """Return the value of a reference."""

    def map(self, task: Task, calls: Sequence[Call], progress: Progress) -> list[Any]:
        """Run all calls; return references to their values, in order."""

    def stream(self, task: Task, calls: Sequence[Call]) -> Generator[Any, None, None]:
        """Yield what the calls yield, in order; a few of them are under way."""

    def reduce(self, job: Job, plan: Plan, progress: Progress) -> Any:
        """Run a job over all partitions of a plan; return its result."""


Opened: TypeAlias = Callable[[str | None, int, Progress], AbstractContextManager[Engine]]
"""Opens an engine: the address of a cluster, threads of a task that reads, progress for notes."""

ENGINES: Registry[Opened] = Registry(
    "engine",
    {"local": "engram_cli.engines.local:local", "ray": "engram_cli.engines.ray:connected"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a corpus becomes token ids.

    `tokenizer`: None where no file holds texts, the bytes of its file in a worker. `encoder`:
    "auto", "tokenizers" or "fast". `threads`: of the encoder in a worker. `loader`: what loads the
    fast one in this process already.
    """

    layout: HashLayout
    options: CorpusOptions
    tokenizer: TokenizerFile | bytes | None
    encoder: str
    threads: int = 1
    loader: FastLoader | None = field(default=None, repr=False, compare=False)

    @property
    def tokenizer_path(self) -> Path | None:
        """The file of the tokenizer, None without one."""
        return self.tokenizer.path if isinstance(self.tokenizer, TokenizerFile) else None

    def sent(self) -> Reading:
        """Return it as it travels to workers. Raises VocabularyError."""
        known = self.tokenizer
        raw = known.read() if isinstance(known, TokenizerFile) else known
        return replace(self, tokenizer=raw, loader=None)

    @contextmanager
    def stream(
        self, plan: Plan, read_position: ReadPosition | None = None, progress: Progress = SILENT
    ) -> Iterator[tuple[TokenStream, Encoder | None]]:
        """Open partitions as a stream of tokens from `read_position` on, and its encoder."""
        with ExitStack() as stack:
            encoder, tokenizer = None, self.tokenizer
            if isinstance(tokenizer, bytes):
                # Read when the libraries that use it first start their threads.
                os.environ["RAYON_NUM_THREADS"] = str(self.threads)
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="engram-"))
                path = Path(folder, "tokenizer.json")
                path.write_bytes(tokenizer)
                tokenizer = load_tokenizer(path)
            if tokenizer is not None:
                encoder = make_encoder(
                    tokenizer, self.encoder, progress, size=plan.size, loader=self.loader
                )
                stack.callback(encoder.close)
            files, begins = plan.files, plan.begins
            yield TokenStream(files, self.options, encoder, read_position, begins=begins), encoder


def request_fingerprint(
    files: Sequence[CorpusFile],
    corpus: CorpusOptions,
    decisive: Mapping[str, Any],
    stamps: Stamps | None,
) -> str | None:
    """Digest all that decides a result: files and their `stamps`, how they are read, the versions
    that read them, and what else is `decisive`, as plain values.

    None without `stamps`: when a file cannot be read twice or may have changed unseen.
    """
    if stamps is None:
        return None
    value = {
        "files": [[file.name, file.format] for file in files],
        "stamps": {name: astuple(stamp) for name, stamp in stamps.items()},
        "corpus": asdict(replace(corpus, errors="strict")),
        "versions": [__version__, *(version(each) for each in ("pyarrow", "tokenizers"))],
        **decisive,
    }
    return request_of(sha256_bytes(json.dumps(value, sort_keys=True).encode()), corpus)


def portable(plan: Plan) -> Plan:
    """Return `plan` as workers read it, from another folder. Raises InputError for a pipe."""
    files = []
    for file in plan.files:
        if file.path is None and file.url is None:
            raise InputError(
                f"{file.name} cannot be read by the workers of a cluster",
                "give files, or leave out --engine ray",
            )
        files.append(replace(file, path=None if file.path is None else file.path.absolute()))
    return replace(plan, files=tuple(files))
