"""A bounded, set-associative cache of records in host memory, which evicts the least used record.

A row can only be in the `WAYS` slots of its set, so that a look-up of many rows is a few array
operations, and the memory never grows.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

WAYS = 8
MAX_USES = 15  # the use counter of a slot saturates here
_FREE = -1  # the row of an empty slot
_SPREAD = -7046029254386353131  # 2**64 / golden ratio, odd, as int64

Rows = NDArray[np.int64]


def slot_bytes(record_bytes: int) -> int:
    """Return the bytes of a cached record with its row number and use counter."""
    return record_bytes + 8 + 1


class RowCache:
    """Records of `record_bytes`, a multiple of 8, in at most `size` bytes; may hold none.

    A slot counts its uses. A new row takes the slot of its set with the fewest uses. These are
    subtracted from the other slots of the set, so that formerly hot rows age. Thread safe.
    """

    def __init__(self, record_bytes: int, size: int) -> None:
        self.sets = size // (WAYS * slot_bytes(record_bytes))
        # Pages take no memory until they are written.
        self._records = np.empty((self.sets * WAYS, record_bytes // 8), dtype=np.int64)
        self._rows = np.full((self.sets, WAYS), _FREE, dtype=np.int64)
        self._uses = np.zeros((self.sets, WAYS), dtype=np.uint8)
        self._lock = Lock()

    def after_fork(self) -> None:
        """Make a new lock in a child process; clear the cache where a thread was changing it."""
        if self._lock.locked():
            self._rows.fill(_FREE)
            self._uses.fill(0)
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Return the most bytes that the cache takes."""
        return self._records.nbytes + self._rows.nbytes + self._uses.nbytes

    @property
    def slots(self) -> int:
        """Return how many records fit."""
        return len(self._records)

    def take(self, rows: Rows, out: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Copy the records of cached `rows` [n] to their lines of `out` int64[n, words].

        Returns bool[n], True where a row was cached; the other lines are unspecified.
        """
        if not self.sets:
            return np.zeros(len(rows), dtype=np.bool_)
        sets = self._set_of(rows)
        with self._lock:
            slots, found = self._find(rows, sets)
            used = slots[found]
            uses = self._uses.reshape(-1)
            uses[used] = np.minimum(uses[used] + np.uint8(1), MAX_USES)
            if len(used) == len(rows):
                _gather(self._records, slots, out)
            elif len(used):
                # Lines without a record get a copy of a record that is read anyway.
                _gather(self._records, np.where(found, slots, used[0]), out)
        return found

    def put(self, rows: Rows, lines: Rows, records: NDArray[np.int64]) -> None:
        """Cache the `lines` [n] of `records` int64[.., words] as the records of `rows` [n].

        Rows beyond the ways of a set, rows that are cached already and repeated rows are skipped.
        """
        if not self.sets or not len(rows):
            return
        sets = self._set_of(rows)
        order = np.lexsort((rows, sets))
        repeated = np.zeros(len(rows), dtype=np.bool_)
        repeated[1:] = rows[order[1:]] == rows[order[:-1]]
        order = order[~repeated]
        with self._lock:
            order = order[~self._find(rows[order], sets[order])[1]]
            if not len(order):
                return
            chosen, slots = self._make_room(sets[order])
            order = order[chosen]
            self._rows.reshape(-1)[slots] = rows[order]
            self._uses.reshape(-1)[slots] = 1
            self._records[slots] = records[lines[order]]

    def _set_of(self, rows: Rows) -> Rows:
        with np.errstate(over="ignore"):
            spread = (rows * np.int64(_SPREAD)) >> 33 & 0x7FFFFFFF
        return spread * self.sets >> 31

    def _find(self, rows: Rows, sets: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """Return the slot of each row, valid where it is cached, and whether it is cached."""
        same = self._rows[sets] == rows[:, None]
        way = same.argmax(axis=1)
        return sets * WAYS + way, same[np.arange(len(rows)), way]

    def _make_room(self, sets: Rows) -> tuple[Rows, Rows]:
        """Free slots for new rows of `sets`, ascending; return (which rows get one, the slots).

        Rows beyond the ways of a set get none.
        """
        first = np.flatnonzero(np.diff(sets, prepend=-1))
        counts = np.diff(first, append=len(sets))
        own = sets[first]
        uses = self._uses[own].astype(np.int16)
        uses[self._rows[own] == _FREE] = -1
        ways = np.argsort(uses, axis=1, kind="stable")
        last = ways[np.arange(len(own)), np.minimum(counts, WAYS) - 1]
        level = np.maximum(uses[np.arange(len(own)), last], 0)
        self._uses[own] = np.maximum(uses - level[:, None], 0)
        group = np.repeat(np.arange(len(own)), counts)
        rank = np.arange(len(sets)) - first[group]
        chosen = np.flatnonzero(rank < WAYS)
        return chosen, sets[chosen] * WAYS + ways[group[chosen], rank[chosen]]


def _gather(records: NDArray[np.int64], slots: Rows, out: NDArray[np.int64]) -> None:
    # torch gathers on all cores and releases the GIL.
    held, places = torch.from_numpy(records), torch.from_numpy(slots)
    torch.index_select(held, 0, places, out=torch.from_numpy(out))
