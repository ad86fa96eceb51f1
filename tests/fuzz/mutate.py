"""Damaged files: the bytes of a good one and a source of chance in, the bytes of a bad one out."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**63 - 1,
    2**63,
    2**64,
    10**30,
)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS,
    *(None, True, False, 0.5, -1.5, 1e308, float("inf"), float("nan"), 10**4200),
    *("", "x", "\0", "\ud800", "\udcff", "../..", "/etc/passwd", "\x1b[31m", "\u202e", "sha256:0"),
    *("y" * 5000, "1", "-1", "9" * 5000, [], {}, [[]], [None], [0] * 500, ["a"], {"a": 1}, [1, 2]),
)


def mutate(name: str, raw: bytes, chance: random.Random) -> bytes:
    """A damaged copy of the file `name`: three times in four, what it holds is changed and written
    again where the format is known, else its bytes are."""
    if chance.random() < 0.75:
        for ending, change in _BY_NAME.items():
            if name.endswith(ending):
                try:
                    return change(raw, chance)
                except Exception:  # what cannot be written is no case
                    break
    return mutate_bytes(raw, chance)


def mutate_bytes(raw: bytes, chance: random.Random) -> bytes:
    """Flips, numbers written over, truncation, splices, insertions, repetitions."""
    data = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 4, 16))):
        size = len(data)
        if size == 0:
            return bytes(data)
        at, length = chance.randrange(size), min(chance.choice((1, 2, 4, 8, 64, 1000)), size)
        match chance.randrange(8):
            case 0 | 1:
                data[at] ^= 1 << chance.randrange(8)
            case 2:
                data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            case 3:
                width = chance.choice((2, 4, 8))
                number = chance.choice(_NUMBERS[:-1]) % 2 ** (8 * width)
                data[at : at + width] = number.to_bytes(width, "little")
            case 4:
                del data[at : size if chance.random() < 0.5 else at + length]
            case 5:
                begin = chance.randrange(size)
                data[at : at + length] = data[begin : begin + length]
            case 6:
                data[at:at] = chance.randbytes(length)
            case 7:
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
    return bytes(data)


def mutate_value(value: Any, chance: random.Random) -> Any:
    """A JSON value in which one to three nodes were changed."""
    holder = [value]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _change_node(holder, chance)
    return holder[0]


def _change_node(holder: list[Any], chance: random.Random) -> None:
    places: list[tuple[Any, Any]] = [(holder, 0)]
    for container, key in places:
        child = container[key]
        if isinstance(child, dict | list) and child and len(places) < 3000:
            keys = list(child) if isinstance(child, dict) else range(len(child))
            places += [(child, each) for each in keys]
    container, key = chance.choice(places)
    old = container[key]
    match chance.randrange(8):
        case 0 | 1 | 2:
            container[key] = chance.choice(_VALUES)
        case 3 if isinstance(old, int | float) and not isinstance(old, bool):
            container[key] = chance.choice(
                (old + 1, old - 1, -old, old * 1000, old * 2**40, str(old))
            )
        case 3 if isinstance(old, str):
            at = chance.randrange(len(old) + 1)
            container[key] = (
                old[:at] + chance.choice(("", "0", "\0", "\ud800", "é")) + old[at + 1 :]
            )
        case 4 if container is not holder:
            del container[key]
        case 5:
            other, where = chance.choice(places[1:] or places)
            container[key] = json.loads(json.dumps(other[where]))
        case 6 if isinstance(container, dict):
            container[str(chance.choice(_VALUES))] = container.pop(key)
        case 6 if isinstance(container, list) and container is not holder:
            container += container[:] * chance.choice((1, 20))
        case 7 if isinstance(old, list):
            container[key] = old[: chance.randrange(len(old) + 1)]
        case _:
            nested: Any = old
            for _ in range(chance.choice((1, 40, 900))):
                nested = [nested]
            container[key] = nested


def _json(raw: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.1:
        return _key_twice(json.loads(raw), chance)
    return json.dumps(mutate_value(json.loads(raw), chance)).encode()


def _key_twice(value: Any, chance: random.Random) -> bytes:
    """A document in which a key of the outermost object comes again, with another value."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value).encode()
    key = chance.choice(list(value))
    other = mutate_value(json.loads(json.dumps(value[key])), chance)
    again = json.dumps({key: other})[1:-1]
    return f"{json.dumps(value)[:-1]}, {again}}}".encode()


def _ends(raw: bytes, chance: random.Random) -> bytes:
    """The bytes of a file that is mostly rows changed where its numbers are: at its ends."""
    size = min(chance.choice((64, 256, 4096, 16384)), len(raw))
    if chance.random() < 0.3:
        return raw[:-size] + mutate_bytes(raw[-size:], chance)
    return mutate_bytes(raw[:size], chance) + raw[size:]


def _json_lines(raw: bytes, chance: random.Random) -> bytes:
    lines = raw.split(b"\n")
    at = chance.randrange(len(lines))
    lines[at] = _json(lines[at], chance)
    return b"\n".join(lines)


def _safetensors(raw: bytes, chance: random.Random) -> bytes:
    length = int.from_bytes(raw[:8], "little")
    header = _json(raw[8 : 8 + length], chance)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + raw[8 + length :]


def _parquet(raw: bytes, chance: random.Random) -> bytes:
    """The metadata, a value or a column changed."""
    table = pq.read_table(io.BytesIO(raw))
    match chance.randrange(4):
        case 0 if table.schema.metadata:
            key = chance.choice(list(table.schema.metadata))
            own = {key: _json(table.schema.metadata[key], chance)}
            table = table.replace_schema_metadata({**table.schema.metadata, **own})
        case 1 if len(table):
            at = chance.randrange(table.num_columns)
            values = table.column(at).to_pylist()
            values[chance.randrange(len(values))] = chance.choice((None, *values[:5], 0, -1, "\0"))
            field = table.schema.field(at)
            table = table.set_column(at, field, pa.array(values, field.type))
        case 2:
            table = table.drop_columns([chance.choice(table.column_names)])
        case _:
            table = table.take([chance.randrange(max(len(table), 1)) for _ in range(len(table))])
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


_BY_NAME = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".lock": _json,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
    ".gguf": _ends,
    ".pt": _ends,
    ".pleo": _ends,
    ".plepatch": _ends,
}
