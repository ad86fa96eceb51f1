"""Writes a bundle with the rows of any source; what an interrupted run wrote is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.formats.base import WriteOptions
from engram_cli.formats.bundle import BUNDLE, read_bundle
from engram_cli.formats.bundle_description import FORMAT
from engram_cli.formats.bundle_files import CARD, DENSE, DESCRIPTION, VOCABULARY
from engram_cli.formats.bundle_rows import bundle_rows
from engram_cli.formats.bundle_spec import HITS, ROWS, SCALES, BundleSpec, Shard
from engram_cli.formats.bundle_writer import Dense, finish_bundle, model_card, plan_shards
from engram_cli.formats.row_files import grown_files, put_folder
from engram_cli.formats.row_plan import Digest, NewFile, Place, RowFiles
from engram_cli.rows.safetensors import FileRecord, encode_header, write_tensors
from engram_cli.rows.source import RowSource
from engram_cli.rows.stored_as import PIECE_BYTES, layer_scale, require_same_rows
from engram_cli.version import __version__


def bundle_files(spec: BundleSpec, source: RowSource) -> tuple[RowFiles, tuple[Shard, ...]]:
    """Return the files of a bundle with the rows of a source, which are stored as the spec says."""
    parts = (*spec.parts, HITS) if source.has_hits else spec.parts
    shards = tuple(plan_shards(spec, parts=parts))
    files, places = [], []
    for shard in shards:
        if shard.part == HITS:
            continue
        tensor = shard.tensor(spec)
        about = {"format": FORMAT, "layer": str(shard.layer), "first_row": str(shard.first_row)}
        header = encode_header([tensor], about)
        head = {0: header}
        if shard.part == SCALES and spec.row_type.of_layer:
            scale = layer_scale(source, shard.layer)
            assert scale is not None
            head[len(header)] = scale.astype("<f4").tobytes()
        else:
            places.append(
                Place(file=shard.file, layer=shard.layer, part=shard.part, begin=len(header),
                      first=shard.first_row, rows=shard.rows, width=tensor.nbytes // shard.rows)
            )  # fmt: skip
        files.append(NewFile(name=shard.file, size=len(header) + tensor.nbytes, head=head))
    small = [shard.file for shard in shards if shard.part == HITS]
    small += [DENSE, DESCRIPTION, CARD]
    small += [] if spec.layout.lookup is None else [VOCABULARY]
    plan = RowFiles(
        source=source,
        dtype=spec.dtype,
        files=tuple(files),
        places=tuple(places),
        small=tuple(small),
        hashed=cast("Callable[[], Digest]", hashlib.sha256),
    )
    return plan, shards


def stream_bundle(
    out: Path,
    spec: BundleSpec,
    plan: RowFiles,
    shards: tuple[Shard, ...],
    dense: Dense,
    options: WriteOptions,
) -> tuple[str, ...]:
    """Write the bundle `out`, whole or not at all; return the names of its files.

    `dense(layer, zero_rows)` gives the weights of a layer. Raises OutputError, ArtifactError.
    """
    source = plan.source
    with grown_files(out, plan, options) as grown:
        sizes = {file.name: file.size for file in plan.files}
        records = []
        for shard in shards:
            if shard.part == HITS:
                about = {"format": FORMAT, "layer": str(shard.layer),
                         "first_row": str(shard.first_row)}  # fmt: skip
                records.append(
                    write_tensors(
                        grown.folder / shard.file, [shard.tensor(spec)], _hits(source, shard),
                        metadata=about,
                    )
                )  # fmt: skip
                continue
            digest = f"sha256:{grown.digests[shard.file].hexdigest()}"
            records.append(FileRecord(name=shard.file, size=sizes[shard.file], digest=digest))
        weights = {
            f"layers.{layer}.{name}": value
            for layer in spec.layers
            for name, value in dense(layer, _is_zero(spec, source, layer)).items()
        }
        records = finish_bundle(
            grown.folder,
            spec,
            shards,
            records,
            weights,
            tool_version=__version__,
            extra_files={CARD: model_card(spec).encode()},
        )
        if options.verify:
            _verify(source, spec, grown.folder, options)
        names = tuple(record.name for record in records)
        put_folder(grown.folder, out, BUNDLE, options, names)
    return names


def _hits(source: RowSource, shard: Shard) -> Iterator[NDArray[Any]]:
    step = PIECE_BYTES // 4
    for first in range(shard.first_row, shard.first_row + shard.rows, step):
        count = min(step, shard.first_row + shard.rows - first)
        yield source.lines(shard.layer, HITS, first, count)


def _is_zero(spec: BundleSpec, source: RowSource, layer: int) -> bool:
    """Return whether all rows of a layer are zero: they are read until one is not."""
    rows, step = spec.rows(layer), max(1, PIECE_BYTES // spec.row_bytes)
    return not any(
        spec.row_type.any_nonzero(source.lines(layer, ROWS, first, min(step, rows - first)))
        for first in range(0, rows, step)
    )


def _verify(source: RowSource, spec: BundleSpec, folder: Path, options: WriteOptions) -> None:
    again = bundle_rows(read_bundle(folder))
    if again.layout.fingerprint != source.layout.fingerprint:
        raise ArtifactError(f"{folder} reads as another hash", "convert it again")
    require_same_rows(source, again, spec.dtype, threads=options.threads, progress=options.progress)
    for layer in spec.layers if source.has_hits else ():
        for first in range(0, spec.rows(layer), PIECE_BYTES):
            count = min(PIECE_BYTES, spec.rows(layer) - first)
            hits = source.lines(layer, HITS, first, count)
            if not np.array_equal(hits, again.lines(layer, HITS, first, count)):
                raise ArtifactError(f"{folder}: other hits in layer {layer}", "check the disk")
