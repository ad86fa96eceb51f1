"""Token ids in, rows out: the checks, the threads and the streaming around the kernels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import InputError, LayoutError, TokenIdError
from engram_cli.hashing import FAST_MODULUS_ABOVE, FAST_MODULUS_BELOW, TILE
from engram_cli.hashing.few import kernels_for
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.lookback import Mask, carry_after

_ID_DTYPES = {"uint8", "uint16", "int32", "uint32", "int64"}
_ROWS_STEP = 8192  # columns of this many tokens stay in the L2 cache
_NO_MASK = np.empty(0, dtype=np.bool_)
# What the kernels' signatures ask for: read-only arrays (memory maps, bytes) are copied.
_KERNEL_ARRAY: tuple[Literal["C"], Literal["W"]] = ("C", "W")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """T checked positions: `tokens` int32[N-1+T] with the history first, `seen` uint8[T]."""

    tokens: NDArray[np.int32]
    seen: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.seen)

    def part(self, begin: int, end: int) -> Window:
        """Return the positions begin..end-1 with their history, without a copy."""
        history = len(self.tokens) - len(self.seen)
        return Window(tokens=self.tokens[begin : end + history], seen=self.seen[begin:end])


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """A layer's hash as the kernels take it."""

    multipliers: NDArray[np.int64]  # [orders, N] by lag
    weights: NDArray[np.int64]  # [C, N] by lag where the fold is "powers", else [0, N]
    orders: NDArray[np.int64]
    moduli: NDArray[np.int64]  # [C]
    salts: NDArray[np.int64]  # [C]
    fast: NDArray[np.bool_]  # [C]
    offsets: NDArray[np.int64]  # [C]
    shared: bool
    filler: int
    heads: int

    def of_order(self, index: int) -> LayerPlan:
        """Return the part of the order with this index in the layout."""
        own = slice(index * self.heads, (index + 1) * self.heads)
        return LayerPlan(
            multipliers=self.multipliers[index : index + 1],
            weights=self.weights[own],
            orders=self.orders[index : index + 1],
            moduli=self.moduli[own],
            salts=self.salts[own],
            fast=self.fast[own],
            offsets=self.offsets[own],
            shared=self.shared,
            filler=self.filler,
            heads=self.heads,
        )

    def columns(
        self, tokens: NDArray[np.int32], seen: NDArray[np.uint8], out: NDArray[np.uint32]
    ) -> None:
        """Write the head-local rows of T positions into `out` uint32[C, T].

        `tokens` int32[N-1+T] compressed ids, the history first; `seen` uint8[T], see `lookback`.
        """
        kernels = kernels_for(len(seen))
        window = (tokens, seen, self.filler)
        if len(self.weights):
            columns = (self.weights, self.orders, self.moduli, self.fast)
            kernels.sum_columns(*window, *columns, out)
        else:
            mixed = (self.multipliers, self.orders, self.shared)
            kernels.hash_columns(*window, *mixed, self.moduli, self.salts, self.fast, out)


def plan_layer(layout: HashLayout, layer: LayerHash) -> LayerPlan:
    """Return the kernel's arguments for `layer`; says for which columns the reciprocal path is
    exact."""
    multipliers = np.zeros((len(layout.orders), layout.max_order), dtype=np.int64)
    lags = [layout.lag_multipliers(layer, order) for order in layout.orders]
    for index, own in enumerate(lags):
        multipliers[index, : len(own)] = own
    summed = layout.fold == "powers"
    weights = np.zeros((layout.columns if summed else 0, layout.max_order), dtype=np.int64)
    for column in range(len(weights)):
        by_lag = layout.weights(layer, column)
        weights[column, : len(by_lag)] = by_lag
    largest = layout.compressed_size - 1
    no_wrap = summed or all(m >= 0 and m * largest < 2**63 for m in layer.multipliers)
    moduli = np.array(layer.moduli, dtype=np.int64)
    salts = np.array(layer.salts, dtype=np.int64)
    inside = (moduli > FAST_MODULUS_ABOVE) & (moduli < FAST_MODULUS_BELOW)
    return LayerPlan(
        multipliers=multipliers,
        weights=weights,
        orders=np.array([len(own) for own in lags], dtype=np.int64),
        moduli=moduli,
        salts=salts,
        fast=inside & (salts == 0) & no_wrap,
        offsets=np.array(layer.offsets, dtype=np.int64),
        shared=layout.fold == "newest-first",
        filler=layout.filler_id,
        heads=layout.heads,
    )


class StreamHasher:
    """Hashes a stream of tokens that comes in pieces; where it is cut changes nothing."""

    def __init__(self, layout: HashLayout) -> None:
        self.layout = layout
        self._lookup = _lookup_of(layout)
        self._plans = {entry.layer: plan_layer(layout, entry) for entry in layout.layers}
        self.reset()

    def reset(self) -> None:
        """Forget what went before: the next token is the first of a sequence."""
        self._history = np.full(self.layout.max_order - 1, self.layout.filler_id, dtype=np.int32)
        self._carry = 0

    @property
    def memory(self) -> tuple[NDArray[np.int32], int]:
        """Return the last N-1 compressed tokens, and how many of them the next one may see."""
        return self._history.copy(), self._carry

    def remember(self, history: NDArray[np.int32], carry: int) -> None:
        """Continue from a `memory`. Raises InputError for one that no stream can have."""
        layout, wanted = self.layout, self._history
        known = (history >= 0) & (history < layout.compressed_size) | (history == layout.filler_id)
        if history.dtype != wanted.dtype or history.shape != wanted.shape or not known.all():
            raise InputError("these are no last tokens of a stream", "give what `memory` gave")
        if not 0 <= carry < layout.max_order:
            raise InputError(f"{carry} tokens cannot be seen", "give what `memory` gave")
        self._history, self._carry = history.copy(), carry

    def push(
        self, ids: NDArray[np.integer], *, dead: Mask | None = None, starts: Mask | None = None
    ) -> Window:
        """Compress and check the next ids [T] of the stream, and remember the last N-1.

        `dead`, `starts`: bool[T] masks of dead tokens and of first tokens of sequences. Raises
        TokenIdError with the position in `ids`, and then remembers nothing of them.
        """
        flat = _flat_ids(ids)
        older = len(self._history)
        tokens = np.empty(older + len(flat), dtype=np.int32)
        tokens[:older] = self._history
        fresh = tokens[older:]
        kernels = kernels_for(len(flat))
        bad = kernels.compress(flat, self._lookup, fresh)
        if bad >= 0:
            raise _token_error(int(flat[bad]), int(bad), self.layout)
        seen = np.empty(len(flat), dtype=np.uint8)
        eos = -1 if self.layout.eos_id is None else self.layout.eos_id
        kernels.visible(
            fresh,
            _mask(dead, len(flat), "dead"),
            _mask(starts, len(flat), "starts"),
            eos,
            self.layout.max_order,
            self._carry,
            seen,
        )
        self._carry = carry_after(self.layout, fresh, seen, self._carry)
        self._history = tokens[len(tokens) - older :].copy()
        return Window(tokens=tokens, seen=seen)

    def columns(
        self, window: Window, layer: int, out: NDArray[np.uint32] | None = None
    ) -> NDArray[np.uint32]:
        """Return uint32[C, T]: the head-local rows of `layer` for the positions of `window`."""
        plan = self._plans[layer]
        if out is None:
            out = np.empty((self.layout.columns, len(window)), dtype=np.uint32)
        plan.columns(window.tokens, window.seen, out)
        return out

    def rows(
        self, window: Window, layer: int, out: NDArray[np.int64], *, head_local: bool = False
    ) -> None:
        """Write the table rows of `layer`, or the head-local ones, into `out` int64[T, C]."""
        offsets = self._plans[layer].offsets
        if head_local:
            offsets = np.zeros_like(offsets)
        scratch = np.empty((self.layout.columns, min(len(window), _ROWS_STEP)), dtype=np.uint32)
        for begin in range(0, len(window), _ROWS_STEP):
            end = min(begin + _ROWS_STEP, len(window))
            if end - begin < scratch.shape[1]:
                scratch = np.empty((self.layout.columns, end - begin), dtype=np.uint32)
            self.columns(window.part(begin, end), layer, scratch)
            kernels_for(0).to_rows(scratch, offsets, out[begin:end])


def hash_tokens(
    layout: HashLayout,
    ids: ArrayLike,
    layer: int | None = None,
    *,
    dead: Mask | None = None,
    starts: Mask | None = None,
    head_local: bool = False,
    threads: int = 1,
) -> NDArray[np.int64]:
    """Table rows of raw token ids: int [T] or [B, T] in, int64 [T, C] or [B, T, C] out.

    Each line of a batch is a sequence of its own. `dead` and `starts` are bool masks of the shape
    of `ids`: dead tokens, and first tokens of further sequences packed in a line.
    `head_local=True` leaves out the columns' offsets. `layer` may be left out where the layout has
    one. Raises TokenIdError for an id outside the vocabulary, LayoutError for an unknown layer.
    """
    entry = layout.layer(layer)
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise InputError(f"ids are no array: {error}", "give [T] or [B, T]") from None
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype(np.int64)
    if array.ndim not in (1, 2):
        raise InputError(f"ids have {array.ndim} dimensions", "give [T] or [B, T]")
    begins = np.zeros(array.shape, dtype=np.bool_)
    begins[..., :1] = True
    if starts is not None:
        begins |= _shaped(starts, array.shape, "starts")
    deaths = None if dead is None else _shaped(dead, array.shape, "dead").reshape(-1)
    hasher = StreamHasher(layout)
    window = hasher.push(array.reshape(-1), dead=deaths, starts=begins.reshape(-1))
    rows = np.empty((len(window), layout.columns), dtype=np.int64)

    def fill(part: tuple[int, int]) -> None:
        begin, end = part
        piece = window.part(begin, end)
        hasher.rows(piece, entry.layer, rows[begin:end], head_local=head_local)

    parts = _parts(len(window), threads)
    if len(parts) <= 1:
        fill((0, len(window)))
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(fill, parts))
    return rows.reshape(*array.shape, layout.columns)


def first_unknown(layout: HashLayout, ids: NDArray[np.integer]) -> int:
    """Return the position of the first id [T] that no token has, -1 if there is none."""
    flat = _flat_ids(ids)
    kernels = kernels_for(len(flat))
    return int(kernels.compress(flat, _lookup_of(layout), np.empty(len(flat), dtype=np.int32)))


def _parts(count: int, threads: int) -> list[tuple[int, int]]:
    step = max(-(-count // max(threads, 1)), TILE)
    return [(begin, min(begin + step, count)) for begin in range(0, count, step)]


def _lookup_of(layout: HashLayout) -> NDArray[np.int32]:
    if layout.lookup is not None:
        return np.require(layout.lookup, requirements=_KERNEL_ARRAY)
    if layout.vocab_digest is not None:
        raise LayoutError(
            "the layout has no vocabulary map", "bind the compressed vocabulary it was made with"
        )
    return np.arange(layout.compressed_size, dtype=np.int32)


def _flat_ids(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    array = np.asarray(ids)
    if array.dtype.kind not in "iu":
        raise InputError(f"token ids are {array.dtype}", "give integers")
    if array.dtype.itemsize == 8 and array.dtype.kind == "u":
        if array.size and int(array.max()) >= 2**63:
            raise TokenIdError(f"token id {int(array.max())} is beyond int64", "give token ids")
        array = array.astype(np.int64)
    elif array.dtype.name not in _ID_DTYPES:
        array = array.astype(np.int32)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return np.require(array, requirements=_KERNEL_ARRAY)


def _token_error(token: int, position: int, layout: HashLayout) -> TokenIdError:
    hint = "was the text tokenised with another tokenizer?"
    if token < 0:
        what = f"token id {token} is negative"
        hint = "mask padding out before hashing: a layout takes token ids from 0 up"
    elif token < layout.vocab_size:
        what = f"token id {token} is one that no token has"
    else:
        what = f"token id {token} is beyond the vocabulary of {layout.vocab_size}"
    return TokenIdError(f"{what}, at position {position}", hint)


def _shaped(mask: Mask, shape: tuple[int, ...], name: str) -> Mask:
    array = np.asarray(mask)
    if array.shape != shape or array.dtype != np.bool_:
        raise InputError(
            f"{name} is {array.dtype} of shape {array.shape}, ids have shape {shape}",
            "give a bool mask of the shape of ids",
        )
    return array


def _mask(mask: Mask | None, count: int, name: str) -> Mask:
    if mask is None:
        return _NO_MASK
    return np.require(_shaped(mask, (count,), name), requirements=_KERNEL_ARRAY)
