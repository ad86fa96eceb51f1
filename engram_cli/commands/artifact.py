"""What lies at a path, told from its content, and which statistics and vocabulary go with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engram_cli.commands.plan_file import is_plan
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import EngramError, InputError
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.progress import Progress
from engram_cli.stats.stats_io import DOCUMENT, Statistics, is_stats, read_stats
from engram_cli.table.attributes import META, PARTIAL_SUFFIX, is_table
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import read_vocab

_PARQUET = b"PAR1"
_PLAN_BYTES = 2**20  # what is larger is no plan, and not read


class Kind(StrEnum):
    """What the project writes."""

    TABLE = "table"
    BUNDLE = "bundle"
    VOCABULARY = "vocabulary"
    STATISTICS = "statistics"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact at a path; for a checkpoint folder with a bundle inside, the bundle."""

    path: Path
    kind: Kind


def find_artifact(path: Path) -> Artifact:
    """What `path` is. Says nothing about whether it is whole. Raises InputError."""
    if path.is_file():
        if _starts_with(path, _PARQUET):
            return Artifact(path=path, kind=Kind.VOCABULARY)
        if path.stat().st_size <= _PLAN_BYTES and is_plan(path):
            raise InputError(
                f"{path} is a plan, not a table",
                f"build it: engram build-table --plan {path}",
            )
        raise InputError(
            f"{path} was not written by engram",
            "give a table, bundle, vocabulary or statistics",
        )
    if is_table(path) or path.name.endswith(PARTIAL_SUFFIX) or half_built(path):
        return Artifact(path=path, kind=Kind.TABLE)
    for folder in (path, path / "engram"):
        if (folder / DESCRIPTION).is_file():
            return Artifact(path=folder, kind=Kind.BUNDLE)
    if is_stats(path) or (path / DOCUMENT).is_file():
        return Artifact(path=path, kind=Kind.STATISTICS)
    if (path / META).is_file():
        return Artifact(path=path, kind=Kind.TABLE)
    if not path.exists():
        raise InputError(f"{path} does not exist", "check the path")
    raise InputError(f"{path} is not a table, bundle, vocabulary or statistics", "check the path")


def half_built(path: Path) -> bool:
    """Whether only the beginning of a table that was to stand at `path` is there."""
    return not path.exists() and path.with_name(path.name + PARTIAL_SUFFIX).is_dir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Finds the files that go with an artifact: the given ones, else those that lie next to it."""

    artifact: Path
    folder: Path = Path()
    stats: Path | None = None
    vocab: Path | None = None

    def statistics(self, layout: HashLayout, progress: Progress) -> Statistics | None:
        """The statistics of `layout`; None where none lie nearby.

        Raises what `read_stats` raises for those that were named, and InputError when they were
        counted with another layout; for those found nearby, that is only noted.
        """
        if self.stats is not None:
            named = read_stats(self.stats)
            if named.layout.fingerprint != layout.fingerprint:
                raise InputError(
                    f"{self.stats} was counted with layout {short(named.layout.fingerprint)}, "
                    f"{self.artifact} has {short(layout.fingerprint)}",
                    "give the statistics of this layout, or leave --stats out",
                )
            return named
        for place in self._nearby(lambda here: here.stats):
            try:
                found = read_stats(place)
            except EngramError as error:
                progress.note(f"not used: {error.message}")
                continue
            if found.layout.fingerprint == layout.fingerprint:
                progress.note(f"statistics: {place} (found next to the artifact)")
                return found
            progress.note(f"not used: {place} was counted with another layout")
        return None

    def vocabulary(self, layout: HashLayout, progress: Progress) -> CompressedVocab | None:
        """The vocabulary of `layout`, to read n-grams by; None where none lies nearby.

        Raises as `statistics` does.
        """
        if self.vocab is not None:
            named = read_vocab(self.vocab)
            if not belongs(named, layout):
                raise InputError(
                    f"{self.vocab} is {short(named.digest)}, {self.artifact} was made for "
                    f"{short(layout.vocab_digest)}",
                    "give the vocabulary it was made with, or leave --vocab out",
                )
            return named
        for place in self._nearby(lambda here: here.vocab):
            try:
                found = read_vocab(place)
            except EngramError as error:
                progress.note(f"not used: {error.message}")
                continue
            if belongs(found, layout):
                return found
            progress.note(f"not used: {place} is not the vocabulary of {self.artifact}")
        return None

    def vocabulary_place(self) -> Path | None:
        """The path of a vocabulary, given or nearby."""
        return self.vocab or next(self._nearby(lambda here: here.vocab), None)

    def _nearby(self, name: Callable[[Workspace], Path]) -> Iterator[Path]:
        """Yield the files of a name next to the artifact, up to two folders above, and here."""
        above = self.artifact.parents
        met = set()
        for folder in (*above[:1], self.folder, *above[1:3]):
            place = name(Workspace(folder))
            key = place.absolute()
            if key not in met and place.exists() and key != self.artifact.absolute():
                met.add(key)
                yield place


def belongs(vocab: CompressedVocab, layout: HashLayout) -> bool:
    """Whether a layout hashes the ids of this vocabulary."""
    if layout.vocab_digest is None:
        return len(vocab.lookup) == layout.vocab_size
    return vocab.digest == layout.vocab_digest


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None
