"""A format in one file: a folder with `rows.json` and an .npy file of rows for each layer.

Its rows are interleaved with four bytes of another kind, so that a span has a stride.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import read_json, sha256_bytes
from engram_cli.formats.base import Format
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.source import HITS, ROWS, RowSource, Span

DESCRIPTION = "rows.json"
GAP = 4


def write(source: RowSource, out: Path, *, force: bool, progress: Progress) -> None:
    """Write the vectors of a source as float32, and its hits where it has some."""
    if source.dim is None:
        raise InputError(f"{source.path} holds no vectors", "give a table")
    out.mkdir(exist_ok=force)
    for layer in source.layers:
        ids = np.arange(source.layout.layer(layer).rows)
        rows = source.vectors(layer, ids)
        packed = np.zeros((len(rows), rows.shape[1] * 4 + GAP), dtype=np.uint8)
        packed[:, :-GAP] = rows.view(np.uint8)
        np.save(out / f"{layer}.npy", packed)
        if source.has_hits:
            np.save(out / f"{layer}.hits.npy", source.hits_at(layer, ids))
    lookup = source.layout.lookup
    document = {
        "layout": source.layout.to_json(),
        "lookup": None if lookup is None else lookup.tolist(),
        "dim": source.dim,
        "hits": source.has_hits,
    }
    (out / DESCRIPTION).write_text(json.dumps(document))


def _open(path: Path) -> FileRows:
    document = read_json(path / DESCRIPTION, "rows in .npy files")
    try:
        lookup = document["lookup"]
        layout = HashLayout.from_json(
            document["layout"], None if lookup is None else np.array(lookup, dtype=np.int32)
        )
        dim = int(document["dim"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error!r}", "write it again") from None
    parts = {}
    for layer in layout.layer_ids:
        row = (np.dtype("<f4"), (dim,), dim * 4 + GAP)
        hits = (np.dtype("<u4"), (), 4)
        named = [(ROWS, f"{layer}.npy", row)]
        named += [(HITS, f"{layer}.hits.npy", hits)] if document["hits"] else []
        for part, name, (dtype, tail, stride) in named:
            rows, size = layout.layer(layer).rows, (path / name).stat().st_size
            begin = size - rows * stride
            span = Span(file=path / name, begin=begin, first=0, rows=rows, stride=stride)
            parts[layer, part] = FileArray([span], dtype, tail)
    return FileRows(
        format="npy-rows",
        path=path,
        layout=layout,
        layers=layout.layer_ids,
        dim=dim,
        dtype="float32",
        digest=sha256_bytes((path / DESCRIPTION).read_bytes()),
        parts=parts,
    )


FORMAT = Format(
    name="npy-rows",
    recognise=lambda path: path if (path / DESCRIPTION).is_file() else None,
    open=_open,
)
