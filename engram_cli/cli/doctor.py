"""engram doctor: what this machine offers, and known problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from engram_cli.cli.command import command
from engram_cli.cli.terminal import Terminal
from engram_cli.commands.requests.doctor import DoctorRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from engram_cli.commands.doctor.result import DoctorResult


@command(DoctorRequest)
def doctor(request: DoctorRequest, terminal: Terminal) -> None:
    """Show what this machine offers to rows: GPUs, memory, disk, versions, and known problems.

    With tables or bundles, also which placements hold their rows. Nothing is changed.

    Exits with 0 unless a problem prevents use, with 1 if one does.
    """
    from engram_cli.commands.doctor.command import doctor as run

    result = run(request, terminal)
    terminal.result(result, *doctor_parts(result))
    if not result.ok:
        raise typer.Exit(1)


def doctor_parts(result: DoctorResult) -> list[RenderableType]:
    """Return the facts, the tables, what is not known, and the problems."""
    from rich.text import Text

    from engram_cli.cli.plain import one_line
    from engram_cli.cli.render import facts
    from engram_cli.cli.views import printed
    from engram_cli.commands.doctor.view import doctor_views

    parts: list[RenderableType] = [
        facts("Machine", [(name, one_line(text)) for name, text in _facts(result)]),
        *printed(doctor_views(result)),
    ]
    parts += [Text.assemble(("not known: ", "dim"), one_line(each)) for each in result.not_seen]
    for each in result.findings:
        word, style = ("error", "bold red") if each.prevents_use else ("warning", "yellow")
        parts.append(
            Text.assemble((f"{word}: ", style), one_line(f"{each.problem} - "), one_line(each.fix))
        )
    if not result.findings:
        parts.append(Text("no known problems", "green"))
    return parts


def _facts(result: DoctorResult) -> Iterator[tuple[str, str]]:
    from engram_cli.cli.render import quantity

    def size(value: int | None, without: str = "not known") -> str:
        return without if value is None else quantity(value, "bytes")

    memory, shared, torch = result.memory, result.shared_memory, result.torch
    yield "engram", f"{result.engram}, Python {result.python}, {result.system}"
    versions = [f"{each.name} {each.version}" for each in result.packages if each.version]
    yield "packages", ", ".join(versions)
    missing = [each.name for each in result.packages if not each.version]
    if missing:
        yield "not installed", ", ".join(missing)
    driver = f"driver {result.gpus.driver}" if result.gpus.driver else "no driver found"
    built = "not installed" if torch is None else f"CUDA {torch.cuda or 'none'}, {torch.gpus} GPUs"
    yield "GPU software", f"{driver}; torch: {built}"
    yield "memory", f"{size(memory.total_bytes)}, {size(memory.available_bytes)} free"
    yield (
        "limits",
        (
            f"control group: {size(memory.cgroup_bytes, 'none')}; "
            f"locked memory: {size(memory.memlock_bytes, 'none')}"
        ),
    )
    pools = [
        f"{each.pages:,} of {quantity(each.page_bytes, 'bytes')} ({each.free_pages:,} free)"
        for each in memory.huge_pages
        if each.pages
    ]
    places = f", hugetlbfs at {', '.join(memory.hugetlbfs)}" if memory.hugetlbfs else ""
    yield (
        "huge pages",
        (
            f"transparent: {memory.transparent_huge_pages or 'not known'}; "
            f"reserved: {', '.join(pools) or 'none'}{places}"
        ),
    )
    nodes = memory.numa_nodes
    yield "NUMA nodes", "not known" if nodes is None else str(nodes)
    if shared.folder is not None:
        free = size(shared.free_bytes, "no limit")
        yield (
            "shared memory",
            (
                f"{shared.folder} ({shared.file_system}): {size(shared.total_bytes, 'no limit')}, "
                f"{free} free"
            ),
        )
