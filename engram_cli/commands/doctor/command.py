"""doctor: what this machine offers to rows, what each placement can hold, and known problems."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from engram_cli.commands.artifact import VOCABULARY, find_artifact
from engram_cli.commands.doctor.disk_reads import DiskReads, measure_reads
from engram_cli.commands.doctor.findings import findings
from engram_cli.commands.doctor.gpus import Gpus, Torch, read_gpus, read_torch
from engram_cli.commands.doctor.machine import Memory, SharedMemory, read_memory, read_shared_memory
from engram_cli.commands.doctor.result import ArtifactFit, Capacity, DoctorResult, Package
from engram_cli.commands.requests.doctor import DoctorRequest
from engram_cli.commands.requests.options import located
from engram_cli.errors import InputError
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.path import is_remote
from engram_cli.rows import DTYPES
from engram_cli.version import __version__

PACKAGES = (
    *("numpy", "numba", "zarr", "pyarrow", "tokenizers", "safetensors", "typer", "rich"),
    *("torch", "triton", "transformers", "accelerate", "peft"),
    *("fsspec", "huggingface_hub", "ray", "fastokens"),
)


def doctor(request: DoctorRequest, progress: Progress = SILENT) -> DoctorResult:
    """Look at this machine, and at the artifacts that are named. Raises InputError for a path that
    is not there, and as `Artifact.open`."""
    request = located(request)
    here = [path for path in request.paths if not is_remote(path)]
    for path in here:
        if not path.exists():
            raise InputError(f"{path} does not exist", "check the path")
    gpus, torch = read_gpus(), read_torch()
    memory, shared = read_memory(), read_shared_memory()
    progress.start("measuring random reads", None, "")
    disks = tuple(measure_reads(place, wanted=request.disk) for place in _places(here or [Path()]))
    known = findings(memory, shared, gpus, torch)
    return DoctorResult(
        ok=not any(each.prevents_use for each in known),
        engram=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=tuple(Package(name=each, version=_version(each)) for each in PACKAGES),
        torch=torch,
        gpus=gpus,
        memory=memory,
        shared_memory=shared,
        disks=disks,
        placements=tuple(capacities(memory, shared, gpus, disks[0])),
        artifacts=tuple(_fits(request.paths, memory, shared, gpus, disks)),
        findings=known,
        not_seen=tuple(_not_seen(gpus, torch, disks)),
    )


def capacities(
    memory: Memory, shared: SharedMemory, gpus: Gpus, disk: DiskReads
) -> Iterator[Capacity]:
    """Yield what each placement has room for, without an artifact."""
    if gpus.gpus:
        best = max(gpus.gpus, key=lambda gpu: gpu.free_bytes)
        yield Capacity(placement="hbm", where=f"GPU {best.index}", free_bytes=best.free_bytes)
    if len(gpus.gpus) > 1:
        yield Capacity(
            placement=f"shard={len(gpus.gpus)}",
            where="all GPUs, the fullest counts",
            free_bytes=len(gpus.gpus) * min(gpu.free_bytes for gpu in gpus.gpus),
        )
    yield Capacity(
        placement="host", where="memory of one process", free_bytes=memory.available_bytes
    )
    if shared.folder is not None:
        limits = [each for each in (shared.free_bytes, memory.available_bytes) if each is not None]
        yield Capacity(
            placement="host,shared", where=shared.folder, free_bytes=min(limits, default=None)
        )
    yield Capacity(placement="disk", where=disk.folder, free_bytes=disk.free_bytes)


def _places(paths: Sequence[Path]) -> list[Path]:
    """Return one path on each disk, in the order given."""
    found: dict[int, Path] = {}
    for path in paths:
        found.setdefault(path.stat().st_dev, path)
    return list(found.values())


def _fits(
    paths: Sequence[Path],
    memory: Memory,
    shared: SharedMemory,
    gpus: Gpus,
    disks: Sequence[DiskReads],
) -> Iterator[ArtifactFit]:
    """Yield what each placement can hold of the artifacts among `paths`; folders are passed by."""
    for path in paths:
        try:
            artifact = find_artifact(path)
        except InputError:
            if not is_remote(path) and path.is_dir():
                continue  # a place on a disk
            raise
        if artifact.kind == VOCABULARY:
            continue
        source = artifact.open()
        if source.dim is None or source.dtype is None:
            continue
        layout = DTYPES.load(source.dtype).record_layout(source.dim)
        rows = sum(source.layout.layer(layer).rows for layer in source.layers)
        row_bytes = layout.row_bytes + layout.scale_bytes
        sizes = {"hbm": row_bytes, "shard": row_bytes, "disk": row_bytes}
        yield ArtifactFit(
            path=artifact.path,
            kind=artifact.kind,
            dtype=source.dtype,
            rows=rows,
            row_bytes=row_bytes,
            record_bytes=layout.record_bytes,
            placements=tuple(
                _of_rows(each, rows, sizes.get(each.placement.split("=")[0], layout.record_bytes))
                for each in capacities(memory, shared, gpus, disks[0])
            ),
        )


def _of_rows(each: Capacity, rows: int, size: int) -> Capacity:
    """Return a capacity in rows of `size` bytes; rows on disk are where they are already."""
    on_disk = each.placement == "disk"
    free = rows * size if on_disk else each.free_bytes
    return Capacity(
        placement=each.placement,
        where="its files" if on_disk else each.where,
        free_bytes=free,
        needed_bytes=rows * size,
        rows=None if free is None else min(rows, free // size),
        fits=None if free is None else rows * size <= free,
    )


def _not_seen(gpus: Gpus, torch: Torch | None, disks: Sequence[DiskReads]) -> Iterator[str]:
    if torch is None:
        yield (
            "torch is not installed: whether it can use the GPUs is not known, and models cannot "
            "be run (pip install 'engram-tables[torch]')"
        )
    if not gpus.found:
        yield "nvidia-smi is missing or failed: GPUs, their memory and their links are not known"
    for disk in disks:
        if disk.problem is not None:
            yield f"random reads of {disk.folder}: {disk.problem}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
