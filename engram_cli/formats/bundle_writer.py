"""Writing a bundle: a table's rows streamed into shards, dense weights, `engram.json` last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.files import canonical_json, new_folder, sha256_bytes
from engram_cli.formats import tensors
from engram_cli.formats.bundle import (
    DENSE,
    DESCRIPTION,
    FORMAT,
    VERSION,
    VOCABULARY,
    BundleSpec,
    Shard,
)
from engram_cli.formats.tensors import Array, FileRecord, TensorSpec

SHARD_BYTES = 5_000_000_000

Rows = Callable[[int], Iterable[tuple[int, Array]]]
Dense = Callable[[int, bool], Mapping[str, NDArray[np.float32]]]


def write_bundle(
    path: Path,
    spec: BundleSpec,
    rows: Rows,
    dense: Dense,
    *,
    tool_version: str,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    beside: Mapping[str, bytes] | None = None,
    advance: Callable[[int], None] | None = None,
) -> list[FileRecord]:
    """Write the folder `path`, whole or not at all; never more than a piece of rows in memory.

    `rows(layer)` yields (first row, [n, dim] in the physical dtype) ascending; `dense(layer,
    zero_rows)` is asked after the layer's rows were seen. `beside`: files that the description does
    not list, so that they may be edited. `advance` hears of bytes. Raises
    OutputError, and ArtifactError when `rows` does not yield the layout's table.
    """
    with new_folder(path, force=force) as part:
        records, shards, weights = [], [], {}
        plan = plan_shards(spec, shard_bytes)
        for layer in spec.layers:
            stream = _RowStream(spec, layer, rows(layer))
            for shard in (shard for shard in plan if shard.layer == layer):
                about = {"format": FORMAT, "layer": str(layer), "first_row": str(shard.first_row)}
                record = tensors.write_tensors(
                    part / shard.file,
                    [shard.tensor(spec)],
                    stream.take(shard.rows),
                    metadata=about,
                    advance=advance,
                )
                records.append(record)
                shards.append(shard)
            stream.finish()
            for name, value in dense(layer, stream.all_zero).items():
                weights[f"layers.{layer}.{name}"] = value
        records += _write_small(part, spec, weights)
        document = _document(spec, shards, records, tool_version)
        text = canonical_json(document)
        for name, raw in (beside or {}).items():
            (part / name).write_bytes(raw)
            records.append(FileRecord(name=name, size=len(raw), digest=sha256_bytes(raw)))
        (part / DESCRIPTION).write_bytes(text)
        records.append(FileRecord(name=DESCRIPTION, size=len(text), digest=sha256_bytes(text)))
    return records


def plan_shards(spec: BundleSpec, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Cut each layer's table into shards of at most `shard_bytes` of whole rows."""
    step = max(1, (shard_bytes - tensors.ALIGNMENT) // spec.row_bytes)
    ranges = [
        (layer, first, min(step, spec.rows(layer) - first))
        for layer in spec.layers
        for first in range(0, spec.rows(layer), step)
    ]
    return [
        Shard(
            layer=layer,
            file=f"rows-{number:05d}-of-{len(ranges):05d}.safetensors",
            first_row=first,
            rows=rows,
        )
        for number, (layer, first, rows) in enumerate(ranges, start=1)
    ]


class _RowStream:
    """A layer's chunks, recut to shards; sees whether any row says anything."""

    def __init__(self, spec: BundleSpec, layer: int, chunks: Iterable[tuple[int, Array]]) -> None:
        self._spec, self._layer = spec, layer
        self._chunks = iter(chunks)
        self._rest = np.empty((0, spec.dim), dtype=tensors.physical_dtype(spec.dtype))
        self._next = 0
        self.all_zero = True

    def take(self, rows: int) -> Iterator[Array]:
        """Yield the next `rows` rows in pieces."""
        while rows:
            if not len(self._rest):
                self._rest = self._pull()
            piece, self._rest = self._rest[:rows], self._rest[rows:]
            rows -= len(piece)
            yield piece

    def finish(self) -> None:
        """Raises ArtifactError when the source has more rows than the layout."""
        if len(self._rest) or next(self._chunks, None) is not None:
            raise self._error("more rows than its layout")

    def _pull(self) -> Array:
        first, chunk = next(self._chunks, (-1, self._rest))
        wanted = (tensors.physical_dtype(self._spec.dtype), self._spec.dim)
        if first != self._next or not len(chunk) or chunk.ndim != 2:
            raise self._error(f"no chunk of rows from {self._next} on")
        if (chunk.dtype, chunk.shape[1]) != wanted:
            raise self._error(f"rows of {chunk.dtype} x {chunk.shape[1]}, not {wanted}")
        self._next += len(chunk)
        if self.all_zero:
            self.all_zero = not _says_something(chunk, self._spec.dtype)
        return chunk

    def _error(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"layer {self._layer} of the table has {what}",
            "make the table again with engram build-table --force",
        )


def _says_something(chunk: Array, dtype: str) -> bool:
    """Whether a value differs from zero, minus zero being zero."""
    step = max(1, 2**22 // chunk.shape[1])
    for begin in range(0, len(chunk), step):
        part = chunk[begin : begin + step]
        if np.any(part & 0x7FFF if dtype == "bfloat16" else part):
            return True
    return False


def _write_small(part: Path, spec: BundleSpec, weights: Mapping[str, Array]) -> list[FileRecord]:
    specs = [
        TensorSpec(name=name, dtype="float32", shape=value.shape) for name, value in weights.items()
    ]
    records = [tensors.write_tensors(part / DENSE, specs, weights.values())]
    lookup = spec.layout.lookup
    if lookup is not None:
        about = TensorSpec(name="lookup", dtype="int32", shape=lookup.shape)
        records.append(
            tensors.write_tensors(part / VOCABULARY, [about], [lookup.astype("<i4", copy=False)])
        )
    return records


def _document(
    spec: BundleSpec, shards: list[Shard], records: list[FileRecord], tool_version: str
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "tool_version": tool_version,
        "module": {
            "kind": spec.module.kind,
            "streams": spec.module.streams,
            "conv_kernel": spec.module.conv_kernel,
            "conv_dilation": spec.conv_dilation,
            "norm_eps": spec.module.norm_eps,
        },
        "packed": spec.packed,
        "model": {
            "model_type": spec.model_type,
            "hidden_size": spec.hidden_size,
            "num_hidden_layers": spec.num_layers,
        },
        "rows": {"dim": spec.dim, "dtype": spec.dtype},
        "layers": [
            {
                "layer": layer,
                "decoder_layer": spec.index(layer),
                "rows": spec.rows(layer),
                "shards": [
                    {"file": shard.file, "first_row": shard.first_row, "rows": shard.rows}
                    for shard in shards
                    if shard.layer == layer
                ],
            }
            for layer in spec.layers
        ],
        "layout": spec.layout.to_json(),
        "fingerprint": spec.layout.fingerprint,
        "files": {
            record.name: {"bytes": record.size, "digest": record.digest} for record in records
        },
    }
