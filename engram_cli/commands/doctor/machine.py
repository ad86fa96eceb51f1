"""Reads what a machine offers from /proc and /sys: memory, its limits, huge pages, NUMA nodes.

`root` is the folder in which proc/ and sys/ are looked for; what is missing there is None or ().
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engram_cli.errors import EngramError
from engram_cli.shared_copy import remove_leftovers, shared_folder
from engram_cli.sizes import available_memory, file_system, free_bytes

_UNLIMITED = 2**60  # cgroup v1 writes a huge number where there is no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class HugePages:
    """The pool of huge pages of one size."""

    page_bytes: int
    pages: int
    free_pages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Host memory, and what limits it; None where the system does not say.

    `transparent_huge_pages`: always, madvise or never. `memlock_bytes`, `cgroup_bytes`: None where
    there is no limit.
    """

    total_bytes: int | None
    available_bytes: int | None
    cgroup_bytes: int | None
    memlock_bytes: int | None
    transparent_huge_pages: str | None
    huge_pages: tuple[HugePages, ...]
    hugetlbfs: tuple[str, ...]
    numa_nodes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemory:
    """The place of shared copies of rows; `free_bytes` None where it has no limit of its own.

    `leftover_bytes`: of copies that no process uses. `problem`: why rows cannot be shared there.
    """

    folder: str | None
    file_system: str | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    leftover_bytes: int = 0
    problem: str | None = None


def read_memory(root: Path = Path("/"), *, memlock: int | None = None) -> Memory:
    """Return the memory of the machine whose proc/ and sys/ are in `root`.

    `memlock` replaces the limit of this process.
    """
    kernel = root / "sys/kernel/mm"
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if memlock is None else memlock
    return Memory(
        total_bytes=_total(root),
        available_bytes=available_memory(root),
        cgroup_bytes=_cgroup(root),
        memlock_bytes=None if limit == resource.RLIM_INFINITY else limit,
        transparent_huge_pages=_chosen(_text(kernel / "transparent_hugepage/enabled")),
        huge_pages=tuple(_huge_pages(kernel / "hugepages")),
        hugetlbfs=tuple(_mounts(root, "hugetlbfs")),
        numa_nodes=_numa_nodes(root / "sys/devices/system/node"),
    )


def read_shared_memory() -> SharedMemory:
    """Return what the folder of shared copies has room for."""
    try:
        folder = shared_folder().parent
    except EngramError as error:
        return SharedMemory(folder=None, problem=str(error))
    about = os.statvfs(folder)
    return SharedMemory(
        folder=str(folder),
        file_system=file_system(folder),
        total_bytes=about.f_blocks * about.f_frsize or None,
        free_bytes=free_bytes(folder),
        leftover_bytes=sum(each.size for each in remove_leftovers(dry_run=True)),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _total(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal" and rest.split()[:1] and rest.split()[0].isdecimal():
            return int(rest.split()[0]) * 1024
    return None


def _cgroup(root: Path) -> int | None:
    """Return the least limit of the control groups of this process, None where there is none."""
    groups = root / "sys/fs/cgroup"
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, place = [*line.split(":", 2), "", ""][:3]
        names = controllers.split(",")
        if names == [""]:
            base, file = groups, "memory.max"
        elif "memory" in names:
            base, file = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = PurePosixPath(place.lstrip("/"))
        limits += [_number(base / each / file) for each in (own, *own.parents)]
    # In a container the group's own files are at the top, whatever its path is outside.
    limits += [_number(groups / "memory.max"), _number(groups / "memory/memory.limit_in_bytes")]
    return min((each for each in limits if each is not None and each < _UNLIMITED), default=None)


def _chosen(text: str) -> str | None:
    """Return the word in brackets: always [madvise] never."""
    _, found, rest = text.partition("[")
    return rest.partition("]")[0] if found else None


def _huge_pages(folder: Path) -> Iterator[HugePages]:
    for pool in sorted(folder.glob("hugepages-*kB")):
        size = pool.name.removeprefix("hugepages-").removesuffix("kB")
        pages, free = _number(pool / "nr_hugepages"), _number(pool / "free_hugepages")
        if size.isdecimal() and pages is not None and free is not None:
            yield HugePages(page_bytes=int(size) * 1024, pages=pages, free_pages=free)


def _mounts(root: Path, kind: str) -> Iterator[str]:
    for line in _text(root / "proc/self/mounts").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == kind:
            yield fields[1]


def _numa_nodes(folder: Path) -> int | None:
    found = [each for each in folder.glob("node*") if each.name[4:].isdecimal()]
    return len(found) or None
