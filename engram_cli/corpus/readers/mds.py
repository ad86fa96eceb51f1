"""Reads MDS, the shards of mosaicml-streaming that index.json lists: a sample is a document.

A shard: u32 samples N, u32[N + 1] byte offsets, a description, the samples. A sample: u32 sizes of
its columns of no fixed size, then the columns. Nothing is unpickled.

Columns of token ids are encoded as ndarray, ndarray:DTYPE, ndarray:DTYPE:SHAPE or bytes. What the
name does not say stands before the values: u8 the type, then u8 (dimensions << 2 | log2 of the
width of a size) and the sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import (
    BLOCK_TOKENS,
    IDS_FIELD,
    TEXT_FIELD,
    CorpusFile,
    CorpusOptions,
    Document,
    Item,
    Look,
    Reader,
    Signs,
    TokenBlock,
)
from engram_cli.corpus.byte_stream import exactly, open_decompressed, opened, sibling_file, skip
from engram_cli.corpus.flat import integers, list_blocks
from engram_cli.corpus.partitions import by_weight
from engram_cli.corpus.storage import read_object
from engram_cli.corpus.text import MOST_DESCRIPTION, check_size, decode_whole, loads, whole_document
from engram_cli.errors import CorpusError

_INDEX = "index.json"
_FIELDS = (TEXT_FIELD, "tokens", IDS_FIELD)
_HINT = "copy or write the data set again"
_PACKINGS = ("zstd", "gz", "bz2")
_LONGEST = 2**26  # bytes of a text or of token ids: a sample is whole in memory
_MOST_SAMPLES = 2**24  # of a shard, of four bytes each in memory
_OFFSETS = 2**16  # turned into numbers at a time
# The types of integers by their codes in an ndarray column.
_CODES = {
    8: "uint8",
    9: "int8",
    16: "uint16",
    17: "int16",
    32: "uint32",
    33: "int32",
    64: "uint64",
    65: "int64",
}
_BYTES_DTYPE = "int64"  # what is usually written as bytes, which do not say it


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    """A shard as index.json has it; `sizes` are the columns' bytes, None where they vary."""

    file: CorpusFile
    samples: int
    names: tuple[str, ...]
    encodings: tuple[str, ...]
    sizes: tuple[int | None, ...]

    def wrong(self, what: str) -> CorpusError:
        return CorpusError(f"{self.file.name} is damaged: {what}", _HINT)


def read(file: CorpusFile, options: CorpusOptions) -> Iterator[Item]:
    """Yield the samples of all shards in order. Raises CorpusError."""
    shards = _shards(file)
    if file.section is not None:
        shards = shards[file.section.begin : file.section.end]
    for about in shards:
        shard = _shard(file, about)
        column = _column(shard, options)
        if shard.encodings[column] == "str":
            yield from _texts(shard, column, options)
        else:
            yield from _blocks(shard, column, options)


def gives_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Return whether the column is of texts, in any shard."""
    shards = (_shard(file, about) for about in _shards(file))
    return any(shard.encodings[_column(shard, options)] == "str" for shard in shards)


def divide(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    """Divide the data set into sections of whole shards, whose sizes index.json has."""
    weights = [_bytes(about) for about in _shards(file)]
    if sum(weights) <= size:
        return (file,)
    return by_weight(replace(file, size=sum(weights)), weights, size)


def companions(file: CorpusFile, options: CorpusOptions) -> Sequence[CorpusFile]:
    """Return the shards."""
    return [_shard(file, about).file for about in _shards(file)]


def _bytes(about: Any) -> int:
    """Return the bytes of a shard, as far as the index tells."""
    for key in ("raw_data", "zip_data"):
        entry = about.get(key) if isinstance(about, dict) else None
        found = entry.get("bytes") if isinstance(entry, dict) else None
        if type(found) is int and 0 <= found < 2**48:
            return found
    return 0


def _shards(file: CorpusFile) -> list[Any]:
    with opened(file) as stream:
        raw = stream.read(MOST_DESCRIPTION + 1)
    check_size(raw, file.name)
    try:
        about = loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{file.name} is not JSON: {error}", _HINT) from None
    if not isinstance(about, dict) or about.get("version") != 2:
        raise CorpusError(f"{file.name} is not an MDS index of version 2", "give an MDS folder")
    if not isinstance(about.get("shards"), list):
        raise CorpusError(f"{file.name} lists no shards", _HINT)
    return list(about["shards"])


def _shard(file: CorpusFile, about: Any) -> _Shard:
    """Return a checked entry of the index."""
    wrong = CorpusError(f"{file.name} describes a shard that cannot be read", _HINT)
    if not isinstance(about, dict) or about.get("format") != "mds" or about.get("version") != 2:
        raise wrong
    lists = [about.get(key) for key in ("column_names", "column_encodings", "column_sizes")]
    columns = [value for value in lists if isinstance(value, list)]
    if len(columns) < 3 or len({len(value) for value in columns}) > 1:
        raise wrong
    names, encodings, sizes = columns
    texts = all(_is_text(value) for value in (*names, *encodings))
    whole = all(value is None or (type(value) is int and value >= 0) for value in sizes)
    samples = about.get("samples")
    if not texts or not whole or type(samples) is not int or samples < 0:
        raise wrong
    return _Shard(
        file=_shard_file(file, about, wrong),
        samples=samples,
        names=tuple(names),
        encodings=tuple(encodings),
        sizes=tuple(sizes),
    )


def _is_text(value: Any) -> bool:
    """Return whether a value is a text; half of a surrogate pair, which JSON can spell, is not."""
    return isinstance(value, str) and value.encode("utf-8", "replace").decode() == value


def _shard_file(file: CorpusFile, about: dict[str, Any], wrong: CorpusError) -> CorpusFile:
    """Return the plain file of a shard, or where it is missing the compressed one."""
    found: CorpusFile | None = None
    missing: CorpusError = wrong
    for key in ("raw_data", "zip_data"):
        entry = about.get(key)
        name = entry.get("basename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            continue
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not name or "\\" in name:
            raise CorpusError(f"{file.name} names {name!r}, outside of its folder", _HINT)
        if found is None:
            packed = str(about.get("compression")).partition(":")[0]
            if key == "zip_data" and packed not in _PACKINGS:
                raise CorpusError(
                    f"{file.name}: {name!r} is compressed with {packed!r}",
                    f"known: {', '.join(_PACKINGS)}",
                )
            try:
                found = sibling_file(file, name)
            except CorpusError as error:
                missing = error
    if found is None:
        raise missing
    return found


def _column(shard: _Shard, options: CorpusOptions) -> int:
    wanted = (options.field,) if options.field else _FIELDS
    for field in wanted:
        if field in shard.names:
            column = shard.names.index(field)
            encoding = shard.encodings[column]
            if encoding != "str" and not is_ids(encoding):
                raise CorpusError(
                    f"{shard.file.name}: column '{field}' is of encoding {encoding}, neither text "
                    "nor integers",
                    "name the column with --field",
                )
            return column
    raise CorpusError(
        f"{shard.file.name} has no column '{' or '.join(wanted)}'",
        f"its columns: {', '.join(shard.names[:8])}; use --field",
    )


def _samples(shard: _Shard, column: int) -> Iterator[tuple[bytes, int]]:
    """Yield the bytes of a column in each sample, and the bytes of the file read for it.

    Other columns are skipped: a compressed shard of some megabytes may hold gigabytes of them.
    """
    with open_decompressed(shard.file) as (stream, spent):
        offsets = _offsets(shard, stream)
        name, size = shard.file.name, int(offsets[0])
        skip(stream, size - 4 * (shard.samples + 2), name)  # the description
        variable = [index for index, fixed in enumerate(shard.sizes) if fixed is None]
        head = 4 * len(variable)
        for number, length in enumerate(_lengths(offsets)):
            sizes = [fixed or 0 for fixed in shard.sizes]
            if length >= head:
                values = integers(stream, len(variable), "<u4", name).tolist()
                for index, value in zip(variable, values, strict=True):
                    sizes[index] = value
            if length < head or head + sum(sizes) != length:
                raise shard.wrong(f"the columns of sample {number} do not fill it")
            if sizes[column] > _LONGEST:
                raise CorpusError(
                    f"{name}, sample {number} has {sizes[column]:,} bytes; the most is "
                    f"{_LONGEST:,}",
                    "split the document",
                )
            skip(stream, sum(sizes[:column]), name)
            raw = exactly(stream, sizes[column], name)
            skip(stream, sum(sizes[column + 1 :]), name)
            yield raw, spent(size + length)
            size = 0
        if stream.read(1):
            raise shard.wrong("it has data after the last sample")


def _offsets(shard: _Shard, stream: BinaryIO) -> NDArray[np.uint32]:
    """Return uint32[N + 1]: where samples begin, checked to ascend and not to overlap the head."""
    name = shard.file.name
    samples = int(integers(stream, 1, "<u4", name)[0])
    if samples != shard.samples:
        raise shard.wrong(f"it has {samples:,} samples, index.json says {shard.samples:,}")
    if samples > _MOST_SAMPLES:
        raise CorpusError(
            f"{name} has {samples:,} samples; the most is {_MOST_SAMPLES:,}", "write smaller shards"
        )
    offsets = integers(stream, samples + 1, "<u4", name)
    if int(offsets[0]) < 4 * (samples + 2) or bool(np.any(offsets[1:] < offsets[:-1])):
        raise shard.wrong("its samples do not follow each other")
    return offsets.astype(np.uint32, copy=False)


def _lengths(offsets: NDArray[np.uint32]) -> Iterator[int]:
    """Yield the bytes of each sample, not all of them in a list."""
    for begin in range(0, len(offsets) - 1, _OFFSETS):
        yield from np.diff(offsets[begin : begin + _OFFSETS + 1]).tolist()


def _texts(shard: _Shard, column: int, options: CorpusOptions) -> Iterator[Document]:
    name = shard.file.name
    for number, (raw, size) in enumerate(_samples(shard, column)):
        text = decode_whole(raw, f"{name}, sample {number}", 0, options.errors)
        yield from whole_document(name, f"sample {number}", text, size)


def _blocks(shard: _Shard, column: int, options: CorpusOptions) -> Iterator[TokenBlock]:
    """Yield the ids of the samples, joined to blocks; one sample may take several."""
    held: list[NDArray[np.integer]] = []
    first = tokens = size = 0

    def joined() -> Iterator[TokenBlock]:
        lengths = [len(ids) for ids in held]
        return list_blocks(shard.file.name, "sample", first, np.concatenate(held), lengths, size)

    for number, (raw, spent) in enumerate(_samples(shard, column)):
        try:
            ids = ids_of(raw, shard.encodings[column], options.ids_dtype)
        except ValueError as error:
            raise shard.wrong(f"sample {number}: {error}") from None
        held.append(ids)
        tokens, size = tokens + len(ids), size + spent
        if tokens >= BLOCK_TOKENS:
            yield from joined()
            held, first, tokens, size = [], number + 1, 0, 0
    if held:
        yield from joined()


def is_ids(encoding: str) -> bool:
    """Return whether an encoding may hold token ids."""
    name, *rest = encoding.split(":")
    shaped = len(rest) < 2 or (len(rest) == 2 and all(n.isdigit() for n in rest[1].split(",")))
    return encoding == "bytes" or (
        name == "ndarray" and shaped and (not rest or rest[0] in _CODES.values())
    )


def ids_of(raw: bytes, encoding: str, dtype: str | None) -> NDArray[np.integer]:
    """Return the integers of a sample, in one line; `dtype` is of bytes. Raises ValueError."""
    if encoding == "bytes":
        return _values(raw, dtype or _BYTES_DTYPE)
    _, *rest = encoding.split(":")
    if not raw:
        raise ValueError("an array of no bytes")
    if rest:
        kind = rest[0]
    else:
        if raw[0] not in _CODES:
            raise ValueError(f"an array of type {raw[0]}, no integers")
        kind, raw = _CODES[raw[0]], raw[1:]
    if len(rest) == 2:
        shape = [int(size) for size in rest[1].split(",")]
    else:
        if not raw:
            raise ValueError("an array without a shape")
        dimensions, width = raw[0] >> 2, 2 ** (raw[0] & 3)
        begin = 1 + dimensions * width
        if not dimensions or len(raw) < begin:
            raise ValueError("an array without a shape")
        shape = np.frombuffer(raw[1:begin], f"<u{width}").tolist()
        raw = raw[begin:]
    ids = _values(raw, kind)
    if math.prod(shape) != len(ids):
        raise ValueError(f"an array of shape {shape} with {len(ids)} values")
    return ids


def _values(raw: bytes, kind: str) -> NDArray[np.integer]:
    dtype: np.dtype[np.integer] = np.dtype(kind).newbyteorder("<")
    if len(raw) % dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes are no {kind}")
    return np.frombuffer(raw, dtype)


def recognises(look: Look) -> bool:
    """Return whether a folder's index.json describes MDS shards; a shard alone is refused."""
    if look.ending == ".mds":
        raise CorpusError(
            f"{look.name} is a shard of an MDS data set", "give the folder of index.json"
        )
    if look.name.rpartition("/")[2] != _INDEX:
        return False
    about = read_object(look.name, look.storage)
    return isinstance(about.get("shards"), list) and about.get("version") == 2


READER = Reader(
    read=read,
    gives_text=gives_text,
    divide=divide,
    companions=companions,
    lists=True,
    uses=("field", "ids_dtype", "errors"),
    signs=Signs(dataset=_INDEX, recognises=recognises),
)
