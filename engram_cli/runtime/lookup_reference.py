"""The look-up in plain PyTorch, from raw token ids and tables to dequantised vectors.

The Triton kernel in `kernels.lookup` must equal it bit for bit, NaNs aside. `LookBack` limits and
extends the n-grams of a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.reference import HashTensors, rows_of_lagged
from engram_cli.runtime.tables import FLOATS, Table, dequantise
from engram_cli.vocab.lookup import HOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class LookBack:
    """What limits the n-grams of ids [B, T], or of flat ids [T] with `bounds`.

    `dead` bool like the ids: tokens that see nothing, and that no later token sees past. `ages`
    integers like the ids: how many tokens before it each may see at most, those of its document;
    below 0 not even itself.
    `bounds` integers [S + 1]: sequence s has the tokens bounds[s] .. bounds[s + 1] - 1.
    `history` int32 [slots, ring]: compressed ids of earlier tokens, position p at p modulo ring,
    HOLE for a dead one; `positions` [S]: the position of each sequence's first token here;
    `slots` [S]: its line of `history`, s when None; below 0 it has none, and leaves none.
    """

    dead: Tensor | None = None
    ages: Tensor | None = None
    bounds: Tensor | None = None
    history: Tensor | None = None
    positions: Tensor | None = None
    slots: Tensor | None = None

    def check(self, ids: Tensor, max_order: int) -> None:
        """Raise InputError where shapes or dtypes do not fit token ids."""
        # Every call runs this, so messages are only built where they are needed.
        if ids.dtype not in _INTEGERS:
            raise InputError(f"ids are {ids.dtype}", "int32 or int64")
        if ids.ndim != (1 if self.bounds is not None else 2):
            raise InputError(f"ids {tuple(ids.shape)}", _IDS)
        for given, dtypes in ((self.dead, (torch.bool,)), (self.ages, _INTEGERS)):
            if given is not None and not (given.shape == ids.shape and given.dtype in dtypes):
                name = "dead" if given is self.dead else "ages"
                hint = "a bool (dead) or integer (ages) a token"
                raise InputError(f"{name} does not match the ids", hint)
        sequences = ids.shape[0] if self.bounds is None else len(self.bounds) - 1
        _need(sequences > 0 or not ids.numel(), "there is no sequence", _IDS)
        if self.history is None:
            return
        history, older = self.history, max_order - 1
        whole = history.dtype == torch.int32 and history.is_contiguous()
        _need(whole, "history", "int32, in one piece")
        long = history.ndim == 2 and history.shape[1] >= max(1, older)
        _need(long, "history is too short", f"{older} cells")
        positions = self.positions
        _need(positions is not None and len(positions) == sequences, "positions", "one a sequence")
        _need(self.slots is None or len(self.slots) == sequences, "slots", "one a sequence")
        _need(self.slots is not None or len(history) >= sequences, "history", "a line a sequence")

    def check_step(self) -> None:
        """Raise InputError unless a step can leave its tokens behind, which have no ages there."""
        _need(self.history is not None, "a step needs a history", "give history and positions")
        _need(self.ages is None, "a step has no ages", "restart the positions at 0")


_INTEGERS = (torch.int32, torch.int64)
_IDS = "give ids [B, T], or flat ids [T] with the bounds [S + 1] of their sequences"
NO_LIMITS = LookBack()


def _need(true: bool, message: str, hint: str) -> None:
    if not true:
        raise InputError(message, hint)


def known_tokens(tensors: HashTensors, ids: Tensor) -> Tensor:
    """Return compressed ids int64 like `ids`, the filler for an id outside the vocabulary."""
    size = len(tensors.lookup)
    known = (ids >= 0) & (ids < size)
    inside = torch.where(known, ids, 0).reshape(-1).long()
    found = tensors.lookup.index_select(0, inside).view(ids.shape).long()
    return torch.where(known, found, tensors.filler)


def _places(ids: Tensor, bounds: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return each token's sequence and offset in it, int64[count], and whether it is in none."""
    index = torch.arange(ids.numel(), device=ids.device)
    if bounds is None:
        sequence = index // max(1, ids.shape[1])
        return sequence, index - sequence * ids.shape[1], index < 0
    bounds = bounds.long()
    last = max(0, len(bounds) - 2)
    sequence = torch.searchsorted(bounds[1:], index, right=True).clamp_max(last)
    offset = index - bounds[sequence]
    end = bounds[(sequence + 1).clamp_max(len(bounds) - 1)]
    return sequence, offset, (offset < 0) | (index >= end)


def _tokens(tensors: HashTensors, ids: Tensor, look_back: LookBack) -> Tensor:
    """Return compressed ids int64[count], HOLE at dead tokens."""
    tokens = known_tokens(tensors, ids).reshape(-1)
    if look_back.dead is not None:
        tokens = tokens.masked_fill(look_back.dead.reshape(-1), HOLE)
    return tokens


def find_rows(tensors: HashTensors, ids: Tensor, look_back: LookBack = NO_LIMITS) -> Tensor:
    """Return int64[L, *ids.shape, C]: the table rows of raw token ids, of all layers.

    Ids outside the vocabulary count as the filler. Raises InputError.
    """
    look_back.check(ids, tensors.max_order)
    tokens = _tokens(tensors, ids, look_back)
    sequence, offset, blocked = _places(ids, look_back.bounds)
    index = torch.arange(len(tokens), device=ids.device)
    lagged = []
    for lag in range(tensors.max_order):
        inside = offset >= lag
        source = (index - lag).clamp_min(0)
        found = tokens[source]
        if look_back.history is None:
            blocked = blocked | ~inside
        else:
            found = torch.where(inside, found, _remembered(look_back, sequence, offset - lag))
        blocked = blocked | (found == HOLE)
        if look_back.ages is not None:
            blocked = blocked | (look_back.ages.reshape(-1) < lag)
        if tensors.eos is not None and lag:
            blocked = blocked | (found == tensors.eos)
        lagged.append(torch.where(blocked, tensors.filler, found)[None])
    rows = rows_of_lagged(tensors, lagged)
    return rows.view(rows.shape[0], *ids.shape, rows.shape[-1])


def _remembered(look_back: LookBack, sequence: Tensor, offset: Tensor) -> Tensor:
    """Return int64[count]: each token's history at an offset below 0, HOLE before position 0."""
    history, positions = look_back.history, look_back.positions
    assert history is not None
    assert positions is not None
    position = positions.long()[sequence] + offset
    slot = sequence if look_back.slots is None else look_back.slots.long()[sequence]
    kept = history[slot.clamp_min(0), position % history.shape[1]].long()
    return kept.masked_fill((position < 0) | (slot < 0), HOLE)


def remember(tensors: HashTensors, ids: Tensor, look_back: LookBack) -> None:
    """Write the last tokens of each sequence into its line of `history`, in place."""
    history, positions = look_back.history, look_back.positions
    assert history is not None
    assert positions is not None
    tokens = _tokens(tensors, ids, look_back)
    sequence, offset, outside = _places(ids, look_back.bounds)
    if look_back.bounds is None:
        length = torch.full_like(offset, ids.shape[1])
    else:
        length = look_back.bounds.long().diff()[sequence]
    ring = history.shape[1]
    slot = sequence if look_back.slots is None else look_back.slots.long()[sequence]
    # Earlier tokens would be written to the same cells.
    last = ~outside & (offset >= length - ring) & (slot >= 0)
    place = (positions.long()[sequence] + offset) % ring
    history.index_put_((slot[last], place[last]), tokens[last].to(torch.int32))


def vectors(tables: Sequence[Table], rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [L, ..., C x dim] in `dtype`: the rows int64[L, ..., C], column after column."""
    return torch.stack(
        [dequantise(table, of, dtype).flatten(-2) for table, of in zip(tables, rows, strict=True)]
    )


def look_up(
    tensors: HashTensors,
    ids: Tensor,
    tables: Sequence[Table],
    look_back: LookBack = NO_LIMITS,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return [L, *ids.shape, C x dim] in `dtype`: vectors of raw token ids, column after column.

    `tables` one a layer, of one kind and shape. Differentiable in float tables. Raises InputError.
    """
    wanted = common_dtype(tensors, ids, tables, dtype)
    return vectors(tables, find_rows(tensors, ids, look_back), wanted)


def look_up_step(
    tensors: HashTensors,
    ids: Tensor,
    tables: Sequence[Table],
    look_back: LookBack,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`look_up`, and then `remember`: a decode step. Not differentiable."""
    look_back.check_step()
    with torch.no_grad():
        found = look_up(tensors, ids, tables, look_back, dtype)
        remember(tensors, ids, look_back)
    return found


def common_dtype(
    tensors: HashTensors, ids: Tensor, tables: Sequence[Table], dtype: torch.dtype | None
) -> torch.dtype:
    """Return the vectors' dtype. Raises InputError where tables and ids do not fit together."""
    if len(tables) != len(tensors.columns):
        raise InputError(f"{len(tables)} tables for {len(tensors.columns)} layers", "one a layer")
    first = tables[0]
    for table, height in zip(tables, tensors.heights, strict=True):
        if len(table.values) < height:
            raise InputError(f"a table has {len(table.values)} rows, its hash names {height}", "")
        if table is not first:
            _check_alike(table, first)
        for owner in (table.values, tensors.columns):
            if owner.device != ids.device:
                raise InputError(f"ids on {ids.device}, the rest on {owner.device}", "move one")
    wanted = first.default_dtype if dtype is None else dtype
    if wanted not in FLOATS:
        raise InputError(f"vectors cannot be {wanted}", "float32, bfloat16 or float16")
    return wanted


def _check_alike(table: Table, first: Table) -> None:
    """Raise InputError where two layers' tables cannot be read by one launch."""
    if table.row_type is not first.row_type or table.values.dtype != first.values.dtype:
        raise InputError("the layers' tables differ in kind", "look layers up one by one")
    if (table.width, table.values.shape[1]) != (first.width, first.values.shape[1]):
        raise InputError("the layers' tables differ in width", "look layers up one by one")
    if table.strides != first.strides:
        raise InputError("the layers' rows lie differently", "look layers up one by one")
    if table.gradients != first.gradients:
        raise InputError("the layers' rows differ in gradients", "look layers up one by one")


def look_back(history: Tensor, carry: Tensor, dead: Tensor | None, age: Tensor | None) -> LookBack:
    """Return decode state as the look-up takes it; the first id of `history` is position 0."""
    older = history.shape[1]
    if not older:
        return LookBack(dead=dead, ages=age)
    place = torch.arange(older, device=history.device)
    unseen = place < older - carry[:, None]
    return LookBack(
        dead=dead,
        ages=age,
        history=history.masked_fill(unseen, HOLE).to(torch.int32),
        positions=torch.full_like(carry, older),
    )
