"""The journal of an update that runs: what it was asked, which buckets are done, the one at work.

An update changes records and rows in place. A kill may leave a
record half written, which cannot be seen in it. So the new records of a bucket lie whole in a slot,
with a checksum, before the first is written to its place, and a bucket is noted when all are. A run
that resumes writes what the slots hold once more and continues with the buckets that are not noted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, OutputError
from engram_cli.files import inner_file, output_errors, read_json
from engram_cli.rows.checksum import Checksum
from engram_cli.table.grid import SUMS
from engram_cli.table.kept_sums import SLOTS
from engram_cli.temporary import boot_id

FORMAT, VERSION = "engram-update", 1
STATE, DONE = "update.json", "done"
_HEADER = 4  # int64 words of a slot: a sign, the bucket, its rows, a checksum
_SIGN = 0x656E6772616D5550
_WORD = 8


class Slot:
    """A file that holds the new records of the bucket that one thread works on."""

    def __init__(self, path: Path, width: int) -> None:
        """`width`: int64 of a record."""
        self._path, self._width = path, width
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with output_errors(path):
            self._handle = os.open(path, flags, 0o666)

    def close(self) -> None:
        """Close the file, which stays."""
        os.close(self._handle)

    def write(self, number: int, rows: NDArray[np.int64], records: NDArray[np.int64]) -> None:
        """Hold the records [n, width] of the rows [n] of a bucket. Raises OutputError."""
        parts = [np.ascontiguousarray(rows), np.ascontiguousarray(records).reshape(-1)]
        checksum = Checksum()
        with output_errors(self._path):
            at = _HEADER * _WORD
            for part in parts:
                checksum.update(part.view(np.uint8))
                at += _write_at(self._handle, part.view(np.uint8), at)
            sign = int(checksum.hexdigest(), 16)
            header = np.array([_SIGN, number, len(rows), sign], dtype="<u8")
            _write_at(self._handle, header.view(np.uint8), 0)

    def read(self) -> tuple[int, NDArray[np.int64], NDArray[np.int64]] | None:
        """Return (bucket, rows, records) if they are whole, else None. Raises OutputError."""
        with output_errors(self._path):
            size = os.fstat(self._handle).st_size
            header = np.frombuffer(os.pread(self._handle, _HEADER * _WORD, 0), dtype=np.uint8)
            if len(header) < _HEADER * _WORD:
                return None
            sign, number, count, checksum = header.view("<u8").tolist()
            words = count * (1 + self._width)
            if sign != _SIGN or count >= 2**40 or size < _WORD * (_HEADER + words):
                return None
            raw = np.fromfile(self._path, dtype="<i8", count=words, offset=_HEADER * _WORD)
        found = Checksum()
        found.update(raw.view(np.uint8))
        if int(found.hexdigest(), 16) != checksum:
            return None
        return number, raw[:count], raw[count:].reshape(count, self._width)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateState:
    """What update.json holds: the request by digests, and the table before it began.

    `attributes`: those of the table. `sums`: those of the group of sums.
    """

    request: Mapping[str, Any]
    attributes: Mapping[str, Any]
    sums: Mapping[str, Any]


class UpdateJournal:
    """The journal in the folder `sums` of the table at `table`; `width`: int64 of a record."""

    def __init__(self, table: Path, width: int) -> None:
        self._folder, self._width = table / SUMS, width
        self._done: NDArray[np.uint8] = np.empty(0, dtype=np.uint8)

    def open(self, buckets: int) -> None:
        """Open the list of buckets that are done, made if missing. Raises OutputError."""
        path = self._folder / DONE
        with output_errors(path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                if os.fstat(handle).st_size != buckets:
                    os.ftruncate(handle, 0)
                    os.ftruncate(handle, buckets)
            finally:
                os.close(handle)
            self._done = np.memmap(path, dtype=np.uint8, mode="r+", shape=(buckets,))

    def done(self, number: int) -> bool:
        """Return whether a bucket is done."""
        return bool(self._done[number])

    def note(self, number: int) -> None:
        """Note that a bucket is done."""
        self._done[number] = 1

    @contextmanager
    def slots(self, count: int) -> Iterator[list[Slot]]:
        """Give `count` slots; their files stay."""
        with ExitStack() as stack:
            made = [Slot(self._folder / f"slot-{n}", self._width) for n in range(count)]
            for slot in made:
                stack.callback(slot.close)
            yield made

    def held(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield what slots hold of buckets that are not done."""
        for number in range(SLOTS):
            if os.path.lexists(self._folder / f"slot-{number}"):
                slot = Slot(self._folder / f"slot-{number}", self._width)
                try:
                    found = slot.read()
                finally:
                    slot.close()
                if found is not None and found[0] < len(self._done) and not self.done(found[0]):
                    yield found

    def begin(self, state: UpdateState) -> None:
        """Write what was asked, and what is there. Raises OutputError."""
        self.clear()
        said = {
            "format": FORMAT,
            "version": VERSION,
            "boot": boot_id(),
            "request": dict(state.request),
            "attributes": dict(state.attributes),
            "sums": dict(state.sums),
        }
        with inner_file(self._folder / STATE) as part:
            part.write_text(json.dumps(said), encoding="utf-8")

    def read(self, *, any_boot: bool = False) -> UpdateState:
        """Read what an interrupted update was asked. Raises ArtifactError, and OutputError unless
        the machine has not been started since, or `any_boot`."""
        path = self._folder / STATE
        said = read_json(path, "the journal of an update")
        try:
            if (said["format"], said["version"]) != (FORMAT, VERSION):
                raise ArtifactError(f"{path} is no journal of this version", "upgrade engram")
            boot, request = said["boot"], dict(said["request"])
            state = UpdateState(
                request=request, attributes=dict(said["attributes"]), sums=dict(said["sums"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path} is damaged: {error}", "build the table again") from None
        if boot != boot_id() and not any_boot:
            raise OutputError(
                f"{self._folder.parent} was being updated when the machine stopped, and what "
                "reached the disk is not known",
                "give the whole corpus with --corpus: the table is filled again, sums included",
            )
        return state

    def finished(self, attributes: Mapping[str, Any]) -> UpdateState | None:
        """Return what was asked of an update that completed the table with these `attributes` and
        was killed before its command had printed the result; None where there is none."""
        if not (self._folder / STATE).is_file():
            return None
        try:
            state = self.read(any_boot=True)
        except (ArtifactError, OutputError):
            return None
        return state if state.attributes.get("digest") != attributes["digest"] else None

    def clear(self, *, keep_state: bool = False) -> None:
        """Remove the journal, what says that there is one last. Raises OutputError.

        `keep_state`: not what was asked, by which `finished` knows a completed update.
        """
        names = [DONE, *(f"slot-{number}" for number in range(SLOTS))]
        names += [] if keep_state else [STATE]
        with output_errors(self._folder):
            for name in names:
                (self._folder / name).unlink(missing_ok=True)


def _write_at(handle: int, data: NDArray[np.uint8], at: int) -> int:
    view, size = data.data, len(data)
    while len(view):
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written
    return size
