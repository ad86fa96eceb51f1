"""update: documents in; a table of exactly the rows that a build with or without them makes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from engram_cli import interrupts
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.update import UpdateTableRequest
from engram_cli.commands.update.documents import (
    DocumentReader,
    memory_of_update,
    read_change,
    remove_scratch,
    table_vectors,
)
from engram_cli.commands.update.refill import refill
from engram_cli.commands.update.result import DocumentCount, UpdateTableResult
from engram_cli.corpus.sources import Sources
from engram_cli.errors import InputError
from engram_cli.files import address_of, output_errors
from engram_cli.numbers import counted
from engram_cli.outputs import check_output, new_folder, prepare_output
from engram_cli.patches.making import stored_patch
from engram_cli.patches.patch import LayerPatch
from engram_cli.patches.patch_file import PATCH, is_patch, read_patch, write_patch
from engram_cli.progress import SILENT, Progress
from engram_cli.rows import DTYPES
from engram_cli.rows.safetensors import file_metadata
from engram_cli.sizes import processors
from engram_cli.table.inits.corpus.embeddings import Embeddings
from engram_cli.table.lock import build_lock
from engram_cli.table.places import TABLE, clear_place
from engram_cli.table.store import open_table
from engram_cli.table.sums.change import DocumentChange
from engram_cli.table.sums.copy import copy_table
from engram_cli.table.sums.opened import OpenTable, already_done, open_for_update
from engram_cli.table.sums.update import TableUpdate


def update_table(request: UpdateTableRequest, progress: Progress = SILENT) -> UpdateTableResult:
    """Add documents to a table and remove documents from it.

    The table then has the digest of a build from the corpus with or without them. It is changed in
    place, or written to `request.out`. An update that was killed is completed by the same request;
    until then the table does not load. Raises InputError for a table that cannot be updated,
    MismatchError for documents that never filled it, CorpusError, TokenIdError, ArtifactError for
    damaged sums, OutputError.
    """
    return run_update(request, progress, lambda _: None)


def run_update(
    request: UpdateTableRequest, progress: Progress, report: Callable[[UpdateTableResult], None]
) -> UpdateTableResult:
    """Do what `update_table` does, and call `report` with the result.

    Until `report` returns, what was asked stays in the table: if the process is killed after the
    table is complete, the same request finds that it is updated already and adds nothing twice.
    """
    begin = time.perf_counter()
    request = located(request)
    path = request.table
    for each in (path, request.out):
        if each is not None and address_of(each) is not None:
            raise InputError(
                f"{address_of(each)} is an address, and tables are updated on this machine",
                "download the table, update it, then upload it",
            )
    if request.sources:
        result = refill(request, progress)
        report(result)
        return result
    place = request.out or path
    with ExitStack() as stack:
        if request.out is not None:
            inputs = [path, *request.add, *request.remove]
            prepare_output(
                place, TABLE, force=request.force, inputs=inputs, dry_run=request.dry_run
            )
        if not os.path.lexists(path):
            open_table(path)  # says that there is none, or that it is half-built
        clear_place(path)
        stack.enter_context(build_lock(path))
        work = _prepared(request, path, place, stack, progress)
        result = work.run(begin)
        report(result)
        if result.written and request.out is None:
            work.table.journal.clear()
    return result


def _prepared(
    request: UpdateTableRequest, path: Path, place: Path, stack: ExitStack, progress: Progress
) -> _Work:
    """Open the table, then read the documents. `place`: where scratch files lie next to."""
    table = open_for_update(path)
    if table.interrupted is not None and request.out is not None:
        raise InputError(
            f"{path} is half-updated", "complete it first: run the interrupted update again"
        )
    if (
        request.patch is not None
        and table.interrupted is None
        and not request.dry_run
        and not _may_be_own(request.patch, table)
    ):
        inputs = (path, *request.add, *request.remove)
        check_output(request.patch, PATCH, force=request.force, option="--patch", inputs=inputs)
    reader = DocumentReader(request, path, table.layout, progress)
    sides: list[Sources | None] = [
        reader.find(sources) if sources else None for sources in (request.add, request.remove)
    ]
    vectors = table_vectors(request, path, table.layout, table.about.attributes["init"])
    change = read_change(reader, place, stack, tuple(sides))
    return _Work(
        request=request, table=table, change=change, vectors=vectors, place=place, progress=progress
    )


def _may_be_own(patch: Path, table: OpenTable) -> bool:
    """Return whether the file `patch` was made for `table` as it is, or as it was before an update
    that was killed late: the same update may have written it before it was killed."""
    if patch.is_symlink() or not is_patch(patch):
        return False
    states = [table.about.attributes, *([table.finished.attributes] if table.finished else [])]
    return file_metadata(patch).get("base") in [each["digest"] for each in states]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """An update of `table`, whose documents are read; `place`: where the table will be."""

    request: UpdateTableRequest
    table: OpenTable
    change: DocumentChange
    vectors: Embeddings
    place: Path
    progress: Progress

    def run(self, begin: float) -> UpdateTableResult:
        """Check, then write what was asked for; return what was done since `begin`."""
        request, table = self.request, self.table
        if request.out is None and already_done(table, self.change):
            return self._already(begin)
        update = self._update(table)
        self.progress.note(f"updating within about {update.memory_bytes / 1e6:,.0f} MB of memory")
        touched = None
        patch_rows = None
        if table.interrupted is not None:
            patch_rows = self._patch_of_killed()
        else:
            touched, rows = update.check(wanted=request.patch is not None)
            if request.patch is not None and not request.dry_run:
                patch_rows = self._write_patch(request.patch, rows)
        if request.dry_run:
            remove_scratch(self.change)
            return self._result(update, begin, touched=touched)
        if request.out is None:
            digest = update.apply(last=interrupts.complete)
        else:
            with new_folder(self.place, TABLE, force=request.force) as folder:
                copy_table(table.about.path, folder)
                digest = self._update(open_for_update(folder)).apply()
            interrupts.complete()
        remove_scratch(self.change)
        completed = table.interrupted is not None
        return self._result(
            update,
            begin,
            touched=touched,
            digest=digest,
            completed=completed,
            patch_rows=patch_rows,
        )

    def _already(self, begin: float) -> UpdateTableResult:
        """Return the result of an update that was killed when the table was complete."""
        interrupts.complete()
        remove_scratch(self.change)
        digest = "" if self.request.dry_run else str(self.table.about.attributes["digest"])
        rows = self._patch_of_killed()
        return self._result(
            None, begin, digest=digest, completed=True, already=True, patch_rows=rows
        )

    def _patch_of_killed(self) -> int | None:
        """Return the rows of the patch that an update wrote before it was killed; None without."""
        patch = self.request.patch
        if patch is None or self.request.dry_run:
            return None
        if _may_be_own(patch, self.table):
            return read_patch(patch).rows
        self.progress.note(f"{patch} is not written: the update had begun without it")
        return None

    def _update(self, table: OpenTable) -> TableUpdate:
        return TableUpdate(
            table,
            self.change,
            self.vectors,
            threads=self.request.threads or processors(),
            memory=memory_of_update(self.request) // 4,
            progress=self.progress,
        )

    def _write_patch(self, out: Path, rows: dict[int, LayerPatch]) -> int:
        """Write the rows whose bytes change as a patch; return how many there are."""
        facts = {}
        for name, file in zip(("added", "removed"), self.change.sides, strict=True):
            if file is not None:
                facts[name] = (
                    f"{counted(file.documents, 'document')}, {counted(file.tokens, 'token')}"
                )
        said = "; ".join(f"{name} {text}" for name, text in facts.items())
        base = open_table(self.table.about.path)
        patch = stored_patch(base, rows, description=f"engram update: {said}", facts=facts)
        if not self.request.force and _may_be_own(out, self.table):
            there = read_patch(out)
            if (there.base, there.digest) == (patch.base, patch.digest):
                return patch.rows  # of the same update, which was killed after it had written it
        check_output(out, PATCH, force=self.request.force, option="--patch")
        with output_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
        write_patch(out, patch, force=self.request.force)
        return patch.rows

    def _result(
        self,
        update: TableUpdate | None,
        begin: float,
        *,
        touched: int | None = None,
        digest: str = "",
        completed: bool = False,
        already: bool = False,
        patch_rows: int | None = None,
    ) -> UpdateTableResult:
        about = self.table.about
        init = about.attributes["init"]
        after = init["parameters"] if update is None else update.parameters
        row_type = DTYPES.load(about.dtype)
        before = about.attributes
        if already and self.table.finished is not None:
            before = self.table.finished.attributes
        return UpdateTableResult(
            table=about.path,
            out=self.place,
            added=DocumentCount.of(self.change.added),
            removed=DocumentCount.of(self.change.removed),
            documents=int(after["documents"]),
            tokens=int(after["tokens"]),
            centre=after.get("centre", "corpus") if init["name"] == "next-token" else None,
            refilled=False,
            rows=sum(entry.rows for entry in about.layout.layers),
            touched_rows=touched,
            written_rows=None
            if update is None or touched is None
            else update.rows_written(touched),
            row_bytes=row_type.row_bytes(about.dim),
            sums_bytes=self.table.sums.stored_bytes,
            memory_bytes=0 if update is None else update.memory_bytes,
            digest_before=str(before["digest"]),
            digest=digest,
            written=bool(digest),
            completed=completed,
            already=already,
            patch=None if patch_rows is None else self.request.patch,
            patch_rows=patch_rows or 0,
            seconds=time.perf_counter() - begin,
        )
