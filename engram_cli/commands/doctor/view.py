"""Draws what doctor found as tables."""

from __future__ import annotations

from collections.abc import Iterator

from engram_cli.commands.doctor.result import Capacity, DoctorResult
from engram_cli.view import Column, Table, View


def doctor_views(result: DoctorResult) -> Iterator[View]:
    """Yield the tables: GPUs, their links, disks, and what each placement holds."""
    gpus = result.gpus
    if gpus.gpus:
        yield _view(
            "gpus",
            "GPUs",
            (Column("GPU"), Column("name", "text"), *_sizes("memory", "free")),
            tuple((g.index, g.name, g.total_bytes, g.free_bytes) for g in gpus.gpus),
        )
    if gpus.links:
        yield _view(
            "links",
            "Between GPUs",
            (
                Column("GPUs", "text"),
                Column("link", "text"),
                Column("NVLink", "text"),
                Column("read each other", "text", alarm="no"),
            ),
            tuple(
                (
                    f"{link.first}-{link.second}",
                    link.link or "not known",
                    "yes" if link.nvlink else "no",
                    {True: "yes", False: "no", None: "not known"}[link.peer_access],
                )
                for link in gpus.links
            ),
        )
    measured = [disk for disk in result.disks if disk.reads_per_second is not None]
    if measured:
        yield _view(
            "disks",
            "Random reads of 4 KiB a second",
            (
                Column("of", "text"),
                Column("file system", "text"),
                Column("1 thread"),
                Column(f"{measured[0].threads} threads"),
            ),
            tuple(
                (
                    (disk.file or f"a temporary file in {disk.folder}")
                    + " (perhaps from memory)" * disk.cached,
                    disk.file_system or "not known",
                    disk.one_thread_reads_per_second,
                    disk.reads_per_second,
                )
                for disk in measured
            ),
        )
    if not result.artifacts:
        yield _placements("Room for rows", result.placements)
    for each in result.artifacts:
        title = (
            f"{each.path.name}: {each.rows:,} rows of {each.row_bytes} bytes ({each.dtype}), "
            f"{each.record_bytes} on the host"
        )
        yield _placements(title, each.placements)


def _placements(title: str, placements: tuple[Capacity, ...]) -> View:
    named = any(each.needed_bytes is not None for each in placements)
    columns = [Column("placement", "text"), Column("where", "text"), *_sizes("free")]
    if named:
        columns += [*_sizes("needed"), Column("rows that fit", "brief")]
        columns += [Column("all fit", "text", alarm="no")]
    rows = tuple(
        (
            *(each.placement, each.where),
            None if each.placement == "disk" and named else each.free_bytes,
            *((each.needed_bytes, each.rows, _FITS[each.fits]) if named else ()),
        )
        for each in placements
    )
    return _view("placements", title, tuple(columns), rows)


_FITS = {True: "yes", False: "no", None: "not known"}


def _sizes(*names: str) -> tuple[Column, ...]:
    """Return columns of bytes: 141 G."""
    return tuple(Column(f"{name}, bytes", "brief") for name in names)


def _view(name: str, title: str, columns: tuple[Column, ...], rows: tuple[tuple, ...]) -> View:  # type: ignore[type-arg]
    return View(name=name, title=title, lead="", parts=(Table(title, columns, rows),))
