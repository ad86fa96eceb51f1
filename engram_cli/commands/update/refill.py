"""Fills a table again from its whole corpus: what an update is for a table without sums."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from engram_cli.commands.requests.update import UpdateTableRequest
from engram_cli.commands.update.documents import (
    DocumentReader,
    memory_of_update,
    read_change,
    remove_scratch,
    table_vectors,
)
from engram_cli.commands.update.result import DocumentCount, UpdateTableResult
from engram_cli.errors import InputError, MismatchError
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.source import HITS
from engram_cli.sizes import processors
from engram_cli.table.attributes import Description, before_update, half_updated, read_description
from engram_cli.table.build import build_store
from engram_cli.table.grid import array_name
from engram_cli.table.inits.corpus.filled import CorpusFill, corpus_digest
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.kept_sums import has_sums
from engram_cli.table.lock import build_lock
from engram_cli.table.places import check_place, clear_place, partial_folder, scratch_folder
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import bound_layout, open_array
from engram_cli.table.sums.change import DocumentChange


def refill(request: UpdateTableRequest, progress: Progress) -> UpdateTableResult:
    """Fill all rows of a table from `request.sources`, the whole corpus as it is to be.

    Where documents to add or remove are given too, the corpus must be that of the table with or
    without them. Raises as `update_table`.
    """
    begin = time.perf_counter()
    path, place = request.table, request.out or request.table
    threads = request.threads or processors()
    about = _description(path)
    init = about.attributes["init"]
    if init["name"] not in ("next-token", "token-mean"):
        raise InputError(
            f"{path} was filled with --init {init['name']}",
            "only tables of --init next-token or token-mean come from documents",
        )
    layout = bound_layout(about)
    reader = DocumentReader(request, path, layout, progress)
    found = reader.find(request.sources)
    inputs = [*found.places, *([path] if request.out is not None else [])]
    clear_place(place)
    if request.out is not None:
        check_place(place, request.force, inputs)
    vectors = table_vectors(request, path, layout, init)
    keep = request.keep_sums or has_sums(path)
    with ExitStack() as stack:
        stack.enter_context(build_lock(scratch_folder(place), place))
        sides = [reader.find(each) if each else None for each in (request.add, request.remove)]
        change = read_change(reader, place, stack, tuple(sides))
        file = reader.read(found, scratch_folder(place))
        _check_change(change, init["parameters"], file, path)
        filled = CorpusFill(
            name=init["name"],
            layout=layout,
            file=file,
            embeddings=vectors,
            joined=bool(init["parameters"].get("join_documents")),
            centre=init["parameters"].get("centre", "corpus"),
            sums=partial_folder(place) if keep else None,
            memory=memory_of_update(request),
            threads=threads,
            progress=progress,
        )
        spec = _spec(about, layout, filled)
        digest = ""
        if not request.dry_run:
            report = build_store(
                spec,
                place,
                hits=lambda layer: _hits(about, layer),
                force=request.force or request.out is None,
                threads=threads,
                progress=progress,
            )
            digest = report.digest
        remove_scratch(change)
    return _result(request, about, change, filled, spec, digest, time.perf_counter() - begin)


def _result(
    request: UpdateTableRequest,
    about: Description,
    change: DocumentChange,
    filled: CorpusFill,
    spec: TableSpec,
    digest: str,
    seconds: float,
) -> UpdateTableResult:
    rows = sum(entry.rows for entry in spec.layout.layers)
    return UpdateTableResult(
        table=request.table,
        out=request.out or request.table,
        added=DocumentCount.of(change.added),
        removed=DocumentCount.of(change.removed),
        documents=filled.file.documents,
        tokens=filled.file.tokens,
        centre=filled.centre if filled.name == "next-token" else None,
        refilled=True,
        rows=rows,
        touched_rows=None,
        written_rows=rows,
        row_bytes=DTYPES.load(about.dtype).row_bytes(about.dim),
        sums_bytes=spec.sums_bytes,
        memory_bytes=memory_of_update(request),
        digest_before=str(about.attributes["digest"]),
        digest=digest,
        written=bool(digest),
        completed=False,
        already=False,
        patch=None,
        seconds=seconds,
    )


def _description(path: Path) -> Description:
    """Return what the table at `path` is, also where an update of it was interrupted."""
    return before_update(path) if half_updated(path) else read_description(path)


def _check_change(
    change: DocumentChange, before: Mapping[str, Any], file: TokenFile, path: Path
) -> None:
    """Raise MismatchError unless `file` is the table's corpus with or without the documents."""
    if change.added is None and change.removed is None:
        return
    if "documents_xxh64" not in before:
        raise InputError(
            f"{path} does not say which documents filled it", "leave out --add and --remove"
        )
    wanted = change.parameters(before)
    if any(wanted.get(name) != value for name, value in corpus_digest(file, joined=False).items()):
        raise MismatchError(
            f"the corpus has {file.documents:,} documents and is not what filled {path}, with "
            "those to add and without those to remove",
            "give that corpus, or leave out --add and --remove to fill the table from this one",
        )


def _hits(about: Description, layer: int) -> Any:
    array = about.arrays[array_name(layer, HITS)]
    return open_array(about.path, array).read(0, array.rows)


def _spec(about: Description, layout: HashLayout, init: Any) -> TableSpec:
    """Return a table of the same arrays, filled by `init`."""
    layer = layout.layer_ids[0]
    own = about.arrays.get(array_name(layer, HITS)) or about.arrays[array_name(layer)]
    counted = about.attributes["statistics"]
    spec = TableSpec(
        layout=layout,
        dim=about.dim,
        dtype=about.dtype,
        init=init,
        inner_size=None if own.inner_rows is None else own.inner_rows * own.row_bytes,
        tokens=None if counted is None else int(counted["tokens"]),
    )
    if all(about.arrays[array.name] == array for array in spec.row_arrays.values()):
        return spec
    return replace(
        spec,
        chunk_rows=max(about.arrays[array_name(each)].chunk_rows for each in layout.layer_ids),
        chunk_size=own.chunk_rows * own.row_bytes,
    )
