"""Known problems of a machine, each with what to do about it."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from engram_cli.commands.doctor.gpus import Gpus, Torch
from engram_cli.commands.doctor.machine import Memory, SharedMemory
from engram_cli.shared_copy import FOLDER

# The oldest driver that runs a CUDA version; CUDA's release notes, "CUDA Toolkit and Corresponding
# Driver Versions".
_DRIVERS = {11: 450, 12: 525, 13: 580}
_LEAST_SHARED = 2**30  # containers have 64 MB by default
_LEAST_PINNED = 2**30
_SCRIPT_BYTES = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem in one line, and what to do; `prevents_use`: engram does not work until then."""

    problem: str
    fix: str
    prevents_use: bool = False


def findings(
    memory: Memory,
    shared: SharedMemory,
    gpus: Gpus,
    torch: Torch | None,
    script: Path | None = None,
) -> tuple[Finding, ...]:
    """Return the known problems, those that prevent use first.

    `script`: the `engram` that a shell finds, None to look for it.
    """
    found = [
        *_packages(script),
        *_drivers(gpus, torch),
        *_memory(memory, gpus),
        *_shared(shared),
        *_peers(gpus),
    ]
    return tuple(sorted(found, key=lambda each: not each.prevents_use))


def _packages(script: Path | None) -> Iterator[Finding]:
    """Another package that has a module or a script of the same name."""
    try:
        clash = import_module("engram_tables").clash()
    except ImportError:  # run without it, from a checkout
        clash = None
    if clash is not None:
        message, broken = clash
        yield Finding(
            problem=message,
            fix="install engram-tables in an environment without engram-cli",
            prevents_use=broken,
        )
    if script is None:
        place = shutil.which("engram")
        script = None if place is None else Path(place)
    if script is not None and not _is_own(script):
        yield Finding(
            problem=f"{script} is the script of another package: the shell runs it as engram",
            fix=f"run engram-tables, or {sys.executable} -m engram_cli",
        )


def _is_own(script: Path) -> bool:
    """Whether a script starts this package; what cannot be read is taken for it."""
    try:
        with script.open("rb") as file:
            text = file.read(_SCRIPT_BYTES)
    except OSError:
        return True
    return b"engram_tables" in text or b"engram_cli.__main__" in text


def _drivers(gpus: Gpus, torch: Torch | None) -> Iterator[Finding]:
    if torch is None:
        return
    if torch.problem is not None:
        yield Finding(
            problem=f"torch cannot be imported ({torch.problem})",
            fix="install it again: https://pytorch.org/get-started",
            prevents_use=True,
        )
    elif gpus.gpus and torch.cuda is None:
        yield Finding(
            problem="torch was built without CUDA, and uses none of the GPUs",
            fix="install a build with CUDA: https://pytorch.org/get-started",
        )
    elif gpus.gpus and torch.cuda is not None:
        needed = _DRIVERS.get(_leading(torch.cuda) or 0)
        has = _leading(gpus.driver or "")
        if needed is not None and has is not None and has < needed:
            yield Finding(
                problem=f"driver {gpus.driver} is too old for torch's CUDA {torch.cuda}",
                fix=f"install driver {needed} or later, or torch for an older CUDA",
                prevents_use=True,
            )
        elif not torch.gpus:
            yield Finding(
                problem="torch sees none of the GPUs",
                fix="check CUDA_VISIBLE_DEVICES, and that the container was started with the GPUs",
            )


def _leading(text: str) -> int | None:
    match = re.match(r"\d+", text)
    return None if match is None else int(match[0])


def _memory(memory: Memory, gpus: Gpus) -> Iterator[Finding]:
    if memory.transparent_huge_pages == "never":
        yield Finding(
            problem="transparent huge pages are off: rows in host memory are read more slowly",
            fix="echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
        )
    total, limit = memory.total_bytes, memory.cgroup_bytes
    if limit is not None and (total is None or limit < total):
        of = "" if total is None else f" of the machine's {total:,}"
        yield Finding(
            problem=f"a control group limits memory to {limit:,} bytes{of}, shared copies included",
            fix="start the container or job with more memory (docker run --memory)",
        )
    locked = memory.memlock_bytes
    if gpus.gpus and locked is not None and locked < _LEAST_PINNED:
        yield Finding(
            problem=f"locked memory is limited to {locked:,} bytes: pinning rows may be refused",
            fix="ulimit -l unlimited (docker run --ulimit memlock=-1)",
        )


def _shared(shared: SharedMemory) -> Iterator[Finding]:
    if shared.problem is not None:
        yield Finding(
            problem=f"rows on the host cannot be shared by processes: {shared.problem}",
            fix=f"name a tmpfs or hugetlbfs with {FOLDER}",
        )
    if shared.free_bytes is not None and shared.free_bytes < _LEAST_SHARED:
        yield Finding(
            problem=f"{shared.folder} has {shared.free_bytes:,} bytes free: it holds few rows for "
            "placement=host,shared",
            fix=f"docker run --shm-size=64g, or mount -o remount,size=64G {shared.folder}",
        )
    if shared.leftover_bytes:
        yield Finding(
            problem=f"{shared.leftover_bytes:,} bytes of rows in {shared.folder} are used by no "
            "process: they were left by a killed one",
            fix="nothing: the next start that shares rows uses or removes them",
        )


def _peers(gpus: Gpus) -> Iterator[Finding]:
    apart = [link for link in gpus.links if link.peer_access is False]
    if apart:
        pairs = ", ".join(f"{link.first}-{link.second}" for link in apart[:4])
        more = f" and {len(apart) - 4} more" if len(apart) > 4 else ""
        yield Finding(
            problem=f"GPUs {pairs}{more} cannot read each other's memory: rows over several GPUs "
            "are exchanged by collectives, which is slower",
            fix="use GPUs that NVLink connects (nvidia-smi topo -m), or placement=host,shared",
        )
