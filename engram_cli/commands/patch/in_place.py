"""Patches applied in place and undone, bit for bit.

In this order, each step flushed to the disk before the next: the patch and the rows before it are
kept in the journal; the journal says what begins; the artifact's metadata says that it is half
patched, so that nothing loads it; rows are written; metadata with the new digests is written; the
journal says that it is done. A run that was killed at any step is resumed by the same command, or
undone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.commands.patch import journal as journals
from engram_cli.commands.patch.journal import BEFORE, PATCH, Entry, Journal, Operation
from engram_cli.commands.patch.target import Target, open_target
from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.patches.patch import Patch
from engram_cli.patches.replaced import read_rows, replaced_digest
from engram_cli.patches.stack import Conflict, other_base, replace_rows, same_rows, says_base
from engram_cli.progress import SILENT, Progress
from engram_cli.table.lock import build_lock


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A patch that was applied or undone, by its `number` in the journal.

    `resumed`: where an earlier run was interrupted.
    """

    number: int
    digest: str
    description: str
    rows: int
    resumed: bool = False
    conflicts: tuple[Conflict, ...] = ()


def apply_in_place(
    path: Path,
    patch: Patch,
    *,
    any_base: bool = False,
    threads: int = 1,
    progress: Progress = SILENT,
) -> Changed | None:
    """Apply a patch to the table or bundle at `path`; None where it is applied already.

    Raises MismatchError for a patch that is not for it, InputError, ArtifactError, OutputError.
    """
    with build_lock(path):
        target, journal = _opened(path)
        pending = journal.pending
        if pending is not None:
            if (pending.operation, pending.entry.digest) != ("apply", patch.digest):
                raise _interrupted(path, journal)
            entry = pending.entry
        elif any(each.get("digest") == patch.digest for each in target.patches):
            return None
        else:
            entry = Entry(
                number=max(journals.next_number(journal), len(target.patches) + 1),
                digest=patch.digest,
                description=patch.description,
                rows=patch.rows,
                before=target.digest,
            )
        conflicts: tuple[Conflict, ...] = ()
        if pending is None:
            conflicts = _require_base(target, journal, patch, entry.number, any_base)
            journal = _begin(target, journal, entry, patch, threads, progress)
        digest = _swap(target, journal, "apply", entry, threads, progress)
        done = (*journal.entries, replace(entry, after=digest))
        journals.write_journal(path, Journal(entries=done))
    return Changed(
        number=entry.number,
        digest=entry.digest,
        description=entry.description,
        rows=entry.rows,
        resumed=pending is not None,
        conflicts=conflicts,
    )


def undo_in_place(
    path: Path, wanted: str | None = None, *, threads: int = 1, progress: Progress = SILENT
) -> Changed:
    """Undo the last patch that was applied to the artifact at `path`, or the `wanted` one.

    `wanted`: its number in the journal, or its digest or the beginning of that. What was
    interrupted is undone first. Raises InputError where there is no such patch, or a later one has
    rows of it; MismatchError for an artifact that was changed since; OutputError, ArtifactError.
    """
    with build_lock(path):
        target, journal = _opened(path)
        pending = journal.pending
        if pending is not None:
            entry = pending.entry
            if wanted is not None and not _is_wanted(entry, wanted):
                raise _interrupted(path, journal)
        else:
            entry = _entry(target, journal, wanted)
            _require_topmost(path, journal, entry)
            before = journals.kept_rows(path, entry, BEFORE)
            names = target.files(before.layers)
            target.require_writable(names)
            target.require_whole(names, threads, progress)
        if pending is None or pending.operation == "apply":
            began = target.digest if pending is None else pending.digest
            journal = journals.with_pending(journal, "undo", entry, began)
            journals.write_journal(path, journal)
        digest = _swap(target, journal, "undo", entry, threads, progress)
        left = [each for each in journal.entries if each.number != entry.number]
        if left:
            left[-1] = replace(left[-1], after=digest)
        journals.write_journal(path, Journal(entries=tuple(left)))
        if left:
            journals.drop_rows(path, entry)
    return Changed(
        number=entry.number,
        digest=entry.digest,
        description=entry.description,
        rows=entry.rows,
        resumed=pending is not None,
    )


def _opened(path: Path) -> tuple[Target, Journal]:
    """Open artifact and journal. Raises MismatchError unless they are of each other."""
    target, journal = open_target(path), journals.read_journal(path)
    pending, folder = journal.pending, journals.journal_folder(path)
    if target.patching is not None and pending is None:
        raise ArtifactError(
            f"{path} is half-patched, and {folder} is not there or says nothing of it",
            "put the journal back next to it, or take the artifact again",
        )
    if pending is not None:
        listed = [each.get("digest") for each in target.patches]
        done = (pending.entry.digest in listed) == (pending.operation == "apply")
        began = target.digest if target.patching is None else target.patching.get("digest")
        known = began == pending.digest or (target.patching is None and done)
    else:
        known = not journal.entries or journal.entries[-1].after == target.digest
    if not known:
        raise MismatchError(
            f"{folder} is the journal of another state of {path}",
            "the artifact was changed or replaced since: move the journal away, and undo nothing",
        )
    return target, journal


def _interrupted(path: Path, journal: Journal) -> OutputError:
    assert journal.pending is not None
    entry = journal.pending.entry
    done = "applied" if journal.pending.operation == "apply" else "undone"
    return OutputError(
        f"{path} is half-patched: patch {entry.number} ({entry.description or entry.digest[:19]}) "
        f"was being {done}",
        f"run the same engram patch command again, or: engram patch undo {path}",
    )


def _begin(
    target: Target,
    journal: Journal,
    entry: Entry,
    patch: Patch,
    threads: int,
    progress: Progress,
) -> Journal:
    """Keep what undoing needs, and note that the patch is about to be applied."""
    path = target.path
    names = target.files(patch.layers)
    target.require_writable(names)
    target.require_whole(names, threads, progress)
    before = {i: read_rows(target.source, i, own.ids) for i, own in patch.layers.items()}
    journals.open_journal(path)
    if not journal.entries:
        journals.keep_original(path, target.meta.read_bytes())
    journals.keep_rows(path, entry.number, PATCH, patch)
    journals.keep_rows(path, entry.number, BEFORE, replace(patch, layers=before))
    begun = journals.with_pending(journal, "apply", entry, target.digest)
    journals.write_journal(path, begun)
    return begun


def _swap(
    target: Target,
    journal: Journal,
    operation: Operation,
    entry: Entry,
    threads: int,
    progress: Progress,
) -> str:
    """Replace the rows of an entry by those of the patch or those before it; return the digest.

    It may be done again from the start, however far it came.
    """
    path = target.path
    assert journal.pending is not None
    applies = operation == "apply"
    rows = journals.kept_rows(path, entry, PATCH if applies else BEFORE)
    rows.require_fits(target.source)
    target.mark({"operation": operation, "number": entry.number, "digest": journal.pending.digest})
    target.write(rows.layers, progress)
    digests = target.digests(target.files(rows.layers), threads, progress)
    patches = [each for each in target.patches if each.get("digest") != entry.digest]
    raw, digest = target.sealed(digests, patches + [journals.listed(entry)] * applies)
    raw = _as_before(path, journal, entry, operation, raw)
    target.seal(raw)
    return digest


def _as_before(
    path: Path, journal: Journal, entry: Entry, operation: Operation, raw: bytes
) -> bytes:
    """Return the metadata from before any patch, where it says the same as `raw`."""
    if operation == "apply" or any(each.number != entry.number for each in journal.entries):
        return raw
    kept = journals.original(path)
    return kept if kept is not None and json.loads(kept) == json.loads(raw) else raw


def _require_base(
    target: Target, journal: Journal, patch: Patch, number: int, any_base: bool
) -> tuple[Conflict, ...]:
    """Return where the patch meets others that it does not know. Raises MismatchError.

    It may have been made for the artifact as it is, or for what it was before some patches.
    """
    patch.require_fits(target.source)
    count = len(journal.entries)
    known = [entry.before for entry in journal.entries]
    made_on = next((i for i in range(count - 1, -1, -1) if known[i] == patch.base), None)
    if patch.base == target.digest:
        made_on = count
    elif patch.replaced is not None:
        there = {i: read_rows(target.source, i, own.ids) for i, own in patch.layers.items()}
        for index in range(count, -1, -1):
            if replaced_digest(there) == patch.replaced:
                made_on = index
                break
            if index:
                before = journals.kept_rows(target.path, journal.entries[index - 1], BEFORE)
                there = {i: replace_rows(own, before.layers.get(i)) for i, own in there.items()}
    if made_on is None and says_base(patch) and not any_base:
        raise other_base(patch, target.source)
    conflicts = []
    for index in range(made_on or 0, count):
        entry = journal.entries[index]
        other = journals.kept_rows(target.path, entry, PATCH)
        rows, layer, row = same_rows(other.layers, patch.layers)
        if rows:
            first, second = entry.number - 1, number - 1
            conflicts.append(Conflict(first=first, second=second, rows=rows, layer=layer, row=row))
    return tuple(conflicts)


def _entry(target: Target, journal: Journal, wanted: str | None) -> Entry:
    path = target.path
    if not journal.entries and not target.patches:
        raise InputError(f"no patch is applied to {path}", "there is nothing to undo")
    if not journal.entries:
        raise InputError(
            f"no patch of {path} can be undone: it has no journal {journals.journal_folder(path)}",
            "a patched copy has none, since what it was made from is unchanged",
        )
    if wanted is None:
        return journal.entries[-1]
    found = [entry for entry in journal.entries if _is_wanted(entry, wanted)]
    if len(found) != 1:
        many = "no patch" if not found else f"{len(found)} patches"
        raise InputError(f"{path} has {many} '{wanted}'", "engram patch list names them")
    return found[0]


def _is_wanted(entry: Entry, wanted: str) -> bool:
    digest = wanted if wanted.startswith("sha256:") else f"sha256:{wanted}"
    return wanted == str(entry.number) or (len(digest) >= 15 and entry.digest.startswith(digest))


def _require_topmost(path: Path, journal: Journal, entry: Entry) -> None:
    """Raise InputError where a later patch has a row of this one."""
    later: Sequence[Entry] = journal.entries[journal.entries.index(entry) + 1 :]
    own = journals.kept_rows(path, entry, PATCH).layers
    for each in later:
        other = journals.kept_rows(path, each, PATCH).layers
        for layer in own.keys() & other.keys():
            if set(own[layer].ids.tolist()) & set(other[layer].ids.tolist()):
                raise InputError(
                    f"patch {each.number} has rows of patch {entry.number}, and was applied later",
                    f"undo it first: engram patch undo {path} {each.number}",
                )
