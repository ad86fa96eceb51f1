"""A patched copy of a table or bundle: nothing of the original is changed."""

from __future__ import annotations

import shutil
from pathlib import Path

from engram_cli.commands.patch.journal import Entry, listed
from engram_cli.commands.patch.target import Target
from engram_cli.errors import ArtifactError, OutputError
from engram_cli.files import output_errors
from engram_cli.outputs import new_folder
from engram_cli.patches.stack import Stack
from engram_cli.progress import SILENT, Progress
from engram_cli.table.build import free_bytes

_PIECE = 8 * 2**20


def write_patched(
    target: Target,
    stack: Stack,
    out: Path,
    *,
    force: bool = False,
    threads: int = 1,
    progress: Progress = SILENT,
) -> str:
    """Write a copy of the target under a stack of patches, whole or not at all; return its digest.

    Raises OutputError, ArtifactError for a file that is damaged.
    """
    found = target.kind.listing(target.path)
    if found is None:
        raise ArtifactError(f"{target.path} is not whole", "see engram verify")
    names = sorted(name for name in found.files if (target.path / name).is_file())
    size = sum((target.path / name).stat().st_size for name in names)
    if size > free_bytes(out):
        raise OutputError(f"{out} needs {size:,} bytes", "free some, or write to another disk")
    with new_folder(out, target.kind, force=force) as part:
        progress.start("copy", size, "bytes")
        with output_errors(out):
            for name in names:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                with (target.path / name).open("rb") as source, (part / name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, _PIECE)
                progress.advance((part / name).stat().st_size)
        copied = target.in_folder(part)
        touched = copied.files(stack.layers)
        copied.require_whole(touched, threads, progress)
        copied.write(stack.layers, progress)
        patches = [*target.patches]
        for number, patch in enumerate(stack.patches, start=1):
            entry = Entry(
                number=number,
                digest=patch.digest,
                description=patch.description,
                rows=patch.rows,
                before=target.digest,
            )
            patches.append(dict(listed(entry)))
        raw, digest = copied.sealed(copied.digests(touched, threads, progress), patches)
        copied.seal(raw)
    return digest
