"""How rows travel from host memory or disk to the device: sizes with measured defaults.

Read once from a JSON file that ENGRAM_TIERS_TUNING names, where there is one: an object with any of
the fields of `Tuning`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from engram_cli.errors import InputError
from engram_cli.untrusted import parse_json

VARIABLE = "ENGRAM_TIERS_TUNING"
NUMBER_BYTES = 16  # of a row on its way, beside its record: its number and its slot
MOST_STAGED = 8  # at most one part in so many of a memory's records is on its way
_MIB = 2**20
_PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Sizes in bytes; defaults measured on an H200 with 16 CPU cores (docs/benchmarks.md).

    Up to `in_place_bytes` of records asked of a layer by one call are read in place over the bus.
    More are staged: rows travel in blocks of at most `block_bytes` of device memory, `ahead_bytes`
    of them before their layer runs, through a ring of `ring_buffers` pinned buffers of
    `ring_buffer_bytes`. Raises InputError.
    """

    in_place_bytes: int = 8 * _MIB
    block_bytes: int = 128 * _MIB
    ahead_bytes: int = 256 * _MIB
    ring_buffers: int = 4
    ring_buffer_bytes: int = 8 * _MIB

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = _LEAST.get(name, _PAGE)
            if type(value) is not int or value < least:
                raise InputError(f"tuning: {name} is {value!r}", f"an integer from {least} on")

    @property
    def device_bytes(self) -> int:
        """The most device memory that records on their way take, of all layers together."""
        return self.ahead_bytes + self.block_bytes

    @property
    def pinned_bytes(self) -> int:
        """The pinned memory of the ring; row numbers take up to a thirtieth of the blocks more."""
        return self.ring_buffers * self.ring_buffer_bytes

    def within(self, rows: int, record_bytes: int, *, devices: int = 1) -> Tuning:
        """The same for a memory of `rows` records: `MOST_STAGED` bounds what all devices stage.

        A block and a buffer hold a record at least, and 4,096 bytes.
        """
        line, parts = record_bytes + NUMBER_BYTES, MOST_STAGED * devices
        most = min(rows * line // parts, self.device_bytes)
        buffer = rows * record_bytes // (parts * self.ring_buffers)
        # torch gives pinned memory in powers of two.
        buffer = min(self.ring_buffer_bytes, 1 << max(0, buffer.bit_length() - 1))
        return replace(
            self,
            block_bytes=max(self.block_bytes * most // self.device_bytes, line, _PAGE),
            ahead_bytes=self.ahead_bytes * most // self.device_bytes,
            ring_buffer_bytes=max(buffer, record_bytes, _PAGE),
        )


_LEAST = {"in_place_bytes": 0, "ahead_bytes": 0, "ring_buffers": 2}


def local_tuning() -> Tuning:
    """The tuning of this machine: defaults, and what the file says. Raises InputError."""
    path = os.environ.get(VARIABLE)
    if not path:
        return Tuning()
    try:
        document = parse_json(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{VARIABLE}: {path}: {error}", "name a JSON file") from None
    names = [each.name for each in fields(Tuning)]
    if not isinstance(document, dict) or set(document) - set(names):
        raise InputError(
            f"{VARIABLE}: {path} is no object of known fields", f"known are {', '.join(names)}"
        )
    return Tuning(**document)
