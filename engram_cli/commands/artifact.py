"""Detects what a path holds, opens its rows, and finds the statistics and vocabulary for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.plan.file import is_plan
from engram_cli.commands.workspace import WORK, Workspace
from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import read_json
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Checks, Format, row_problems
from engram_cli.formats.model_folder import CONFIG
from engram_cli.formats.shard_shape import ShardShape
from engram_cli.formats.statistics import StatisticsRows, statistics_rows
from engram_cli.hashing.layout import BASE_VOCABULARY, HashLayout, short
from engram_cli.patches.patch_file import is_patch
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.locate import failure_of
from engram_cli.remote.path import is_remote
from engram_cli.rows.gather import FileRows
from engram_cli.rows.source import RowSource
from engram_cli.vocab.lookup import base_lookup, lookup_digest

if TYPE_CHECKING:
    from engram_cli.stats.sampling.known import HitsAt
    from engram_cli.stats.sampling.row_ngrams import RowNgrams
    from engram_cli.stats.stats_io import Statistics
    from engram_cli.vocab.compress import CompressedVocab

VOCABULARY = "vocabulary"
_PARQUET = b"PAR1"
_PLAN_BYTES = 2**20  # what is larger is no plan, and not read
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact at a path; for a checkpoint folder with a bundle inside, the bundle.

    `shape`: of shards that nothing describes.

    `kind` is a name in `FORMATS`, or `VOCABULARY` for a compressed vocabulary, which has no rows.
    """

    path: Path
    kind: str
    shape: ShardShape | None = None

    @property
    def format(self) -> Format:
        """The format, of an artifact with rows."""
        return FORMATS.load(self.kind)

    def open(self, geometry: Geometry | None = None, tokenizer: Path | None = None) -> RowSource:
        """Open the rows; `geometry` makes the layout of a bare vocabulary.

        `tokenizer`: that of a foreign checkpoint, None for the one in its folder.

        Raises InputError, IncompleteError, ArtifactError as the readers of each format do.
        """
        geometry = geometry or Geometry()
        if self.kind == VOCABULARY:
            layout = geometry.resolve(self.path)
            return FileRows(
                format=VOCABULARY, path=self.path, layout=layout, layers=layout.layer_ids
            )
        if geometry.given:
            raise InputError(
                f"{self.path} has its own geometry ({', '.join(geometry.given)} was given)",
                "leave the geometry out, or give a vocabulary to try one",
            )
        return self.format.open_with(self.path, tokenizer, self.shape)


def find_artifact(path: Path, shape: ShardShape | None = None) -> Artifact:
    """Tell what `path` is, but not whether it is whole. Raises InputError, SourceError.

    `shape`: of shards that nothing describes.
    """
    try:
        return _find(path, shape)
    except OSError as error:  # such as a folder that may be listed, but not entered
        raise InputError(
            f"cannot read {path}: {error.strerror or error}", "check the path and its permissions"
        ) from None


def _find(path: Path, shape: ShardShape | None) -> Artifact:
    if not is_remote(path) and path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is neither a file nor a folder", "check the path")
    if path.is_file() and _starts_with(path, _PARQUET):
        return Artifact(path=path, kind=VOCABULARY)
    for name in FORMATS:
        own = FORMATS.load(name).recognise(path)
        if own is not None:
            return Artifact(path=own, kind=name, shape=shape)
    failure = failure_of(path)
    if failure is not None:
        raise failure
    if path.is_file():
        if path.stat().st_size <= _PLAN_BYTES and is_plan(path):
            raise InputError(
                f"{path} is a plan, not a table", f"build it: engram build-table --plan {path}"
            )
        if is_patch(path):
            raise InputError(f"{path} is a patch", f"see what it holds: engram patch show {path}")
        raise InputError(
            f"{path} was not written by engram, and is no checkpoint with tables that it knows",
            "give a table, bundle, vocabulary, statistics or checkpoint",
        )
    if not path.exists():
        raise InputError(f"{path} does not exist", "check the path")
    if (path / CONFIG).exists():
        read_json(path / CONFIG, "a model's config")  # raises for an empty or damaged one
    inside = next(iter(sorted(path.glob("*.gguf"))), None)
    raise InputError(
        f"{path} is not a table, bundle, vocabulary or statistics, nor a checkpoint with tables",
        "check the path" if inside is None else f"give one of its GGUF files, such as {inside}",
    )


def open_vectors(
    path: Path, tokenizer: Path | None = None, shape: ShardShape | None = None
) -> tuple[RowSource, int, str]:
    """Open rows that have vectors; return them with their dim and dtype.

    `tokenizer`: that of a foreign checkpoint, None for the one in its folder. `shape`: of shards
    that nothing describes.

    Raises InputError for an artifact without vectors, and as `Artifact.open`.
    """
    # A table is what is missing where nothing is there.
    found = find_artifact(path, shape) if path.exists() else Artifact(path=path, kind="table")
    source = found.open(tokenizer=tokenizer)
    if source.dim is None or source.dtype is None:
        raise InputError(f"{path} holds no vectors", "give a table or a bundle")
    return source, source.dim, source.dtype


def require_sound(
    source: RowSource,
    hint: str,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
    copied: frozenset[str] = frozenset(),
) -> None:
    """Raise ArtifactError, which names the first problem, when the source does not verify.

    What is copied out of an artifact gets checksums of its own, which would vouch for the damage.
    `copied`: files of a table that are left out, since they are checked when they are copied.
    """
    checks = Checks(threads=threads, progress=progress, copied=copied)
    form = FORMATS.load(source.format)
    form.verify(source.path, checks)
    if form.check is None:  # no checksum vouches for the rows
        checks.take("rows", row_problems(source, progress))
    if not checks.ok:
        rest = len(checks.problems) - 1
        more = f" (and {rest} more)" if rest else ""
        raise ArtifactError(f"{source.path} is damaged: {checks.problems[0]}{more}", hint)


def counted_by(source: RowSource, statistics: Statistics | None) -> RowSource | None:
    """Return what has the hits of the rows: the source itself, else the statistics, else None."""
    if source.has_hits or statistics is None:
        return source if source.has_hits else None
    return statistics_rows(statistics)


def known_ngrams(
    source: RowSource, layer: int, statistics: Statistics | None
) -> tuple[HitsAt | None, Sequence[RowNgrams | None]]:
    """Return a reader of the hits of rows of any shape, and a finder of n-grams for each order.

    None where nothing counted the hits, and where there are no statistics.
    """
    counted, none = counted_by(source, statistics), [None] * len(source.layout.orders)
    if counted is None:
        return None, none

    def hits_at(layer: int, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        return counted.hits_at(layer, ids.reshape(-1)).reshape(ids.shape)

    if statistics is None:
        return hits_at, none
    from engram_cli.stats.sampling.row_ngrams import load_row_ngrams

    return hits_at, load_row_ngrams(statistics, source.layout.layer(layer), hits_at)


def _read_stats(path: Path) -> Statistics:
    from engram_cli.stats.stats_io import read_stats  # 30 MB with the kernels of counting

    return read_stats(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Finds the files that go with an artifact: the given ones, else those that lie next to it."""

    artifact: Path
    folder: Path = Path()
    stats: Path | None = None
    vocab: Path | None = None

    def statistics(self, layout: HashLayout, progress: Progress) -> Statistics | None:
        """Return the statistics of `layout`; None where none lie nearby.

        Raises what `read_stats` raises for those that were named, and InputError when they were
        counted with another layout; for those found nearby, that is only noted.
        """
        if self.stats is not None:
            named = _read_stats(self.stats)
            if named.layout.fingerprint != layout.fingerprint:
                raise InputError(
                    f"{self.stats} was counted with layout {short(named.layout.fingerprint)}, "
                    f"{self.artifact} has {short(layout.fingerprint)}",
                    "give the statistics of this layout, or leave --stats out",
                )
            return named
        for place, found in self._readable(lambda here: here.stats, _read_stats, progress):
            if found.layout.fingerprint == layout.fingerprint:
                progress.note(f"statistics: {place} (found next to the artifact)")
                return found
            progress.note(f"not used: {place} was counted with another layout")
        return None

    def statistics_of(self, source: RowSource, progress: Progress) -> Statistics | None:
        """Return the statistics that a source is, else those of its layout, as `statistics`."""
        if isinstance(source, StatisticsRows):
            return source.statistics
        return self.statistics(source.layout, progress)

    def vocabulary(self, layout: HashLayout, progress: Progress) -> CompressedVocab | None:
        """Return the vocabulary of `layout`, to read n-grams by; None where none lies nearby.

        Raises as `statistics` does.
        """
        from engram_cli.vocab.parquet import read_vocab  # with Arrow

        if self.vocab is not None:
            named = read_vocab(self.vocab)
            if not belongs(named, layout):
                raise InputError(
                    f"{self.vocab} is {short(named.digest)}, {self.artifact} was made for "
                    f"{short(layout.vocab_digest)}",
                    "give the vocabulary it was made with, or leave --vocab out",
                )
            return named
        for place, found in self._readable(lambda here: here.vocab, read_vocab, progress):
            if belongs(found, layout):
                return found
            progress.note(f"not used: {place} is not the vocabulary of {self.artifact}")
        return None

    def vocabulary_place(self) -> Path | None:
        """Return the path of a vocabulary, given or nearby."""
        return next(self.vocabulary_places(), None)

    def vocabulary_places(self) -> Iterator[Path]:
        """Yield the path of the vocabulary that was given, or of each one nearby."""
        if self.vocab is not None:
            yield self.vocab
        else:
            yield from self._nearby(lambda here: here.vocab)

    def _readable(
        self, name: Callable[[Workspace], Path], read: Callable[[Path], T], progress: Progress
    ) -> Iterator[tuple[Path, T]]:
        for place in self._nearby(name):
            try:
                yield place, read(place)
            except EngramError as error:
                progress.note(f"not used: {error.message}")

    def _nearby(self, name: Callable[[Workspace], Path]) -> Iterator[Path]:
        """Yield the files of a name next to the artifact, up to two folders above, and here.

        Next to a trained bundle they are in the `WORK` folder of its run.
        """
        above = () if is_remote(self.artifact) else self.artifact.parents
        met = set()
        next_to = [place for folder in above[:1] for place in (folder, folder / WORK)]
        for folder in (*next_to, self.folder, *above[1:3]):
            place = name(Workspace(folder))
            key = place.absolute()
            if key not in met and place.exists() and key != self.artifact.absolute():
                met.add(key)
                yield place


def belongs(vocab: CompressedVocab, layout: HashLayout) -> bool:
    """Return whether a layout hashes the ids of this vocabulary."""
    if layout.vocab_digest is None:
        return len(vocab.lookup) == layout.vocab_size
    base = layout.parameters.get(BASE_VOCABULARY)
    if isinstance(base, int):
        return lookup_digest(base_lookup(vocab.lookup, base)) == layout.vocab_digest
    return vocab.digest == layout.vocab_digest


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None
