"""Builds a table: a TableSpec in, a finished store out, or a half-built one that can be resumed.

A table grows in `<name>.partial` (`engram_cli.table.places`). A chunk is written under a temporary
name, flushed, renamed, and then noted in the journal.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import OutputError
from engram_cli.files import fsync_folder, inner_file, output_errors
from engram_cli.outputs import remove_work
from engram_cli.progress import SILENT, Progress
from engram_cli.table.attributes import META
from engram_cli.table.fill import fill_rows, write_array
from engram_cli.table.grid import DOCUMENTS, ChunkedArray
from engram_cli.table.inits.base import InitWithArrays, SummedInit
from engram_cli.table.journal import NAME as JOURNAL
from engram_cli.table.journal import SCRATCH, Journal
from engram_cli.table.kept_sums import documents_array
from engram_cli.table.kept_sums_writer import prepare_sums, write_description, write_hashes
from engram_cli.table.lock import build_lock
from engram_cli.table.places import (
    check_place,
    clear_place,
    drop_partial,
    open_partial,
    partial_folder,
    put_in_place,
    scratch_folder,
    settle,
)
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import zarr_metadata

Hits = Callable[[int], NDArray[np.uint32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build wrote: all chunks of rows, those of an earlier run, bytes, digest."""

    path: Path
    chunks: int
    resumed: int
    stored_bytes: int
    digest: str


def build_store(
    spec: TableSpec,
    out: Path,
    *,
    hits: Hits | None = None,
    force: bool = False,
    threads: int = 1,
    progress: Progress = SILENT,
) -> BuildReport:
    """Build the table `spec` at `out`, or resume a half-built one of the same request.

    `hits(layer)` gives uint32[rows], asked for when `spec.tokens` is set. Raises OutputError when
    `out` exists (and not `force`), is being built by another process, does not fit on the disk, or
    is half-built for another request (and not `force`). Chunks that are whole are kept.
    """
    clear_place(out)
    check_place(out, force)
    with build_lock(out):
        settle(out)
        folder = partial_folder(out)
        journal = open_partial(out, spec, force)
        done = len(journal.done)
        try:
            check_space(out, spec, journal.done_bytes)
        except OutputError:
            if not journal.done:
                drop_partial(out)
            raise
        with output_errors(folder):
            _sweep(folder, spec)
            prepare_sums(folder, _sums_of_rows(spec))
            _write_metadata(folder, zarr_metadata(spec.arrays, spec.attributes()))
        scratch = scratch_folder(out)
        fill_rows(spec, folder, journal, scratch, threads=threads, progress=progress)
        with output_errors(folder):
            digest = _finish(spec, folder, journal, hits)
            remove_work(scratch, SCRATCH)
            put_in_place(out, journal, force)
        return BuildReport(
            path=out,
            chunks=sum(array.chunks for array in spec.row_arrays.values()),
            resumed=done,
            stored_bytes=spec.total_bytes,
            digest=digest,
        )


def resumable_bytes(spec: TableSpec, out: Path) -> int:
    """Return the bytes that a half-built table of the same request has already."""
    journal = Journal(partial_folder(out))
    try:
        journal.read(spec.request, spec.chunk_sizes)
    except (OSError, OutputError):
        return 0
    return journal.done_bytes


def free_bytes(out: Path) -> int:
    """Return the free bytes of the disk of `out`."""
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    with output_errors(out):
        return shutil.disk_usage(folder).free


def check_space(out: Path, spec: TableSpec, done_bytes: int = 0) -> None:
    """Raises OutputError, with the arithmetic, when the rest of the table does not fit."""
    need, free = spec.total_bytes - done_bytes, free_bytes(out)
    if need <= free:
        return
    rows = sum(array.rows for array in spec.row_arrays.values())
    kept = f", {_gb(done_bytes)} of it done" if done_bytes else ""
    raise OutputError(
        f"{out} needs {_gb(spec.total_bytes)} ({rows:,} rows x {spec.row_bytes} bytes and what "
        f"goes with them{kept}); {_gb(free)} are free",
        f"free {_gb(need - free)}, write to another disk with --out, or make the table smaller: "
        "fewer rows per head, a smaller dim or dtype, fewer layers",
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:,.3f} GB"


def _sweep(folder: Path, spec: TableSpec) -> None:
    """Remove all but the chunks of `spec` and the journal; make the folders of its arrays."""
    kept = [*spec.arrays, *_sums_of_rows(spec)]
    files = {file for array in kept for file in array.files} | {JOURNAL}
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds comes before it
        if path.is_dir():
            with suppress(OSError):  # not empty
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for array in spec.arrays:
        (folder / array.name).mkdir(parents=True, exist_ok=True)


def _sums_of_rows(spec: TableSpec) -> list[ChunkedArray]:
    """Return the sums that grow with the rows: all but the hashes of the documents."""
    return [array for array in spec.sums_arrays if array.name != DOCUMENTS]


def _write_metadata(folder: Path, documents: dict[str, bytes]) -> None:
    for name, document in documents.items():
        with inner_file(folder / name) as part:
            part.write_bytes(document)


def _check_chunks(folder: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Raises OutputError when a chunk that was written is gone or has another size."""
    for name, (size, _) in files.items():
        try:
            found = os.lstat(folder / name)
        except FileNotFoundError:
            found = None
        if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != size:
            raise OutputError(
                f"{folder / name} was {'removed' if found is None else 'changed'} while the table "
                "was being built",
                "leave the folder alone and run the same command again: it makes the chunk again",
            )


def _finish(spec: TableSpec, folder: Path, journal: Journal, hits: Hits | None) -> str:
    """Write hits and lookup, then the attributes that complete the table; return its digest."""
    files = dict(journal.done)
    for layer, array in spec.hits_arrays.items():
        if hits is None:
            raise ValueError("the table needs hits, and none are given")
        files |= write_array(folder, array, hits(layer))
    if spec.lookup_array is not None and spec.layout.lookup is not None:
        files |= write_array(folder, spec.lookup_array, spec.layout.lookup)
    if isinstance(spec.init, InitWithArrays):
        for array in spec.init_arrays:
            files |= write_array(folder, array, spec.init.values(array))
    for array in spec.arrays:
        fsync_folder(folder / array.name)
    if isinstance(spec.init, SummedInit) and spec.sums_arrays:
        hashes = spec.init.hashes()
        prepare_sums(folder, [documents_array(len(hashes))])
        write_hashes(folder, hashes)
        kept = replace(spec.init.kept_sums(spec.dim), layer_scale=spec.scale)
        write_description(folder, kept, len(hashes))
    _check_chunks(folder, files)
    attributes = spec.final_attributes(files)
    _write_metadata(folder, {META: zarr_metadata([], attributes)[META]})
    return str(attributes["digest"])
