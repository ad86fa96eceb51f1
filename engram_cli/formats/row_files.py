"""Streams the rows of a source into files of any format, and resumes where it was interrupted.

A format says which files there are, what they begin with, and where rows go. They grow in
`<name>.partial` next to their place; how many rows are on the disk is noted there, after they were
flushed. Rows are read, converted and written in threads, in pieces that stay in the cache.
"""

from __future__ import annotations

import json
import os
import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.files import canonical_json, inner_file, output_errors, read_json, sha256_bytes
from engram_cli.formats.base import WriteOptions
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY
from engram_cli.outputs import (
    MARK,
    Kind,
    Work,
    clear_work,
    new_file,
    new_folder,
    open_work,
    prepare_output,
    remove_work,
)
from engram_cli.rows import DTYPES
from engram_cli.rows.copying import Extent, copy_bytes
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.stored_as import PIECE_BYTES, sampled_digest, stored_reader
from engram_cli.table.build import free_bytes
from engram_cli.table.lock import build_lock, clear_lock

RECORDS = "records"  # a row's items, then its scales
BLOCKS = "blocks"  # of 33 bytes: a scale, then its 32 items
PARTIAL = ".partial"
_NAME, _WORK = "rows.json", "conversion"
_FLUSHED = 2**29  # bytes written between two notes of what is on the disk
_QUEUED = 8  # pieces a thread has before it

T = TypeVar("T")


class Digest(Protocol):
    """A running digest of bytes: XXH64, or one of hashlib."""

    def update(self, data: NDArray[np.uint8], /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run of rows goes: `rows` from row `first` of a layer, from byte `begin` of `file`.

    `part`: ROWS, SCALES, RECORDS or BLOCKS. `width`: bytes of a row there.
    """

    file: str
    layer: int
    part: str
    begin: int
    first: int
    rows: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file that is to be written: its `size`, and what it has in addition to rows.

    `head`: bytes, by where they begin. `copies`: parts of other files.
    """

    name: str
    size: int
    head: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    copies: tuple[tuple[Path, Extent], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFiles:
    """What is to be written: the rows of `source` as `dtype` stores them, in `files` at `places`.

    `small`: names of further files, which the format writes itself when the rows are there.
    `hashed`: makes the running digest of each file, which then is a head and one place; None for
    none.
    """

    source: RowSource
    dtype: str
    files: tuple[NewFile, ...]
    places: tuple[Place, ...]
    small: tuple[str, ...] = ()
    hashed: Callable[[], Digest] | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def request(self) -> str:
        """What tells this conversion from others: the files, and the content of the source."""
        source = self.source
        about = {
            "dtype": self.dtype,
            "source": sampled_digest(source),
            "files": [
                [f.name, f.size, [[at, sha256_bytes(raw)] for at, raw in f.head.items()]]
                + [[str(path), asdict(extent)] for path, extent in f.copies]
                for f in self.files
            ],
            "places": sha256_bytes(canonical_json([asdict(place) for place in self.places])),
        }
        return sha256_bytes(b"engram conversion 1\n", canonical_json(about))


def require_rows(source: RowSource, target: str) -> None:
    """Raise InputError unless a source has vectors, and the rows of all layers of its layout."""
    if source.dim is None or source.dtype is None:
        raise InputError(f"{source.path} holds no vectors", "give a table or a checkpoint")
    lost = sorted(set(source.layout.layer_ids) - set(source.layers))
    if lost:
        raise InputError(
            f"{source.path} has no rows of layer {', '.join(map(str, lost))}",
            f"{target} has the rows of every layer: choose those there are with --layers",
        )


def require_map(source: RowSource) -> None:
    """Raise InputError for a source whose rows no token finds."""
    if source.layout.vocab_digest == UNKNOWN_VOCABULARY:
        raise InputError(
            f"{source.path} has no token map, so that no token finds its row",
            "give the model's tokenizer with --tokenizer",
        )


def prepare_rows(out: Path, kind: Kind, options: WriteOptions, inputs: Iterable[Path]) -> None:
    """Check the output before any work, as `prepare_output` does.

    What a run left that was killed when its output was in place is removed first.
    """
    folder = out.with_name(out.name + PARTIAL)
    clear_work(folder, _work((), ()))
    if os.path.lexists(out):
        with suppress(OutputError), build_lock(out):
            said = _said(folder)
            names = [name for name in (said or {}).get("files", ()) if isinstance(name, str)]
            if names and not any(os.path.lexists(folder / name) for name in names):
                remove_work(folder, _work((), names))
    clear_lock(out)
    prepare_output(out, kind, force=options.force, inputs=inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """The work folder with all rows, and the digest of each file, where that was asked for."""

    folder: Path
    digests: Mapping[str, Digest]


@contextmanager
def grown_files(out: Path, plan: RowFiles, options: WriteOptions) -> Iterator[Grown]:
    """Write all rows into files of a folder next to `out`, and give that folder.

    The block writes the small files, verifies and puts the files in place (`put_folder`). What an
    interrupted run of the same request has written is kept. Raises OutputError for one of another
    request, unless `options.force` drops it, and where the files do not fit.
    """
    folder, request = out.with_name(out.name + PARTIAL), plan.request
    work = _work(plan.files, plan.small)
    with build_lock(out):
        done = _begin(folder, plan, request, options.force)
        if done:
            options.progress.note(f"resuming an interrupted conversion: {done:,} rows are written")
        _require_room(out, plan, folder)
        options.progress.start(f"rows into {out.name}", plan.size, "bytes")
        with output_errors(folder), _Writer(folder, plan, request) as writer:
            writer.grow(done, options)
        try:
            yield Grown(folder=folder, digests=writer.digests)
        except ArtifactError:  # what was written is not what was read: nothing to resume
            remove_work(folder, work)
            raise
        remove_work(folder, work)


def put_folder(
    folder: Path,
    out: Path,
    kind: Kind,
    options: WriteOptions,
    names: Sequence[str],
    inner: Mapping[str, bytes] | None = None,
) -> None:
    """Move files of the work folder to the new folder `out`, which appears whole.

    `inner`: files in folders of their own, by path. Raises OutputError.
    """
    with new_folder(out, kind, force=options.force) as new:
        for name in names:
            os.rename(folder / name, new / name)
        for name, raw in (inner or {}).items():
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_bytes(raw)


def put_file(file: Path, out: Path, kind: Kind, options: WriteOptions) -> None:
    """Move a file of the work folder to `out`. Raises OutputError."""
    with new_file(out, kind, force=options.force) as new:
        os.replace(file, new)


def _work(files: Sequence[NewFile], small: Sequence[str]) -> Work:
    names = [file.name for file in files] + [*small, _NAME]
    pattern = "|".join(re.escape(name) for name in names)
    return Work(name=_WORK, files=re.compile(rf"(?:{pattern})(?:\.part)?"))


def _begin(folder: Path, plan: RowFiles, request: str, force: bool) -> int:
    """Make the work folder or take the one that is there; return how many rows it has."""
    said = _said(folder)
    if said is not None and said.get("request") != request:
        if not force:
            raise OutputError(
                f"{folder} is a half-written conversion of another source or request",
                "run that command again to finish it, or start over with --force",
            )
        listed = [name for name in said.get("files", ()) if isinstance(name, str)]
        remove_work(folder, _work((), listed))
        said = None
    open_work(folder, _work(plan.files, plan.small))
    if said is not None and all(_is_file(folder / file.name) for file in plan.files):
        done = said.get("rows")
        if type(done) is int and 0 <= done <= _total(plan):
            return done
    with output_errors(folder):
        for file in plan.files:
            with suppress(FileNotFoundError):
                (folder / file.name).unlink()
    _note(folder, plan, request, 0)
    return 0


def _said(folder: Path) -> dict[str, Any] | None:
    if folder.is_symlink() or not _is_file(folder / MARK) or not _is_file(folder / _NAME):
        return None
    try:
        return read_json(folder / _NAME, "a note of rows")
    except (InputError, ArtifactError):
        return None


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _note(folder: Path, plan: RowFiles, request: str, done: int) -> None:
    names = [file.name for file in plan.files] + [*plan.small]
    about = {"request": request, "files": names, "rows": done}
    with inner_file(folder / _NAME) as part:
        part.write_text(json.dumps(about), encoding="utf-8")


def _require_room(out: Path, plan: RowFiles, folder: Path) -> None:
    there = sum((folder / f.name).stat().st_blocks * 512 for f in plan.files
                if (folder / f.name).exists())  # fmt: skip
    need, free = max(0, plan.size - there), free_bytes(out)
    if need > free:
        raise OutputError(
            f"{out} needs {need:,} bytes, {free:,} are free", "free some, or write to another disk"
        )


def _total(plan: RowFiles) -> int:
    return sum(plan.source.layout.layer(layer).rows for layer in plan.source.layers)


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[tuple[int, int, int]], T],
    tasks: Iterator[tuple[int, int, int]],
    threads: int,
) -> Iterator[T]:
    """Yield the results of tasks in order, with a few tasks waiting for each thread."""
    waiting = deque(pool.submit(work, task) for task in islice(tasks, threads * _QUEUED))
    try:
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(work, task) for task in islice(tasks, 1))
    finally:
        for each in waiting:
            each.cancel()


class _Writer:
    """The opened files of a work folder; `write` may run in threads."""

    def __init__(self, folder: Path, plan: RowFiles, request: str) -> None:
        self._folder, self._plan, self._request = folder, plan, request
        self.digests: dict[str, Digest] = {}
        for file in plan.files if plan.hashed is not None else ():
            assert plan.hashed is not None
            self.digests[file.name] = plan.hashed()
            for raw in file.head.values():
                self.digests[file.name].update(np.frombuffer(raw, np.uint8))
        read = stored_reader(plan.source, plan.dtype)
        assert read is not None
        self._read = read
        self._handles: dict[str, int] = {}
        by_part: dict[tuple[int, str], list[Place]] = {}
        for place in sorted(plan.places, key=lambda place: place.first):
            by_part.setdefault((place.layer, place.part), []).append(place)
        self._places = {
            layer: [
                ([place.first for place in places], places)
                for (other, _), places in by_part.items()
                if other == layer
            ]
            for layer in plan.source.layers
        }
        self.row_bytes = sum(place.rows * place.width for place in plan.places)

    def __enter__(self) -> _Writer:
        for file in self._plan.files:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._handles[file.name] = os.open(self._folder / file.name, flags, 0o666)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles.values():
            os.close(handle)

    def grow(self, done: int, options: WriteOptions) -> None:
        """Write what is missing behind the first `done` rows.

        What is on the disk is noted now and then, and when this is interrupted.
        """
        advance = options.progress.advance
        if done:
            self._catch_up(done)
            advance(self._plan.size - self.row_bytes)
        else:
            self.write_rest(advance)
        reached, noted, unflushed = done, done, 0
        flushing: Future[None] | None = None
        with ThreadPoolExecutor(1) as flusher:
            try:
                with ThreadPoolExecutor(options.threads) as pool:
                    tasks = self.tasks(done)
                    for rows, pieces in _in_order(pool, self.write, tasks, options.threads):
                        reached += rows
                        for name, piece in pieces:
                            unflushed += piece.nbytes
                            advance(piece.nbytes)
                            if name in self.digests:
                                self.digests[name].update(piece)
                        if unflushed >= _FLUSHED and (flushing is None or flushing.done()):
                            flushing = flusher.submit(self.flush, reached)
                            noted, unflushed = reached, 0
            finally:
                if flushing is not None:
                    flushing.result()
                if reached > noted or reached == _total(self._plan):
                    self.flush(reached)

    def _catch_up(self, done: int) -> None:
        """Take the checksums of the rows that an earlier run wrote."""
        starts, rows = {}, 0
        for layer in self._plan.source.layers:
            starts[layer] = rows
            rows += self._plan.source.layout.layer(layer).rows
        for place in self._plan.places if self.digests else ():
            left = min(max(0, done - starts[place.layer] - place.first), place.rows) * place.width
            with (self._folder / place.file).open("rb", buffering=0) as file:
                file.seek(place.begin)
                while left:
                    piece = file.read(min(left, PIECE_BYTES))
                    if not piece:
                        raise ArtifactError(f"{file.name} ends too early", "start over: --force")
                    self.digests[place.file].update(np.frombuffer(piece, np.uint8))
                    left -= len(piece)

    def write_rest(self, advance: Callable[[int], None]) -> None:
        """Write all that is no rows, and give each file its size."""
        for file in self._plan.files:
            handle = self._handles[file.name]
            os.ftruncate(handle, file.size)  # longer only: that flushes nothing
            for at, raw in file.head.items():
                _write_at(handle, memoryview(raw), at)
                advance(len(raw))
            for path, extent in file.copies:
                with path.open("rb", buffering=0) as old, os.fdopen(os.dup(handle), "r+b", 0) as to:
                    to.seek(extent.to)
                    copy_bytes(old, to, extent.begin, extent.size, advance)

    def tasks(self, done: int) -> Iterator[tuple[int, int, int]]:
        """Yield (layer, first row, rows) of each piece behind the first `done` rows."""
        source = self._plan.source
        step = max(1, PIECE_BYTES // DTYPES.load(self._plan.dtype).row_bytes(source.dim or 1))
        for layer in source.layers:
            rows = source.layout.layer(layer).rows
            for first in range(min(done, rows), rows, step):
                yield layer, first, min(step, rows - first)
            done = max(0, done - rows)

    def write(self, task: tuple[int, int, int]) -> tuple[int, list[tuple[str, NDArray[np.uint8]]]]:
        """Write a piece to all its places; return its rows, and what went into which file."""
        layer, first, count = task
        stored = [np.atleast_2d(part).view(np.uint8) for part in self._read(*task)]
        written = []
        for firsts, places in self._places[layer]:
            raw = _part(stored, places[0].part)
            index = max(0, bisect_right(firsts, first) - 1)
            for place in islice(places, index, None):
                begin, end = max(first, place.first), min(first + count, place.first + place.rows)
                if begin >= first + count:
                    break
                if begin < end:
                    piece = raw[begin - first : end - first].reshape(-1)
                    at = place.begin + (begin - place.first) * place.width
                    _write_at(self._handles[place.file], piece.data, at)
                    written.append((place.file, piece))
        return count, written

    def flush(self, done: int) -> None:
        """Write everything to the disk, then note that the first `done` rows are there."""
        for handle in self._handles.values():
            os.fsync(handle)
        _note(self._folder, self._plan, self._request, done)


def _write_at(handle: int, view: memoryview, at: int) -> None:
    while view:
        count = os.pwrite(handle, view, at)
        view, at = view[count:], at + count


def _part(stored: list[NDArray[np.uint8]], part: str) -> NDArray[np.uint8]:
    """Return a part of rows as bytes [n, width], from items and scales [n, ...]."""
    if part == ROWS:
        return stored[0]
    if part == SCALES:
        return stored[1]
    items, scales = stored
    if part == RECORDS:
        return np.concatenate(stored, axis=1)
    blocks = np.empty((len(items), scales.shape[1], 33), dtype=np.uint8)
    blocks[:, :, 0] = scales
    blocks[:, :, 1:] = items.reshape(len(items), -1, 32)
    return blocks.reshape(len(items), -1)
