"""Vocabulary maps of tokenizers seen before, kept in the user's cache.

Compressing a vocabulary of 129,280 tokens takes a second and 100 MB, and reading a checkpoint's
table needs no more than the map that comes out. A map is kept under the digest of everything that
it follows from; a file that is missing, damaged or of another version is made again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np

from engram_cli.errors import VocabularyError
from engram_cli.files import open_regular, sha256_bytes, user_cache
from engram_cli.remote.path import readable_path
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.lookup import VocabMap
from engram_cli.vocab.tokenizer import find_tokenizer, read_tokenizer, tokenizer_from

_VERSION = b"engram vocabulary map 1"  # goes up with every change of the normaliser
_BESIDE = ("tokenizer_config.json", "config.json")  # what names the pad token
_MOST = 2**20  # bytes of a file next to the tokenizer that can matter
_DIGEST = hashlib.sha256().digest_size
_WORTH = 2**14  # ids; fewer take no time


def token_map(source: Path, fits: Callable[[VocabMap], bool] | None = None) -> VocabMap:
    """Return the vocabulary map and pad token of a tokenizer.json or of the folder that has one.

    They are those of `compress_vocab`. A map in the cache that does not fit what it is wanted for,
    as `fits` says, is made again. Raises VocabularyError.
    """
    file = find_tokenizer(readable_path(source))
    raw = read_tokenizer(file)
    place = cache_folder() / f"{_key(file, raw)}.map"
    found = _kept(place)
    if found is None or not (fits is None or fits(found)):
        whole = compress_vocab(tokenizer_from(file, raw))
        found = VocabMap(lookup=whole.lookup, size=whole.size, pad_id=whole.pad_id)
        if found.vocab_size >= _WORTH:
            _keep(place, found)
    return found


def cache_folder() -> Path:
    """Return the folder of kept maps: under XDG_CACHE_HOME, by default ~/.cache."""
    return user_cache("vocabularies")


def _key(file: Path, raw: bytes) -> str:
    """Return the digest of what a map follows from: files, version of tokenizers, and this one."""
    near = [_small(file.with_name(name)) for name in _BESIDE]
    parts = [raw, *near, version("tokenizers").encode(), _VERSION]
    digests = "".join(sha256_bytes(part) for part in parts)
    return sha256_bytes(digests.encode()).replace(":", "-")


def _small(path: Path) -> bytes:
    with suppress(OSError, VocabularyError):
        if path.is_file() and path.stat().st_size <= _MOST:
            return path.read_bytes()
    return b""


def _kept(place: Path) -> VocabMap | None:
    """Return a kept map, None where there is none that is whole."""
    with suppress(OSError, ValueError, VocabularyError):
        with open_regular(place) as file:
            raw = file.read()
        digest, content = raw[:_DIGEST], raw[_DIGEST:]
        if hashlib.sha256(content).digest() == digest:
            pad, *_ = np.frombuffer(content, "<i8", count=1).tolist()
            lookup = np.frombuffer(content, "<i4", offset=8).astype(np.int32)
            size = int(lookup.max()) + 1
            return VocabMap(lookup=lookup, size=size, pad_id=None if pad < 0 else pad)
    return None


def _keep(place: Path, found: VocabMap) -> None:
    """Write a map, whole or not at all; a cache that cannot be written is no error.

    The file: sha256 of the rest, the pad id or -1 as int64, the map as int32.
    """
    pad = -1 if found.pad_id is None else found.pad_id
    content = np.int64(pad).astype("<i8").tobytes() + found.lookup.astype("<i4").tobytes()
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as out:
                out.write(hashlib.sha256(content).digest() + content)
            os.replace(name, place)
        except BaseException:  # also Ctrl-C
            os.unlink(name)
            raise
