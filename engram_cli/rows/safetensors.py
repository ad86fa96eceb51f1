"""safetensors files: written as a stream, read as memory maps, found in a checkpoint's folder.

A file is an 8-byte little-endian header length, a JSON header padded with spaces, then raw data.
Written by hand for two reasons: a table never fits in memory, and NumPy has neither bfloat16 nor
float8, which are uint16 and uint8 here. Files are untrusted: nothing is mapped before every number
of the header is checked.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import START_BYTES, parse_json, read_json, start_writing
from engram_cli.rows.dtypes import TENSOR_DTYPES, physical_dtype

Array = NDArray[Any]

# Data begins on a page, so that a map of it is aligned for every dtype and for direct I/O.
ALIGNMENT = 4096
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 16 * 2**20
MAX_AXES = 8
MAX_NAME = 200  # characters of a file's name; file systems refuse longer ones
_PIECE_BYTES = 2**20  # hashed and written while it is in the cache

# Python has a name for it from 3.13 on. Linux would refuse private maps beyond memory and swap.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)

_NAMES = {code: name for name, (code, _) in TENSOR_DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor of a file: its name, logical dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its data in bytes."""
        return prod(self.shape) * physical_dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlace:
    """A tensor found in a file: what it is, and the byte its data begins at."""

    spec: TensorSpec
    begin: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """What was written: a file's name, size in bytes and digest."""

    name: str
    size: int
    digest: str


def encode_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return the length and the JSON header of a file, padded so that the data begins aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": TENSOR_DTYPES[spec.dtype][0],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_tensors(
    path: Path,
    specs: Sequence[TensorSpec],
    data: Iterable[Array],
    *,
    metadata: Mapping[str, str] | None = None,
    advance: Callable[[int], None] | None = None,
    apart: bool = True,
) -> FileRecord:
    """Write `specs` to a new file; `data` yields their values in order, in pieces of any size.

    Nothing but one piece is held in memory. `advance` is called with the bytes written. `apart`:
    hash a piece on a second thread while it is written, unless other threads are busy. Raises
    OSError, and ArtifactError when `data` has more or fewer bytes than the specs.
    """
    digest = hashlib.sha256()
    header = encode_header(specs, metadata or {})
    size = len(header)
    queued = 0
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        digest.update(header)
        file.write(header)
        for array in data:
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            for begin in range(0, len(raw), _PIECE_BYTES):
                piece = raw[begin : begin + _PIECE_BYTES]
                if apart:
                    hashed = hasher.submit(digest.update, piece)
                    file.write(piece)
                    hashed.result()
                else:
                    digest.update(piece)
                    file.write(piece)
                if advance is not None:
                    advance(len(piece))
            size += len(raw)
            if size - queued >= START_BYTES:
                start_writing(file.fileno(), queued, size - queued)
                queued = size
    expected = len(header) + sum(spec.nbytes for spec in specs)
    if size != expected:
        raise ArtifactError(
            f"{path.name}: {size - len(header)} bytes of data for {expected - len(header)}",
            "the source of the tensors is damaged: make it again",
        )
    return FileRecord(name=path.name, size=size, digest=f"sha256:{digest.hexdigest()}")


def read_header(start: bytes, size: int, what: str) -> dict[str, TensorPlace]:
    """Return the tensors of a file of `size` bytes that begins with `start`: 8 bytes and a header.

    Their data must follow each other and fill the file, as the format demands. Raises
    ArtifactError naming `what`.
    """
    length = header_length(start, size, what)
    try:
        header = parse_json(start[8 : 8 + length])
        header.pop("__metadata__", None)
        places = {name: tensor_place(name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{what} has no safetensors header: {error}", _REMAKE) from None
    end = 8 + length
    for place in sorted(places.values(), key=lambda place: (place.begin, place.spec.nbytes)):
        if place.begin != end:
            raise ArtifactError(f"{what}: tensor {place.spec.name} has a gap before it", _REMAKE)
        end += place.spec.nbytes
    if end != size:
        raise ArtifactError(f"{what} has {size} bytes, its header describes {end}", _REMAKE)
    return places


def header_length(start: bytes, size: int, what: str) -> int:
    """Return the length of the JSON header. Raises ArtifactError when it cannot be true."""
    length = int.from_bytes(start[:8], "little") if len(start) >= 8 else -1
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
        raise ArtifactError(f"{what} is no safetensors file", _REMAKE)
    return length


def open_tensors(file: BinaryIO, what: str) -> dict[str, TensorPlace]:
    """Read the header of an open file and return its tensors. Raises ArtifactError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(8)
    start += file.read(header_length(start, size, what))
    return read_header(start, size, what)


def map_tensor(path: Path, place: TensorPlace, stride: int = 0) -> Array:
    """Map a tensor privately: pages are read when touched, changes never reach the file.

    `stride`: bytes from one row to the next where there is a gap between them, else 0. No memory is
    set aside for changes: a table may be larger than the memory. Raises ArtifactError.
    """
    spec, dtype = place.spec, physical_dtype(place.spec.dtype)
    skipped = place.begin % mmap.ALLOCATIONGRANULARITY
    inner = np.empty((1, *spec.shape[1:]), dtype=dtype)
    step = stride or inner.nbytes
    size = (spec.shape[0] - 1) * step + inner.nbytes + skipped
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(
                file.fileno(),
                size,
                flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
                offset=place.begin - skipped,
            )
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be mapped: {error}", _REMAKE) from None
    return np.ndarray(spec.shape, dtype, mapped, skipped, strides=(step, *inner.strides[1:]))


def view_tensor(raw: bytes, place: TensorPlace) -> Array:
    """Return a tensor in the bytes of a whole file, read-only."""
    spec = place.spec
    flat = np.frombuffer(
        raw, dtype=physical_dtype(spec.dtype), count=prod(spec.shape), offset=place.begin
    )
    return flat.reshape(spec.shape)


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of the checkpoint in `folder`: one file, several, or an index.

    Raises InputError when there are none, ArtifactError for a damaged file.
    """
    if folder.is_file() and folder.suffix == ".safetensors":
        return dict.fromkeys(raw_header(folder)[0], folder)
    if not folder.is_dir():
        raise InputError(f"no checkpoint at {folder}", "give a folder with safetensors files")
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX, "an index of shards").get("weight_map")
        if not isinstance(listed, dict):
            raise ArtifactError(f"{folder / INDEX} has no weight_map", "take the checkpoint again")
        return {str(name): shard_path(folder, file) for name, file in listed.items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no safetensors file", "give a checkpoint's folder")
    return {name: file for file in files for name in raw_header(file)[0]}


def raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the tensors of a file as its header has them, unchecked, and where their data begins.

    Raises InputError for a file that cannot be read, ArtifactError for one without a header.
    """
    header, begin = _whole_header(path)
    header.pop("__metadata__", None)
    return header, begin


def file_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a file, {} where it has none. Raises as `raw_header`."""
    metadata = _whole_header(path)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _whole_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = header_length(start, path.stat().st_size, str(path))
            header = parse_json(file.read(length))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the checkpoint") from None
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} has no safetensors header", _REMAKE)
    return header, 8 + length


def shard_path(folder: Path, file: Any) -> Path:
    """Return the path of a file of the folder itself: an index must not lead elsewhere.

    Raises ArtifactError, also for a name that file systems refuse.
    """
    named = isinstance(file, str) and file not in ("", ".", "..") and len(file) <= MAX_NAME
    if not named or Path(file).name != file:
        shown = repr(file)[:MAX_NAME]
        raise ArtifactError(
            f"{folder / INDEX} names the file {shown}, which is no file of its folder", _REMAKE
        )
    return folder / str(file)


_REMAKE = "the file is damaged: download it again, or write it again with what made it"


def tensor_place(name: str, entry: Any, data_begin: int) -> TensorPlace:
    """Return a tensor of a header. Raises ValueError, TypeError or KeyError for an odd entry."""
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in _NAMES:
        raise ValueError(f"tensor {name} has dtype {entry['dtype']!r}")
    # Before they are multiplied: the product of a long shape has as many digits as the header.
    if not (_are_counts(shape, most=MAX_AXES) and _are_counts(offsets, most=2)):
        raise ValueError(f"tensor {name} has a shape or offsets that are no counts")
    begin, end = offsets
    spec = TensorSpec(name=name, dtype=_NAMES[entry["dtype"]], shape=tuple(shape))
    if end - begin != spec.nbytes:
        raise ValueError(f"tensor {name} has {end - begin} bytes, its shape has {spec.nbytes}")
    return TensorPlace(spec=spec, begin=data_begin + begin)


def _are_counts(values: Any, *, most: int) -> bool:
    if not isinstance(values, list) or len(values) > most:
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)
