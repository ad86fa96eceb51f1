"""Outputs at addresses: a command writes a folder on this machine first, then it is uploaded."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from engram_cli.errors import OutputError
from engram_cli.files import address_of, output_errors, sha256_bytes
from engram_cli.outputs import Kind
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.locate import locate
from engram_cli.remote.publish import Destination

R = TypeVar("R")
_STAGES = ".engram-uploads"


def is_address(out: Path | None) -> bool:
    """Return whether an output goes to an address."""
    return out is not None and address_of(out) is not None


def at_address(
    run: Callable[[Any, Progress], R],
    request: Any,
    kind: Kind,
    progress: Progress = SILENT,
    *,
    folder: Path | None = None,
    moved: Callable[[Any, Path], Any] = lambda result, out: replace(result, out=out),
    dry_run: bool = False,
) -> R:
    """Run a command whose `out` is an address; return its result, `moved` to the address.

    What is written grows in `folder`, the working folder by default, where an interrupted run is
    resumed, and is removed once it is uploaded. Raises OutputError, and as `run`.
    """
    target = Destination(str(address_of(request.out)), kind.name)
    target.check()
    stage = _stage(folder or Path(), target.address)
    out = stage / target.address.rpartition("/")[2]
    # What a run left there whose upload failed is replaced; --force also means other things.
    staged = replace(request, out=out, force=request.force or out.exists())
    if dry_run:
        planned: R = moved(run(staged, progress), Path(target.address))
        return planned
    with _begun(target, kind, stage):
        result = run(staged, progress)
    listing = kind.listing(out)
    if listing is None:  # such as a vocabulary of another size than was expected
        _remove(out, stage, kind)
        return result
    progress.note(f"uploading to {target.address}")
    try:
        if kind.folder:
            assert kind.last is not None
            names = [name for name in sorted(listing.files) if (out / name).is_file()]
            target.put_folder(out, names, kind.last, progress)
        else:
            target.put_file(out)
    except OutputError as error:
        raise OutputError(
            error.message, f"{error.hint}; the finished {kind.name} is in {out}"
        ) from None
    _remove(out, stage, kind)
    there: R = moved(result, locate(Path(target.address)))
    return there


@contextmanager
def _begun(target: Destination, kind: Kind, stage: Path) -> Iterator[None]:
    with output_errors(stage):
        stage.mkdir(parents=True, exist_ok=True)
    if kind.folder:
        target.begin()
    try:
        yield
    except BaseException:
        if kind.folder:
            target.give_up()
        with suppress(OSError):  # not empty: the next run resumes
            stage.rmdir()
            stage.parent.rmdir()
        raise


def _stage(folder: Path, address: str) -> Path:
    """Return the folder of what is written before it is uploaded to an address."""
    return folder / _STAGES / sha256_bytes(address.encode()).partition(":")[2][:16]


def _remove(out: Path, stage: Path, kind: Kind) -> None:
    """Remove what was uploaded, and nothing else that lies there."""
    with suppress(OSError):
        if out.exists() and kind.problem(out) is None:
            shutil.rmtree(out) if kind.folder else out.unlink()
        stage.rmdir()
        stage.parent.rmdir()
