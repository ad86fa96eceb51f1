"""Writes a GGUF file of V4.1 in a dialect: its keys are added, renamed or kept, its rows copied.

A constant that the file has is kept, byte for byte if the dialect gives it the same name and type.
One that it lacks is computed from the layout. Nothing is computed for a file that contradicts the
layout in anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, InputError, OutputError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Change, WriteOptions, Written, require_agreement
from engram_cli.formats.gguf_dialects import (
    ARRAYS,
    CONSTANTS,
    DS4,
    DS4_DIM,
    DS4_ORDER,
    ROW264,
    ROW_TENSOR,
    GgufRows,
    constant_value,
    dialect_of,
    kind_of,
)
from engram_cli.formats.row_files import grown_files, prepare_rows, put_file
from engram_cli.formats.row_plan import NewFile, RowFiles
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import check_inputs
from engram_cli.rows.copying import differing_byte
from engram_cli.rows.gguf_file import SPLIT, GgufFile, GgufTensor, read_gguf, read_header
from engram_cli.rows.gguf_write import GGUF, Rewritten, rewritten

DIALECTS = ("llama.cpp", "ds4", "upper case")
_SHOWN = 3  # values of an array


class OtherRowsError(InputError):
    """The dialect holds the rows, but not as the bytes that the file has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What changes: keys and tensors as `rewritten` takes them, and each change by name."""

    keys: dict[str, Any]
    tensors: dict[str, str | None]
    changes: tuple[Change, ...]


def write_keys(source: GgufRows, out: Path, options: WriteOptions) -> Written:
    """Write the file of `source` in a dialect: a new header, and the tensors copied.

    Raises InputError for a source that the dialect cannot hold, OtherRowsError for rows that it
    holds as other bytes, OutputError, ArtifactError for a damaged file.
    """
    dialect = options.dialect or source.dialect
    if dialect not in DIALECTS:
        raise OtherRowsError(
            f"the dialect '{dialect}' of GGUF is not written",
            f"give --dialect {', '.join(DIALECTS[:-1])} or '{DIALECTS[-1]}'",
        )
    parts = source.file.parts
    if source.path != parts[0]:
        raise InputError(
            f"{source.path} is not the first part, which has the keys", f"give {parts[0]}"
        )
    _check_name(source, out)
    plan = _plan(source, dialect)
    header = read_header(source.path)
    new = rewritten(header, plan.keys, plan.tensors)
    done = Written(dialect=dialect, files=(out.name,), size=new.size, changes=plan.changes)
    if options.check:
        return done
    prepare_rows(out, GGUF, options, parts)
    copies = tuple((source.path, extent) for extent in new.extents)
    file = NewFile(name=out.name, size=new.size, head={0: new.header}, copies=copies)
    files = RowFiles(source=source, dtype=source.dtype or "", files=(file,), places=())
    with grown_files(out, files, options) as grown:
        if options.verify:
            _verify(source, dialect, grown.folder / out.name, new)
        put_file(grown.folder / out.name, out, GGUF, options)
    rest = len(parts) - 1
    note = (
        "the other part stays as it is" if rest == 1 else f"the other {rest} parts stay as they are"
    )
    return Written(
        dialect=dialect,
        files=done.files,
        size=new.size,
        changes=plan.changes,
        verified=options.verify,
        notes=(f"{note}: put them under names that go with {out.name}",) if rest else (),
    )


def _check_name(source: GgufRows, out: Path) -> None:
    """Raise OutputError for a path that is read, or that does not say which part it is."""
    check_inputs(out, source.file.parts)
    old, new = SPLIT.fullmatch(source.path.name), SPLIT.fullmatch(out.name)
    if old is not None and (new is None or new.groups()[1:] != old.groups()[1:]):
        raise OutputError(
            f"{source.path.name} is one of {int(old[3])} parts, and {out.name} does not say so",
            f"end the name in -{old[2]}-of-{old[3]}.gguf",
        )


def _plan(source: GgufRows, dialect: str) -> _Plan:
    """Return what changes. Raises InputError for what the dialect cannot hold."""
    tensors = _renamed_rows(source, dialect)
    layout, names = source.layout, CONSTANTS[source.dialect]
    old = {what: _stored_name(source.file, name) for what, name in names.items()}
    keys: dict[str, Any] = {}
    changes: list[Change] = []
    computed = False
    for what, end in CONSTANTS[dialect].items():
        name = _full_name(source, dialect, end)
        there = source.file.keys.get(name)
        given = old.get(what)
        if there is not None and given == name and _fits(there, dialect, what, layout):
            changes.append(Change(name=name, action="kept", value=_shown(there)))
            continue
        value = constant_value(what, dialect, source)
        keys[name] = value
        action = "computed" if given is None else f"renamed from {given}"
        if given == name:
            same = kind_of(value) == kind_of(there)
            action = f"was {_shown(there)}" if same else f"{kind_of(value)}, was {kind_of(there)}"
        computed = computed or given is None
        changes.append(Change(name=name, action=action, value=_shown(value)))
    if computed:
        _require_agreement(source, layout)
    for name in filter(None, old.values()):
        if name in keys or any(change.name == name for change in changes):
            continue
        (tensors if name in source.file.tensors else keys)[name] = None
        if not any(change.action == f"renamed from {name}" for change in changes):
            changes.append(Change(name=name, action="dropped"))
    for name, other in tensors.items():
        if other is not None:
            changes.append(Change(name=other, action=f"renamed from {name}", value="tensor"))
    _require_first_part(source, tensors)
    return _Plan(keys=keys, tensors=tensors, changes=tuple(changes))


def _stored_name(file: GgufFile, name: str) -> str | None:
    """Return the key or tensor that a dialect's name of a constant stands for."""
    if name in file.tensors or name in file.keys:
        return name
    if not name.startswith("."):
        return None
    return next((key for key in file.keys if key.endswith(name)), None)


def _full_name(source: GgufRows, dialect: str, name: str) -> str:
    """Return the whole key: a name that begins with a dot follows the architecture."""
    if not name.startswith("."):
        return name
    if dialect == "ds4":
        return DS4 + name
    keys = source.file.keys
    if source.dialect == dialect:
        for key in keys:
            if key.endswith(tuple(CONSTANTS[dialect].values())):
                return key[: key.index(".engram.")] + name
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str):
        raise InputError(f"{source.path} has no general.architecture", "add it: keys begin with it")
    return architecture + name


def _fits(value: Any, dialect: str, what: str, layout: HashLayout) -> bool:
    """Return whether a stored value is what the dialect has there: its type, of some the value."""
    wanted = ARRAYS[dialect].get(what)
    if wanted is not None:
        return isinstance(value, np.ndarray) and value.dtype.str == wanted
    if isinstance(value, np.ndarray):
        return False
    needed = {"encoding": ROW264, "pad": layout.filler_id}
    return bool(value == needed.get(what, value))


def _require_agreement(source: GgufRows, layout: HashLayout) -> None:
    """Raise ArtifactError where computed constants would contradict what the file holds."""
    require_agreement(
        source,
        "no constant is computed then: give this very model's tokenizer, or take the file again",
    )
    if layout.lookup is None:
        raise InputError(
            f"{source.path} has no token map", "give the model's tokenizer with --tokenizer"
        )


def _renamed_rows(source: GgufRows, dialect: str) -> dict[str, str | None]:
    """Return the new names of tensors of rows. Raises InputError for rows of another shape."""
    layout = source.layout
    if source.dialect == "qwen4exp" or layout.scheme != "deepseek-v4.1":
        raise OtherRowsError(
            f"{source.path} is of dialect {source.dialect}, and {dialect} holds V4.1's tables",
            f"{', '.join(DIALECTS)} convert into each other",
        )
    if source.file.short:
        raise InputError(f"{', '.join(source.file.short)} ends too early", "take it again")
    lost = sorted(set(layout.layer_ids) - set(source.layers))
    if lost:
        raise InputError(
            f"{source.path} has no rows of layer {', '.join(map(str, lost))}", "take it again"
        )
    require_finished(source)
    found: dict[int, list[GgufTensor]] = {}
    for name in sorted(source.file.tensors, key=len):  # scales have the longer names
        match = ROW_TENSOR.fullmatch(name)
        if match is not None:
            found.setdefault(int(match[1]), []).append(source.file.tensors[name])
    renamed: dict[str, str | None] = {}
    for layer in layout.layer_ids:
        rows = found[layer]
        _require_shape(source, rows, dialect)
        upper = dialect == "upper case"
        ends = ("engram_embd", "engram_embd_scale") if upper else ("engram_embd.weight",)
        for tensor, end in zip(rows, ends, strict=True):
            # A name that the reader knows and that fits is kept: writers vary the end.
            if tensor.name != f"blk.{layer}.{end}" and source.dialect != dialect:
                renamed[tensor.name] = f"blk.{layer}.{end}"
    return renamed


def require_finished(source: GgufRows) -> None:
    """Raise InputError for a file that its converter has not finished."""
    if source.file.keys.get(f"{DS4}.engram.encoding", ROW264) != ROW264:
        raise InputError(f"{source.path} is still being written", "wait for its end")


def _require_shape(source: GgufRows, rows: list[GgufTensor], dialect: str) -> None:
    """Raise InputError unless a layer's tensors are as the dialect has them."""
    first = rows[0]
    what = f"{first.name} is {first.type} {' x '.join(f'{n:,}' for n in first.shape)}"
    if source.dialect == "side-car":
        raise OtherRowsError(
            f"{what}: blocks of 33 bytes, which {dialect} does not hold",
            "convert it with --to table or --to row264",
        )
    if dialect == "upper case":
        if len(rows) != 2 or {each.type for each in rows} != {"int8"}:
            raise OtherRowsError(
                f"{what}, and {dialect} needs items and scales in two I8 tensors",
                "choose llama.cpp or ds4, which hold both in one row",
            )
        return
    if len(rows) != 1:
        raise OtherRowsError(
            f"{what}, with scales in {rows[1].name}; {dialect} needs both in one row of 264 bytes",
            "choose upper case, or convert the rows with --to row264",
        )
    if dialect == "ds4":
        _require_row264(source, first, what)


def _require_row264(source: GgufRows, rows: GgufTensor, what: str) -> None:
    layout = source.layout
    if rows.type != "int8" or rows.shape[1] != 264 or source.dim != DS4_DIM:
        raise OtherRowsError(
            f"{what}; ds4 needs I8 rows of 264 bytes: 256 items, then 8 scales",
            "choose llama.cpp, or convert the table from the released checkpoint",
        )
    if layout.max_order != DS4_ORDER:
        raise InputError(
            f"n-grams up to {layout.max_order}, and ds4 has no key for anything but {DS4_ORDER}",
            "choose llama.cpp",
        )


def _require_first_part(source: GgufRows, tensors: dict[str, str | None]) -> None:
    for name in tensors:
        file = source.file.tensors[name].file
        if file != source.path:
            raise InputError(
                f"{name} would be renamed or dropped, and it is in {file.name}",
                "join the parts first (llama-gguf-split --merge)",
            )


def _verify(source: GgufRows, dialect: str, path: Path, new: Rewritten) -> None:
    """Raise ArtifactError unless the new file has all constants, the same hash and the same data.

    The other parts of one that is split are not next to it yet: then only keys are looked at.
    """
    at = differing_byte(source.path, path, new.extents)
    problem = None if at is None else f"byte {at:,} is not the one that was copied"
    whole = read_gguf(path)
    if dialect_of(whole) != dialect:
        problem = f"it reads as {dialect_of(whole)}"
    lost = [end for end in CONSTANTS[dialect].values() if _stored_name(whole, end) is None]
    if lost:
        problem = f"it lacks {', '.join(lost)}"
    if problem is None and len(source.file.parts) == 1:
        again = FORMATS.load("gguf").open(path)
        if again.layout.fingerprint != source.layout.fingerprint:
            problem = "its hash is another one"
    if problem is not None:
        raise ArtifactError(f"what was written is wrong: {problem}", "check the disk, run it again")


def _shown(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return str(value)
    some = ", ".join(map(str, value[:_SHOWN].tolist()))
    return f"{some}{', ...' if len(value) > _SHOWN else ''} ({len(value):,} values)"
