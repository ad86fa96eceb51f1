"""Adds documents to a table and removes others, exactly: the rows of a build without or with them.

In: a table that keeps sums, and token files of documents. The records and rows are changed in
place; from the first change to the last, the table says of itself that it is half-updated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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
from engram_cli.patches.patch import LayerPatch
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.checksum import file_checksum
from engram_cli.rows.source import SCALES
from engram_cli.table.attributes import META
from engram_cli.table.fill import write_array
from engram_cli.table.grid import SUMS, array_name, content_digest
from engram_cli.table.inits.corpus.buckets import map_pairs
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.inits.corpus.pairs import write_pairs
from engram_cli.table.kept_sums import SLOTS, map_sums
from engram_cli.table.kept_sums_writer import write_description, write_hashes
from engram_cli.table.store import zarr_metadata
from engram_cli.table.sums import kernels
from engram_cli.table.sums.after import sums_after, token_pairs
from engram_cli.table.sums.change import DocumentChange
from engram_cli.table.sums.journal import Slot, UpdateState
from engram_cli.table.sums.layer import BLOCK_ENTRIES, Block, LayerUpdate, SideState, blocks_of
from engram_cli.table.sums.opened import OpenTable
from engram_cli.table.sums.rows import LayerRows, stored_scale
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
        self.table, self.change = table, change
        self._threads, self._memory = min(threads, SLOTS), memory
        self._progress = progress
        self._made: dict[int, LayerUpdate] = {}
        if table.interrupted is not None and table.interrupted.request != change.request:
            raise OutputError(
                f"{table.about.path} is half-updated with other documents",
                "run the update that was interrupted again: it completes it",
            )
        for file in change.sides:
            if file is not None and file.largest >= embeddings.tokens:
                raise MismatchError(
                    f"the documents hold token {file.largest}, the embeddings have "
                    f"{embeddings.tokens:,} rows",
                    "give documents of the tokenizer that the table was filled with",
                )
        self._after = sums_after(table, change, embeddings, threads=self._threads)
        self.every_row = self._after.moves_every_row(table)

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The parameters of the init afterwards."""
        return self._after.kept.parameters

    @property
    def memory_bytes(self) -> int:
        """About how many bytes the update takes at most: pairs while they are made, then for each
        thread the entries of a block and the vectors of a column."""
        sides = [file for file in self.change.sides if file is not None]
        entries = sum(8 * min(file.tokens * self.table.layout.max_order, BLOCK_ENTRIES)
                      for file in sides)  # fmt: skip
        vectors = 2 * len(self._after.vectors.tokens) * -(-self.table.about.dim // LANES) * LANES
        making = min(self._memory, max(64 * file.tokens for file in sides))
        work = max(self._threads * (entries + vectors), min(self._memory, self._kept_bytes))
        return max(making, work) + 24 * len(self._after.hashes)

    @property
    def _kept_bytes(self) -> int:
        """Bytes of the entries and vectors of all columns, which are kept where there is room."""
        layout = self.table.layout
        pairs = sum(
            token_pairs(self.table, file).most_pairs(order)
            for file in self.change.sides
            if file is not None
            for order in layout.orders
        )
        wide = 2 * (self.table.about.dim + LANES) * len(self._after.vectors.tokens)
        return len(layout.layers) * (8 * layout.heads * pairs + layout.columns * wide)

    def rows_written(self, touched: int) -> int:
        """Return how many rows are written again where documents touch `touched` of them."""
        entries = self.table.layout.layers
        return sum(sum(entry.moduli) for entry in entries) if self.every_row else touched

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
            scales = stored_scale(about, layer), self._after.scales.get(layer)
            columns = range(self.table.layout.columns)
            states = [
                SideState(
                    columns=[sums.columns[layer, column] for column in columns],
                    followed=sums.followed,
                    scale=scale,
                )
                for sums, scale in zip((kept, self._after.kept), scales, strict=True)
            ]
            made[layer] = LayerUpdate(
                entry=entry,
                layout=self.table.layout,
                plan=plan_layer(self.table.layout, entry),
                vectors=partial(self._after.vectors.of_column, layer),
                records=map_sums(about.path, layer, entry.rows, about.dim),
                rows=LayerRows.of(about, layer),
                pairs={order: self._pairs(layer, order) for order in self.table.layout.orders},
                before=states[0],
                after=states[1],
                keep=self._kept_bytes <= self._memory,
            )
        return made

    def _pairs(self, layer: int, order: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the pairs that are added and those that are removed; written if missing."""
        lines = np.zeros(self.table.layout.vocab_size, dtype=np.int64)
        lines[self._after.vectors.tokens] = np.arange(len(self._after.vectors.tokens))
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
                        token_pairs(self.table, file),
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
        most = {
            order: max(
                token_pairs(self.table, file).most_pairs(order)
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
        scales: NDArray[Any] | None = self._after.scales.get(layer)
        if row_type.scaling is not None and not row_type.of_layer:
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
            for layer, scale in self._after.scales.items():
                array = about.arrays[array_name(layer, SCALES)]
                files |= write_array(path, array, scale)
            for name, checksum in zip(names, pool.map(partial(_settled, path), names), strict=True):
                files[name] = (files[name][0], checksum)
        write_hashes(path, self._after.hashes)
        write_description(path, self._after.kept, len(self._after.hashes))
        attributes = {name: value for name, value in about.attributes.items() if name != "digest"}
        attributes |= {
            "tool_version": __version__,
            "init": {"name": self._after.kept.init, "parameters": self._after.kept.parameters},
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
