"""Primes for table sizes: exact for every 64-bit integer."""

from __future__ import annotations

_SMALL = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def is_prime(value: int) -> bool:
    """Whether `value` is prime; Miller-Rabin with the first 12 primes decides below 3.18e23.

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


def next_prime(value: int) -> int:
    """The least prime above `value`."""
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
