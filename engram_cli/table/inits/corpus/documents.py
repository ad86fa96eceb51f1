"""Hashes the documents of a token file: one XXH64 each, and their sum, which no order changes.

A document is its words in the token file: ids as little-endian uint32, 2**31 added to the first.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numba import uint32, uint64
from numpy.typing import NDArray

from engram_cli.jit import kernel
from engram_cli.rows.checksum import PRIME_1, PRIME_2
from engram_cli.table.inits.corpus.kernels import START

_PRIME_3 = 0x165667B19E3779F9
_PRIME_4 = 0x85EBCA77C2B2AE63
_PRIME_5 = 0x27D4EB2F165667C5
_STRIPE = 8  # words
_LOOKED_AT = 2**16  # words


@kernel("uint64(uint64, uint64)")
def _round(lane, word):  # type: ignore[no-untyped-def]
    lane += word * uint64(PRIME_2)
    return ((lane << uint64(31)) | (lane >> uint64(33))) * uint64(PRIME_1)


@kernel("uint64(uint64, uint64)")
def _merge(value, lane):  # type: ignore[no-untyped-def]
    return (value ^ _round(uint64(0), lane)) * uint64(PRIME_1) + uint64(_PRIME_4)


@kernel("uint64(uint32[::1], uint32)")
def _xxh64(words, first):  # type: ignore[no-untyped-def]
    """XXH64 with seed 0 of `words` [n] as bytes, `first` in the place of the first word."""
    p1, p2 = uint64(PRIME_1), uint64(PRIME_2)
    size, at = words.size, 0
    if size >= _STRIPE:
        a, b, c, d = p1 + p2, p2, uint64(0), uint64(0) - p1
        while at + _STRIPE <= size:
            low = uint64(first) if at == 0 else uint64(words[at])
            a = _round(a, low | (uint64(words[at + 1]) << uint64(32)))
            b = _round(b, uint64(words[at + 2]) | (uint64(words[at + 3]) << uint64(32)))
            c = _round(c, uint64(words[at + 4]) | (uint64(words[at + 5]) << uint64(32)))
            d = _round(d, uint64(words[at + 6]) | (uint64(words[at + 7]) << uint64(32)))
            at += _STRIPE
        value = (a << uint64(1)) | (a >> uint64(63))
        value += (b << uint64(7)) | (b >> uint64(57))
        value += (c << uint64(12)) | (c >> uint64(52))
        value += (d << uint64(18)) | (d >> uint64(46))
        value = _merge(_merge(_merge(_merge(value, a), b), c), d)
    else:
        value = uint64(_PRIME_5)
    value += uint64(4) * uint64(size)
    while at + 2 <= size:
        low = uint64(first) if at == 0 else uint64(words[at])
        value ^= _round(uint64(0), low | (uint64(words[at + 1]) << uint64(32)))
        value = ((value << uint64(27)) | (value >> uint64(37))) * p1 + uint64(_PRIME_4)
        at += 2
    if at < size:
        value ^= uint64(first if at == 0 else words[at]) * p1
        value = ((value << uint64(23)) | (value >> uint64(41))) * p2 + uint64(_PRIME_3)
    value = (value ^ (value >> uint64(33))) * p2
    value = (value ^ (value >> uint64(29))) * uint64(_PRIME_3)
    return value ^ (value >> uint64(32))


@kernel("uint64(uint32[::1], uint64[::1])")
def _hashes(words, out):  # type: ignore[no-untyped-def]
    """Write the hash of each document of `words` to `out` [n], or to none; return their sum."""
    total, begin, found = uint64(0), 0, 0
    for end in range(1, words.size + 1):
        if end == words.size or words[end] >= uint32(START):
            value = _xxh64(words[begin:end], words[begin] | uint32(START))
            total += value
            if out.size:
                out[found] = value
            found += 1
            begin = end
    return total


def documents_digest(words: NDArray[np.uint32], threads: int = 1) -> str:
    """Return the sum modulo 2**64 of the hashes of all documents, as 16 hex digits.

    `words` uint32[T]: those of a token file. The first one begins a document.
    """
    nothing = np.empty(0, dtype=np.uint64)
    with ThreadPoolExecutor(threads) as pool:
        sums = pool.map(lambda part: int(_hashes(part, nothing)), _whole_documents(words, threads))
        return f"{sum(sums) % 2**64:016x}"


def _whole_documents(words: NDArray[np.uint32], parts: int) -> list[NDArray[np.uint32]]:
    """Return the words in about so many parts, each of which begins with a document."""
    begins = [0]
    for part in range(1, parts):
        at = max(len(words) * part // parts, begins[-1])
        while at < len(words):
            found = np.flatnonzero(words[at : at + _LOOKED_AT] >= START)
            if len(found):
                begins.append(at + int(found[0]))
                break
            at += _LOOKED_AT
    return [words[begin:end] for begin, end in pairwise([*begins, len(words)])]


def document_hashes(words: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Return the XXH64 of each document of `words` uint32[T], ascending: uint64[documents]."""
    count = int(np.count_nonzero(words[1:] >= START)) + (len(words) > 0)
    found = np.empty(count, dtype=np.uint64)
    if count:
        _hashes(words, found)
    found.sort()
    return found
