"""The last positions of the sequences of a cache, as decode state keeps them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

KEEP = 64  # positions beyond the needed ones: assisted decoding takes back at most a few dozen


class Recent:
    """The last positions of a stream of [B, t, ...] pieces, `need` of them always at hand.

    A decode step on a CPU writes its position behind the earlier ones (`make_room`), in memory that
    nobody else has. All else makes that memory a piece, which is never written to again.
    """

    def __init__(self, need: int) -> None:
        self.__setstate__((need, []))

    def __getstate__(self) -> tuple[int, list[Tensor]]:
        return self.need, self.pieces

    def __setstate__(self, state: tuple[int, list[Tensor]]) -> None:
        self.need, self._pieces = state
        self._room: Tensor | None = None  # [B, size, ...], of which `_used` positions are known
        self._used = 0

    @property
    def pieces(self) -> list[Tensor]:
        """What is known, in order."""
        if self._room is not None:
            self._pieces, self._room = [self._room[:, : self._used]], None
        return self._pieces

    @pieces.setter
    def pieces(self, pieces: list[Tensor]) -> None:
        self._pieces, self._room = pieces, None

    @property
    def batch(self) -> int | None:
        """B, None before the first position."""
        if self._room is not None:
            return self._room.shape[0]
        return self._pieces[0].shape[0] if self._pieces else None

    def __len__(self) -> int:
        if self._room is not None:
            return self._used
        return sum(piece.shape[1] for piece in self._pieces)

    def append(self, piece: Tensor) -> None:
        """Add a piece and drop what lies further back than need + KEEP."""
        limit, pieces = self.need + KEEP, self.pieces
        if piece.shape[1] > limit:
            self.pieces = [piece[:, -limit:].clone()]
            return
        pieces.append(piece)
        length = len(self)
        while length - pieces[0].shape[1] >= limit:
            length -= pieces.pop(0).shape[1]

    def make_room(self, count: int) -> tuple[Tensor, int]:
        """Return memory [B, size, ...] in one piece, and how many positions of it are known.

        At least `need` are known, zeros before the first. There is room for `count` more after
        these, which count once `advance` is called. Not before the first position.
        """
        if self._room is None or self._used + count > self._room.shape[1]:
            pieces = self.pieces
            whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
            last = whole[:, -(self.need + KEEP) :]
            self._used = max(self.need, last.shape[1])
            size = self._used + max(count, KEEP)
            room = last.new_zeros(last.shape[0], size, *last.shape[2:])
            room[:, self._used - last.shape[1] : self._used] = last
            self._pieces, self._room = [], room
        return self._room, self._used

    def has_room(self, room: Tensor) -> bool:
        """Return whether new positions still belong into `room`."""
        return room is self._room

    def advance(self, count: int) -> None:
        """Note that `count` positions were written where there was room for them."""
        self._used += count

    def last(self) -> Tensor:
        """Return the last positions [B, need, ...], zeros before the first."""
        pieces = self.pieces
        if not self.need:
            return pieces[-1][:, :0]
        length, begin = 0, len(pieces)
        while begin and length < self.need:
            begin -= 1
            length += pieces[begin].shape[1]
        found = torch.cat(pieces[begin:], dim=1)[:, max(0, length - self.need) :]
        missing = self.need - found.shape[1]
        return F.pad(found, (0, 0) * (found.ndim - 2) + (missing, 0)) if missing else found

    def drop(self, count: int) -> None:
        """Forget the last `count` positions."""
        pieces = self.pieces
        while count and pieces:
            piece = pieces.pop()
            if piece.shape[1] > count:
                pieces.append(piece[:, : piece.shape[1] - count])
            count = max(0, count - piece.shape[1])

    def change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Replace the pieces by `change` of all positions in one piece."""
        pieces = self.pieces
        if pieces:
            whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)
            self.pieces = [change(whole)]
