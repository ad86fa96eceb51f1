"""qwen-ple, the n-gram embedding of Qwen4-Exp: raw ids, EOS segments."""

from __future__ import annotations

from collections.abc import Sequence

from engram_cli.errors import LayoutError
from engram_cli.hashing.layout import MAX_MODULUS, HashLayout, LayerHash, check_shape
from engram_cli.hashing.schemes.base import Scheme, next_prime
from engram_cli.hashing.schemes.engram_v1 import INT64_MAX, LAYER_STEP, as_tuple

GOLDEN = 0x9E3779B97F4A7C15
MASK64 = 2**64 - 1


def layout(
    *,
    vocab_size: int = 248320,
    eos_id: int = 248044,
    orders: Sequence[int] = (2, 3),
    heads: int = 8,
    rows_per_head: int = 20_000_000,
    layers: Sequence[int] = (2,),
    seed: int = 1234,
    divisor: int = 128,
) -> HashLayout:
    """Return the layout for `vocab_size` raw ids; `layers` are the ple_layer_ids, counted from one.

    The default is the release's, decoder layer 1 counted from 0. The multipliers depend on a
    layer's place in `layers`, not on its number. `orders` must be 2..N. The rows of a layer are
    padded up to a multiple of `divisor`. Raises LayoutError.
    """
    orders, layers = as_tuple(orders), as_tuple(layers)
    check_shape(orders, heads, layers)
    if orders != tuple(range(2, len(orders) + 2)):
        raise LayoutError(f"qwen-ple has no orders {orders}", "give 2 up to N, such as 2,3")
    _check_ids(vocab_size, eos_id, divisor)
    if not 1 <= rows_per_head < MAX_MODULUS:
        raise LayoutError(f"{rows_per_head} rows per head", "give between 1 and 2^32")
    entries = []
    prime = rows_per_head - 1
    for index, layer in enumerate(layers):
        moduli = []
        for _ in range(len(orders) * heads):
            prime = next_prime(prime)
            moduli.append(prime)
        entries.append(
            LayerHash(
                layer=layer,
                multipliers=multipliers(vocab_size, orders[-1], index, seed),
                moduli=tuple(moduli),
                salts=(0,) * len(moduli),
                rows=-(-sum(moduli) // divisor) * divisor,
            )
        )
    return HashLayout(
        scheme="qwen-ple",
        orders=orders,
        heads=heads,
        fold="newest-first",
        filler_id=eos_id,
        eos_id=eos_id,
        compressed_size=vocab_size,
        vocab_digest=None,
        layers=tuple(entries),
        parameters={"rows_per_head": rows_per_head, "seed": seed, "divisor": divisor},
    )


def _check_ids(vocab_size: int, eos_id: int, divisor: int) -> None:
    """Raise LayoutError for sizes that no model has."""
    if vocab_size < 1 or divisor < 1:
        raise LayoutError(
            f"vocab_size {vocab_size}, divisor {divisor}: both must be 1 or more",
            "give the values of the model's config",
        )
    if not 0 <= eos_id < vocab_size:
        raise LayoutError(
            f"the EOS token id {eos_id:,} is outside the vocabulary of {vocab_size:,} ids",
            "give the EOS id of your tokenizer with --eos-id, or the vocabulary with --vocab-size",
        )


def multipliers(vocab_size: int, count: int, index: int, seed: int) -> tuple[int, ...]:
    """Return the odd multipliers of the PLE layer with this 0-based index."""
    bound = max(1, INT64_MAX // vocab_size // 2)
    base = seed + LAYER_STEP * index
    return tuple(2 * (splitmix64(base + GOLDEN * (k + 1)) % bound) + 1 for k in range(count))


def splitmix64(value: int) -> int:
    """Return one step of SplitMix64 (Steele, Lea and Flood 2014), modulo 2**64."""
    value = (value + GOLDEN) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


SCHEME = Scheme(layout=layout, raw_ids=True, first_layer=1)
