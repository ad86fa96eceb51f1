"""How many different rows a window of the corpus looks up: rows in, shares out.

Windows lie side by side from where a partition of the corpus begins.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from engram_cli.stats.state import State, check, scalar, take, take_scalar
from engram_cli.stats.token_chunk import TokenChunk, scrambled

LENGTHS = (1024, 4096, 16384)
SAMPLED_WINDOWS = 64


class WindowObserver:
    """Counts the different rows in windows of `length` tokens that do not overlap.

    Of all whole windows those `size` are kept whose keys are the smallest.
    """

    def __init__(self, length: int, size: int = SAMPLED_WINDOWS) -> None:
        self.length = length
        self._size = size
        self.found: dict[int, int] = {}  # key -> different rows
        self._limit = 2**64
        self._key: int | None = None  # of the window that has begun, if it may be kept
        self._held: list[NDArray[np.uint32]] = []

    def push_rows(self, rows: NDArray[np.uint32], chunk: TokenChunk) -> None:
        """Look at the rows of a chunk."""
        length, inside = self.length, chunk.position % self.length
        done = (length - inside) % length  # where the next window begins
        if done and self._key is not None:
            self._held.append(rows[:done].copy())
            if done <= len(rows):
                self._finish(self._key, np.concatenate(self._held))
                self._key = None
        begins = np.arange(done, len(rows), length)
        if not len(begins):
            return
        segments = chunk.segments
        which = np.searchsorted(segments.begins, begins, side="right") - 1
        places = ((chunk.position + begins) // length).astype(np.uint64)
        keys = scrambled(segments.keys[which] ^ scrambled(places))
        for at in np.flatnonzero(keys <= np.uint64(self._limit - 1)):
            part = rows[begins[at] : begins[at] + length]
            if len(part) == length:
                self._finish(int(keys[at]), part)
        last = int(begins[-1])
        self._key, self._held = None, []
        if last + length > len(rows) and int(keys[-1]) < self._limit:
            self._key, self._held = int(keys[-1]), [rows[last:].copy()]

    def add(self, other: WindowObserver) -> None:
        """Take in the windows of another part of the corpus."""
        for key, rows in other.found.items():
            if key < self._limit:
                # A file that was counted twice, perhaps in two states: the greater of the two.
                self._keep(key, max(rows, self.found.get(key, 0)))

    def partial(self) -> State:
        """The windows kept, by their keys."""
        keys = sorted(self.found)
        return {
            "keys": np.array(keys, dtype=np.uint64),
            "rows": np.array([self.found[key] for key in keys], dtype=np.int64),
        }

    def absorb(self, state: State) -> None:
        """Take in a partial. Raises ArtifactError."""
        keys = take(state, "keys", np.uint64, (-1,))
        rows = take(state, "rows", np.int64, (len(keys),))
        sound = len(keys) <= self._size and bool(np.all((rows > 0) & (rows <= self.length)))
        check(sound and len(np.unique(keys)) == len(keys), "keys")
        other = WindowObserver(self.length, self._size)
        other.found = dict(zip(keys.tolist(), rows.tolist(), strict=True))
        self.add(other)

    def state(self) -> State:
        """The windows kept, and what there is of the one that has begun."""
        open_key = [] if self._key is None else [self._key]
        held = [] if self._key is None else self._held
        return {
            "keys": np.array(list(self.found), dtype=np.uint64),
            "rows": np.array(list(self.found.values()), dtype=np.int64),
            "highest": scalar(self._limit - 1, np.uint64),
            "open": np.array(open_key, dtype=np.uint64),
            "held": np.concatenate([np.empty(0, dtype=np.uint32), *held]),
        }

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        keys = take(state, "keys", np.uint64, (-1,))
        rows = take(state, "rows", np.int64, (len(keys),))
        held = take(state, "held", np.uint32, (-1,))
        open_key = take(state, "open", np.uint64, (-1,))
        check(len(keys) <= self._size and len(held) < self.length and len(open_key) <= 1, "keys")
        self.found = dict(zip(keys.tolist(), rows.tolist(), strict=True))
        self._limit = take_scalar(state, "highest", 0, 2**64 - 1) + 1
        self._key, self._held = (int(open_key[0]), [held]) if len(open_key) else (None, [])

    def share(self) -> tuple[float, float] | None:
        """The mean share of a window's look-ups that are different rows, and its error.

        None where no window was whole.
        """
        shares = np.array([self.found[key] for key in sorted(self.found)]) / self.length
        if not len(shares):
            return None
        error = float(np.std(shares, ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
        return float(np.mean(shares)), error

    def _finish(self, key: int, rows: NDArray[np.uint32]) -> None:
        if key < self._limit:
            ordered = np.sort(rows)
            met = 1 + int(np.count_nonzero(ordered[1:] != ordered[:-1]))
            self._keep(key, max(met, self.found.get(key, 0)))  # copies of a file share their keys

    def _keep(self, key: int, rows: int) -> None:
        self.found[key] = rows
        if len(self.found) > self._size:
            del self.found[max(self.found)]
            self._limit = max(self.found)
