"""What engram doctor found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engram_cli.commands.doctor.disk_reads import DiskReads
from engram_cli.commands.doctor.findings import Finding
from engram_cli.commands.doctor.gpus import Gpus, Torch
from engram_cli.commands.doctor.machine import Memory, SharedMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A Python package; `version` is None where it is not installed."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one placement can hold: `free_bytes`, None where that is not known.

    Of a named artifact: `needed_bytes` for all its rows, how many `rows` fit, and whether all do;
    None where that is not known.
    """

    placement: str
    where: str
    free_bytes: int | None
    needed_bytes: int | None = None
    rows: int | None = None
    fits: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactFit:
    """The rows of an artifact, and what each placement can hold of them."""

    path: Path
    kind: str
    dtype: str
    rows: int
    row_bytes: int
    record_bytes: int
    placements: tuple[Capacity, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorResult:
    """What the machine offers. `findings`: known problems; `ok`: none of them prevents use.

    `torch`: None where it is not installed. `placements`: what is free, without an artifact.
    `not_seen`: what could not be found out, and why.
    """

    ok: bool
    engram: str
    python: str
    system: str
    packages: tuple[Package, ...]
    torch: Torch | None
    gpus: Gpus
    memory: Memory
    shared_memory: SharedMemory
    disks: tuple[DiskReads, ...]
    placements: tuple[Capacity, ...]
    artifacts: tuple[ArtifactFit, ...]
    findings: tuple[Finding, ...]
    not_seen: tuple[str, ...]
