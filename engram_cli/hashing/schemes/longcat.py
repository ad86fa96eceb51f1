"""longcat, the n-gram embedding of LongCat-Flash: raw ids, sums of powers of the vocabulary's size.

Row of the order n and head j: the sum over the lags d of token[t - d] x V^d, modulo the table's
size m + 2i + 1, where i = (n - 2) x heads + j and m is the ratio of the config times the
vocabulary's size V. A missing token counts as 0. No n-gram looks back across an EOS token.
"""

from __future__ import annotations

from collections.abc import Sequence

from engram_cli.errors import LayoutError
from engram_cli.hashing.layout import MAX_MODULUS, HashLayout, LayerHash, check_shape
from engram_cli.hashing.schemes.base import Scheme
from engram_cli.hashing.schemes.engram_v1 import as_tuple

LITE_ROWS = 78 * 131072  # ngram_vocab_size_ratio x vocab_size of LongCat-Flash-Lite


def layout(
    *,
    vocab_size: int = 131072,
    eos_id: int = 2,
    orders: Sequence[int] = (2, 3, 4),
    heads: int = 4,
    rows_per_head: int = LITE_ROWS,
    layers: Sequence[int] = (0,),
) -> HashLayout:
    """Return the layout for `vocab_size` raw ids, by default that of LongCat-Flash-Lite.

    `rows_per_head`: m, int(ngram_vocab_size_ratio x vocab_size) of the config. `orders` must be 2
    to emb_neighbor_num, `heads` is emb_split_num. `layers`: one, 0, for the memory acts where
    tokens are embedded. Raises LayoutError.
    """
    orders, layers = as_tuple(orders), as_tuple(layers)
    check_shape(orders, heads, layers)
    if orders != tuple(range(2, len(orders) + 2)):
        raise LayoutError(f"longcat has no orders {orders}", "give 2 up to N, such as 2,3,4")
    if layers != (0,):
        raise LayoutError(f"longcat has no layers {layers}", "leave --layers out: it has one, 0")
    if vocab_size < 1:
        raise LayoutError(f"vocab_size {vocab_size}", "give the one of the model's config")
    columns = len(orders) * heads
    if not 1 <= rows_per_head <= MAX_MODULUS - 2 * columns:
        raise LayoutError(f"{rows_per_head} rows per head", "give between 1 and 2^32")
    moduli = tuple(rows_per_head + 2 * column + 1 for column in range(columns))
    powers = (1,) + (vocab_size,) * (orders[-1] - 1)
    return HashLayout(
        scheme="longcat",
        orders=orders,
        heads=heads,
        fold="powers",
        filler_id=0,
        eos_id=eos_id,
        compressed_size=vocab_size,
        vocab_digest=None,
        layers=(
            LayerHash(
                layer=0, multipliers=powers, moduli=moduli, salts=(0,) * columns, rows=sum(moduli)
            ),
        ),
        parameters={"rows_per_head": rows_per_head},
    )


SCHEME = Scheme(layout=layout, raw_ids=True, at_embedding=True)
