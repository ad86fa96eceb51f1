"""What a table is looked up on: memories with their sizes and bandwidths, by public figures.

Bandwidths are bytes a second in one direction. Sizes are decimal, as data sheets give them. The
host and the disk of an accelerator are not its vendor's: they stand for a usual server of its time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from engram_cli.errors import InputError

GB, TB = 10**9, 10**12


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
    """The hardware called `name`. Raises InputError, which lists the known names."""
    if name not in HARDWARE:
        raise InputError(f"unknown hardware '{name}'", f"known: {', '.join(HARDWARE)}")
    return HARDWARE[name]
