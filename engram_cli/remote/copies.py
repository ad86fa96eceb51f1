"""Copies of folders behind addresses, for packages that read a folder of this machine.

Those are transformers, PEFT and the runtime, which maps files. A repository of the Hugging Face Hub
is copied into the Hub's own cache. Others go into the user's cache, under a name that follows from
the address and the versions of the files, so that a copy is never of an older state.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from engram_cli.errors import OutputError, SourceError
from engram_cli.files import PART, canonical_json, output_errors, sha256_bytes, user_cache
from engram_cli.numbers import bytes_text
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.hub import HubStore
from engram_cli.remote.path import RemotePath, is_remote

# What is read of a model, an adapter or a bundle; a model may have bundles in it.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
_FOLDERS = "engram*"
_PIECE = 8 * 2**20
_NO_ROOM = "free some space, or set XDG_CACHE_HOME to a folder on another disk"


def local_copy(path: Path, progress: Progress = SILENT) -> Path:
    """Return the folder `path` if it is one of this machine, else a copy of it.

    What was copied before is not copied again; an interrupted copy is resumed. Raises SourceError
    for what cannot be listed or read, OutputError where the disk has no room.
    """
    if not is_remote(path):
        return path
    names = sorted(_names(path, ""))
    if not names:
        raise SourceError(f"{path} holds no files of a model or bundle", "check the address")
    store = path.session.store
    if isinstance(store, HubStore):
        return _from_hub(path, store, names, progress)
    return _from_store(path, names, progress)


def local_file(path: Path, progress: Progress = SILENT) -> Path:
    """Return the file `path` if it is one of this machine, else a copy of it.

    Raises as `local_copy`, and FileNotFoundError where there is none.
    """
    if not is_remote(path):
        return path
    folder = path.parent
    assert is_remote(folder)
    path.stat()
    store = path.session.store
    if isinstance(store, HubStore):
        return _from_hub(folder, store, [path.name], progress) / path.name
    return _from_store(folder, [path.name], progress) / path.name


def is_writable_here(path: Path) -> bool:
    """Return whether a folder is one that outputs may go into: not behind an address, no cache."""
    if is_remote(path) or user_cache("copies") in path.parents:
        return False
    return not any(  # of the Hub: models--org--name/snapshots/COMMIT
        above.name == "snapshots" and above.parent.name.startswith(("models--", "datasets--"))
        for above in path.parents
    )


def _names(folder: RemotePath, inside: str) -> Iterator[str]:
    """Yield the files that are wanted, as paths in the folder. Raises SourceError."""
    listed = folder.session.names(folder.key)
    if listed is None:
        raise SourceError(
            f"the server of {folder} lists no files, so that a model cannot be read from it",
            "download the folder first",
        )
    folder.session.look_at([f"{folder.key}/{name}".lstrip("/") for name in listed])
    for name in listed:
        path = folder / name
        if any(fnmatchcase(name, pattern) for pattern in _FILES) and path.is_file():
            yield inside + name
        elif not inside and fnmatchcase(name, _FOLDERS) and path.is_dir():
            yield from _names(path, f"{name}/")


def _from_hub(path: RemotePath, store: HubStore, names: list[str], progress: Progress) -> Path:
    base = PurePosixPath(path.key)
    keys = [str(base / name) for name in names]
    missing = [name for name, key in zip(names, keys, strict=True) if store.local(key) is None]
    if missing:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            disable_progress_bars,
        )

        size = sum((path / name).stat().st_size for name in missing)
        progress.note(f"downloading {bytes_text(size)} of {path} into the Hugging Face cache")
        disable_progress_bars()  # ours is drawn where stderr is a terminal
        progress.start("download", size, "bytes")
        # By its name, so that the cache knows what the name stands for.
        revision = store.revision if store.snapshot is None else store.commit
        try:
            for name in missing:
                hf_hub_download(
                    store.repository, str(base / name), repo_type=store.kind, revision=revision
                )
                progress.advance((path / name).stat().st_size)
        except OSError as error:
            hint = f"run it again, or download once: {store.download_command()}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                hint = "free some space, or set HF_HOME to a folder on another disk"
            raise SourceError(
                f"cannot download {path}: {str(error).splitlines()[0]}", hint
            ) from None
    found = store.local(keys[0])
    if found is None or any(store.local(key) is None for key in keys):
        raise SourceError(
            f"{path} is not whole in the Hugging Face cache",
            f"download once, with a network: {store.download_command()}",
        )
    for _ in PurePosixPath(names[0]).parts:
        found = found.parent
    return found


def _from_store(path: RemotePath, names: list[str], progress: Progress) -> Path:
    entries = {name: path.session.file((path / name).key) for name in names}
    about = {name: [each.size, each.version] for name, each in entries.items()}
    digest = sha256_bytes(canonical_json({"address": str(path), "files": about}))
    folder = user_cache("copies") / digest.partition(":")[2][:32]
    missing = {name: entries[name].size for name in names if not (folder / name).is_file()}
    if not missing:
        return folder
    size = sum(missing.values())
    with _cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if size > free:
        raise OutputError(
            f"a copy of {path} needs {size:,} bytes in {folder}, only {free:,} are free",
            _NO_ROOM,
        )
    progress.note(f"copying {path} to {folder}")
    progress.start("download", size, "bytes")
    for name in missing:
        _copy(path / name, folder / name, progress)
    return folder


@contextmanager
def _cache_errors(path: Path) -> Iterator[None]:
    """Turn what the system says while writing into the cache into an OutputError."""
    try:
        with output_errors(path):
            yield
    except OutputError as error:
        raise OutputError(error.message, _NO_ROOM) from error


def _copy(source: RemotePath, target: Path, progress: Progress) -> None:
    """Copy a file in pieces; it appears whole. Raises SourceError, OutputError."""
    part = target.with_name(f"{target.name}.{os.getpid()}{PART}")
    with _cache_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with source.open("rb") as file, part.open("wb") as out:
                while piece := file.read(_PIECE):
                    out.write(piece)
                    progress.advance(len(piece))
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
