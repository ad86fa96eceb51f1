"""Reads the GPUs of a machine and how they reach each other, from nvidia-smi, and asks torch.

`run` gives the output of a program, and may be replaced in tests.
"""

from __future__ import annotations

import csv
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations

SMI = "nvidia-smi"
_FIELDS = ("index", "name", "memory.total", "memory.free", "driver_version")
_SECONDS = 20.0
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_GPU = re.compile(r"GPU(\d+)")

Run = Callable[[Sequence[str]], "str | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU by its number in nvidia-smi, with its memory."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLink:
    """How two GPUs are connected: `link` in nvidia-smi's words (NV18, PIX, SYS).

    `peer_access`: whether each can read the other's memory; None where it is not known.
    """

    first: int
    second: int
    link: str | None
    peer_access: bool | None

    @property
    def nvlink(self) -> bool:
        """Whether NVLink connects them."""
        return self.link is not None and self.link.startswith("NV")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """The GPUs of a machine, their links, and the driver; `found` False without nvidia-smi."""

    found: bool
    driver: str | None = None
    gpus: tuple[Gpu, ...] = ()
    links: tuple[GpuLink, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """The installed torch: the CUDA version it was built for, and whether it can use a GPU.

    `problem`: why it cannot be imported.
    """

    cuda: str | None = None
    gpus: int = 0
    problem: str | None = None


def output_of(command: Sequence[str]) -> str | None:
    """Return what a program prints, None where it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def read_gpus(run: Run = output_of) -> Gpus:
    """Return the GPUs that nvidia-smi lists."""
    listed = run([SMI, f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"])
    if listed is None:
        return Gpus(found=False)
    gpus, driver = [], None
    for fields in csv.reader(listed.splitlines(), skipinitialspace=True):
        if len(fields) != len(_FIELDS):
            continue
        index, name, total, free, driver = fields
        sizes = [int(each) * 2**20 if each.isdecimal() else 0 for each in (total, free)]
        if index.isdecimal():
            gpus.append(Gpu(index=int(index), name=name, total_bytes=sizes[0], free_bytes=sizes[1]))
    links: tuple[GpuLink, ...] = ()
    if len(gpus) > 1:
        kinds = _matrix(run([SMI, "topo", "-m"]))
        reads = _matrix(run([SMI, "topo", "-p2p", "r"]))
        links = tuple(
            _link(first.index, second.index, kinds, reads)
            for first, second in combinations(gpus, 2)
        )
    return Gpus(found=True, driver=driver, gpus=tuple(gpus), links=links)


def read_torch() -> Torch | None:
    """Import torch, and ask it for GPUs; None where it is not installed."""
    if find_spec("torch") is None:
        return None
    try:
        torch = import_module("torch")
        return Torch(cuda=torch.version.cuda, gpus=torch.cuda.device_count())
    except Exception as error:  # a library that is missing, or does not fit the driver
        return Torch(problem=f"{type(error).__name__}: {error}")


def _link(
    first: int,
    second: int,
    kinds: dict[tuple[int, int], str],
    reads: dict[tuple[int, int], str],
) -> GpuLink:
    both = [reads.get(pair) for pair in ((first, second), (second, first))]
    return GpuLink(
        first=first,
        second=second,
        link=kinds.get((first, second)),
        peer_access=None if None in both else both == ["OK", "OK"],
    )


def _matrix(text: str | None) -> dict[tuple[int, int], str]:
    """Return the cells between GPUs of a table whose rows and columns are GPU0, GPU1, ..."""
    lines = [_ESCAPES.sub("", line).split() for line in (text or "").splitlines()]
    heads: list[int] = []
    cells = {}
    for words in lines:
        numbers = [int(found[1]) for word in words if (found := _GPU.fullmatch(word))]
        if not heads:
            heads = numbers
        elif numbers and _GPU.fullmatch(words[0]):
            for second, cell in zip(heads, words[1:], strict=False):
                cells[numbers[0], second] = cell
    return cells
