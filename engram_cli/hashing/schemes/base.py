"""Defines what a scheme declares, and the primes that schemes take as table sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from engram_cli.hashing.layout import HashLayout

# The first primes: as Miller-Rabin bases they decide below 3.18e23.
_SMALL = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A published way to hash n-grams.

    `layout` makes a HashLayout of its parameters, which have published defaults. `raw_ids`: token
    ids are hashed as they are, and `vocab_size` takes the place of a compressed vocabulary.
    `first_layer`: the number, 0 or 1, by which it names the first decoder layer. `at_embedding`:
    the memory acts at the model's embedding, in no decoder layer.
    """

    layout: Callable[..., HashLayout]
    raw_ids: bool
    first_layer: int = 0
    at_embedding: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the names of its parameters; `pad_id` or `eos_id` where it has such a token."""
        return tuple(inspect.signature(self.layout).parameters)

    @property
    def needed(self) -> tuple[str, ...]:
        """Return the names of the parameters without a default."""
        found = inspect.signature(self.layout).parameters.values()
        return tuple(p.name for p in found if p.default is p.empty)


def is_prime(value: int) -> bool:
    """Return whether `value` is prime, by Miller-Rabin: exact for every 64-bit integer.

    Source: Sorenson and Webster, "Strong pseudoprimes to twelve prime bases" (2015).
    """
    if value < 2:
        return False
    for prime in _SMALL:
        if value % prime == 0:
            return value == prime
    odd, twos = value - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return all(_passes(value, base, odd, twos) for base in _SMALL)


@lru_cache(2**16)  # each order of each layer walks over the primes that the others took
def next_prime(value: int) -> int:
    """Return the least prime above `value`."""
    candidate = max(value + 1, 2)
    while not is_prime(candidate):
        candidate += 1
    return candidate


def _passes(value: int, base: int, odd: int, twos: int) -> bool:
    power = pow(base, odd, value)
    if power in (1, value - 1):
        return True
    for _ in range(twos - 1):
        power = power * power % value
        if power == value - 1:
            return True
    return False
