"""Saves and reads checkpoints of a count: the state of a counter and a position in the corpus.

The folder holds `checkpoint.json` and the file of arrays that it names. New arrays are written
next to the old ones, then the document is replaced, then the old arrays go: whenever the program is
killed there is one whole checkpoint. What is read back is untrusted.
"""

from __future__ import annotations

import json
import mmap
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import ReadPosition
from engram_cli.corpus.stamps import continues
from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.files import PART, canonical_json, inner_file, output_errors, read_json
from engram_cli.numbers import bytes_text, seconds_text
from engram_cli.outputs import Work, clear_work, open_work, remove_work
from engram_cli.progress import Progress
from engram_cli.stats.counting.count import CorpusCounter
from engram_cli.stats.state import State
from engram_cli.version import __version__

FORMAT = "engram-checkpoint"
VERSION = 1
DOCUMENT = "checkpoint.json"
ARRAYS = ("arrays-0.bin", "arrays-1.bin")
FINISHED = "finished.json"
CHECKPOINT = Work(
    name="checkpoint of a count",
    files=re.compile(
        rf"(?:checkpoint\.json|finished\.json|arrays-[01]\.bin)(?:{re.escape(PART)})?"
    ),
)
# Between two checkpoints lies at least this many times what the last one took.
_SPACING = 10.0
_DTYPES = ("|u1", "<u4", "<u8", "<i4", "<i8")
_ALIGN = 16
_PIECE = 2**24  # bytes written while the digest is taken of as many
_AGAIN = "count again from the start"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """The `state` of a `CorpusCounter`, which counted `size` bytes and `tokens`.

    `read_position`: how far the corpus was read. `encoder`: the one to continue with, None where
    the request decides.
    """

    read_position: ReadPosition
    size: int
    tokens: int
    encoder: str | None
    state: State


class FolderCheckpointer:
    """Saves checkpoints in a folder; each one replaces the one before."""

    def __init__(
        self,
        folder: Path,
        request: str,
        seconds: float,
        progress: Progress,
        encoder: str | None,
    ) -> None:
        """`request`: the fingerprint of what is counted; `seconds` between two checkpoints, 0 for
        one at every chance. Once `ending` is set, the next checkpoint is the last, and the count
        stops there."""
        self.ending = Event()
        self.folder = folder
        self.tokens: int | None = None  # of the last checkpoint
        self._request = request
        self._seconds = seconds
        self._progress = progress
        self._encoder = encoder
        self._told = self._failed = False
        self._next = time.monotonic() + seconds

    def due(self) -> bool:
        """Return whether the last checkpoint is old enough, or this is the last chance."""
        return not self._failed and (self.ending.is_set() or time.monotonic() >= self._next)

    def save_last(self, read_position: ReadPosition, counter: CorpusCounter) -> None:
        """Write a checkpoint before the count ends in an error, unless one is there already."""
        if not self._failed and self.tokens != counter.tokens:
            self.save(read_position, counter)

    def save(self, read_position: ReadPosition, counter: CorpusCounter) -> None:
        """Write a checkpoint. When that fails, note it and write no more.

        Raises KeyboardInterrupt after the last one.
        """
        begin = time.monotonic()
        kept = Checkpoint(
            read_position=read_position,
            size=counter.size,
            tokens=counter.tokens,
            encoder=self._encoder,
            state=counter.state(),
        )
        try:
            size = write_checkpoint(self.folder, self._request, kept)
        except OutputError as error:
            self._failed = True
            self._progress.note(f"no checkpoints from here on: {error.message}")
            return
        self.tokens = counter.tokens
        if self.ending.is_set():
            raise KeyboardInterrupt
        took = time.monotonic() - begin
        wait = max(self._seconds, _SPACING * took) if self._seconds > 0 else 0.0
        self._next = begin + took + wait
        if not self._told:
            self._told = True
            self._progress.note(
                f"checkpoint: {bytes_text(size)} in {self.folder}, "
                f"written in {seconds_text(took)}; the next in {wait:,.0f} s"
            )


def write_checkpoint(folder: Path, request: str, checkpoint: Checkpoint) -> int:
    """Replace the checkpoint in `folder`; return the bytes of the new one. Raises OutputError."""
    open_work(folder, CHECKPOINT)
    name = ARRAYS[_named(folder) == ARRAYS[0]]
    with inner_file(folder / name) as part:
        listed, size, digest = _write_arrays(part, checkpoint.state)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "tool_version": __version__,
        "request": request,
        "mark": asdict(checkpoint.read_position),
        "size": checkpoint.size,
        "tokens": checkpoint.tokens,
        "encoder": checkpoint.encoder,
        "arrays_file": name,
        "digest": digest,
        "arrays": listed,
    }
    with inner_file(folder / DOCUMENT) as part:
        part.write_text(json.dumps(document, sort_keys=True), encoding="utf-8")
    with output_errors(folder):
        for left in {*ARRAYS, *(f"{each}{PART}" for each in ARRAYS)} - {name}:
            (folder / left).unlink(missing_ok=True)
    return size


def read_checkpoint(folder: Path, request: str) -> Checkpoint | None:
    """Return the checkpoint in `folder` with its arrays mapped, None when there is none.

    Raises MismatchError for that of another request, ArtifactError for a damaged one.
    """
    path = folder / DOCUMENT
    if not path.is_file():
        return None
    document = read_json(path, "a checkpoint")
    if (document.get("format"), document.get("version")) != (FORMAT, VERSION):
        raise _damaged(path, "is no checkpoint of this version")
    if not continues(request, document.get("request")):
        raise MismatchError(f"{folder} is of another request", _AGAIN)
    encoder, numbers = document.get("encoder"), (document.get("size"), document.get("tokens"))
    if encoder not in (None, "tokenizers") or not all(_is_count(n) for n in numbers):
        raise _damaged(path, "has no sound fields")
    try:
        read_position = ReadPosition.read(document.get("mark"))
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    return Checkpoint(
        read_position=read_position,
        size=document["size"],
        tokens=document["tokens"],
        encoder=encoder,
        state=_read_arrays(folder, document),
    )


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, and its folder unless that holds anything else."""
    with suppress(OutputError):
        remove_work(folder, CHECKPOINT)


def note_finished(folder: Path, digest: str, request: str | None = None) -> None:
    """Note that the count is finished, with statistics of this digest.

    `request`: of a change of statistics, which must not be made twice: None for no such.
    """
    if request is not None:
        open_work(folder, CHECKPOINT)
    if CHECKPOINT.has_mark(folder):
        with inner_file(folder / FINISHED) as part:
            said = {"digest": digest} | ({} if request is None else {"request": request})
            part.write_bytes(canonical_json(said))


def finished_request(folder: Path, stats: Path) -> str | None:
    """Return the change that a run finished which was killed before it removed its note."""
    try:
        said = read_json(folder / FINISHED, "a note")
        if said["digest"] == read_json(stats / "stats.json", "statistics")["digest"]:
            return str(said["request"])
    except (ArtifactError, InputError, KeyError):
        pass
    return None


def clear_finished(folder: Path, stats: Path) -> None:
    """Remove the checkpoint of a run that was killed when its statistics were in place already."""
    clear_work(folder, CHECKPOINT)
    try:
        digest = read_json(folder / FINISHED, "a note")["digest"]
        if digest == read_json(stats / "stats.json", "statistics")["digest"]:
            remove_checkpoint(folder)
    except (ArtifactError, InputError, KeyError):
        return


def _named(folder: Path) -> str | None:
    """Return the file of arrays that the document in `folder` names."""
    try:
        found = read_json(folder / DOCUMENT, "a checkpoint").get("arrays_file")
    except Exception:  # there is none, or it is damaged: nothing is lost
        return None
    return found if isinstance(found, str) else None


def _write_arrays(path: Path, state: State) -> tuple[list[dict[str, Any]], int, str]:
    """Write the arrays one after another; return name, type, shape and offset of each, the bytes of
    all, and the digest of the file."""
    digest, listed, at = sha256(), [], 0
    with path.open("wb") as out, ThreadPoolExecutor(1) as hashing:
        for name, array in state.items():
            shape = list(array.shape)
            listed.append({"name": name, "dtype": array.dtype.str, "shape": shape, "offset": at})
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for begin in range(0, len(flat), _PIECE):
                piece = flat[begin : begin + _PIECE].data
                hashed = hashing.submit(digest.update, piece)
                out.write(piece)
                hashed.result()
            padding = bytes(-len(flat) % _ALIGN)
            digest.update(padding)
            out.write(padding)
            at += len(flat) + len(padding)
    return listed, at, f"sha256:{digest.hexdigest()}"


def _read_arrays(folder: Path, document: dict[str, Any]) -> State:
    """Return the arrays, mapped. Raises ArtifactError."""
    name, listed = document.get("arrays_file"), document.get("arrays")
    if name not in ARRAYS or not isinstance(listed, list):
        raise _damaged(folder / DOCUMENT, "names no arrays")
    path = folder / name
    try:
        with path.open("rb") as stream:
            length = path.stat().st_size
            raw = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if length else b""
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read ({error})") from None
    if f"sha256:{sha256(raw).hexdigest()}" != document.get("digest"):
        raise _damaged(path, "has another digest than it had when it was written")
    return dict(_array(raw, length, entry, path) for entry in listed)


def _array(raw: Any, length: int, entry: Any, path: Path) -> tuple[str, NDArray[Any]]:
    if not isinstance(entry, dict) or entry.keys() != {"name", "dtype", "shape", "offset"}:
        raise _damaged(path, "is not listed soundly")
    name, dtype, shape, offset = (entry[key] for key in ("name", "dtype", "shape", "offset"))
    sound = isinstance(name, str) and dtype in _DTYPES and isinstance(shape, list)
    if not sound or len(shape) > 2 or not all(map(_is_count, [*shape, offset])):
        raise _damaged(path, "is not listed soundly")
    count = int(np.prod([int(each) for each in shape], dtype=object)) if shape else 1
    if offset + count * np.dtype(dtype).itemsize > length or offset % _ALIGN:
        raise _damaged(path, "is shorter than its arrays")
    if not count:
        return name, np.empty(shape, dtype=dtype)
    return name, np.frombuffer(raw, dtype=dtype, count=count, offset=offset).reshape(shape)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _damaged(path: Path, how: str) -> ArtifactError:
    return ArtifactError(f"{path} {how}", _AGAIN)
