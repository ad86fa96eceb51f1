"""A CompressedVocab as a Parquet file: one row a token id, the digests in the file's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engram_cli.arrow import booleans, integers
from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import output_errors, parse_json
from engram_cli.outputs import Kind, Listing, new_file
from engram_cli.remote.path import open_whole, readable_path
from engram_cli.version import __version__
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.lookup import HOLE, MOST_VOCABULARY, VocabMap, lookup_digest
from engram_cli.vocab.tokenizer import choose_pad

FORMAT = "engram-vocab"
VERSION = 1
_KEY = b"engram"
_TOKENIZER_BYTES = 4096
_TOKENIZER_KEYS = (b'"added_tokens"', b'"pre_tokenizer"')
_REMAKE = "make it again with engram compress-vocab --force"
_OTHER = "give the file that engram compress-vocab wrote"
_TEXTS = ["token", "text", "key"]
_MOST_TEXT = 2**30  # bytes, of all columns
_SCHEMA = pa.schema(
    [
        ("token_id", pa.int32()),
        ("token", pa.string()),
        ("text", pa.string()),
        ("key", pa.string()),
        ("compressed_id", pa.int32()),
        ("special", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """A token of a vocabulary: its id, its spelling, and whether it is special.

    `ordinary`: the text of the first ordinary token with its compressed id, None without one.
    """

    token_id: int
    token: str
    special: bool
    ordinary: str | None


class _Texts(Sequence[str]):
    """A column of texts, "" where a token id has none; each is decoded when it is asked for.

    All of a vocabulary as Python strings take 0.1 s and 80 MB, and few of them are shown.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return list(self)[at]
        return self._column[int(at)].as_py() or ""

    def __iter__(self) -> Iterator[str]:
        return (text or "" for text in self._column.cast(pa.string()).to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def write_vocab(vocab: CompressedVocab, path: Path, *, force: bool = False) -> None:
    """Write `vocab` to `path`, whole or not at all. Raises OutputError.

    Tokens that are not valid text cannot occur: `tokenizers` spells every token as a string.
    """
    ids = np.arange(vocab.vocab_size, dtype=np.int32)
    hole = vocab.lookup == HOLE
    special = np.isin(ids, np.fromiter(vocab.special_ids, np.int32, len(vocab.special_ids)))
    table = pa.table(
        {
            "token_id": ids,
            "token": pa.array(vocab.tokens, pa.string(), mask=hole),
            "text": pa.array(vocab.texts, pa.string(), mask=hole),
            "key": pa.array(vocab.keys, pa.string(), mask=hole),
            "compressed_id": pa.array(vocab.lookup, pa.int32(), mask=hole),
            "special": pa.array(special),
        }
    )
    table = table.replace_schema_metadata({_KEY: json.dumps(_metadata(vocab)).encode()})
    with new_file(path, VOCABULARY, force=force) as part, output_errors(path):
        pq.write_table(table, part, compression="zstd")


def read_vocab(path: str | Path) -> CompressedVocab:
    """Read what `write_vocab` wrote, its digest checked. Raises InputError or ArtifactError."""
    table, about = _read(readable_path(path), _SCHEMA.names)
    lookup = _lookup(readable_path(path), table, about)
    texts, tokens, keys = (_Texts(table[name]) for name in ("text", "token", "key"))
    special = np.flatnonzero(booleans(table["special"])).tolist()
    return CompressedVocab(
        lookup=lookup,
        size=int(lookup.max(initial=HOLE)) + 1,
        texts=texts,
        tokens=tokens,
        keys=keys,
        special_ids=frozenset(special),
        pad_id=_pad_id(about, lookup, {} if "pad_id" in about else {i: tokens[i] for i in special}),
        tokenizer_digest=str(about.get("tokenizer_digest")),
        source=str(about.get("source")),
    )


def read_map(path: str | Path) -> VocabMap:
    """Read only the map, a tenth of the time and memory of `read_vocab`. Raises as it does."""
    names = ["token_id", "compressed_id"]
    if "pad_id" not in read_about(path):  # written before the pad token was recorded
        names += ["token", "special"]
    table, about = _read(readable_path(path), names)
    lookup = _lookup(readable_path(path), table, about)
    special = {}
    if "special" in names:
        own = table.filter(table["special"])
        special = dict(zip(own["token_id"].to_pylist(), own["token"].to_pylist(), strict=True))
    return VocabMap(
        lookup=lookup,
        size=int(lookup.max(initial=HOLE)) + 1,
        pad_id=_pad_id(about, lookup, special),
    )


def read_token(path: str | Path, token_id: int) -> StoredToken:
    """Return one token of a stored vocabulary, by an id that it has. Raises InputError,
    ArtifactError."""
    table, about = _read(readable_path(path), ["token_id", "token", "compressed_id", "special"])
    lookup = _lookup(readable_path(path), table, about)
    special = booleans(table["special"])
    alike = np.flatnonzero((lookup == lookup[token_id]) & ~special)
    ordinary = None
    if len(alike):
        ordinary = _read(readable_path(path), ["text"])[0]["text"][int(alike[0])].as_py()
    return StoredToken(
        token_id=token_id,
        token=table["token"][token_id].as_py(),
        special=bool(special[token_id]),
        ordinary=ordinary,
    )


def token_of(vocab: CompressedVocab, token_id: int) -> StoredToken:
    """Return one token of a vocabulary, by an id that it has."""
    alike = vocab.members(int(vocab.lookup[token_id]))
    ordinary = next((i for i in alike if i not in vocab.special_ids), None)
    return StoredToken(
        token_id=token_id,
        token=vocab.tokens[token_id],
        special=token_id in vocab.special_ids,
        ordinary=None if ordinary is None else vocab.texts[ordinary],
    )


def read_about(path: str | Path) -> dict[str, Any]:
    """Return the metadata of a compressed vocabulary: sizes, digests, "source". Reads no row.

    Raises InputError or ArtifactError.
    """
    return _read(readable_path(path), [])[1]


def _listing(path: Path) -> Listing | None:
    """Return a compressed vocabulary: our metadata, our columns and no other, a row a token id."""
    try:
        about = read_about(path)
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            same = (
                file.schema_arrow.equals(_SCHEMA) and file.metadata.num_rows == about["vocab_size"]
            )
    except (EngramError, pa.ArrowException, OSError, KeyError):
        return None
    return Listing() if same else None


VOCABULARY = Kind(name="compressed vocabulary", listing=_listing, folder=False)


def _read(path: Path, columns: list[str]) -> tuple[pa.Table, dict[str, Any]]:
    """Columns of the file as the types they must have, and its metadata."""
    if not path.is_file():
        raise InputError(f"compressed vocabulary not found: {path}", "run: engram compress-vocab")
    if _is_tokenizer(path):
        raise InputError(
            f"{path} is a tokenizer, not a vocabulary",
            f"make the vocabulary from it: engram compress-vocab {path}",
        )
    try:
        with open_whole(path) as raw:  # a name need not be UTF-8, as Arrow would have it
            metadata = pq.read_schema(raw).metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition(". ")[0].rstrip(".")
        raise ArtifactError(f"{path} is not a readable Parquet file: {reason}", _OTHER) from None
    about = _read_metadata(path, metadata)
    try:
        # read_table would load pyarrow.dataset and start a pool of threads: 20 MB and 60 ms.
        with open_whole(path) as raw, pq.ParquetFile(raw, read_dictionary=_TEXTS) as file:
            if file.metadata.num_rows > MOST_VOCABULARY:
                raise ValueError(f"{file.metadata.num_rows:,} rows, too many for a vocabulary")
            table = file.read(columns=columns, use_threads=False)
        table.validate(full=True)
        if sum(map(_text_bytes, table.columns)) > _MOST_TEXT:
            raise ValueError(f"its texts have more than {_MOST_TEXT:,} bytes")
        table = table.select(columns)
        schema = pa.schema([_field(table, name) for name in columns])
        if table.schema.types != schema.types:
            table = table.cast(schema)
    except (pa.ArrowException, OSError, KeyError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{path} lacks columns of a vocabulary: {error}", _REMAKE) from None
    return table, about


def _field(table: pa.Table, name: str) -> pa.Field:
    """Return the type that a column must have; texts may stay as they were read."""
    return table.field(name) if _is_texts(table[name]) else _SCHEMA.field(name)


def _is_texts(column: pa.ChunkedArray) -> bool:
    return bool(pa.types.is_dictionary(column.type) and column.type.value_type == pa.string())


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Return the bytes of a column of texts: of a few that are repeated, a file may hold any
    number."""
    if not pa.types.is_dictionary(column.type) or pa.types.is_null(column.type.value_type):
        return 0
    if not _is_texts(column):
        raise ValueError(f"its texts are {column.type.value_type}")
    total = 0
    for chunk in column.chunks:
        words = chunk.dictionary
        ends = np.frombuffer(words.buffers()[1] or b"", dtype=np.int32)
        lengths = np.diff(ends[words.offset : words.offset + len(words) + 1])
        indices = integers(pa.chunked_array([chunk.indices]), len(words))
        total += int(np.append(lengths, 0)[indices].sum(dtype=np.int64)) if len(lengths) else 0
    return total


def _is_tokenizer(path: Path) -> bool:
    """Return whether `path` begins as a tokenizer.json does."""
    try:
        with path.open("rb") as file:
            begin = file.read(_TOKENIZER_BYTES)
    except OSError:
        return False
    return begin.lstrip()[:1] == b"{" and any(key in begin for key in _TOKENIZER_KEYS)


def _lookup(path: Path, table: pa.Table, about: dict[str, Any]) -> NDArray[np.int32]:
    """Return the map, its ids and its digest checked."""
    ids = integers(table["token_id"], HOLE)
    if not np.array_equal(ids, np.arange(len(ids))):
        raise ArtifactError(f"{path}: its token ids are not 0, 1, 2, ...", _REMAKE)
    lookup = integers(table["compressed_id"], HOLE)
    if lookup_digest(lookup) != about.get("vocab_digest"):
        raise ArtifactError(f"{path} was changed after it was written: digests differ", _REMAKE)
    return lookup


def _pad_id(
    about: dict[str, Any], lookup: NDArray[np.int32], special: Mapping[int, str]
) -> int | None:
    """Return the recorded pad id; of an older file, or of one that names no token, by the names."""
    pad = about["pad_id"] if "pad_id" in about else choose_pad(special)
    valid = type(pad) is int and 0 <= pad < len(lookup) and lookup[pad] != HOLE
    return pad if valid else None


def _metadata(vocab: CompressedVocab) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": vocab.vocab_size,
        "compressed_size": vocab.size,
        "vocab_digest": vocab.digest,
        "tokenizer_digest": vocab.tokenizer_digest,
        "source": vocab.source,
        "pad_id": vocab.pad_id,
        "tool_version": __version__,
    }


def _read_metadata(path: Path, metadata: dict[bytes, bytes]) -> dict[str, Any]:
    try:
        about = parse_json(metadata[_KEY])
    except (KeyError, ValueError):
        raise ArtifactError(f"{path} is not a vocabulary written by engram", _OTHER) from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise ArtifactError(f"{path} is not a vocabulary written by engram", _OTHER)
    if not isinstance(about.get("version"), int) or about["version"] > VERSION:
        raise ArtifactError(
            f"{path} was written by a newer version ({about.get('version')})", "upgrade engram"
        )
    return about
