"""The hash in plain torch: raw token ids in, the table rows of all layers out, on any device.

Twins of `hashing.lookback` and `hashing.reference`, equal to them bit for bit, for a batch and for
all the layers of a bundle at once. int64 products wrap in torch as they do in NumPy.
`lookup_reference` continues from rows to vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram_cli.errors import TokenIdError
from engram_cli.vocab.lookup import HOLE


@dataclass(frozen=True, slots=True, kw_only=True)
class HashTensors:
    """The hash of L layers: O orders, H heads, N tokens at most; C = O x H columns.

    `lookup` int32[V] are the compressed ids of the model's V token ids, HOLE where none has one.
    `multipliers` int64[L, O, N] by lag, zero beyond an order; `shared` says that all orders of a
    layer have the same ones, so that a mix extends the one before it; with `summed` (the fold
    "powers") they are int64[L, C, N], the weights of each column. `columns` int64[L, C, 4]: of
    each column modulus, (2**64 - 1) // modulus, first row and salt; `salted`: a salt is not 0.
    `heights`: the rows that each layer's columns can name.
    """

    orders: tuple[int, ...]
    filler: int
    eos: int | None
    shared: bool
    summed: bool
    lookup: Tensor
    multipliers: Tensor
    columns: Tensor
    salted: bool
    heights: tuple[int, ...]

    @property
    def max_order(self) -> int:
        """N, the longest n-gram."""
        return self.orders[-1]

    def of_columns(self, place: int) -> Tensor:
        """Return int64[L, 1, 1, O, H]: one of the four numbers of each column."""
        layers, columns = self.columns.shape[:2]
        orders = len(self.orders)
        return self.columns[..., place].view(layers, 1, 1, orders, columns // orders)


def compress(tensors: HashTensors, ids: Tensor) -> Tensor:
    """Return compressed ids int64 of raw ids, of the same shape; HOLE where no token has the id.

    An id outside 0..V-1 raises IndexError on the CPU; on other devices it fails as in an embedding.
    """
    return tensors.lookup.index_select(0, ids.reshape(-1)).view(ids.shape).long()


def visible(
    tensors: HashTensors, tokens: Tensor, carry: Tensor, dead: Tensor | None = None
) -> Tensor:
    """Return int64[B, T] in 0..N: how many tokens of its n-gram a position may see, with its own.

    `tokens` int64[B, T] compressed; `carry` int64[B], how many tokens before the first one may
    still be seen; `dead` bool[B, T], positions that see nothing and are walls for later ones.
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    begin = -carry[:, None]
    if dead is not None or tensors.eos is not None:
        begin = begin.expand(tokens.shape)
    if tensors.eos is not None:
        after = F.pad(tokens[:, :-1] == tensors.eos, (1, 0))
        begin = torch.where(after, position, begin)
    if dead is not None:
        begin = torch.where(dead, position + 1, begin)
    if dead is not None or tensors.eos is not None:
        begin = begin.cummax(dim=1).values
    return (position + 1 - begin).clamp_max(tensors.max_order)


def carry_after(tensors: HashTensors, last_token: Tensor, last_seen: Tensor) -> Tensor:
    """Return int64[B]: how many of the last tokens the next position may see.

    `last_token` and `last_seen` int64[B] are the last position's compressed id and `visible`.
    """
    carry = last_seen.clamp_max(tensors.max_order - 1)
    if tensors.eos is not None:
        carry = carry.masked_fill(last_token == tensors.eos, 0)
    return carry


def mix_lagged(tensors: HashTensors, lagged: list[Tensor]) -> Tensor:
    """Return int64[L, B, T, O]: the mixes of N tokens int64[B, T] a position, the newest first."""
    by_lag = tensors.multipliers[:, None, None]  # [L, 1, 1, O, N]
    if not tensors.shared:
        tokens = torch.stack(lagged, dim=-1)[None, :, :, None]  # [1, B, T, 1, N]
        products = tokens * by_lag
        mix = products[..., 0]
        for lag in range(1, tensors.max_order):
            mix = mix ^ products[..., lag]
        return mix
    found = []
    mix = lagged[0] * by_lag[..., -1, 0]
    for order in range(1, tensors.max_order + 1):
        if order > 1:
            mix = mix ^ (lagged[order - 1] * by_lag[..., -1, order - 1])
        if order in tensors.orders:
            found.append(mix)
    return torch.stack(found, dim=-1)


def sum_lagged(tensors: HashTensors, lagged: list[Tensor]) -> Tensor:
    """Return int64[L, B, T, O, H]: token x weight summed over the lags, of a `summed` hash."""
    layers, columns, _ = tensors.multipliers.shape
    shape = (layers, 1, 1, len(tensors.orders), columns // len(tensors.orders))
    total = lagged[0][None, ..., None, None] * tensors.multipliers[..., 0].view(shape)
    for lag in range(1, tensors.max_order):
        weights = tensors.multipliers[..., lag].view(shape)
        total = total + lagged[lag][None, ..., None, None] * weights
    return total


def rows_of_lagged(tensors: HashTensors, lagged: list[Tensor]) -> Tensor:
    """Return int64[L, B, T, C], the table row of each column (docs/reference/schemes.md).

    `lagged`: N tensors of tokens int64[B, T], the newest first, with the filler where a position
    may not see a token.
    """
    if tensors.summed:
        salted = sum_lagged(tensors, lagged)
    else:
        salted = mix_lagged(tensors, lagged)[..., None]
    if tensors.salted:
        salted = salted ^ tensors.of_columns(3)
    rows = torch.remainder(salted, tensors.of_columns(0))
    return (rows + tensors.of_columns(2)).flatten(-2)


def hash_rows(tensors: HashTensors, window: Tensor, seen: Tensor) -> Tensor:
    """Return int64[L, B, T, C] table rows of a window int64[B, N-1+T] and `visible` int64[B, T]."""
    older, count = tensors.max_order - 1, seen.shape[1]
    return rows_of_lagged(
        tensors,
        [
            window[:, older - lag : older - lag + count].masked_fill(seen <= lag, tensors.filler)
            for lag in range(tensors.max_order)
        ],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedCall:
    """What the hash makes of the ids of a call [B, T].

    `tokens` int64[B, T] compressed ids, `seen` int64[B, T] how many tokens of its n-gram a position
    sees, `older` int64[B, N-1] the compressed ids before `tokens`, `rows` int64[L, B, T, C], None
    where they are not needed.
    """

    tokens: Tensor
    seen: Tensor
    older: Tensor
    rows: Tensor | None


def hash_call(
    tensors: HashTensors,
    ids: Tensor,
    recent: Tensor | None,
    dead: Tensor | None,
    age: Tensor | None,
) -> HashedCall:
    """Hash raw ids int64[B, T] that follow `recent` int64[B, t, 2]: compressed ids and `seen`.

    `t` is N-1 or more, None at the start of a text; `dead` bool[B, T]: padding, which sees nothing
    and is a wall; a token without a compressed id is one, too. `age` int64[B, T]: earlier positions
    of the same document. Raises TokenIdError.
    """
    tokens = compressed(tensors, ids)
    holes = is_hole(tokens)
    older, carry = before(tensors, tokens, recent)
    seen = visible(tensors, tokens, carry, holes if dead is None else dead | holes)
    if age is not None:
        seen = torch.minimum(seen, age + 1)
    rows = hash_rows(tensors, torch.cat((older, tokens), dim=1), seen)
    return HashedCall(tokens=tokens, seen=seen, older=older, rows=rows)


def compressed(tensors: HashTensors, ids: Tensor) -> Tensor:
    """Return `compress`. Raises TokenIdError for ids outside the vocabulary."""
    try:
        return compress(tensors, ids)
    except IndexError:
        raise no_token(tensors) from None


def no_token(tensors: HashTensors) -> TokenIdError:
    """Return the error for ids outside the vocabulary."""
    return TokenIdError(
        f"input_ids has ids outside 0..{len(tensors.lookup) - 1}",
        "was the text tokenised with another tokenizer?",
    )


def before(tensors: HashTensors, tokens: Tensor, recent: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the ids before `tokens`, int64[B, N-1], and how many of them may be seen."""
    older, batch = tensors.max_order - 1, tokens.shape[0]
    if recent is None:
        return tokens.new_zeros(batch, older), tokens.new_zeros(batch)
    recent = recent.to(tokens.device)
    carry = carry_after(tensors, recent[:, -1, 0], recent[:, -1, 1])
    return recent[:, recent.shape[1] - older :, 0], carry


def is_hole(tokens: Tensor) -> Tensor:
    """Return bool: where a compressed id says that no token has the raw id."""
    return tokens == HOLE
