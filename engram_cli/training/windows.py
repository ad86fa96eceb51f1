"""Documents packed into one file of token ids, windows of it, and the documents again.

A packed file is uint32 ids, each document ended by one token. It is the format "nanogpt" of a
corpus, so that every other command can read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from engram_cli.errors import InputError
from engram_cli.table.inits.corpus.tokens import split_starts

CHUNK = 2**20  # ids that are in memory at a time


def pack(words: NDArray[np.uint32], out: Path, end: int | None) -> None:
    """Write the words of a token file as ids, with the token `end` after each document without it.

    `end` None: documents follow each other without a separator.
    """
    last = end
    with out.open("wb") as file:
        for begin in range(0, len(words), CHUNK):
            ids, starts = split_starts(np.array(words[begin : begin + CHUNK]))
            if end is not None:
                before = np.append(np.uint32(last or 0), ids[:-1])
                open_ends = np.flatnonzero(starts & (before != end))
                last = int(ids[-1])
                ids = np.insert(ids, open_ends, np.uint32(end))
            file.write(ids.astype("<u4").tobytes())
        if end is not None and last != end:
            file.write(np.uint32(end).astype("<u4").tobytes())


def read_packed(path: Path) -> NDArray[np.uint32]:
    """Map the ids of a packed file, uint32[tokens]."""
    if not path.stat().st_size:
        return np.empty(0, dtype=np.uint32)
    return np.memmap(path, dtype="<u4", mode="r")


class Windows(Dataset[dict[str, Any]]):
    """Windows of `length` tokens of a packed file, mapped: memory does not grow with it.

    An item has `input_ids` and `labels`, int64[length]. With `apart`, the token that ends
    documents, it also has `position_ids`, which count from 0 in each document, and in the first of
    a window from its cut. Tokens after the last whole window are left out. `most`: at most so many
    windows, spread over the file. Raises InputError for a file of less than a window.
    """

    def __init__(
        self, path: Path, length: int, *, apart: int | None = None, most: int | None = None
    ) -> None:
        self.path, self.length, self.apart = path, length, apart
        tokens = path.stat().st_size // 4
        self.whole = tokens // length
        self.count = self.whole if most is None else min(self.whole, max(most, 1))
        self._ids: NDArray[np.uint32] | None = None
        if not self.whole:
            raise InputError(
                f"{tokens:,} tokens do not fill a window of {length:,}",
                "give more text, or a smaller --length",
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if self._ids is None:  # mapped by the process that reads
            self._ids = read_packed(self.path)
        begin = index * self.whole // self.count * self.length
        ids = torch.from_numpy(self._ids[begin : begin + self.length].astype(np.int64))
        item = {"input_ids": ids, "labels": ids}
        if self.apart is not None:
            places = torch.arange(self.length)
            begins = torch.where(torch.roll(ids, 1) == self.apart, places, 0)
            begins[0] = 0
            item["position_ids"] = places - begins.cummax(0).values
        return item

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ids": None}


def documents(
    path: Path, end: int | None, count: int, most: int, *, cut: int
) -> Iterator[NDArray[np.uint32]]:
    """Yield the beginnings of documents of a packed file, about `most` tokens in all.

    As many documents as possible, so that a mean over them says much: all `count` of them, each as
    long as that allows, or where there are too many some, spread over the file, up to `cut` tokens
    long. Without an `end`, pieces of `cut` tokens count as documents.
    """
    if end is None:
        count = -(-len(read_packed(path)) // cut)
    every = max(count * cut // most, 1)
    longest = max(most * every // max(count, 1), cut)
    for number, whole in enumerate(split_documents(path, end, cut)):
        if number % every == 0 and len(whole):
            yield whole[:longest]


def split_documents(path: Path, end: int | None, cut: int = CHUNK) -> Iterator[NDArray[np.uint32]]:
    """Yield all documents of a packed file, mapped; without an `end`, pieces of `cut` tokens."""
    ids = read_packed(path)
    if end is None:
        for begin in range(0, len(ids), cut):
            yield ids[begin : begin + cut]
        return
    first = 0
    for begin in range(0, len(ids), CHUNK):
        for at in np.flatnonzero(ids[begin : begin + CHUNK] == end) + begin:
            yield ids[first : int(at)]
            first = int(at) + 1
    yield ids[first:]
