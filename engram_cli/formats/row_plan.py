"""What a conversion writes: which files there are, what they begin with, and where rows go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY
from engram_cli.rows.copying import Extent
from engram_cli.rows.source import RowSource
from engram_cli.rows.stored_as import sampled_digest

RECORDS = "records"  # a row's items, then its scales
BLOCKS = "blocks"  # of 33 bytes: a scale, then its 32 items


class Digest(Protocol):
    """A running digest of bytes: XXH64, or one of hashlib."""

    def update(self, data: NDArray[np.uint8], /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a run of rows goes: `rows` from row `first` of a layer, from byte `begin` of `file`.

    `part`: ROWS, SCALES, RECORDS or BLOCKS. `width`: bytes of a row there.
    """

    file: str
    layer: int
    part: str
    begin: int
    first: int
    rows: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    """A file that is to be written: its `size`, and what it has in addition to rows.

    `head`: bytes, by where they begin. `copies`: parts of other files.
    """

    name: str
    size: int
    head: Mapping[int, bytes] = field(default_factory=dict, repr=False)
    copies: tuple[tuple[Path, Extent], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFiles:
    """What is to be written: the rows of `source` as `dtype` stores them, in `files` at `places`.

    `small`: names of further files, which the format writes itself when the rows are there.
    `hashed`: makes the running digest of each file, which then is a head and one place; None for
    none.
    """

    source: RowSource
    dtype: str
    files: tuple[NewFile, ...]
    places: tuple[Place, ...]
    small: tuple[str, ...] = ()
    hashed: Callable[[], Digest] | None = None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def rows(self) -> int:
        """Rows of all layers; 0 where there are none to place."""
        layout = self.source.layout
        return sum(layout.layer(n).rows for n in self.source.layers) if self.places else 0

    @property
    def copied_bytes(self) -> int:
        """Bytes of other files that are copied."""
        return sum(extent.size for file in self.files for _, extent in file.copies)

    @property
    def request(self) -> str:
        """What tells this conversion from others: the files, and the content of the source."""
        source = self.source
        about = {
            "dtype": self.dtype,
            "source": sampled_digest(source),
            "files": [
                [f.name, f.size, [[at, sha256_bytes(raw)] for at, raw in f.head.items()]]
                + [[str(path), _stamp(path), asdict(extent)] for path, extent in f.copies]
                for f in self.files
            ],
            "places": sha256_bytes(canonical_json([asdict(place) for place in self.places])),
        }
        return sha256_bytes(b"engram conversion 1\n", canonical_json(about))


def _stamp(path: Path) -> list[int]:
    """Return what tells that a file has changed."""
    said = path.stat()
    return [said.st_size, said.st_mtime_ns or 0]  # a remote file has no time


def require_rows(source: RowSource, target: str) -> None:
    """Raise InputError unless a source has vectors, and the rows of all layers of its layout."""
    if source.dim is None or source.dtype is None:
        raise InputError(f"{source.path} holds no vectors", "give a table or a checkpoint")
    lost = sorted(set(source.layout.layer_ids) - set(source.layers))
    if lost:
        raise InputError(
            f"{source.path} has no rows of layer {', '.join(map(str, lost))}",
            f"{target} has the rows of every layer: choose those there are with --layers",
        )


def require_map(source: RowSource) -> None:
    """Raise InputError for a source whose rows no token finds."""
    if source.layout.vocab_digest == UNKNOWN_VOCABULARY:
        raise InputError(
            f"{source.path} has no token map, so that no token finds its row",
            "give the model's tokenizer with --tokenizer",
        )
