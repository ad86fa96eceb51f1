"""Adds documents to a table and removes others, exactly: the rows of a build without or with them.

In: a table that keeps sums, and token files of documents. The records and rows are changed in
place; from the first change to the last, the table says of itself that it is half-updated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, MismatchError, OutputError
from engram_cli.files import fsync_folder, inner_file, output_errors
from engram_cli.hashing.hasher import plan_layer
from engram_cli.jit import LANES
from engram_cli.patches import LayerPatch
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.checksum import file_checksum
from engram_cli.rows.source import SCALES
from engram_cli.table.attributes import META
from engram_cli.table.fill import write_array
from engram_cli.table.grid import SUMS, array_name, content_digest
from engram_cli.table.inits.corpus.buckets import map_pairs
from engram_cli.table.inits.corpus.documents import document_hashes
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.kernels import weighted_sum
from engram_cli.table.inits.corpus.pairs import TokenPairs, write_pairs
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.store import zarr_metadata
from engram_cli.table.sums import kernels
from engram_cli.table.sums.change import DocumentChange, distinct_tokens, without
from engram_cli.table.sums.files import write_description, write_hashes
from engram_cli.table.sums.journal import Slot, UpdateState
from engram_cli.table.sums.layer import BLOCK_ENTRIES, Block, LayerUpdate, SideState, blocks_of
from engram_cli.table.sums.opened import OpenTable
from engram_cli.table.sums.rows import LayerRows
from engram_cli.table.sums.state import (
    SLOTS,
    KeptSums,
    documents_array,
    map_sums,
)
from engram_cli.version import __version__

_PIECE = 2**22  # words or pairs at a time


class TableUpdate:
    """An update of one table. Its methods are called in order: `check`, then `apply`."""

    def __init__(
        self,
        table: OpenTable,
        change: DocumentChange,
        embeddings: Embeddings,
        *,
        threads: int = 1,
        memory: int = 2**30,
        progress: Progress = SILENT,
    ) -> None:
        """`memory`: bytes that pairs may take while they are made. Raises InputError, MismatchError
        for documents that cannot be added or removed, ArtifactError."""
        self.table, self.change, self._embeddings = table, change, embeddings
        self._threads, self._memory = min(threads, SLOTS), memory
        self._progress = progress
        self._made: dict[int, LayerUpdate] = {}
        about, kept = table.about, table.sums.kept
        self._before = about.attributes["init"]["parameters"]
        self._after = change.parameters(self._before)
        if table.interrupted is not None and table.interrupted.request != change.request:
            raise OutputError(
                f"{about.path} is half-updated with other documents",
                "run the update that was interrupted again: it completes it",
            )
        for file in change.sides:
            if file is not None and file.largest >= embeddings.tokens:
                raise MismatchError(
                    f"the documents hold token {file.largest}, the embeddings have "
                    f"{embeddings.tokens:,} rows",
                    "give documents of the tokenizer that the table was filled with",
                )
        self._hashes = self._changed_hashes()
        self._tokens = distinct_tokens(change, table.layout.vocab_size)
        self._kept = self._changed_sums(kept)
        row_type = DTYPES.load(about.dtype)
        self._scales = self._layer_scales(row_type) if row_type.of_layer else {}
        moved = kept.followed != self._kept.followed or kept.columns != self._kept.columns
        old = {layer: self._stored_scale(layer) for layer in self._scales}
        self.every_row = moved or any(old[layer] != scale for layer, scale in self._scales.items())

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the init afterwards."""
        return self._after

    @property
    def memory_bytes(self) -> int:
        """About how many bytes the update takes at most: pairs while they are made, then for each
        thread the entries of a block and the vectors of a column."""
        sides = [file for file in self.change.sides if file is not None]
        entries = sum(8 * min(file.tokens * self.table.layout.max_order, BLOCK_ENTRIES)
                      for file in sides)  # fmt: skip
        vectors = 2 * len(self._tokens) * -(-self.table.about.dim // LANES) * LANES
        making = min(self._memory, max(64 * file.tokens for file in sides))
        work = max(self._threads * (entries + vectors), min(self._memory, self._kept_bytes))
        return max(making, work) + 24 * len(self._hashes)

    @property
    def _kept_bytes(self) -> int:
        """Bytes of the entries and vectors of all columns, which are kept where there is room."""
        layout, name = self.table.layout, self.table.sums.kept.init
        pairs = sum(
            self._pairs_of(file, name).most_pairs(order)
            for file in self.change.sides
            if file is not None
            for order in layout.orders
        )
        wide = 2 * (self.table.about.dim + LANES) * len(self._tokens)
        return len(layout.layers) * (8 * layout.heads * pairs + layout.columns * wide)

    def rows_written(self, touched: int) -> int:
        """Return how many rows are written again where documents touch `touched` of them."""
        entries = self.table.layout.layers
        return sum(sum(entry.moduli) for entry in entries) if self.every_row else touched

    def _changed_hashes(self) -> NDArray[np.uint64]:
        """Return the hashes of the documents afterwards. Raises MismatchError."""
        if self.table.interrupted is not None:
            count = int(self._after["documents"])
            file = self.table.about.path / documents_array(count).file(0)
            if file.stat().st_size == 8 * count:
                there = np.fromfile(file, dtype="<u8")
                total = int(np.add.reduce(there, dtype=np.uint64))
                if total == int(self._after["documents_xxh64"], 16):
                    return there
        hashes = np.array(self.table.sums.hashes())
        if self.change.added is not None:
            hashes = np.sort(np.concatenate([hashes, document_hashes(self.change.added.map())]))
        if self.change.removed is not None:
            hashes = without(hashes, document_hashes(self.change.removed.map()))
        return hashes

    def _changed_sums(self, kept: KeptSums) -> KeptSums:
        """Return what describes the sums afterwards."""
        name, columns, followed = kept.init, dict(kept.columns), kept.followed
        if name == "next-token" and "centre" not in self._before:
            counts = np.zeros(self.table.layout.vocab_size, dtype=np.int64)
            for file, sign in ((self.change.added, 1), (self.change.removed, -1)):
                if file is not None:
                    counts += sign * self._pairs_of(file, name).follower_counts()
            followed += int(counts.sum())
            own = counts[self._tokens]
            with ThreadPoolExecutor(self._threads) as pool:
                totals = pool.map(partial(self._moved, own), kept.columns)
                for (place, state), total in zip(kept.columns.items(), totals, strict=True):
                    changed = (int(a) + int(b) for a, b in zip(state.total, total, strict=True))
                    columns[place] = replace(state, total=tuple(changed))
        return replace(kept, parameters=self._after, columns=columns, followed=followed)

    def _moved(self, counts: NDArray[np.int64], place: tuple[int, int]) -> NDArray[np.int64]:
        """Return int64[dim]: what `counts` of the tokens [n] add to the total of a column."""
        found = np.zeros(self.table.about.dim, dtype=np.int64)
        if counts.any():
            weighted_sum(self._some(*place), counts, found)
        return found

    def _pairs_of(self, file: TokenFile, name: str) -> TokenPairs:
        return TokenPairs(
            layout=self.table.layout, file=file, follow=name == "next-token", joined=False
        )

    def _some(self, layer: int, column: int) -> NDArray[np.int16]:
        state = self.table.sums.kept.columns[layer, column]
        dim = self.table.about.dim
        return self._embeddings.some(layer, column, dim, self._tokens, state.scale)

    def _layer_scales(self, row_type: Any) -> dict[int, np.float32]:
        """Return the scale of each layer afterwards, as a build finds it."""
        kept = self._kept
        found = {}
        for layer in self.table.layout.layer_ids:
            if kept.layer_scale is not None:
                found[layer] = np.float32(kept.layer_scale)
                continue
            bound = 0.0
            for column in range(self.table.layout.columns):
                own = kept.columns[layer, column]
                mean = float(np.abs(own.mean(kept.followed)).max())
                bound = max(bound, (float(own.largest) + mean) * own.scale)
            found[layer] = np.float32(row_type.layer_scale(bound))
        return found

    def _stored_scale(self, layer: int) -> np.float32:
        array = self.table.about.arrays[array_name(layer, SCALES)]
        value = np.fromfile(self.table.about.path / array.file(0), dtype="<f4", count=1)
        return np.float32(value[0])

    def _layers(self) -> dict[int, LayerUpdate]:
        """Return what changes each layer, made once."""
        if not self._made:
            self._made = self._make_layers()
        return self._made

    def _make_layers(self) -> dict[int, LayerUpdate]:
        about, kept = self.table.about, self.table.sums.kept
        made = {}
        for entry in self.table.layout.layers:
            layer = entry.layer
            arrays = [about.arrays[array_name(layer)]]
            scales: list[NDArray[np.float32] | None] = [None, None]
            if layer in self._scales:
                both = self._stored_scale(layer), self._scales[layer]
                scales = [np.array([scale], dtype=np.float32) for scale in both]
            elif array_name(layer, SCALES) in about.arrays:
                arrays.append(about.arrays[array_name(layer, SCALES)])
            columns = range(self.table.layout.columns)
            states = [
                SideState(
                    columns=[sums.columns[layer, column] for column in columns],
                    followed=sums.followed,
                    scale=scale,
                )
                for sums, scale in zip((kept, self._kept), scales, strict=True)
            ]
            made[layer] = LayerUpdate(
                entry=entry,
                layout=self.table.layout,
                plan=plan_layer(self.table.layout, entry),
                vectors=partial(self._some, layer),
                records=map_sums(about.path, layer, entry.rows, about.dim),
                rows=LayerRows(
                    path=about.path,
                    row_type=DTYPES.load(about.dtype),
                    dim=about.dim,
                    arrays=arrays,
                ),
                pairs={order: self._pairs(layer, order) for order in self.table.layout.orders},
                before=states[0],
                after=states[1],
                keep=self._kept_bytes <= self._memory,
            )
        return made

    def _pairs(self, layer: int, order: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the pairs that are added and those that are removed; written if missing."""
        lines = np.zeros(self.table.layout.vocab_size, dtype=np.int64)
        lines[self._tokens] = np.arange(len(self._tokens))
        found = []
        for file, folder in zip(self.change.sides, self.change.folders, strict=True):
            if file is None:
                found.append(np.empty(0, dtype=np.uint64))
                continue
            path = folder / f"pairs-{layer}-{order}.u64"
            if not path.exists():
                part = path.with_suffix(".part")
                with output_errors(path):
                    write_pairs(
                        part,
                        self._pairs_of(file, self.table.sums.kept.init),
                        layer,
                        order,
                        memory=self._memory,
                        threads=self._threads,
                    )
                    if part.stat().st_size:
                        pairs = np.memmap(part, dtype="<u8", mode="r+")
                        for begin in range(0, len(pairs), 2 * _PIECE):
                            kernels.renumber_tokens(pairs[begin : begin + 2 * _PIECE], lines)
                        pairs.flush()
                    part.replace(path)
            found.append(map_pairs(path))
        return found[0], found[1]

    def _blocks(self) -> list[Block]:
        name = self.table.sums.kept.init
        most = {
            order: max(
                self._pairs_of(file, name).most_pairs(order)
                for file in self.change.sides
                if file is not None
            )
            for order in self.table.layout.orders
        }
        return blocks_of(self.table.layout, most)

    def check(self, *, wanted: bool = False) -> tuple[int, dict[int, LayerPatch]]:
        """Compare all records that will change with their rows; return how many are touched.

        If `wanted`, also the rows that will change, as stored. Raises ArtifactError.
        """
        blocks = self._blocks()
        parts: dict[int, list[Any]] = {layer: [] for layer in self.table.layout.layer_ids}
        touched = 0
        layers = self._layers()
        with ThreadPoolExecutor(self._threads) as pool:
            self._progress.start("checking rows", len(blocks), "parts of columns")

            def check(block: Block) -> tuple[int, list[Any]]:
                return layers[block.layer].check(block, every=self.every_row, wanted=wanted)

            for block, (count, found) in zip(blocks, pool.map(check, blocks), strict=True):
                self._progress.advance(1)
                touched += count
                parts[block.layer] += found
        return touched, {layer: self._patch(layer, own) for layer, own in parts.items() if own}

    def _patch(self, layer: int, parts: Sequence[Any]) -> LayerPatch:
        row_type, dim = DTYPES.load(self.table.about.dtype), self.table.about.dim
        physical = row_type.physical
        rows = np.concatenate([part.lines[0] for part in parts]).view(physical)
        scales = None
        if layer in self._scales:
            scales = np.array([self._scales[layer]], dtype=np.float32)
        elif row_type.scaling is not None:
            wide = np.concatenate([part.lines[1] for part in parts])
            scales = wide.view(row_type.scaling.dtype)
        return LayerPatch(
            ids=np.concatenate([part.rows for part in parts]),
            rows=rows.reshape(-1, row_type.width(dim)),
            scales=scales,
        )

    def apply(self, last: Callable[[], None] | None = None) -> str:
        """Change the table; return its digest. A killed one is completed by the same update.

        `last`: called before the write that completes the table. Where given, what was asked stays
        in the journal, for the caller to clear. Raises OutputError, ArtifactError.
        """
        table, path = self.table, self.table.about.path
        blocks = self._blocks()
        buckets = sum(block.buckets for block in blocks)
        if table.interrupted is None:
            sums = table.sums.kept.to_json()
            state = UpdateState(
                request=self.change.request, attributes=table.about.attributes, sums=sums
            )
            table.journal.begin(state)
            table.journal.open(buckets)
            _write_attributes(path, {**table.about.attributes, "complete": False, "updating": True})
        else:
            table.journal.open(buckets)
        layers = self._layers()
        self._replay(layers, blocks)
        self._change(layers, blocks)
        if self.every_row:
            self._write_every_row(layers)
        changed = {name for layer in layers.values() for name in layer.rows.changed}
        return self._finish(None if table.interrupted is not None else changed, last)

    def _replay(self, layers: Mapping[int, LayerUpdate], blocks: Sequence[Block]) -> None:
        """Write once more what an interrupted run may have written in part."""
        for number, rows, records in self.table.journal.held():
            at = max(i for i, block in enumerate(blocks) if block.number <= number)
            block, layer = blocks[at], layers[blocks[at].layer]
            first = layer.entry.offsets[block.column]
            inside = (rows >= first + block.begin) & (rows < first + block.end)
            if not inside.all() or (np.diff(rows) <= 0).any():
                raise ArtifactError(
                    f"the journal in {self.table.about.path / SUMS} is damaged", "build again"
                )
            layer.put(block.column, rows, records, rows_too=not self.every_row)
            self.table.journal.note(number)

    def _change(self, layers: Mapping[int, LayerUpdate], blocks: Sequence[Block]) -> None:
        journal = self.table.journal
        self._progress.start("changing rows", len(blocks), "parts of columns")
        with ExitStack() as stack:
            free: SimpleQueue[Slot] = SimpleQueue()
            for slot in stack.enter_context(journal.slots(self._threads)):
                free.put(slot)
            pool = stack.enter_context(ThreadPoolExecutor(self._threads))

            def change(block: Block) -> None:
                slot = free.get()
                try:
                    layers[block.layer].apply(block, journal, slot, every=self.every_row)
                finally:
                    free.put(slot)

            for _ in pool.map(change, blocks):
                self._progress.advance(1)

    def _write_every_row(self, layers: Mapping[int, LayerUpdate]) -> None:
        work = [(layer, c) for layer in layers for c in range(self.table.layout.columns)]
        self._progress.start("rows around the new mean", len(work), "columns")
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(lambda each: layers[each[0]].write_rows(each[1]), work):
                self._progress.advance(1)

    def _finish(self, changed: set[str] | None, last: Callable[[], None] | None) -> str:
        """Write what completes the table; return its digest. `changed`: None for any file."""
        path, about = self.table.about.path, self.table.about
        files = {
            name: tuple(entry) for name, entry in about.attributes["manifest"]["files"].items()
        }
        stored = {array_name(layer): layer for layer in self.table.layout.layer_ids}
        per_row = DTYPES.load(about.dtype)
        if per_row.scaling is not None and not per_row.of_layer:
            stored |= {array_name(layer, SCALES): layer for layer in self.table.layout.layer_ids}
        names = [name for array in stored for name in about.arrays[array].files]
        names = [name for name in names if changed is None or name in changed]
        with output_errors(path), ThreadPoolExecutor(self._threads) as pool:
            for layer, scale in self._scales.items():
                array = about.arrays[array_name(layer, SCALES)]
                files |= write_array(path, array, np.array([scale], dtype=np.float32))
            for name, checksum in zip(names, pool.map(partial(_settled, path), names), strict=True):
                files[name] = (files[name][0], checksum)
        write_hashes(path, self._hashes)
        write_description(path, self._kept, len(self._hashes))
        attributes = {name: value for name, value in about.attributes.items() if name != "digest"}
        attributes |= {
            "tool_version": __version__,
            "init": {"name": self._kept.init, "parameters": self._after},
            "manifest": {
                "algorithm": attributes["manifest"]["algorithm"],
                "files": {name: list(files[name]) for name in sorted(files)},
            },
        }
        attributes["digest"] = content_digest(attributes)
        if last is not None:
            last()
        _write_attributes(path, attributes)
        self.table.journal.clear(keep_state=last is not None)
        fsync_folder(path / SUMS)
        return str(attributes["digest"])


def _write_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    with inner_file(path / META) as part:
        part.write_bytes(zarr_metadata([], attributes)[META])


def _settled(path: Path, name: str) -> str:
    """Write a chunk to the disk; return its checksum."""
    handle = os.open(path / name, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return file_checksum(path / name)
