"""Token vectors as wide as a row, as 16-bit integers with one scale for each column.

They come from a seed alone, or from a matrix [V, d] and a seeded projection [d, w] for each column.
The int16[V, w] and their scale are the same to the bit on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.hashing.schemes.qwen_ple import splitmix64
from engram_cli.jit import LANES
from engram_cli.table.inits import kernels as normal_kernels
from engram_cli.table.inits.corpus import kernels
from engram_cli.table.inits.normal import DEFAULT_STD, GENERATOR

# Normal values reach 6.66 standard deviations: 27,280 steps.
_RANDOM_STEPS = 4096
_STEPS = 32767
_BLOCK = 2**11  # tokens projected at a time

Vectors = tuple[NDArray[np.int16], float]


class Embeddings(Protocol):
    """Where the vector of a token comes from."""

    @property
    def tokens(self) -> int:
        """Number of tokens that have a vector."""

    @property
    def hidden(self) -> int | None:
        """d, the width that is projected to a row's; None where nothing is projected."""

    @property
    def parameters(self) -> dict[str, Any]:
        """A JSON value of all that decides the vectors."""

    def vectors(self, layer: int, column: int, dim: int) -> Vectors:
        """Return int16[V, dim] and the scale to multiply them by."""

    def some(
        self, layer: int, column: int, dim: int, tokens: NDArray[np.int64], scale: float
    ) -> NDArray[np.int16]:
        """Return the vectors of `tokens` [n], ascending, as int16[n, W], padded to a multiple of 16
        values. `scale`: that of `vectors`, which takes all tokens to find."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomEmbeddings:
    """Independent normal vectors of standard deviation `std` for each column, from a seed.

    A random vector seen through a random projection is a random vector, so there is no matrix and
    no projection.
    """

    tokens: int
    seed: int = 0
    std: float = DEFAULT_STD

    def __post_init__(self) -> None:
        if not (math.isfinite(self.std) and 0 < self.std < 1e6):
            raise InputError(f"std {self.std}", "give a positive number such as 0.02")
        if not 0 <= self.seed < 2**64:
            raise InputError(f"embedding seed {self.seed}", "give a seed from 0 to 2^64 - 1")

    @property
    def hidden(self) -> int | None:
        """None: there is no projection."""
        return None

    @property
    def parameters(self) -> dict[str, Any]:
        """Seed (a string, it may exceed 53 bits), standard deviation and generator."""
        return {
            "kind": "random",
            "seed": str(self.seed),
            "std": self.std,
            "generator": GENERATOR,
        }

    def vectors(self, layer: int, column: int, dim: int) -> Vectors:
        """Normal values in steps of std / 4096: counter token * pairs + j gives 2j and 2j + 1."""
        found = np.empty((self.tokens, dim), dtype=np.int16)
        for begin in range(0, self.tokens, _BLOCK):  # what lies between stays in a cache
            count = min(_BLOCK, self.tokens - begin)
            values = seeded_normal(self.seed, layer, column, count, dim, _RANDOM_STEPS, first=begin)
            found[begin : begin + count] = np.rint(values, out=values)
        return found, self.std / _RANDOM_STEPS

    def some(
        self, layer: int, column: int, dim: int, tokens: NDArray[np.int64], scale: float
    ) -> NDArray[np.int16]:
        """Draw the vectors of `tokens` alone."""
        from engram_cli.table.inits.kernels import random_vectors

        found = _room(len(tokens), dim)
        buffer = np.empty(2 * -(-dim // 2), dtype=np.float32)
        key, std = _key(self.seed, layer, column), np.float32(_RANDOM_STEPS)
        random_vectors(key, std, tokens, dim, buffer, found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixEmbeddings:
    """The rows of a matrix [tokens, hidden], each column of the table seeing its own projection.

    `read(begin, end)` gives float32[end - begin, hidden]; `name` and `digest` say which matrix.
    """

    tokens: int
    hidden: int
    read: Callable[[int, int], NDArray[np.float32]]
    name: str
    digest: str
    seed: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """The matrix by name and checksum, and the seed of the projections."""
        return {
            "kind": "matrix",
            "tensor": self.name,
            "xxh64": self.digest,
            "tokens": self.tokens,
            "hidden": self.hidden,
            "seed": str(self.seed),
            "generator": GENERATOR,
        }

    def projection(self, layer: int, column: int, dim: int) -> NDArray[np.float32]:
        """Return float32[hidden, dim], see `projection`."""
        return projection(self.seed, layer, column, self.hidden, dim)

    def vectors(self, layer: int, column: int, dim: int) -> Vectors:
        """Return the projected rows in steps of their largest value / 32767.

        Raises ArtifactError for values that are not finite.
        """
        seen = self.projection(layer, column, dim)
        values = np.empty((self.tokens, dim), dtype=np.float32)
        for begin in range(0, self.tokens, _BLOCK):
            end = min(begin + _BLOCK, self.tokens)
            rows = np.ascontiguousarray(self.read(begin, end), dtype=np.float32)
            kernels.project(rows, seen, values[begin:end])
        largest = float(np.abs(values).max(initial=0.0))
        if not math.isfinite(largest):
            raise ArtifactError(f"{self.name} holds values that are no numbers", "take it again")
        scale = largest / _STEPS if largest else 1.0
        return np.rint(values.astype(np.float64) / scale).astype(np.int16), scale

    def some(
        self, layer: int, column: int, dim: int, tokens: NDArray[np.int64], scale: float
    ) -> NDArray[np.int16]:
        """Project the rows of `tokens` alone."""
        seen, found = self.projection(layer, column, dim), _room(len(tokens), dim)
        for begin in range(0, self.tokens, _BLOCK):
            end = min(begin + _BLOCK, self.tokens)
            low, high = np.searchsorted(tokens, (begin, end))
            if low == high:
                continue
            rows = np.asarray(self.read(begin, end), dtype=np.float32)[tokens[low:high] - begin]
            values = np.empty((len(rows), dim), dtype=np.float32)
            kernels.project(np.ascontiguousarray(rows), seen, values)
            found[low:high, :dim] = np.rint(values.astype(np.float64) / scale).astype(np.int16)
        return found


def _key(seed: int, layer: int, column: int) -> np.uint64:
    """Return the key of the generator of a layer and column."""
    return np.uint64(splitmix64((splitmix64((splitmix64(seed) + layer) % 2**64) ^ column) % 2**64))


def _room(tokens: int, dim: int) -> NDArray[np.int16]:
    """Return int16[tokens, W] of zeros, W the multiple of 16 from `dim` on."""
    return np.zeros((tokens, -(-dim // LANES) * LANES), dtype=np.int16)


def seeded_normal(
    seed: int, layer: int, column: int, rows: int, dim: int, std: float, *, first: int = 0
) -> NDArray[np.float32]:
    """Return normal values float32[rows, dim] of a layer and column, from row `first` on."""
    key = _key(seed, layer, column)
    pairs = -(-dim // 2)
    values = np.empty((rows, 2 * pairs), dtype=np.float32)
    start = np.uint64(first * pairs)
    normal_kernels.normal(key, start, np.float32(std), values.reshape(-1))
    return np.ascontiguousarray(values[:, :dim])


def projection(seed: int, layer: int, column: int, hidden: int, dim: int) -> NDArray[np.float32]:
    """Return float32[hidden, dim] with orthonormal columns, or rows where dim > hidden.

    Normal values, made orthonormal by modified Gram-Schmidt, twice, in float64, and then rounded.
    """
    short, long = sorted((hidden, dim))
    lines = seeded_normal(seed, layer, column, short, long, 1.0).astype(np.float64)
    kernels.orthonormalize(lines)
    matrix = lines.T if hidden >= dim else lines
    return np.ascontiguousarray(matrix, dtype=np.float32)
