"""Sizes as people write them (646400, 16M, 5GB, 64MiB), and how much is free."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_MOUNTS = Path("/proc/self/mountinfo")
_HUGE_PAGES = Path("/sys/kernel/mm/hugepages")
_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)([KMGT]I?)?B?", re.IGNORECASE | re.ASCII)


def read_size(text: str) -> int:
    """Return a count or a number of bytes. Raises ValueError, which says what is wrong with
    `text`."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"'{text}' is not a number such as 646400, 16M or 5GB (units: K, M, G, T; "
            "KiB, MiB, GiB, TiB)"
        )
    value = float(match[1].replace("_", "")) * (_UNITS | _BINARY)[(match[2] or "").upper()]
    if value != int(value):
        raise ValueError(f"'{text}' is not a whole number")
    return int(value)


def size_text(value: int) -> str:
    """Return a size as `read_size` reads it, in the largest binary unit that divides it: 64Mi."""
    for unit, factor in (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10)):
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)


def available_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes this process may still take, None where the system does not say.

    `root`: the folder with proc/ and sys/.
    """
    limits = _system(root / "proc/meminfo"), _cgroup(root / "sys/fs/cgroup")
    found = [value for value in limits if value is not None]
    return min(found, default=None)


def _system(meminfo: Path) -> int | None:
    try:
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup(group: Path) -> int | None:
    """Return what a container may still take (cgroup v2); its page cache counts as free."""
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit == "max":
            return None
        used = int((group / "memory.current").read_text())
        lines = (group / "memory.stat").read_text().split("\n")
        cached = next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return max(int(limit) - used + cached, 0)
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def processors() -> int:
    """Return the number of processors that the system lets this process run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_bytes(place: Path) -> int | None:
    """Return the free bytes of the file system that `place` is on, None where it has no limit."""
    about = os.statvfs(place)
    if about.f_blocks:
        return about.f_bavail * about.f_frsize
    pages = _HUGE_PAGES / f"hugepages-{about.f_bsize // 1024}kB"
    try:  # a hugetlbfs without a limit of its own takes pages from the machine's pool
        free = int((pages / "free_hugepages").read_text())
        reserved = int((pages / "resv_hugepages").read_text())
    except (OSError, ValueError):
        return None
    return (free - reserved) * about.f_bsize if file_system(place) == "hugetlbfs" else None


def file_system(place: Path) -> str | None:
    """Return the kind of file system that `place` is on ("tmpfs"), None where it is not known."""
    number = os.stat(place).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    try:
        lines = _MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()
        if len(fields) > 2 and fields[2] == device and "-" in fields[:-1]:
            return fields[fields.index("-") + 1]
    return None
