"""Finds text that is trained on and held out: its loss says what was learned by heart."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.requests.train import TrainRequest
from engram_cli.corpus.base import CorpusFile
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import CorpusError
from engram_cli.numbers import percent

MOST_SHARED = 0.5  # of the held-out text: with more of it in the training text, nothing is trained
_MOST_DOCUMENTS = 2**18  # held-out documents whose digests are in memory
_HINT = "name text that is not in the training text with --held-out"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Held-out documents that are in the training text too: how many of those `compared`.

    `share`: of the tokens of the compared ones.
    """

    documents: int
    compared: int
    share: float

    def __str__(self) -> str:
        """Return it in words."""
        return (
            f"{self.documents:,} of {self.compared:,} held-out documents "
            f"({percent(self.share)} of the tokens) are in the training text"
        )

    def check(self) -> None:
        """Raise CorpusError where most of the held-out text is in the training text."""
        if self.share > MOST_SHARED:
            raise CorpusError(str(self), _HINT)


def check_files_apart(request: TrainRequest) -> None:
    """Raise CorpusError if a file is both trained on and held out, or is not there.

    Most of the held-out text may not be copies of files of the training text either.
    """
    trained, held_out = (
        {_place(file): file for file in find_sources(names, request.corpus).files}
        for names in (request.sources, request.held_out)
    )
    shared = sorted(trained.keys() & held_out.keys())
    if shared:
        more = f" and {len(shared) - 1:,} more" if len(shared) > 1 else ""
        raise CorpusError(
            f"{shared[0]}{more} would be trained on and held out",
            "name other files with --held-out",
        )
    copies = _copies(trained.values(), held_out.values())
    size = sum(file.size or 0 for file in held_out.values())
    if copies and sum(file.size or 0 for file, _ in copies) > MOST_SHARED * size:
        file, original = copies[0]
        more = f", and {len(copies) - 1:,} more are copies" if len(copies) > 1 else ""
        raise CorpusError(f"{file.name} is a copy of {original}, which is trained on{more}", _HINT)


def _place(file: CorpusFile) -> str:
    return file.name if file.path is None else os.path.realpath(file.path)


def _copies(
    trained: Iterable[CorpusFile], held_out: Iterable[CorpusFile]
) -> list[tuple[CorpusFile, Path]]:
    """Return the held-out local files with the bytes of one that is trained on, and that one."""
    sized: dict[int, list[Path]] = {}
    wanted = {file.size for file in held_out}
    for file in trained:
        if file.path is not None and file.size and file.size in wanted:
            sized.setdefault(file.size, []).append(file.path)
    found = []
    for file in held_out:
        if file.path is None or not file.size:
            continue
        for other in sized.get(file.size, ()):
            if filecmp.cmp(file.path, other, shallow=False):
                found.append((file, other))
                break
    return found


def find_overlap(train: Path, held_out: Path, end: int, documents: int) -> Overlap:
    """Return which documents of the packed file `held_out` are also in `train`.

    `end` ends documents; there are about `documents` in `held_out`. Memory does not grow with
    either: of more than 262,144 held-out documents, some are compared, spread over the file.
    """
    from engram_cli.training.windows import split_documents  # needs torch, as `train` does

    every = -(-documents // _MOST_DOCUMENTS) or 1
    sizes: set[int] = set()
    places: dict[bytes, list[int]] = {}  # digest: how many documents and tokens
    for number, ids in enumerate(split_documents(held_out, end)):
        if number % every == 0 and len(ids):
            entry = places.setdefault(_digest(ids), [0, 0])
            entry[0] += 1
            entry[1] += len(ids)
            sizes.add(len(ids))
    compared = sum(count for count, _ in places.values())
    tokens = sum(count for _, count in places.values())
    shared = [0, 0]
    for ids in split_documents(train, end):
        if len(ids) in sizes:
            count, own = places.pop(_digest(ids), (0, 0))
            shared[0] += count
            shared[1] += own
    return Overlap(documents=shared[0], compared=compared, share=shared[1] / max(tokens, 1))


def _digest(ids: NDArray[np.uint32]) -> bytes:
    return blake2b(np.ascontiguousarray(ids).data, digest_size=16).digest()
