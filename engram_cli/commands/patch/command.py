"""engram patch apply, undo, list, stack, show: requests in, results out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engram_cli.commands.artifact import open_vectors
from engram_cli.commands.patch.copying import write_patched
from engram_cli.commands.patch.in_place import apply_in_place, undo_in_place
from engram_cli.commands.patch.journal import Entry, journal_folder, read_journal
from engram_cli.commands.patch.result import (
    ApplyPatchResult,
    LayerRows,
    ListPatchesResult,
    PatchInfo,
    ShowPatchResult,
    StackPatchesResult,
    UndoPatchResult,
)
from engram_cli.commands.patch.target import open_target
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.patch import (
    ApplyPatchRequest,
    ListPatchesRequest,
    ShowPatchRequest,
    StackPatchesRequest,
    UndoPatchRequest,
)
from engram_cli.errors import InputError, MismatchError
from engram_cli.formats.overlay import FORMAT as OVERLAY
from engram_cli.formats.overlay import Overlay
from engram_cli.formats.overlay_patch import SUFFIXES, open_patch, write_overlay
from engram_cli.formats.overlay_write import REPLACED_KINDS
from engram_cli.outputs import prepare_output
from engram_cli.patches import stack as stacks
from engram_cli.patches.patch import Patch
from engram_cli.patches.patch_file import PATCH, patch_path, read_patch, write_patch
from engram_cli.patches.replaced import read_rows, replaced_digest
from engram_cli.patches.stack import Conflict, Stack, says_base
from engram_cli.progress import SILENT, Progress
from engram_cli.rows.source import RowSource
from engram_cli.sizes import processors


def apply_patches(request: ApplyPatchRequest, progress: Progress = SILENT) -> ApplyPatchResult:
    """Apply patches to a table or bundle, in place or to a copy.

    In place, a run that was interrupted is resumed by the same request. Raises MismatchError for a
    patch that is not for it, InputError, ArtifactError, OutputError.
    """
    request = located(request)
    threads = request.threads or processors()
    target = open_target(request.path)
    if request.out is not None:
        if target.patching is not None:
            raise InputError(
                f"{target.path} is half-patched", f"engram patch undo {target.path} restores it"
            )
        inputs = (target.path, *request.patches)
        prepare_output(request.out, target.kind, force=request.force, inputs=inputs)
    patches = [open_patch(each, target.source, request.layer) for each in request.patches]
    if request.out is None:
        return _replaced_in_place(request, target.path, patches, threads, progress)
    stack = stacks.stack_patches(target.source, patches, any_base=request.any_base)
    digest = write_patched(
        target, stack, request.out, force=request.force, threads=threads, progress=progress
    )
    return ApplyPatchResult(
        path=target.path,
        out=request.out,
        patches=_infos(patches),
        rows=stack.rows,
        conflicts=_counted_from_one(stack.conflicts),
        digest=digest,
    )


def _replaced_in_place(
    request: ApplyPatchRequest,
    path: Path,
    patches: Sequence[Patch],
    threads: int,
    progress: Progress,
) -> ApplyPatchResult:
    """Apply patches one after another to the artifact at `path` itself."""
    infos: list[PatchInfo] = []
    conflicts: list[Conflict] = []
    for patch in patches:
        changed = apply_in_place(
            path, patch, any_base=request.any_base, threads=threads, progress=progress
        )
        info = PatchInfo(
            number=_number_there(path, patch) if changed is None else changed.number,
            digest=patch.digest,
            description=patch.description,
            rows=patch.rows,
            nbytes=patch.nbytes,
            applied=changed is not None,
        )
        infos.append(info)
        if changed is not None:
            conflicts += changed.conflicts
            if changed.resumed:
                progress.note(f"resumed: {patch.description or patch.digest[:19]}")
    return ApplyPatchResult(
        path=path,
        out=None,
        patches=tuple(infos),
        rows=sum(info.rows for info in infos if info.applied),
        conflicts=_counted_from_one(conflicts),
        digest=open_target(path).digest,
        journal=journal_folder(path),
    )


def _number_there(path: Path, patch: Patch) -> int:
    """Return the number of a patch that is applied already."""
    listed = list_patches(ListPatchesRequest(path=path)).patches
    return next(each.number for each in listed if each.digest == patch.digest)


def undo_patch(request: UndoPatchRequest, progress: Progress = SILENT) -> UndoPatchResult:
    """Put back the rows that a patch replaced, bit for bit: of the last one, of one, or of all.

    Raises InputError where there is no such patch, or a later one has rows of it, MismatchError for
    an artifact that was changed since, OutputError, ArtifactError.
    """
    path = open_target(request.path).path
    threads = request.threads or processors()
    undone: list[PatchInfo] = []
    while True:
        journal = read_journal(path)
        if undone and not (request.all and journal.entries):
            break
        done = undo_in_place(path, request.patch, threads=threads, progress=progress)
        info = PatchInfo(
            number=done.number,
            digest=done.digest,
            description=done.description,
            rows=done.rows,
        )
        undone.append(info)
    return UndoPatchResult(
        path=path,
        undone=tuple(undone),
        left=len(journal.entries),
        digest=open_target(path).digest,
    )


def list_patches(request: ListPatchesRequest, progress: Progress = SILENT) -> ListPatchesResult:
    """Return the patches that the rows of a table or bundle have, as its metadata lists them."""
    target = open_target(request.path)
    journal = read_journal(target.path)
    known: dict[str, Entry] = {entry.digest: entry for entry in journal.entries}
    patches = []
    for number, each in enumerate(target.patches, start=1):
        entry = known.get(str(each.get("digest")))
        rows = each.get("rows")
        patches.append(
            PatchInfo(
                number=number if entry is None else entry.number,
                digest=str(each.get("digest")),
                description=str(each.get("description", "")),
                rows=rows if isinstance(rows, int) else 0,
                can_undo=entry is not None,
            )
        )
    pending = None
    if journal.pending is not None:
        entry = journal.pending.entry
        pending = f"{journal.pending.operation} of patch {entry.number}, {entry.digest}"
    folder = journal_folder(target.path)
    return ListPatchesResult(
        path=target.path,
        digest=target.digest,
        patches=tuple(patches),
        pending=pending,
        journal=folder if journal.entries or journal.pending else None,
    )


def stack_patches(request: StackPatchesRequest, progress: Progress = SILENT) -> StackPatchesResult:
    """Look at patches together on a base, and write one patch that does what they do.

    Raises MismatchError for a patch that is not for the base, InputError, OutputError.
    """
    request = located(request)
    if request.out is not None:
        kind = REPLACED_KINDS.get(request.out.suffix.removeprefix("."), PATCH)
        inputs = (request.path, *request.patches)
        prepare_output(request.out, kind, force=request.force, inputs=inputs)
    base, _, _ = open_vectors(request.path, request.tokenizer)
    patches = [open_patch(each, base, request.layer) for each in request.patches]
    stack = stacks.stack_patches(base, patches, any_base=request.any_base)
    if request.out is not None:
        whole = _as_one(stack, base, request.description)
        if request.out.suffix in SUFFIXES:
            write_overlay(request.out, whole, base, force=request.force)
        else:
            write_patch(request.out, whole, force=request.force)
    return StackPatchesResult(
        path=request.path,
        out=request.out,
        patches=_infos(patches),
        rows=stack.rows,
        conflicts=_counted_from_one(stack.conflicts),
        made_on=stack.made_on,
    )


def show_patch(request: ShowPatchRequest, progress: Progress = SILENT) -> ShowPatchResult:
    """Describe a patch; with a base, what it changes there and whether it is for it.

    Raises InputError for an overlay without a base, whose layout it does not name.
    """
    request = located(request)
    base = None if request.base is None else open_vectors(request.base, request.tokenizer)[0]
    file = patch_path(request.patch)
    overlay = None if OVERLAY.recognise(file) is None else OVERLAY.open(file, None)
    if base is None and isinstance(overlay, Overlay):
        raise InputError(
            f"{request.patch} is an overlay, which names no layout",
            "give the table that it is for with --base, or run engram inspect",
        )
    patch = read_patch(file) if base is None else open_patch(file, base, request.layer)
    fits = None if base is None else _problem(patch, base)
    layers = tuple(
        _layer_rows(patch, layer, None if base is None or _is_other(patch, base) else base)
        for layer in sorted(patch.layers)
    )
    return ShowPatchResult(
        path=request.patch,
        kind="engram patch" if overlay is None else str(getattr(overlay, "dialect", "overlay")),
        digest=patch.digest,
        has_digest=patch.stated is not None,
        fingerprint=patch.fingerprint,
        dtype=patch.dtype,
        dim=patch.dim,
        rows=patch.rows,
        nbytes=patch.nbytes,
        description=patch.description,
        base=patch.base,
        base_format=patch.base_format,
        layers=layers,
        facts=dict(patch.facts),
        compared_with=request.base,
        fits=fits,
    )


def _is_other(patch: Patch, base: RowSource) -> bool:
    """Return whether rows of a patch are no rows of a base."""
    try:
        patch.require_fits(base)
    except MismatchError:
        return True
    return False


def _problem(patch: Patch, base: RowSource) -> str:
    """Return why a patch is not for a base, "" where it is."""
    try:
        stacks.stack_patches(base, [patch])
    except MismatchError as error:
        return error.message
    return "" if says_base(patch) else "it does not say what it was made for"


def _layer_rows(patch: Patch, layer: int, base: RowSource | None) -> LayerRows:
    own = patch.layers[layer]
    found = LayerRows(layer=layer, rows=len(own), first=int(own.ids[0]), last=int(own.ids[-1]))
    if base is None:
        return found
    entry = base.layout.layer(layer)
    columns = np.searchsorted(entry.offsets, own.ids, side="right") - 1
    columns = np.minimum(columns, len(entry.moduli) - 1)
    counts = np.bincount(columns, minlength=len(entry.moduli))
    old = base.vectors(layer, own.ids)
    new = np.empty_like(old)
    scales = None if own.scales is None else np.ascontiguousarray(own.scales)
    patch.row_type.decode(np.ascontiguousarray(own.rows), scales, new)
    norm, size = np.linalg.norm(new - old, axis=1), np.linalg.norm(old, axis=1)
    change = norm / np.where(size > 0, size, np.maximum(np.linalg.norm(new, axis=1), 1e-30))
    heads = base.layout.heads
    return replace(
        found,
        by_column=tuple(
            (base.layout.orders[at // heads], at % heads, int(count))
            for at, count in enumerate(counts.tolist())
        ),
        mean_change=float(np.mean(change)),
    )


def _as_one(stack: Stack, base: RowSource, description: str | None) -> Patch:
    """Return one patch for `base` that does what a stack does."""
    texts = [patch.description for patch in stack.patches if patch.description]
    before = {layer: read_rows(base, layer, own.ids) for layer, own in stack.layers.items()}
    first = stack.patches[0]
    return Patch(
        fingerprint=base.layout.fingerprint,
        dtype=first.dtype,
        dim=first.dim,
        layers=stack.layers,
        base=base.digest,
        base_format=base.format,
        replaced=replaced_digest(before),
        description="; ".join(texts) if description is None else description,
        facts={"stacked": ", ".join(patch.digest for patch in stack.patches)},
    )


def _infos(patches: Sequence[Patch]) -> tuple[PatchInfo, ...]:
    return tuple(
        PatchInfo(
            number=number,
            digest=patch.digest,
            description=patch.description,
            rows=patch.rows,
            nbytes=patch.nbytes,
        )
        for number, patch in enumerate(patches, start=1)
    )


def _counted_from_one(conflicts: Sequence[Conflict]) -> tuple[Conflict, ...]:
    return tuple(replace(each, first=each.first + 1, second=each.second + 1) for each in conflicts)
