"""Writes GGUF files with the table of any source, in one file or in several parts.

A GGUF source keeps its rows and all else that is in the file: only its header is written again
(`gguf_keys`). From any other source, and for rows in another dtype, a file is written that holds
the table alone, with the keys and tensors that a dialect has for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError, OutputError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Target, WriteOptions, Written
from engram_cli.formats.gguf_dialects import (
    ARRAYS,
    CONSTANTS,
    DS4,
    DS4_DIM,
    DS4_ORDER,
    QWEN,
    QWEN_ROWS,
    ROW_TENSOR,
    GgufRows,
    constant_value,
)
from engram_cli.formats.gguf_keys import OtherRowsError, require_finished, write_keys
from engram_cli.formats.model_folder import CheckpointRows, config_of
from engram_cli.formats.model_writer import same_scheme
from engram_cli.formats.row264 import DTYPE
from engram_cli.formats.row_files import grown_files, prepare_rows, put_file
from engram_cli.formats.row_plan import (
    BLOCKS,
    RECORDS,
    NewFile,
    Place,
    RowFiles,
    require_map,
    require_rows,
)
from engram_cli.registry import enumerated
from engram_cli.rows import DTYPES
from engram_cli.rows.gguf_file import GGML_TYPES, SPLIT
from engram_cli.rows.gguf_write import GGUF, PADDING, encode_entry, encode_key
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.stored_as import kept_dtype, require_same_rows
from engram_cli.rows.views import origin

DIALECTS = (*CONSTANTS, "qwen4exp")
_PLAIN = ("bfloat16", "float16", "float32", "q8_0")  # the first is what refusals suggest
_KINDS = {name: number for number, (name, _, _) in GGML_TYPES.items()}
_SIDE_CAR, _QWEN = "deepseek4-engram", "qwen4exp"
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A tensor: ggml's type, `dims` with the values of a row first, its values or its rows."""

    name: str
    kind: int
    dims: tuple[int, ...]
    nbytes: int
    values: NDArray[Any] | None = None
    layer: int = 0
    part: str = ROWS


def write_gguf(source: RowSource, out: Path, options: WriteOptions) -> Written:
    """Write the header of a GGUF file again, or a new file that holds the table alone.

    Raises InputError and MismatchError for what the dialect cannot hold, OutputError,
    ArtifactError for a damaged file.
    """
    if isinstance(source, GgufRows):
        try:
            return write_keys(source, out, options)
        except OtherRowsError:
            if not _is_table_alone(source):
                raise  # the rest of the model would be lost
    return _write_new(source, out, options)


def _is_table_alone(source: GgufRows) -> bool:
    """Return whether a file has no tensors but those of the table."""
    own = {*CONSTANTS["tensors"].values(), *CONSTANTS["side-car"].values(), QWEN_ROWS}
    return all(name in own or ROW_TENSOR.fullmatch(name) for name in source.file.tensors)


def _write_new(source: RowSource, out: Path, options: WriteOptions) -> Written:
    before = origin(source)
    if isinstance(before, GgufRows):
        require_finished(before)
    require_rows(source, "gguf")
    require_map(source)
    dialect = _dialect(source, options)
    dtype, tensors = _tensors(source, dialect)
    keys, lacks = _keys(source, dialect)
    tensors = _constants(source, dialect) + tensors
    names = _names(out, sum(tensor.values is None for tensor in tensors))
    plan = _plan(source, dtype, keys, tensors, names)
    notes = [*lacks, *_left_out(source)]
    done = Written(dialect=dialect, files=names, size=plan.size, notes=tuple(notes))
    if options.check:
        return done
    places = [out.with_name(name) for name in names]
    read = before.file.parts if isinstance(before, GgufRows) else (source.path,)
    for place in places:
        prepare_rows(place, GGUF, options, read)
    with grown_files(out, plan, options) as grown:
        if options.verify:
            _verify(source, dtype, dialect, grown.folder / names[0], options)
        for place in reversed(places):  # the first part, which has the keys, comes last
            put_file(grown.folder / place.name, place, GGUF, options)
    return replace(done, verified=options.verify)


def _dialect(source: RowSource, options: WriteOptions) -> str:
    """Return the dialect to write. Raises InputError, MismatchError for another hash than its."""
    layout, before = source.layout, origin(source)
    raw = layout.lookup is None
    own = before.dialect if isinstance(before, GgufRows) else None
    dialect = options.dialect or own or (_QWEN if raw else "llama.cpp")
    if dialect not in DIALECTS:
        raise InputError(
            f"unknown dialect '{dialect}' of GGUF",
            f"known: {', '.join(repr(known) for known in DIALECTS)}",
        )
    if raw != (dialect == _QWEN):
        hashed = "raw token ids" if raw else "compressed token ids"
        raise MismatchError(
            f"{source.path} hashes {hashed}, which the dialect {dialect} does not",
            f"give --dialect {_QWEN if raw else 'llama.cpp'}",
        )
    if dialect != _QWEN:
        same_scheme(source, "deepseek-v4.1", f"GGUF of dialect {dialect}")
        if dialect == "ds4" and (layout.max_order != DS4_ORDER or source.dim != DS4_DIM):
            raise MismatchError(
                f"{source.path} has n-grams up to {layout.max_order} and {source.dim} values a "
                f"row, and ds4 has keys for {DS4_ORDER} and {DS4_DIM} alone",
                "choose llama.cpp",
            )
        return dialect
    if len(layout.layers) > 1:
        raise InputError(
            f"{source.path} has layers {', '.join(map(str, layout.layer_ids))}, and {_QWEN} one",
            "choose one with --layers",
        )
    same_scheme(source, "qwen-ple", f"GGUF of dialect {_QWEN}", multipliers=False)
    entry = layout.layers[0]
    if entry.rows != -(-sum(entry.moduli) // 128) * 128:
        raise MismatchError(
            f"{source.path} has {entry.rows:,} rows, not padded to a multiple of 128",
            f"{_QWEN} has no key for another padding",
        )
    return dialect


def _tensors(source: RowSource, dialect: str) -> tuple[str, list[_Tensor]]:
    """Return the dtype that rows are read as, and their tensors. Raises InputError."""
    dim, dtype = source.dim or 0, source.dtype or ""
    dtype = kept_dtype(dtype) or dtype
    packed = dialect in ("ds4", "upper case", "upper case, NUM_EMBEDDINGS", "side-car")
    known = (DTYPE,) if packed else _PLAIN if dialect == _QWEN else (DTYPE, *_PLAIN)
    if dtype not in known:
        raise InputError(
            f"{source.path}: the dialect {dialect} does not hold rows of {dtype}",
            f"give --dtype {enumerated(known, 'or')}, which rounds the values",
        )
    if dtype == DTYPE and dim % 32:
        raise InputError(
            f"{source.path} has {dim} values a row, and {dialect} needs blocks of 32",
            "give --dtype bfloat16",
        )
    width = DTYPES.load(dtype).width(dim) * DTYPES.load(dtype).physical.itemsize
    found = []
    for entry in source.layout.layers:
        name = QWEN_ROWS if dialect == _QWEN else f"blk.{entry.layer}.engram_embd.weight"
        parts = [(name, ROWS, width, dim)]
        if dtype == DTYPE:
            whole = dim + dim // 32
            parts = [(name, RECORDS, whole, whole)]
            if dialect == "side-car":
                parts = [(f"engram.{entry.layer}.embd.weight", BLOCKS, whole, whole)]
            elif dialect.startswith("upper case"):
                name = f"blk.{entry.layer}.engram_embd"
                scales = f"{name}_scale", SCALES, dim // 32, dim // 32
                parts = [(name, ROWS, dim, dim), scales]
        for name, part, size, values in parts:
            found.append(
                _Tensor(
                    name=name,
                    kind=_KINDS["int8" if dtype == DTYPE else dtype],
                    dims=(values, entry.rows),
                    nbytes=size * entry.rows,
                    layer=entry.layer,
                    part=part,
                )
            )
    return dtype, found


def _keys(source: RowSource, dialect: str) -> tuple[dict[str, Any], list[str]]:
    """Return the keys by name, and notes on those that the source has no value for."""
    layout, before = source.layout, origin(source)
    architecture = {_QWEN: _QWEN, "side-car": _SIDE_CAR}.get(dialect, DS4)
    if isinstance(before, GgufRows) and dialect not in ("ds4", "side-car", _QWEN):
        said = before.file.keys.get("general.architecture")
        architecture = said if isinstance(said, str) and "engram" not in said else architecture
    keys: dict[str, Any] = {"general.architecture": architecture}
    names = QWEN if dialect == _QWEN else CONSTANTS[dialect]
    for what, end in names.items():
        if what in _tensor_names(dialect):
            continue
        name = architecture + end if end.startswith(".") else end
        keys[name] = constant_value(what, dialect, source)
    lacks = []
    if dialect == "side-car":
        keys[f"{_SIDE_CAR}.ngram_count"] = len(layout.orders)
        keys[f"{_SIDE_CAR}.vocab_size"] = layout.vocab_size
    if dialect == _QWEN:
        keys[f"{_QWEN}.vocab_size"] = layout.vocab_size
        keys[f"{_QWEN}.embedding_length_per_layer_input"] = source.dim
        for name, key in (("conv_kernel", "ple_conv_kernel_size"), ("image_token_id",) * 2):
            value = _config_value(source, key)
            if value is not None:
                keys[f"{_QWEN}.ple.{name}"] = value
            else:
                lacks.append(f"{_QWEN}.ple.{name} is not written: {source.path.name} has none")
    return {**keys, PADDING: ""}, lacks


def _config_value(source: RowSource, name: str) -> int | None:
    """Return an integer of a checkpoint's config, None where there is none."""
    before = origin(source)
    if not isinstance(before, CheckpointRows):
        return None
    whole = config_of(before.path) or {}
    inner = whole.get("text_config")
    for config in (inner if isinstance(inner, dict) else {}, whole):
        value = config.get(name)
        if type(value) is int and 0 <= value < 2**32:
            return value
    return None


def _tensor_names(dialect: str) -> dict[str, str]:
    """Return the constants that a dialect keeps in tensors, by what they are."""
    if dialect not in ("tensors", "side-car"):
        return {}
    return {what: name for what, name in CONSTANTS[dialect].items() if name.startswith("engram.")}


def _constants(source: RowSource, dialect: str) -> list[_Tensor]:
    """Return the tensors of constants."""
    found = []
    for what, name in _tensor_names(dialect).items():
        values = np.asarray(constant_value(what, dialect, source), dtype=ARRAYS[dialect][what])
        kind = _KINDS[f"int{8 * values.itemsize}"]
        found.append(
            _Tensor(name=name, kind=kind, dims=values.shape, nbytes=values.nbytes, values=values)
        )
    return found


def _names(out: Path, tensors: int) -> tuple[str, ...]:
    """Return the names of the parts: one, or as many as the name says. Raises OutputError."""
    match = SPLIT.fullmatch(out.name)
    if match is None:
        return (out.name,)
    stem, first, count = match.groups()
    if int(first) != 1 or not 0 < int(count) <= tensors:
        raise OutputError(
            f"{out.name} names part {int(first)} of {int(count)}, and the table has {tensors} "
            "tensors of rows, which are not cut",
            f"end the name in -00001-of-{tensors:05}.gguf, or write one file",
        )
    return tuple(f"{stem}-{i + 1:05}-of-{count}.gguf" for i in range(int(count)))


def _plan(
    source: RowSource,
    dtype: str,
    keys: dict[str, Any],
    tensors: list[_Tensor],
    names: tuple[str, ...],
) -> RowFiles:
    """Return the files: constants and keys in the first, the rows dealt in order."""
    small = [tensor for tensor in tensors if tensor.values is not None]
    rows = [tensor for tensor in tensors if tensor.values is None]
    files, places = [], []
    for index, name in enumerate(names):
        own = rows[index * len(rows) // len(names) : (index + 1) * len(rows) // len(names)]
        own = [*small, *own] if index == 0 else own
        said = keys if index == 0 else {PADDING: ""}  # the mark of files written by engram
        if len(names) > 1:
            said = {**said, "split.no": np.uint16(index), "split.count": np.uint16(len(names)),
                    "split.tensors.count": np.int32(len(tensors))}  # fmt: skip
        header, begins, size = _header(said, own)
        head = {0: header}
        for tensor, at in zip(own, begins, strict=True):
            if tensor.values is not None:
                head[at] = tensor.values.tobytes()
            else:
                count = tensor.dims[1]
                places.append(
                    Place(file=name, layer=tensor.layer, part=tensor.part, begin=at, first=0,
                          rows=count, width=tensor.nbytes // count)
                )  # fmt: skip
        files.append(NewFile(name=name, size=size, head=head))
    return RowFiles(source=source, dtype=dtype, files=tuple(files), places=tuple(places))


def _header(keys: dict[str, Any], tensors: list[_Tensor]) -> tuple[bytes, list[int], int]:
    """Return the header of a file, where each tensor begins, and the bytes of the file."""
    offsets, size = [], 0
    for tensor in tensors:
        offsets.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    parts = [b"GGUF", (3).to_bytes(4, "little"), len(tensors).to_bytes(8, "little")]
    parts += [len(keys).to_bytes(8, "little")]
    parts += [encode_key(name, value) for name, value in keys.items()]
    parts += [
        encode_entry(tensor.name, tensor.dims, tensor.kind, offset)
        for tensor, offset in zip(tensors, offsets, strict=True)
    ]
    header = b"".join(parts)
    header += bytes(-len(header) % _ALIGNMENT)
    return header, [len(header) + offset for offset in offsets], len(header) + size


def _left_out(source: RowSource) -> list[str]:
    """Return a note on the tensors of a GGUF source that are not of its table."""
    before = origin(source)
    if not isinstance(before, GgufRows) or _is_table_alone(before):
        return []
    rows = [name for name in before.file.tensors if ROW_TENSOR.fullmatch(name)]
    count = len(before.file.tensors) - len(rows)
    return [f"{count:,} other tensors of {source.path.name} are not written: it is the table alone"]


def _verify(source: RowSource, dtype: str, dialect: str, path: Path, options: WriteOptions) -> None:
    """Raise ArtifactError unless the file reads as the same rows under the same hash."""
    try:
        again = FORMATS.load("gguf").open_with(path, None)
    except EngramError as error:
        raise ArtifactError(f"{path} does not read: {error.message}", "check the disk") from None
    assert isinstance(again, GgufRows)
    if (again.dialect, again.layout.fingerprint) != (dialect, source.layout.fingerprint):
        raise ArtifactError(f"{path} reads as another hash or dialect", "convert it again")
    require_same_rows(source, again, dtype, threads=options.threads, progress=options.progress)


TARGET = Target(write=write_gguf)
