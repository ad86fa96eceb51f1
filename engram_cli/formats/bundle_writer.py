"""Writing a bundle: a table's rows streamed into shards, dense weights, `engram.json` last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.formats.bundle import BUNDLE, SAVED_WITH
from engram_cli.formats.bundle_description import FORMAT, Reference, document_of
from engram_cli.formats.bundle_files import DENSE, DESCRIPTION, VOCABULARY
from engram_cli.formats.bundle_spec import HITS, ROWS, SCALES, BundleSpec, Shard
from engram_cli.outputs import new_folder
from engram_cli.rows import safetensors as tensors
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import Array, FileRecord, TensorSpec

SHARD_BYTES = 5_000_000_000

T = TypeVar("T")
Rows = Callable[[int], Iterable[tuple[int, Array]]]
Dense = Callable[[int, bool], Mapping[str, NDArray[np.float32]]]


def write_bundle(
    path: Path,
    spec: BundleSpec,
    rows: Rows,
    dense: Dense,
    *,
    tool_version: str,
    scales: Rows | None = None,
    hits: Rows | None = None,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
    extra_files: Mapping[str, bytes] | None = None,
    advance: Callable[[int], None] | None = None,
    saved_with: Sequence[str] = (),
    threads: int = 1,
) -> list[FileRecord]:
    """Write the folder `path`, whole or not at all; never more than a few pieces in memory.

    `rows(layer)` yields (first row, [n, width] as stored) ascending, `scales(layer)` in the same
    way the scales of quantised rows, `hits(layer)` uint32[n], None for a bundle without.
    `dense(layer, zero_rows)` is called after the layer's rows. `extra_files`: files that the
    description does not list, so that they may be edited. `advance` is called with the bytes
    written. `saved_with`: the folders of all bundles that are saved in one checkpoint, in the order
    in which they are attached. `threads`: how many layers and parts are read and written at a time.
    Raises OutputError, and ArtifactError when `rows` does not yield the layout's table.
    """
    sources = {ROWS: rows, SCALES: scales, HITS: hits}
    parts = spec.parts if hits is None else (*spec.parts, HITS)
    plan = plan_shards(spec, shard_bytes, parts)
    with new_folder(path, BUNDLE, force=force) as part:
        count = len(spec.layers) * len(parts)
        counter, tasks = _Counter(advance, apart=threads == 1 or count < threads), []
        for layer in spec.layers:
            for what in parts:
                source = sources[what]
                assert source is not None
                own = [shard for shard in plan if (shard.layer, shard.part) == (layer, what)]
                tasks.append(partial(_write_shards, part, spec, own, source, counter))
        written = _all_done(tasks, threads, counter)
        records = [record for some, _ in written for record in some]
        zero = {stream.layer: stream.all_zero for _, stream in written if stream.part == ROWS}
        weights: dict[str, Array] = {}
        for layer in spec.layers:
            for name, value in dense(layer, zero[layer]).items():
                weights[f"layers.{layer}.{name}"] = value
        records += _write_small(part, spec, weights)
        document = document_of(spec, records, tool_version, shards=plan)
        if saved_with:
            document[SAVED_WITH] = list(saved_with)
        return records + _write_last(part, document, extra_files)


def write_referring(
    path: Path,
    spec: BundleSpec,
    rows: Rows | None,
    dense: Dense,
    reference: Reference,
    *,
    tool_version: str,
    hits: Rows | None = None,
    force: bool = False,
    extra_files: Mapping[str, bytes] | None = None,
) -> list[FileRecord]:
    """Write a bundle that refers to a table or checkpoint: all but the shards, as `write_bundle`.

    `rows` are read until one says something; None for rows that do. `hits`: as of `write_bundle`,
    for a checkpoint; a table has its own. Raises OutputError.
    """
    plan = [] if hits is None else plan_shards(spec, parts=(HITS,))
    with new_folder(path, BUNDLE, force=force) as part:
        records, weights = [], {}
        for layer in spec.layers:
            if hits is not None:
                own = [shard for shard in plan if shard.layer == layer]
                records += _write_shards(part, spec, own, hits, _Counter(None))[0]
            pieces = () if rows is None else rows(layer)
            says_something = any(spec.row_type.any_nonzero(piece) for _, piece in pieces)
            zero_rows = rows is not None and not says_something
            for name, value in dense(layer, zero_rows).items():
                weights[f"layers.{layer}.{name}"] = value
        records += _write_small(part, spec, weights)
        document = document_of(spec, records, tool_version, shards=plan, reference=reference)
        return records + _write_last(part, document, extra_files)


def finish_bundle(
    folder: Path,
    spec: BundleSpec,
    shards: Sequence[Shard],
    records: Sequence[FileRecord],
    weights: Mapping[str, Array],
    *,
    tool_version: str,
    extra_files: Mapping[str, bytes] | None = None,
) -> list[FileRecord]:
    """Write what a bundle has in addition to its `shards`, which are there; the description last.

    `records` are the shards', `weights` all dense ones by name. Returns all records.
    """
    records = [*records, *_write_small(folder, spec, weights)]
    document = document_of(spec, records, tool_version, shards=shards)
    return [*records, *_write_last(folder, document, extra_files)]


def plan_shards(
    spec: BundleSpec, shard_bytes: int = SHARD_BYTES, parts: Sequence[str] | None = None
) -> list[Shard]:
    """Cut the parts of each layer into files of at most `shard_bytes`, by lines.

    `parts` None: rows and their scales.
    """
    ranges: dict[str, list[tuple[int, int, int]]] = {part: [] for part in parts or spec.parts}
    for layer in spec.layers:
        for part in ranges:
            whole = spec.tensor(layer, part)
            lines = whole.shape[0]
            step = max(1, (shard_bytes - tensors.ALIGNMENT) // (whole.nbytes // lines))
            ranges[part] += [
                (layer, first, min(step, lines - first)) for first in range(0, lines, step)
            ]
    return [
        Shard(
            layer=layer,
            part=part,
            file=f"{part}-{number:05d}-of-{len(own):05d}.safetensors",
            first_row=first,
            rows=rows,
        )
        for part, own in ranges.items()
        for number, (layer, first, rows) in enumerate(own, start=1)
    ]


class _Stream:
    """A layer's chunks of one part, recut to shards; sees whether any row says anything."""

    def __init__(
        self, spec: BundleSpec, layer: int, part: str, chunks: Iterable[tuple[int, Array]]
    ) -> None:
        self._spec, self.layer, self.part = spec, layer, part
        whole = spec.tensor(layer, part)
        self._dtype, self._tail = physical_dtype(whole.dtype), whole.shape[1:]
        self._chunks = iter(chunks)
        self._rest: Array = np.empty((0, *self._tail), dtype=self._dtype)
        self._next = 0
        self.all_zero = True

    def take(self, rows: int) -> Iterator[Array]:
        """Yield the next `rows` lines in pieces."""
        while rows:
            if not len(self._rest):
                self._rest = self._pull()
            piece, self._rest = self._rest[:rows], self._rest[rows:]
            rows -= len(piece)
            yield piece

    def finish(self) -> None:
        """Raise ArtifactError when the source has more lines than the layout."""
        if len(self._rest) or next(self._chunks, None) is not None:
            raise self._error(f"more {self.part} than its layout")

    def _pull(self) -> Array:
        first, chunk = next(self._chunks, (-1, self._rest))
        if first != self._next or not len(chunk):
            raise self._error(f"no chunk of {self.part} from {self._next} on")
        if (chunk.dtype, chunk.shape[1:]) != (self._dtype, self._tail):
            raise self._error(
                f"{self.part} of {chunk.dtype} x {chunk.shape[1:]}, "
                f"not {self._dtype} x {self._tail}"
            )
        self._next += len(chunk)
        if self.all_zero and self.part == ROWS:
            self.all_zero = not self._spec.row_type.any_nonzero(chunk)
        return chunk

    def _error(self, what: str) -> ArtifactError:
        return ArtifactError(
            f"layer {self.layer} of the table has {what}",
            "make the table again with engram build-table --force",
        )


class _Counter:
    """Counts the bytes that threads write; stops them all where one has failed.

    `apart`: whether a thread is free to hash for each that writes.
    """

    def __init__(self, advance: Callable[[int], None] | None, *, apart: bool = True) -> None:
        self._advance, self._lock = advance, Lock()
        self.apart, self.failed = apart, False

    def advance(self, size: int) -> None:
        if self.failed:
            raise CancelledError
        if self._advance is not None:
            with self._lock:
                self._advance(size)


def _all_done(tasks: Sequence[Callable[[], T]], threads: int, counter: _Counter) -> list[T]:
    """Return the results of tasks in their order; raise what the first one to fail raises."""
    if threads == 1:
        return [task() for task in tasks]
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            done = wait(futures, return_when=FIRST_EXCEPTION).done
            for future in done:
                future.result()
        except BaseException:
            counter.failed = True
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]


def _write_shards(
    part: Path,
    spec: BundleSpec,
    shards: Sequence[Shard],
    source: Rows,
    counter: _Counter,
) -> tuple[list[FileRecord], _Stream]:
    """Write the shards of one part of a layer; return also what was read for them."""
    layer, what = shards[0].layer, shards[0].part
    stream = _Stream(spec, layer, what, source(layer))
    records = [_write_shard(part, spec, shard, stream, counter) for shard in shards]
    stream.finish()
    return records, stream


def _write_shard(
    part: Path, spec: BundleSpec, shard: Shard, stream: _Stream, counter: _Counter
) -> FileRecord:
    about = {"format": FORMAT, "layer": str(shard.layer), "first_row": str(shard.first_row)}
    return tensors.write_tensors(
        part / shard.file,
        [shard.tensor(spec)],
        stream.take(shard.rows),
        metadata=about,
        advance=counter.advance,
        apart=counter.apart,
    )


def _write_last(
    part: Path, document: Mapping[str, object], extra_files: Mapping[str, bytes] | None
) -> list[FileRecord]:
    """Write the extra files, which may be edited, and then the description."""
    apart = dict(extra_files or {})
    digests = {name: sha256_bytes(raw) for name, raw in apart.items()}
    whole = canonical_json({**document, **({"unlisted": digests} if digests else {})})
    records = []
    for name, raw in {**apart, DESCRIPTION: whole}.items():
        (part / name).write_bytes(raw)
        records.append(FileRecord(name=name, size=len(raw), digest=sha256_bytes(raw)))
    return records


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


def model_card(spec: BundleSpec) -> str:
    """Return the README of a bundle, Markdown with the metadata that model hubs read.

    It says what the bundle is, where it fits and how to load it; equal specs give equal text.
    """
    layout = spec.layout
    layers = ", ".join(spec.label(layer) for layer in spec.layers)
    rows = " + ".join(f"{spec.rows(layer):,}" for layer in spec.layers)
    orders = ", ".join(map(str, layout.orders))
    return f"""---
library_name: engram-tables
tags: [engram, conditional-memory, {spec.model_type}]
---

# Engram memory for a {spec.model_type} model

A hashed n-gram memory that is added to the hidden states before these decoder layers,
counted from 0: {layers}.
It holds no backbone: load the model it was made for, then attach it. A bundle that
was never trained changes no output.

```python
from engram_cli.runtime import attach

attach(model, "engram")
```

| | |
| --- | --- |
| model | {spec.model_type}, {spec.num_layers} layers of width {spec.hidden_size:,} |
| scheme | {layout.scheme}: orders {orders}, {layout.heads} heads, {layout.vocab_size:,} token ids |
| module | {spec.module.kind}, streams: {spec.module.streams} |
| rows | {rows}, {spec.dim} x {spec.dtype} each: {spec.table_bytes:,} bytes |
| a token reads | {layout.columns * len(spec.layers)} rows |
| packed documents | {"kept apart" if spec.packed else "one sequence"} |
| fingerprint | `{layout.fingerprint}` |

It fits only the tokenizer it was made for: another one gives other token ids, which are other rows.
"""
