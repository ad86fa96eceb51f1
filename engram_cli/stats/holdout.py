"""A part of the corpus that is not counted: blocks in, what is left of them and a sample out.

A segment is held out when a hash of its key says so, wherever and whenever it is read. Of the
tokens held out those of the segments with the smallest keys are kept, about a million.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import Names, TokenBlock
from engram_cli.errors import InputError, MismatchError
from engram_cli.stats.state import State, check, scalar, take, take_scalar
from engram_cli.stats.token_chunk import Segments, scrambled

KEPT_TOKENS = 2**20
_SALT = np.uint64(0x6A09E667F3BCC909)  # other bits than those that say when a segment arrives


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kept:
    """What is left of a block, and what was taken from it.

    `cuts` bool[T]: tokens before which something was taken out, where look-back must end. What is
    left of a document starts with the first token left of it.
    """

    block: TokenBlock
    segments: Segments
    cuts: NDArray[np.bool_]
    held: TokenBlock


class Holdout:
    """Takes about `share` of the tokens out of a stream of blocks."""

    def __init__(self, share: float, kept_tokens: int = KEPT_TOKENS) -> None:
        """Raises InputError for a share that is not between 0 and 1."""
        if not 0.0 < share < 1.0:
            raise InputError(f"--holdout {share}", "give a share between 0 and 1, such as 0.1")
        self.share = share
        self.tokens = 0
        self._below = np.uint64(int(share * 2.0**64))
        self._budget = kept_tokens
        self._limit: int | None = None  # keys from here on are no longer kept
        self._parts: dict[int, list[NDArray[np.integer]]] = {}
        self._held = 0  # tokens in `_parts`
        self._last: int | None = None  # the key of the last segment
        self._copy = False  # which is a copy of one that is kept
        self._cut = False  # the last token of the stream was taken out
        self._documents = self._left = 0  # begun so far, and the one of the last token left

    @property
    def memory(self) -> int:
        """The bytes of the tokens kept, of any integer type."""
        return 3 * 8 * self._budget

    def push(self, block: TokenBlock, segments: Segments) -> Kept:
        """Divide a block; `segments` are its own."""
        chosen = scrambled(segments.keys ^ _SALT) < self._below
        ends = np.append(segments.begins[1:], len(block.ids))
        lengths = ends - segments.begins
        self._keep(block, segments, chosen, ends)
        taken = np.repeat(chosen, lengths)
        self.tokens += int(np.count_nonzero(taken))
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
        return Kept(
            block=replace(_select(block, index), starts=starts),
            segments=Segments(
                begins=begins,
                keys=segments.keys[~chosen],
                carried=0 if chosen[0] else segments.carried,
            ),
            cuts=cuts,
            held=_select(block, np.flatnonzero(taken)),
        )

    def sample(self) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """Token ids [T] of segments that were held out, and bool[T] where each begins."""
        self._shrink()
        segments = [np.concatenate(self._parts[key]) for key in sorted(self._parts)]
        if not segments:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
        starts = np.zeros(sum(map(len, segments)), dtype=np.bool_)
        starts[np.cumsum([0, *map(len, segments[:-1])])] = True
        return np.concatenate(segments), starts

    def state(self) -> State:
        """The segments kept, and where the stream stands."""
        keys = sorted(self._parts)
        parts = [part.astype(np.int64) for key in keys for part in self._parts[key]]
        lengths = [sum(map(len, self._parts[key])) for key in keys]
        return {
            "keys": np.array(keys, dtype=np.uint64),
            "lengths": np.array(lengths, dtype=np.int64),
            "ids": np.concatenate([np.empty(0, dtype=np.int64), *parts]),
            "limit": np.array([] if self._limit is None else [self._limit], dtype=np.uint64),
            "last": np.array([] if self._last is None else [self._last], dtype=np.uint64),
            "copy": scalar(self._copy),
            "cut": scalar(self._cut),
            "tokens": scalar(self.tokens),
            "documents": scalar(self._documents),
            "left": scalar(self._left),
        }

    def restore(self, state: State) -> None:
        """Go on from a `state`. Raises ArtifactError."""
        keys = take(state, "keys", np.uint64, (-1,))
        lengths = take(state, "lengths", np.int64, (len(keys),))
        ids = take(state, "ids", np.int64, (-1,))
        limit = take(state, "limit", np.uint64, (-1,))
        sound = bool(np.all((lengths >= 0) & (lengths <= len(ids)))) and len(limit) <= 1
        check(sound and sum(lengths.tolist()) == len(ids), "lengths")
        check(len(np.unique(keys)) == len(keys), "keys")
        ends = np.cumsum(lengths).tolist()
        begins = [0, *ends[:-1]]
        self._parts = {
            key: [ids[begin:end]]
            for key, begin, end in zip(keys.tolist(), begins, ends, strict=False)
        }
        self._held = len(ids)
        self._limit = int(limit[0]) if len(limit) else None
        last = take(state, "last", np.uint64, (-1,))
        self._last = int(last[0]) if len(last) else None
        self._copy = bool(take_scalar(state, "copy", 0, 1))
        self._cut = bool(take_scalar(state, "cut", 0, 1))
        self.tokens = take_scalar(state, "tokens")
        self._documents = take_scalar(state, "documents")
        self._left = take_scalar(state, "left")

    def partial(self) -> State:
        """The segments kept; what is left of the stream is no matter of other parts."""
        self._shrink()
        keys = sorted(self._parts)
        kept = [np.concatenate(self._parts[key]).astype(np.int64) for key in keys]
        return {
            "share": np.array([self.share], dtype=np.float64),
            "budget": scalar(self._budget),
            "keys": np.array(keys, dtype=np.uint64),
            "lengths": np.array([len(ids) for ids in kept], dtype=np.int64),
            "ids": np.concatenate([np.empty(0, dtype=np.int64), *kept]),
            "limit": np.array([] if self._limit is None else [self._limit], dtype=np.uint64),
            "tokens": scalar(self.tokens),
        }

    def absorb(self, state: State, vocab_size: int) -> None:
        """Take in a partial, of ids below `vocab_size`; of a segment that both parts have the
        longer one stays. Raises ArtifactError, MismatchError for another share."""
        other = holdout_for(state)
        if (other.share, other._budget) != (self.share, self._budget):
            raise MismatchError(
                f"shares of {self.share} and of {other.share} were held out",
                "count all parts with the same --holdout",
            )
        here = {name: scalar(0) for name in ("copy", "cut", "documents", "left")}
        other.restore(state | here | {"last": np.empty(0, dtype=np.uint64)})
        ids = [ids for parts in other._parts.values() for ids in parts]
        check(all(len(each) and 0 <= each.min() <= each.max() < vocab_size for each in ids), "ids")
        limits = [each for each in (self._limit, other._limit) if each is not None]
        self._limit = min(limits, default=None)
        for key, parts in other._parts.items():
            own = [np.concatenate(self._parts[key]).astype(np.int64)] if key in self._parts else []
            self._parts[key] = [max([*own, *parts], key=_extent)]
        if self._limit is not None:
            self._parts = {key: ids for key, ids in self._parts.items() if key < self._limit}
        self.tokens += other.tokens
        self._shrink()

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
                self._copy = key in self._parts
            if not self._copy and (self._limit is None or key < self._limit):
                part = block.ids[segments.begins[which] : ends[which]].copy()
                self._parts.setdefault(key, []).append(part)
                self._held += len(part)
        self._last = int(segments.keys[-1])
        if self._held > 2 * self._budget:
            self._shrink()

    def _shrink(self) -> None:
        """Keep the segments with the smallest keys, as many as it takes to fill the budget.

        That a segment may yet grow only makes fewer of them do.
        """
        total = 0
        for key in sorted(self._parts):
            if total >= self._budget:
                self._limit = key if self._limit is None else min(self._limit, key)
                del self._parts[key]
            else:
                total += sum(map(len, self._parts[key]))
        self._held = total


def holdout_for(state: State) -> Holdout:
    """One that can absorb a partial. Raises ArtifactError."""
    share = float(take(state, "share", np.float64, (1,))[0])
    check(0.0 < share < 1.0, "share")
    return Holdout(share, take_scalar(state, "budget", 1, KEPT_TOKENS))


def _extent(ids: NDArray[np.integer]) -> tuple[int, bytes]:
    """By which one of two segments with the same key is chosen."""
    return len(ids), ids.tobytes()


def _select(block: TokenBlock, index: NDArray[np.int64]) -> TokenBlock:
    """The tokens of a block at `index`, ascending."""
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
    """Where the tokens at `index` of each name begin among them."""
    at = np.searchsorted(index, [at for at, _ in names])
    stops = [*at[1:], len(index)] if names else []
    return tuple(
        (int(begin), name)
        for begin, stop, (_, name) in zip(at, stops, names, strict=True)
        if begin < stop
    )


def _locate(block: TokenBlock, index: NDArray[np.int64], at: int) -> str:
    return block.locate(int(index[at]))
