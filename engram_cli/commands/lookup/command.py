"""lookup: a text and a table in; for each token and head the row, its hits, norm and n-grams.

Works on a table, a bundle, a statistics folder (without vectors) and a compressed vocabulary with a
geometry (rows alone).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions, find_artifact
from engram_cli.commands.lookup.rows import SharedRows, TokenLookup
from engram_cli.commands.lookup.session import LookupSession
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.reading import LookupRequest
from engram_cli.errors import InputError
from engram_cli.formats.base import header_bytes
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.hashing.layout import LayerHash
from engram_cli.outputs import Kind, Listing, new_file, prepare_output
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.locate import count_read
from engram_cli.remote.store import ReadCount
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource

_HEADER_BYTES = 640
_SHAPE = re.compile(rb"'shape': \(([0-9]{1,12}), ([0-9]{1,12})\)")
_STEP = 4096  # tokens whose vectors are written together


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupResult:
    """The look-ups of one text or two, in one layer; `_total` are the tokens of the whole texts.

    `sample_exact`: whether the sample holds every n-gram; None without statistics. `read`: what was
    read of a source behind an address.
    """

    path: Path
    kind: str
    scheme: str
    fingerprint: str
    layer: int
    dim: int | None
    stats: Path | None
    sample_exact: bool | None
    tokens_total: int
    tokens: tuple[TokenLookup, ...]
    against_total: int = 0
    against: tuple[TokenLookup, ...] = ()
    shared: tuple[SharedRows, ...] = ()
    vectors: Path | None = None
    vectors_shape: tuple[int, ...] = ()
    read: ReadCount | None = None


def lookup(request: LookupRequest, progress: Progress = SILENT) -> LookupResult:
    """Look a text up as a model would, and say what lies where it looks.

    Raises InputError for a path, a text or ids that cannot be used, MismatchError for a tokenizer
    of another vocabulary, ArtifactError for damage, OutputError where vectors cannot be written.
    """
    request = located(request)
    found = find_artifact(request.path, request.shape)
    companions = Companions(
        artifact=found.path, folder=request.folder, stats=request.stats, vocab=request.vocab
    )
    rows = found.open(request.geometry, request.tokenizer)
    session = LookupSession(found, rows, companions, request.tokenizer, progress)
    entry = session.layer(request.layer)
    if request.vectors is not None:
        _check_vectors(request, rows)
    ids = session.encode(request.text, request.ids, "the look-up")
    others = None
    if request.against is not None or request.against_ids is not None:
        others = session.encode(request.against, request.against_ids, "--against")
    statistics = session.statistics
    limit = request.limit
    texts = session.look_up(entry, ids[:limit], None if others is None else others[:limit])
    shape = _write_vectors(request, rows, entry, ids)
    return LookupResult(
        path=found.path,
        kind=found.kind,
        scheme=rows.layout.scheme,
        fingerprint=rows.layout.fingerprint,
        layer=entry.layer,
        dim=rows.dim,
        stats=None if statistics is None else statistics.path,
        sample_exact=texts.exact,
        tokens_total=len(ids),
        tokens=texts.tokens,
        against_total=0 if others is None else len(others),
        against=texts.against,
        shared=texts.shared,
        vectors=request.vectors,
        vectors_shape=shape,
        read=count_read(found.path, header_bytes(rows) or 0, _row_bytes(rows, len(texts.tokens))),
    )


def _row_bytes(rows: RowSource, tokens: int) -> int:
    """Return the stored bytes of the rows that so many tokens look up."""
    if rows.dim is None or rows.dtype is None:
        return 0
    return tokens * rows.layout.columns * DTYPES.load(rows.dtype).row_bytes(rows.dim)


def _check_vectors(request: LookupRequest, rows: RowSource) -> None:
    assert request.vectors is not None
    if rows.dim is None:
        raise InputError(f"{request.path} holds no vectors", "give a table or a bundle")
    prepare_output(
        request.vectors,
        VECTORS,
        force=request.force,
        option="--vectors",
        inputs=(request.path, request.stats, request.vocab, request.tokenizer),
    )


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of float32 [T, n] as .npy, with a length that only engram writes.

    Readers skip the spaces; NumPy itself writes 128 bytes for such a shape.
    """
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape})
    lead = np.lib.format.magic(1, 0)
    size = _HEADER_BYTES - len(lead) - 2
    return lead + size.to_bytes(2, "little") + text.ljust(size - 1).encode("ascii") + b"\n"


def _listing(path: Path) -> Listing | None:
    """Return a listing if `path` is a whole file of vectors that engram wrote."""
    try:
        with path.open("rb") as file:
            begin = file.read(_HEADER_BYTES)
        shape = _SHAPE.search(begin[:128])
        rows, width = map(int, shape.groups()) if shape is not None else (0, 0)
        whole = path.stat().st_size == _HEADER_BYTES + 4 * rows * width
    except (OSError, ValueError):
        return None
    return Listing() if whole and begin == _header((rows, width)) else None


VECTORS = Kind(name="file of vectors", listing=_listing, folder=False)


def _write_vectors(
    request: LookupRequest, rows: RowSource, entry: LayerHash, ids: NDArray[np.int64]
) -> tuple[int, ...]:
    """Write float32 [T, C*dim] as .npy, the heads of a token one after another; its shape."""
    if request.vectors is None or rows.dim is None:
        return ()
    places = hash_tokens(rows.layout, ids, entry.layer)
    shape = (len(ids), rows.layout.columns * rows.dim)
    with new_file(request.vectors, VECTORS, force=request.force) as part, part.open("wb") as file:
        file.write(_header(shape))
        for begin in range(0, len(ids), _STEP):
            wanted = places[begin : begin + _STEP].reshape(-1)
            file.write(rows.vectors(entry.layer, wanted).astype("<f4", copy=False).tobytes())
    return shape
