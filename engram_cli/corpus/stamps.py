"""Detects files of the corpus that changed, and identifies files by their content.

A file is compared by size, time of change and inode, between planning, reading and resuming. If
another host planned it, by size and time alone, because inodes may differ between hosts.

Two copies of a file have one identity, wherever they are and whatever they are called. So
statistics of the same files are the same on every machine, from every working folder, and in
whatever parts they are counted.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Stamp
from engram_cli.corpus.readers import READERS
from engram_cli.errors import CorpusError

Stamps = dict[str, Stamp]
_ENDS = 2**12  # bytes read of each end of a file


def local_stamp(path: Path | int) -> Stamp | None:
    """Stamp a local file, or one by its descriptor; None for pipes and devices. Raises OSError."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        return None
    return Stamp(size=about.st_size, changed=about.st_mtime_ns, inode=about.st_ino)


def local_file(path: Path, format_: str) -> CorpusFile:
    """Describe a local file; the size of a pipe is unknown. Raises OSError.

    Bytes of its name that are not UTF-8 are shown as \\xNN: a label or a report cannot hold them.
    """
    stamp = local_stamp(path)
    return CorpusFile(
        name=os.fsencode(path).decode("utf-8", "backslashreplace"),
        path=path,
        size=None if stamp is None else stamp.size,
        format=format_,
        stamp=stamp,
    )


@contextmanager
def unchanged(file: CorpusFile, descriptor: int | None = None) -> Iterator[None]:
    """Raise CorpusError unless a local file stays as it was planned until the end of the block.

    `descriptor`: of the open file, None where somebody else opens it. What goes wrong inside is
    laid to the change where there is one.
    """
    assert file.path is not None
    before = local_stamp(file.path if descriptor is None else descriptor)
    planned = file.stamp
    if planned is not None and (
        before is None or (before.size, before.changed) != (planned.size, planned.changed)
    ):
        raise _changed(file.name, "since the run began")
    try:
        yield
    except Exception:
        if not _is_still(file.path, before):
            raise _changed(file.name, "while it was read") from None
        raise
    if not _is_still(file.path, before):
        raise _changed(file.name, "while it was read")


def _is_still(path: Path, before: Stamp | None) -> bool:
    try:
        return local_stamp(path) == before
    except OSError:  # it is gone
        return False


def _changed(name: str, when: str) -> CorpusError:
    return CorpusError(
        f"{name} has changed {when}",
        "run the command again when no program writes to it, or give a copy",
    )


def stamps_of(files: Sequence[CorpusFile], options: CorpusOptions) -> Stamps | None:
    """Stamp every file that decides tokens, and its companions, by name.

    None where one cannot be read twice or may change unseen: pipes, and remote files of no known
    size.
    """
    found: Stamps = {}
    for file in files:
        for each in (file, *READERS.load(file.format).companions(file, options)):
            if each.stamp is None or each.stamp.size is None:
                return None
            found[each.name] = each.stamp
    return found


def check_companions(
    files: Sequence[CorpusFile], options: CorpusOptions, before: Stamps | None
) -> None:
    """Raise CorpusError where a companion of a file has changed since `before` was taken."""
    if before is None:
        return
    for file in files:
        if file.section is not None and file.section.number:
            continue  # another section of a file that was checked
        for each in READERS.load(file.format).companions(file, options):
            if each.path is not None and before.get(each.name) != each.stamp:
                raise _changed(each.name, "while the corpus was read")


def request_of(digest: str, options: CorpusOptions) -> str:
    """Name a request for what it leaves behind: the digest of all but how bytes are decoded."""
    return digest if options.errors == "strict" else f"{digest} {options.errors}"


def continues(request: str, found: Any) -> bool:
    """Return whether `request` may continue what the request `found` left behind.

    What was read strictly holds no byte that would have been replaced, so it is the same for all.
    """
    return isinstance(found, str) and found in (request, request.partition(" ")[0])


def identity(key: str) -> bytes:
    """Return the identity of a file or of its section, by its `CorpusFile.key`.

    Of a local file: its size, its first and last bytes; of an index also those of the first shard.
    For anything else (a pipe, an address) it is the name.
    """
    name, _, section = key.partition("\0")
    try:
        found = _content(name)
    except (OSError, ValueError):
        found = None
    identified = name.encode("utf-8", "surrogatepass") if found is None else found
    return identified + f"\0{section}".encode() if section else identified


def _content(path: str) -> bytes | None:
    """Return the size and a digest of both ends of a file; None for what is no regular file."""
    if not os.path.isfile(path):
        return None
    with open(path, "rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        digest = sha256()
        for begin in (0, max(size - _ENDS, 0)):
            stream.seek(begin)
            digest.update(stream.read(_ENDS))
    found = size.to_bytes(8, "little") + digest.digest()
    folder, name = os.path.split(path)
    # The index of a data set has the sizes of its shards, which shards of other content may share.
    if any(name == READERS.load(each).signs.dataset for each in READERS):
        with os.scandir(folder or ".") as entries:
            shard = min((e.path for e in entries if e.is_file() and e.name != name), default=None)
        found += (shard and _content(shard)) or b""
    return found
