"""Plans the zip archive of a state dict as `torch.save` lays it out, so that rows can be streamed.

`torch.load(weights_only=True)` reads it, also mapped. Sizes are of 64 bits throughout.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from engram_cli.errors import ArtifactError
from engram_cli.rows.safetensors import TensorSpec
from engram_cli.rows.torch_file import CENTRAL, END, END64, FULL32, LOCAL, LOCATOR, STORAGES

MARK = "written_by"  # a record that torch does not look at
_ALIGNED = 64  # bytes; as torch places its records
_CLASSES = {dtype: name for name, dtype in STORAGES.items()}
_DATE = 0x21  # the first day that the format knows


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchPlan:
    """An archive that is to be written. `head`: bytes, by where they begin; `begins`: of tensors.

    `marks`: by tensor, the places of its checksum (CRC-32), which is 0 in `head`.
    """

    size: int
    head: Mapping[int, bytes]
    begins: tuple[int, ...]
    marks: tuple[tuple[int, int], ...]


def plan_torch(specs: Sequence[TensorSpec]) -> TorchPlan:
    """Return the archive of a state dict with these tensors, a storage each."""
    head: dict[int, bytes] = {}
    central: list[bytes] = []
    begins, marks, at = [], [], 0
    contents: list[tuple[str, bytes | int]] = [
        ("data.pkl", _pickle(specs)),
        ("byteorder", b"little"),
    ]
    contents += [(f"data/{index}", spec.nbytes) for index, spec in enumerate(specs)]
    contents += [("version", b"3\n"), (MARK, b"engram-tables")]
    for name, content in contents:
        size = content if isinstance(content, int) else len(content)
        checksum = 0 if isinstance(content, int) else zlib.crc32(content)
        text = f"archive/{name}".encode()
        wide = struct.pack("<2H2Q", 1, 16, size, size)
        padding = -(at + LOCAL.size + len(text) + len(wide) + 4) % _ALIGNED
        extra = wide + struct.pack("<2H", 0x4246, padding) + b"Z" * padding
        local = LOCAL.pack(b"PK\3\4", 45, 0, 0, 0, _DATE, checksum, FULL32, FULL32, len(text),
                            len(extra))  # fmt: skip
        begin = at + len(local) + len(text) + len(extra)
        head[at] = local + text + extra + (b"" if isinstance(content, int) else content)
        place = struct.pack("<2H3Q", 1, 24, size, size, at)
        entry = CENTRAL.pack(b"PK\1\2", 45, 45, 0, 0, 0, _DATE, checksum, FULL32, FULL32,
                              len(text), len(place), 0, 0, 0, 0, FULL32)  # fmt: skip
        if isinstance(content, int):
            begins.append(begin)
            marks.append((at + 14, sum(map(len, central)) + 16))
        central.append(entry + text + place)
        at = begin + size
    directory = b"".join(central)
    count = len(contents)
    end = END64.pack(b"PK\6\6", END64.size - 12, 45, 45, 0, 0, count, count, len(directory), at)
    end += LOCATOR.pack(b"PK\6\7", 0, at + len(directory), 1)
    end += END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, FULL32, FULL32, 0)
    head[at] = directory + end
    return TorchPlan(
        size=at + len(directory) + len(end),
        head=head,
        begins=tuple(begins),
        marks=tuple((local, at + entry) for local, entry in marks),
    )


def write_checksums(path: Path, plan: TorchPlan, specs: Sequence[TensorSpec]) -> None:
    """Compute the checksum of every tensor's bytes, and write it where it belongs.

    Raises OSError, ArtifactError for a file that is too short.
    """
    with path.open("r+b", buffering=0) as file:
        for begin, marks, spec in zip(plan.begins, plan.marks, specs, strict=True):
            file.seek(begin)
            left, checksum = spec.nbytes, 0
            while left:
                piece = file.read(min(left, 2**20))
                if not piece:
                    raise ArtifactError(f"{path} ends too early", "convert it again")
                checksum = zlib.crc32(piece, checksum)
                left -= len(piece)
            for mark in marks:
                file.seek(mark)
                file.write(checksum.to_bytes(4, "little"))
        os.fsync(file.fileno())


def _pickle(specs: Sequence[TensorSpec]) -> bytes:
    """Return the pickled dict of tensors, each of which is all of the storage of its number."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return b"X" + len(raw).to_bytes(4, "little") + raw

    def number(value: int) -> bytes:
        raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + len(raw).to_bytes(1, "little") + raw

    def numbers(values: Sequence[int]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    out = b"\x80\x02}("
    for index, spec in enumerate(specs):
        storage = text("storage") + f"ctorch\n{_CLASSES[spec.dtype]}\n".encode()
        storage += text(f"{index}") + text("cpu") + number(prod(spec.shape))
        strides = [prod(spec.shape[axis + 1 :]) for axis in range(len(spec.shape))]
        out += text(spec.name) + b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ"
        out += number(0) + numbers(spec.shape) + numbers(strides) + b"\x89"
        out += b"ccollections\nOrderedDict\n)RtR"
    return out + b"u."
