"""Takes a part of the corpus out of counting, and keeps a sample of it to look up.

A segment is held out when a hash of its key says so, wherever and whenever it is read. Of the
tokens held out, those of the segments with the smallest keys are kept, about a million.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import Names, TokenBlock
from engram_cli.errors import InputError, MismatchError
from engram_cli.stats.counting.token_chunk import Segments, scrambled
from engram_cli.stats.state import State, check, nested, part_of, scalar, take, take_scalar

KEPT_TOKENS = 2**20
_SALT = np.uint64(0x6A09E667F3BCC909)  # other bits than those that say when a segment arrives


class HeldOut:
    """The segments kept of `tokens` held-out tokens, `share` of the corpus; parts merge.

    Segments are kept by their keys, the smallest first, until they hold `budget` tokens. Those with
    keys from `limit` on are no longer kept.
    """

    def __init__(self, share: float, budget: int = KEPT_TOKENS) -> None:
        self.share, self.budget = share, budget
        self.tokens = 0
        self.limit: int | None = None
        self.segments: dict[int, list[NDArray[np.integer]]] = {}  # pieces of each
        self._kept = 0  # tokens in `segments`

    def add(self, key: int, ids: NDArray[np.integer]) -> None:
        """Keep the next tokens of a segment."""
        if self.limit is None or key < self.limit:
            self.segments.setdefault(key, []).append(ids.copy())
            self._kept += len(ids)
            if self._kept > 2 * self.budget:
                self._shrink()

    def _shrink(self) -> None:
        """Keep the segments with the smallest keys, as many as it takes to fill the budget.

        A segment that grows later only makes fewer of them fill it.
        """
        total = 0
        for key in sorted(self.segments):
            if total >= self.budget:
                self.limit = key if self.limit is None else min(self.limit, key)
                del self.segments[key]
            else:
                total += sum(map(len, self.segments[key]))
        self._kept = total

    def sample(self) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Return the token ids [T] of the segments kept, and bool[T] where each begins."""
        self._shrink()
        segments = [np.concatenate(self.segments[key]) for key in sorted(self.segments)]
        if not segments:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
        starts = np.zeros(sum(map(len, segments)), dtype=np.bool_)
        starts[np.cumsum([0, *map(len, segments[:-1])])] = True
        return np.concatenate(segments), starts

    def state(self) -> State:
        """Return all of it as named arrays."""
        self._shrink()
        keys = sorted(self.segments)
        pieces = [piece.astype(np.int64) for key in keys for piece in self.segments[key]]
        lengths = [sum(map(len, self.segments[key])) for key in keys]
        return {
            "share": np.array([self.share], dtype=np.float64),
            "budget": scalar(self.budget),
            "keys": np.array(keys, dtype=np.uint64),
            "lengths": np.array(lengths, dtype=np.int64),
            "ids": np.concatenate([np.empty(0, dtype=np.int64), *pieces]),
            "limit": np.array([] if self.limit is None else [self.limit], dtype=np.uint64),
            "tokens": scalar(self.tokens),
        }

    def merge(self, other: HeldOut) -> HeldOut:
        """Return that of both parts; of a segment in both of them the longer one stays.

        Raises MismatchError for another share.
        """
        if (other.share, other.budget) != (self.share, self.budget):
            raise MismatchError(
                f"shares of {self.share} and of {other.share} were held out",
                "count all parts with the same --holdout",
            )
        both = HeldOut(self.share, self.budget)
        both.tokens = self.tokens + other.tokens
        both.limit = min((x for x in (self.limit, other.limit) if x is not None), default=None)
        for key in self.segments.keys() | other.segments.keys():
            if both.limit is None or key < both.limit:
                pieces = [part.segments[key] for part in (self, other) if key in part.segments]
                copies = [np.concatenate(each).astype(np.int64) for each in pieces]
                both.segments[key] = [max(copies, key=lambda ids: (len(ids), ids.tobytes()))]
        both._shrink()
        return both


def read_held_out(state: State, vocab_size: int) -> HeldOut:
    """Return the segments in a `state`, of ids below `vocab_size`. Raises ArtifactError."""
    share = float(take(state, "share", np.float64, (1,))[0])
    check(0.0 < share < 1.0, "share")
    held = HeldOut(share, take_scalar(state, "budget", 1, KEPT_TOKENS))
    keys = take(state, "keys", np.uint64, (-1,))
    lengths = take(state, "lengths", np.int64, (len(keys),))
    ids = take(state, "ids", np.int64, (-1,))
    limit = take(state, "limit", np.uint64, (-1,))
    sound = bool(np.all((lengths > 0) & (lengths <= len(ids)))) and len(limit) <= 1
    check(sound and sum(lengths.tolist()) == len(ids), "lengths")
    check(len(np.unique(keys)) == len(keys), "keys")
    check(not len(ids) or bool(0 <= ids.min() <= ids.max() < vocab_size), "ids")
    parts = np.split(ids, np.cumsum(lengths)[:-1])
    held.segments = {key: [part] for key, part in zip(keys.tolist(), parts, strict=False)}
    held.limit = int(limit[0]) if len(limit) else None
    held.tokens = take_scalar(state, "tokens")
    held._kept = len(ids)
    return held


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Divided:
    """What is left of a block, and what was taken from it.

    `cuts` bool[T]: tokens before which something was taken out, where look-back must end. What is
    left of a document starts with the first token left of it.
    """

    block: TokenBlock
    segments: Segments
    cuts: NDArray[np.bool_]
    held: TokenBlock


class Holdout:
    """Takes about `share` of the tokens out of a stream of blocks; `held` keeps some of them."""

    def __init__(self, share: float, kept_tokens: int = KEPT_TOKENS) -> None:
        """Raises InputError for a share that is not between 0 and 1."""
        if not 0.0 < share < 1.0:
            raise InputError(f"--holdout {share}", "give a share between 0 and 1, such as 0.1")
        self.held = HeldOut(share, kept_tokens)
        self._below = np.uint64(int(share * 2.0**64))
        self._last: int | None = None  # the key of the last segment
        self._copy = False  # which is a copy of one that is kept
        self._cut = False  # the last token of the stream was taken out
        self._documents = self._left = 0  # begun so far, and the one of the last token left

    @property
    def memory(self) -> int:
        """The bytes of the tokens kept, of any integer type."""
        return 3 * 8 * self.held.budget

    def push(self, block: TokenBlock, segments: Segments) -> Divided:
        """Divide a block; `segments` are its own."""
        chosen = scrambled(segments.keys ^ _SALT) < self._below
        ends = np.append(segments.begins[1:], len(block.ids))
        lengths = ends - segments.begins
        self._keep(block, segments, chosen, ends)
        taken = np.repeat(chosen, lengths)
        self.held.tokens += int(np.count_nonzero(taken))
        after = np.concatenate([[self._cut], chosen[:-1]]) & ~chosen
        self._cut = bool(chosen[-1])
        begins = (np.cumsum(lengths * ~chosen) - lengths * ~chosen)[~chosen]
        index = np.flatnonzero(~taken)
        cuts = np.zeros(len(index), dtype=np.bool_)
        cuts[begins[after[~chosen]]] = True
        documents = self._documents + np.cumsum(block.starts)
        starts = np.diff(documents[index], prepend=self._left) > 0
        self._documents = int(documents[-1])
        self._left = int(documents[index[-1]]) if len(index) else self._left
        return Divided(
            block=replace(_select(block, index), starts=starts),
            segments=Segments(
                begins=begins,
                keys=segments.keys[~chosen],
                carried=0 if chosen[0] else segments.carried,
            ),
            cuts=cuts,
            held=_select(block, np.flatnonzero(taken)),
        )

    def _keep(
        self,
        block: TokenBlock,
        segments: Segments,
        chosen: NDArray[np.bool_],
        ends: NDArray[np.int64],
    ) -> None:
        for which in np.flatnonzero(chosen):
            key = int(segments.keys[which])
            if which or block.starts[0] or key != self._last:
                self._copy = key in self.held.segments
            if not self._copy:
                self.held.add(key, block.ids[segments.begins[which] : ends[which]])
        self._last = int(segments.keys[-1])

    def state(self) -> State:
        """Return the segments kept, and the position in the stream."""
        held = self.held.state()
        del held["share"]  # the request says it
        return nested(held=held) | {
            "last": np.array([] if self._last is None else [self._last], dtype=np.uint64),
            "copy": scalar(self._copy),
            "cut": scalar(self._cut),
            "documents": scalar(self._documents),
            "left": scalar(self._left),
        }

    def restore(self, state: State) -> None:
        """Continue from a `state`. Raises ArtifactError."""
        share = np.array([self.held.share], dtype=np.float64)
        held = read_held_out(part_of(state, "held") | {"share": share}, 2**63)
        last = take(state, "last", np.uint64, (-1,))
        check(held.budget == self.held.budget and len(last) <= 1, "held")
        self.held = held
        self._last = int(last[0]) if len(last) else None
        self._copy = bool(take_scalar(state, "copy", 0, 1))
        self._cut = bool(take_scalar(state, "cut", 0, 1))
        self._documents = take_scalar(state, "documents")
        self._left = take_scalar(state, "left")


def _select(block: TokenBlock, index: NDArray[np.int64]) -> TokenBlock:
    """Return the tokens of a block at `index`, ascending."""
    if len(index) == len(block.ids):
        return block
    return replace(
        block,
        ids=block.ids[index],
        starts=block.starts[index],
        locate=partial(_locate, block, index),
        files=_selected(block.files, index) or block.files[:1],
        labels=_selected(block.labels, index),
    )


def _selected(names: Names, index: NDArray[np.int64]) -> Names:
    """Return where the tokens at `index` of each name begin among them."""
    at = np.searchsorted(index, [at for at, _ in names])
    stops = [*at[1:], len(index)] if names else []
    return tuple(
        (int(begin), name)
        for begin, stop, (_, name) in zip(at, stops, names, strict=True)
        if begin < stop
    )


def _locate(block: TokenBlock, index: NDArray[np.int64], at: int) -> str:
    return block.locate(int(index[at]))
