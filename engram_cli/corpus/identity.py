"""What a file of the corpus is told apart by: what is in it, not where it lies or how it is named.

Two copies of a file have one identity, wherever they lie, so statistics of the same files are the
same on every machine, from every working folder, and in whatever parts they are counted.
"""

from __future__ import annotations

import os
from hashlib import sha256

_ENDS = 2**12  # bytes read of each end of a file
_INDEX = "index.json"  # of an MDS folder: sizes, which equal shards share


def identity(key: str) -> bytes:
    """Returns the identity of a file or of its section, by its `CorpusFile.key`.

    Of a local file: its size, its first and last bytes; of an index also those of the first shard.
    What is no such file (a pipe, an address) is told apart by its name.
    """
    name, _, section = key.partition("\0")
    try:
        found = _content(name)
    except (OSError, ValueError):
        found = None
    own = name.encode("utf-8", "surrogatepass") if found is None else found
    return own + f"\0{section}".encode() if section else own


def _content(path: str) -> bytes | None:
    """The size and a digest of both ends of a file; None for what is no regular file."""
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
    if name == _INDEX:
        with os.scandir(folder or ".") as entries:
            shard = min((e.path for e in entries if e.is_file() and e.name != _INDEX), default=None)
        found += (shard and _content(shard)) or b""
    return found
