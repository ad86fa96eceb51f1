"""What a format is: how it is recognised, its reader, and what it says of itself.

A format is one file with a `FORMAT`, and one line in `formats.FORMATS`. The functions below serve
every format, so that a new one needs no more than `recognise` and `open`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.shard_shape import ShardShape
from engram_cli.hashing.layout import HashLayout
from engram_cli.numbers import counted
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource

if TYPE_CHECKING:  # it brings Numba's kernels of counting: 30 MB, of which opening needs nothing
    from engram_cli.stats.stats_io import Statistics

PIECE_BYTES = 2**20  # float32 values read at a time
PATCHES = "patches"  # in the metadata of a table or bundle: the patches that its rows have

Facts = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A digest, what else must have it, and whether that is so; None where it was not found."""

    name: str
    value: str
    must_match: str
    matches: bool | None = None


@dataclass(slots=True, kw_only=True)
class Checks:
    """What a verification has found so far; `problems` is a line for each thing that is wrong.

    `compared`: each a `formats.model_folder.Check`. What differs is among the problems too.
    `copied`: files of a table whose checksums are computed when their bytes are copied. `sums`:
    whether the sums that a table keeps are compared with its rows, in a sample that finds wrong
    rows of a `fault_share`, None for all rows.
    """

    threads: int = 1
    progress: Progress = SILENT
    checked: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    compared: list[Any] = field(default_factory=list)
    files: int = 0
    stored_bytes: int = 0
    copied: frozenset[str] = frozenset()
    sums: bool = False
    fault_share: float | None = None

    def take(self, what: str, problems: Sequence[str]) -> None:
        """Note that `what` was checked, and what is wrong with it."""
        self.problems += problems
        if not problems:
            self.checked.append(what)

    def add(self, what: str, others: Checks, prefix: str = "") -> None:
        """Take the problems, files and bytes of other checks, those of `what`."""
        self.take(what, [f"{prefix}{problem}" for problem in others.problems])
        self.files += others.files
        self.stored_bytes += others.stored_bytes

    def take_compared(self, compared: Iterable[Any]) -> None:
        """Take the checks of a foreign format's source, or of rows."""
        for each in compared:
            self.compared.append(each)
            if each.result == "differs":
                self.problems.append(f"{each.name}: {each.found}, expected {each.expected}")

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteOptions:
    """How to write. `dialect`: of the target, None for the source's or the only one.

    `patch`: a checkpoint that the new files are to fit into. `rows`: the first row of a layer and
    the one behind the last, for a target with `part_of_rows`; None for all. `tokenizer`: of the
    model. `check`: compute what would be written, and write nothing. `verify`: read what was
    written and compare it with the source.
    """

    dialect: str | None = None
    patch: Path | None = None
    rows: tuple[int, int] | None = None
    tokenizer: Path | None = None
    check: bool = False
    force: bool = False
    verify: bool = True
    threads: int = 1
    progress: Progress = SILENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something of a file's header: its name, what happens to it, and its value in words.

    `action`: "kept", "computed", "renamed from X", "dropped".
    """

    name: str
    action: str
    value: str = ""

    @property
    def is_change(self) -> bool:
        """Whether it is not as it was."""
        return self.action != "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written, or with `check` would be: the files in `out`, their bytes.

    `changes` of a header, where only that changes. `verified`: whether what was written was read
    again and compared. `notes`: what is left to do.
    """

    dialect: str | None = None
    files: tuple[str, ...] = ()
    size: int = 0
    changes: tuple[Change, ...] = ()
    verified: bool = False
    notes: tuple[str, ...] = ()


class Writer(Protocol):
    """Writes the rows of a source as an artifact of a format."""

    def __call__(self, source: Any, out: Path, options: WriteOptions) -> Written:
        """Write `out`, whole or not at all.

        `source` has the layers and the dtype that were asked for: some of the layers of an
        artifact, or rows that are encoded when they are read (`rows.views`), are sources too.
        Everything that the format cannot hold is refused before anything is written, also with
        `check`. Raises InputError for it, OutputError, ArtifactError.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What `convert --to` writes, registered by name in `formats.TARGETS`.

    `dtypes`: of the rows that it stores as they are, the one to suggest first; () where `write`
    says. Rows of another dtype are refused, with these as hint. `part_of_rows`: whether it can hold
    some rows of a layer.
    """

    write: Writer
    dtypes: tuple[str, ...] = ()
    part_of_rows: bool = False


def rows_facts(source: RowSource) -> Facts:
    """Return what any `RowSource` says of itself, for people: (name, text)."""
    dim, dtype = source.dim, source.dtype
    facts = [*hash_facts(source.layout)]
    if dim is not None and dtype is not None:
        count = sum(source.layout.layer(layer).rows for layer in source.layers)
        facts += [
            ("rows", f"{count:,} of {dim} x {dtype}"),
            ("parameters", f"{count * dim:,}"),
            ("row hits", "kept for every row" if source.has_hits else "none"),
            token_fact(source.layout, DTYPES.load(dtype).row_bytes(dim)),
        ]
    return facts


def hash_facts(layout: HashLayout) -> Facts:
    """Return what a layout is, for people: (name, text)."""
    orders = ", ".join(map(str, layout.orders))
    layers = ", ".join(map(str, layout.layer_ids))
    token = layout.parameters.get("pad_id")
    raw = "" if token is None else f", pad token {token}"
    facts = [
        ("scheme", layout.scheme),
        ("geometry", f"orders {orders}, {layout.heads} heads, layers {layers}"),
        ("ids", f"{layout.vocab_size:,} -> {layout.compressed_size:,}"),
        ("before the start", f"compressed id {layout.filler_id}{raw}; folded {layout.fold}"),
    ]
    if layout.eos_id is not None:
        facts.append(("EOS id", f"{layout.eos_id}, which no n-gram crosses"))
    return facts


def patch_facts(metadata: Mapping[str, Any]) -> Facts:
    """Return how many patches the rows of a table or bundle have, by its metadata; () for none."""
    listed = metadata.get(PATCHES)
    if not isinstance(listed, list) or not listed:
        return ()
    return (("patches", f"{len(listed):,} applied; engram patch list names them"),)


def token_fact(layout: HashLayout, row_bytes: int) -> tuple[str, str]:
    """Return what a token reads, of rows of `row_bytes` with their scales."""
    count = len(layout.layers) * layout.columns
    return "a token reads", f"{count:,} rows, {count * row_bytes:,} bytes"


def stored_size(path: Path) -> tuple[int, int]:
    """Return how many files an artifact has, and their bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return len(files), sum(file.stat().st_size for file in files)


def header_bytes(source: RowSource) -> int | None:
    """Return how many bytes of headers were read to open a source; None if it does not count."""
    place = getattr(source, "folder", None) or getattr(source, "file", None)
    return getattr(place, "header_bytes", None)


def row_problems(source: RowSource, progress: Progress = SILENT) -> list[str]:
    """Read all rows of a source once; return a line for each layer with values that are not finite.

    Raises ArtifactError for a file that cannot be read.
    """
    problems = []
    heights = {layer: source.layout.layer(layer).rows for layer in source.layers}
    progress.start("verify", sum(heights.values()), "rows")
    for layer, rows in heights.items():
        dim, bad = source.dim or 1, 0
        step = max(1, PIECE_BYTES // (4 * dim))
        for first in range(0, rows, step):
            values = np.empty((min(step, rows - first), dim), dtype=np.float32)
            source.read(layer, first, values)
            bad += int(np.count_nonzero(~np.isfinite(values).all(axis=1)))
            progress.advance(len(values))
        if bad:
            problems.append(f"layer {layer}: values that are not finite, in {counted(bad, 'row')}")
    return problems


# The check that names constants which a file lacks: they are computed, and contradict nothing.
LACKING = "constants in the file"
# The check of a pad id that was not compressed, where readers do not compress it.
RAW_PAD = "pad id"
# What is found in place of a tensor of the module that is not there.
NO_MODULE = "missing, of the module"


def require_agreement(source: RowSource, hint: str) -> None:
    """Raise ArtifactError if a foreign source differs from its config or tokenizer in anything.

    Constants that are only missing are no difference: they follow from the others. Nor are tensors
    of the module, which rows do not depend on.
    """
    for check in getattr(source, "checks", ()):
        if (
            check.result == "differs"
            and check.name not in (LACKING, RAW_PAD)
            and not check.found.startswith(NO_MODULE)
        ):
            raise ArtifactError(
                f"{source.path}: {check.name} is {check.found}, expected {check.expected}", hint
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A format of artifacts that hold rows.

    `recognise` returns the artifact's own path for a path that is one, or for a folder that has one
    inside, None for anything else; it looks at names and first bytes, and raises nothing. `open`
    checks what it reads and raises InputError, IncompleteError or ArtifactError.

    The rest may be left out. `facts`: what inspect says of the opened source. `unfinished`: facts,
    files and bytes of an artifact for which `open` raises IncompleteError. `check`: what verify
    reads in full, for example checksums; None where that shows the rest is not worth checking.
    `counts`: where the hits differ from statistics of the same layout.

    A `foreign` format is that of another program's checkpoints. Its `open` takes the path of a
    tokenizer too, or None for the one in the folder; its sources have `dialect` and `checks`
    (`formats.model_folder.Check`), and inspect reads their rows only when asked to. `number`: what
    the files of an opened source call a layer of its layout, None where they do not. `headerless`:
    its `open` also takes the `ShardShape` of files that nothing describes, or None.
    """

    name: str
    recognise: Callable[[Path], Path | None]
    open: Callable[..., RowSource]
    facts: Callable[[Any], Facts] = rows_facts
    shows_digest: bool = True
    unfinished: Callable[[Path], tuple[Facts, int, int]] | None = None
    check: Callable[[Path, Checks], RowSource | None] | None = None
    counts: Callable[[Any, Statistics], list[str]] | None = None
    foreign: bool = False
    number: Callable[[Any, int], int | None] = lambda source, layer: layer
    headerless: bool = False

    def open_with(
        self, path: Path, tokenizer: Path | None, shape: ShardShape | None = None
    ) -> RowSource:
        """Open an artifact; `tokenizer` is for a foreign one, `shape` for one without headers.

        Raises as `open`, and InputError for a shape of files that describe themselves.
        """
        if self.headerless:
            return self.open(path, tokenizer, shape)
        if shape is not None:
            raise InputError(
                f"{path} is a {self.name}, which describes itself",
                "leave --shards, --rows-per-shard and --width out",
            )
        return self.open(path, tokenizer) if self.foreign else self.open(path)

    def verify(
        self,
        path: Path,
        checks: Checks,
        tokenizer: Path | None = None,
        shape: ShardShape | None = None,
    ) -> RowSource | None:
        """Check an artifact with `check`; return it opened. Its rows are read by others.

        None where what was found says enough. Raises as `open`.
        """
        if self.check is not None:
            return self.check(path, checks)
        source = self.open_with(path, tokenizer, shape)
        checks.files, checks.stored_bytes = stored_size(path)  # of the files that are known then
        checks.take_compared(getattr(source, "checks", ()))
        return source
