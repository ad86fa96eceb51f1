"""Computes where the rows of a table lie, and what a look-up costs there, from public figures.

Times are those of the bandwidths alone: a good kernel comes near them with many tokens, and latency
comes on top with few. Nothing is added for what else the memories are used for. Bandwidths are
bytes a second in one direction. Sizes are decimal, as data sheets give them. The host and the disk
of an accelerator are not its vendor's: they stand for a usual server of its time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engram_cli.errors import InputError

GB, TB = 10**9, 10**12
# What is moved at least: a sector of GPU memory, a cache line, a page of a disk.
SECTOR, LINE, PAGE = 32, 64, 4096
HOT_BITS = 1.25  # a row: a bit that says whether it is hot, and the rank directory over the bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One accelerator with its share of a host, or a host alone where `hbm_bytes` is 0.

    `link`: from host memory to the accelerator. `disk_reads`: random reads a second. `source`:
    where the accelerator's figures are published.
    """

    name: str
    hbm_bytes: int
    hbm_bandwidth: float
    link: float
    host_bytes: int
    host_bandwidth: float
    disk_bytes: int
    disk_bandwidth: float
    disk_reads: float
    source: str


# 8 channels of DDR5-4800 and a data-centre NVMe drive on PCIe 4.0 x4.
_SERVER = Hardware(
    name="cpu",
    hbm_bytes=0,
    hbm_bandwidth=0.0,
    link=0.0,
    host_bytes=512 * GB,
    host_bandwidth=307 * GB,
    disk_bytes=2 * TB,
    disk_bandwidth=6.8 * GB,
    disk_reads=1.0e6,
    source="8 channels of DDR5-4800 (38.4 GB/s each); NVMe drive on PCIe 4.0 x4",
)


def _accelerator(name: str, hbm: int, bandwidth: int, link: int, source: str) -> Hardware:
    """Sizes in GB, bandwidths in GB/s; host and disk are the usual server's."""
    return replace(
        _SERVER,
        name=name,
        hbm_bytes=hbm * GB,
        hbm_bandwidth=bandwidth * GB,
        link=link * GB,
        source=source,
    )


HARDWARE = {
    each.name: each
    for each in (
        _accelerator(
            "h100", 80, 3350, 64, "NVIDIA H100 data sheet, SXM: 80 GB, 3.35 TB/s, PCIe 5.0 x16"
        ),
        _accelerator(
            "h200", 141, 4800, 64, "NVIDIA H200 data sheet, SXM: 141 GB, 4.8 TB/s, PCIe 5.0 x16"
        ),
        _accelerator(
            "b200", 180, 8000, 64, "NVIDIA DGX B200 data sheet, an eighth of it: 180 GB, 8 TB/s"
        ),
        _accelerator(
            "gb200",
            186,
            8000,
            225,
            "NVIDIA GB200 NVL72 data sheet, one GPU of a superchip: 186 GB, 8 TB/s, half of "
            "NVLink-C2C's 450 GB/s a direction",
        ),
        _accelerator("l40s", 48, 864, 32, "NVIDIA L40S data sheet: 48 GB, 864 GB/s, PCIe 4.0 x16"),
        _accelerator(
            "rtx-4090", 24, 1008, 32, "NVIDIA GeForce RTX 4090: 24 GB, 1,008 GB/s, PCIe 4.0 x16"
        ),
        _SERVER,
    )
}


def find_hardware(name: str) -> Hardware:
    """Return the hardware called `name`. Raises InputError, which lists the known names."""
    if name not in HARDWARE:
        raise InputError(f"unknown hardware '{name}'", f"known: {', '.join(HARDWARE)}")
    return HARDWARE[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is looked up: `token_rows` rows of `row_bytes` a token out of `rows`.

    `hot_rows` of them catch the share `hit_rate` of the look-ups; 0 and 0.0 where that is unknown.
    `distinct`: the share of a batch's look-ups that are different rows, no more than that where
    `at_most`.
    """

    rows: int
    row_bytes: int
    token_rows: int
    hot_rows: int = 0
    hit_rate: float = 0.0
    distinct: float = 1.0
    at_most: bool = True

    @property
    def bytes(self) -> int:
        """Return all rows."""
        return self.rows * self.row_bytes

    @property
    def hot_bytes(self) -> int:
        """Return the hot rows, and what tells them from the others."""
        return self.hot_rows * self.row_bytes + math.ceil(self.rows * HOT_BITS / 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way to place a table: bytes on each tier, whether they fit, seconds a token.

    `moved`: bytes moved for a token. `batch_seconds`: a token's in a batch, whose look-ups of the
    same row are one; no more than that where `at_most`.
    """

    name: str
    fits: bool
    hbm_bytes: int
    host_bytes: int
    disk_bytes: int
    moved: float
    token_seconds: float
    batch_seconds: float
    at_most: bool


def touched(row_bytes: int, block: int) -> float:
    """Return the mean bytes moved for a row in whole blocks, rows lying one after another from a
    block."""
    common = math.gcd(row_bytes, block)
    return (row_bytes + block - common) / block * block


class _Tier:
    """What a row costs where it lies: bytes `moved` in whole blocks, and `seconds`."""

    def __init__(self, row_bytes: int, block: int, bandwidth: float, least: float = 0.0) -> None:
        """`least` seconds a row, whatever its bytes."""
        self.moved = touched(row_bytes, block)
        self.seconds = max(self.moved / bandwidth, least)


def placements(load: Load, hardware: Hardware) -> Iterator[Placement]:
    """Yield the ways to place a table, the fastest first."""
    everything, hot = load.bytes, load.hot_bytes
    in_hbm = _Tier(load.row_bytes, SECTOR, hardware.hbm_bandwidth or math.inf)
    on_host = _Tier(load.row_bytes, LINE, hardware.link or hardware.host_bandwidth)
    on_disk = _Tier(load.row_bytes, PAGE, hardware.disk_bandwidth, 1.0 / hardware.disk_reads)
    cold = 1.0 - load.hit_rate
    # Cold rows hardly repeat in a batch: it is the hot ones that are looked up again and again.
    batch_cold = min(cold, load.distinct)

    def place(
        name: str, near: _Tier, far: _Tier | None = None, hbm: int = 0, host: int = 0, disk: int = 0
    ) -> Placement:
        seconds, moved, batch = near.seconds, near.moved, load.distinct * near.seconds
        if far is not None:
            seconds = load.hit_rate * near.seconds + cold * far.seconds
            moved = load.hit_rate * near.moved + cold * far.moved
            batch += batch_cold * (far.seconds - near.seconds)
        return Placement(
            name=name,
            fits=hbm <= hardware.hbm_bytes
            and host <= hardware.host_bytes
            and disk <= hardware.disk_bytes,
            hbm_bytes=hbm,
            host_bytes=host,
            disk_bytes=disk,
            moved=load.token_rows * moved,
            token_seconds=load.token_rows * seconds,
            batch_seconds=load.token_rows * batch,
            at_most=load.at_most or far is not None,
        )

    if hardware.hbm_bytes:
        yield place("all rows in HBM", in_hbm, hbm=everything)
        if load.hot_rows:
            name = "hot rows in HBM, all on the host"
            yield place(name, in_hbm, on_host, hbm=hot, host=everything)
    yield place("all rows on the host", on_host, host=everything)
    if hardware.hbm_bytes and load.hot_rows:
        yield place("hot rows in HBM, all on disk", in_hbm, on_disk, hbm=hot, disk=everything)
    if load.hot_rows:
        name = "hot rows on the host, all on disk"
        yield place(name, on_host, on_disk, host=hot, disk=everything)
    yield place("all rows on disk", on_disk, disk=everything)
