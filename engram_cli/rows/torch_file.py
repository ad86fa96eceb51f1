"""State dicts of `torch.save`, read without torch: a zip archive of raw storages.

`data.pkl` in the archive names the tensors. It is never unpickled: a small machine knows the few
operations that a state dict of plain tensors needs, makes nothing but numbers, texts and names, and
refuses every other one. Records are stored, not compressed, so that tensors are spans of the file.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from engram_cli.errors import ArtifactError, InputError
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.safetensors import MAX_AXES, TensorPlace, TensorSpec

# Headers of a zip archive: of a record, of its entry in the directory, and its ends.
LOCAL, CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
END, END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
_COMMENT, _MOST_DIRECTORY, _MOST_PICKLE = 2**16, 2**24, 2**24
FULL32 = 2**32 - 1
STORAGES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
}
_INNER = ("state_dict", "model")  # keys under which training loops keep a state dict
_HINT = "save its tensors with safetensors.torch.save_file where you trust the file"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """A file of the archive: where its local header begins, and its bytes."""

    header: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class _Global:
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class _Storage:
    dtype: str
    key: str


@dataclass(frozen=True, slots=True, eq=False)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


def torch_tensors(path: Path) -> tuple[dict[str, TensorPlace], int]:
    """Return the tensors of a state dict by name, and how many bytes told of them.

    Raises InputError for a file that cannot be read or holds more than plain tensors,
    ArtifactError for one that is damaged.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            records = _directory(file, size, path)
            name = next((n for n in records if n.endswith("/data.pkl")), None)
            if name is None or records[name].size > _MOST_PICKLE:
                raise InputError(f"{path} is no state dict of torch.save", _HINT)
            prefix = name.removesuffix("data.pkl")
            pickled = _content(file, records[name], size, path)
            found = _named(_run(pickled, path))
            begins = {
                key: _begin(file, records, f"{prefix}data/{key}", size, path)
                for key in {tensor.storage.key for tensor in found.values()}
            }
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the path") from None
    places = {name: _place(name, tensor, begins, path) for name, tensor in found.items()}
    return places, len(pickled)


def record_names(path: Path) -> tuple[str, ...]:
    """Return the names in an archive. Raises OSError, ArtifactError."""
    with path.open("rb") as file:
        return tuple(_directory(file, path.stat().st_size, path))


def _place(
    name: str, tensor: _Tensor, begins: Mapping[str, tuple[int, int]], path: Path
) -> TensorPlace:
    spec = TensorSpec(name=name, dtype=tensor.storage.dtype, shape=tensor.shape)
    begin, size = begins[tensor.storage.key]
    skipped = tensor.offset * physical_dtype(spec.dtype).itemsize
    if skipped + spec.nbytes > size:
        raise ArtifactError(f"{path}: {name[:200]} does not fit its storage", _HINT)
    return TensorPlace(spec=spec, begin=begin + skipped)


def _directory(file: BinaryIO, size: int, path: Path) -> dict[str, _Record]:
    """Return the records of the archive. Raises ArtifactError."""

    def damaged(what: str) -> ArtifactError:
        return ArtifactError(f"{path} is a damaged archive: {what}", _HINT)

    file.seek(max(0, size - _COMMENT - END.size))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + END.size > len(tail):
        raise damaged("it has no end")
    _, _, _, _, count, length, begin, _ = END.unpack_from(tail, at)
    end = size - len(tail) + at
    if count == 0xFFFF or length == FULL32 or begin == FULL32:
        mark = at - LOCATOR.size
        if mark < 0 or tail[mark : mark + 4] != b"PK\6\7":
            raise damaged("it has no second end")
        place = LOCATOR.unpack_from(tail, mark)[2]
        if place + END64.size > size:
            raise damaged("its second end lies outside")
        file.seek(place)
        raw = file.read(END64.size)
        if raw[:4] != b"PK\6\6":
            raise damaged("it has no second end")
        *_, count, length, begin = END64.unpack(raw)
    if length > _MOST_DIRECTORY or begin + length > end or count * CENTRAL.size > length:
        raise damaged("its directory lies outside")
    file.seek(begin)
    raw, records, at = file.read(length), {}, 0
    for _ in range(count):
        if at + CENTRAL.size > length or raw[at : at + 4] != b"PK\1\2":
            raise damaged("its directory ends too early")
        fields = CENTRAL.unpack_from(raw, at)
        flags, method, sizes, widths, header = *fields[3:5], fields[8:10], fields[10:13], fields[16]
        begin_name = at + CENTRAL.size
        text = raw[begin_name : begin_name + widths[0]]
        extra = raw[begin_name + widths[0] : begin_name + widths[0] + widths[1]]
        stored, plain, header = _wide(extra, sizes[0], sizes[1], header)
        if method or flags & 1 or stored != plain or header + stored > size:
            raise damaged("a record is compressed or lies outside")
        records[text.decode("utf-8", "replace")] = _Record(header=header, size=stored)
        at = begin_name + sum(widths)
    return records


def _wide(extra: bytes, stored: int, plain: int, header: int) -> tuple[int, int, int]:
    """Return the sizes and the place of a record, of 64 bits where they do not fit 32."""
    at, values = 0, [plain, stored, header]
    while at + 4 <= len(extra):
        kind, width = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            numbers = extra[at + 4 : at + 4 + width]
            for index, value in enumerate(values):
                if value == FULL32 and len(numbers) >= 8:
                    values[index], numbers = int.from_bytes(numbers[:8], "little"), numbers[8:]
        at += 4 + width
    return values[1], values[0], values[2]


def _begin(
    file: BinaryIO, records: Mapping[str, _Record], name: str, size: int, path: Path
) -> tuple[int, int]:
    """Return where the data of a record begins, and its bytes. Raises ArtifactError."""
    record = records.get(name)
    if record is None:
        raise ArtifactError(f"{path} lacks the storage {name[:200]}", _HINT)
    file.seek(record.header)
    raw = file.read(LOCAL.size)
    if len(raw) < LOCAL.size or raw[:4] != b"PK\3\4":
        raise ArtifactError(f"{path}: {name[:200]} has no header", _HINT)
    fields = LOCAL.unpack(raw)
    begin = record.header + LOCAL.size + fields[9] + fields[10]
    if begin + record.size > size:
        raise ArtifactError(f"{path} ends before {name[:200]} does", _HINT)
    return begin, record.size


def _content(file: BinaryIO, record: _Record, size: int, path: Path) -> bytes:
    begin, length = _begin(file, {"": record}, "", size, path)
    file.seek(begin)
    return file.read(length)


def _run(pickled: bytes, path: Path) -> Any:
    """Return what a pickled state dict says, with `_Tensor` for tensors. Raises InputError."""
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            if operation.name == "STOP":
                return machine.stack.pop()
            step = getattr(machine, f"do_{operation.name.lower()}", None)
            if step is None:
                raise ValueError(f"it needs {operation.name}")
            step(argument)
        raise ValueError("it has no end")
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} holds more than plain tensors: {str(error)[:200]}",
            "engram never unpickles: " + _HINT,
        ) from None


class _Machine:
    """The operations of pickles that state dicts of plain tensors consist of."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.marks.pop()
        return values

    def do_proto(self, _: Any) -> None: ...
    def do_frame(self, _: Any) -> None: ...

    def do_mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    do_binunicode = do_short_binunicode = do_binunicode8 = _push
    do_binint = do_binint1 = do_binint2 = do_long1 = do_binfloat = _push

    def do_newtrue(self, _: Any) -> None:
        self._push(True)

    def do_newfalse(self, _: Any) -> None:
        self._push(False)

    def do_none(self, _: Any) -> None:
        self._push(None)

    def do_empty_dict(self, _: Any) -> None:
        self._push({})

    def do_empty_tuple(self, _: Any) -> None:
        self._push(())

    def do_empty_list(self, _: Any) -> None:
        self._push([])

    def do_append(self, _: Any) -> None:
        self.stack.pop()  # no tensor of a state dict is in a list
        if not isinstance(self.stack[-1], list):
            raise ValueError("an item of what is no list")

    def do_appends(self, _: Any) -> None:
        self._since_mark()
        if not isinstance(self.stack[-1], list):
            raise ValueError("items of what is no list")

    def do_tuple(self, _: Any) -> None:
        self._push(tuple(self._since_mark()))

    def _tuple_of(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        if len(values) != count:
            raise ValueError("a tuple is too short")
        self.stack[-count:] = [values]

    def do_tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def do_tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def do_tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def do_global(self, argument: str) -> None:
        self._push(_Global(argument.replace(" ", ".", 1)))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._push(_Global(f"{module}.{name}"))

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def do_binput(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    do_long_binput = do_binput

    def do_binget(self, argument: int) -> None:
        self._push(self.memo[argument])

    do_long_binget = do_binget

    def do_setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def do_setitems(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, pairs: Sequence[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise ValueError("items of what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if type(key) not in (str, int):
                raise ValueError("a key is neither a text nor a number")
            target[key] = value

    def do_build(self, _: Any) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], dict) or not isinstance(state, dict):
            raise ValueError("a state of what is no dict")

    def do_binpersid(self, _: Any) -> None:
        kind, storage, key, *_ = self.stack.pop()
        dtype = STORAGES.get(storage.name.removeprefix("torch."))
        if kind != "storage" or dtype is None or not isinstance(key, str):
            raise ValueError(f"a storage of {str(storage.name)[:64]}")
        self._push(_Storage(dtype, key))

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("a call of what is no name")
        if function.name == "collections.OrderedDict" and not arguments:
            self._push({})
        elif function.name == "torch._utils._rebuild_parameter":
            self._push(arguments[0])
        elif function.name == "torch._utils._rebuild_tensor_v2":
            self._push(_rebuilt(*arguments[:4]))
        else:
            raise ValueError(f"it calls {function.name[:64]}")


def _rebuilt(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    """Return a contiguous tensor of a storage. Raises ValueError, TypeError."""
    counts = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) > MAX_AXES or len(shape) != len(strides):
        raise ValueError("a tensor that is none")
    if not all(type(each) is int and 0 <= each < 2**48 for each in counts):
        raise ValueError("a tensor whose sizes are no counts")
    steps = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(a != b for a, b, n in zip(steps, strides, shape, strict=True) if n > 1):
        raise ValueError("a tensor that is not contiguous")
    return _Tensor(storage, offset, tuple(shape))


def _named(value: Any) -> dict[str, _Tensor]:
    """Return the tensors of a dict, or of the state dict in it."""
    if not isinstance(value, dict):
        return {}
    inner = next((value[key] for key in _INNER if isinstance(value.get(key), dict)), value)
    return {
        name: tensor
        for name, tensor in inner.items()
        if isinstance(name, str) and isinstance(tensor, _Tensor)
    }
