"""engram plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from engram_cli.cli.configured import layout_choices
from engram_cli.cli.options import (
    EosIdOption,
    ForceOption,
    HeadsOption,
    JsonOption,
    LayersOption,
    OrdersOption,
    PadIdOption,
    QuietOption,
    RowsOption,
    SchemeOption,
    SeedOption,
    VocabOption,
    VocabSizeOption,
    WorkspaceOption,
    parse_size,
)
from engram_cli.cli.terminal import Terminal, follow, reported

_BUDGET, _HARDWARE = "Budget", "Hardware"


def parse_count(text: str) -> int:
    """Parse a count with K, M, B (10**9) or T: 5.7B, 1T."""
    return parse_size(text[:-1] + "G" if text[-1:] in ("b", "B") else text)


def parse_share(text: str) -> tuple[float, float]:
    """Parse a share, or the two ends of a range of shares: 0.2..0.25."""
    try:
        parts = [float(part) for part in text.split("..")]
        return parts[0], parts[-1]
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a range such as 0.2..0.25") from None


def _size(panel: str, help_: str, metavar: str = "SIZE") -> Any:
    return typer.Option(parser=parse_size, metavar=metavar, help=help_, rich_help_panel=panel)


def _count(panel: str | None, help_: str) -> Any:
    return typer.Option(parser=parse_count, metavar="COUNT", help=help_, rich_help_panel=panel)


def plan(
    context: typer.Context,
    memory: Annotated[Any, _size(_BUDGET, "Budget in bytes for the rows: 94GB.")] = None,
    params: Annotated[Any, _count(_BUDGET, "Budget in parameters for the rows: 5.7B.")] = None,
    sparse_params: Annotated[
        Any, _count(_BUDGET, "All sparse parameters: 27B. Rows get --share of them.")
    ] = None,
    share: Annotated[
        Any,
        typer.Option(
            parser=parse_share,
            metavar="RANGE",
            help="Share of --sparse-params that rows get (0.2..0.25, the paper's optimum).",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    tokens: Annotated[
        Any, _count(None, "Tokens you will train on (those of the statistics): 1T.")
    ] = None,
    dim: Annotated[int, typer.Option(min=1, help="Values per row, the width of one head.")] = 64,
    dtype: Annotated[str, typer.Option(help="Data type of the stored rows.")] = "bfloat16",
    hardware: Annotated[
        str,
        typer.Option(
            help="Accelerator: h100, h200, b200, gb200, l40s, rtx-4090 or cpu.",
            rich_help_panel=_HARDWARE,
        ),
    ] = "h200",
    hbm: Annotated[Any, _size(_HARDWARE, "Accelerator memory available for rows.")] = None,
    host: Annotated[Any, _size(_HARDWARE, "Host memory (512GB).")] = None,
    disk: Annotated[Any, _size(_HARDWARE, "Disk space (2TB).")] = None,
    hbm_bandwidth: Annotated[
        Any, _size(_HARDWARE, "Bandwidth of the accelerator's memory, in bytes per second.")
    ] = None,
    link: Annotated[
        Any, _size(_HARDWARE, "Bandwidth from host to accelerator, in bytes per second.")
    ] = None,
    disk_bandwidth: Annotated[Any, _size(_HARDWARE, "Disk bandwidth, in bytes per second.")] = None,
    hit_rate: Annotated[
        float, typer.Option(help="Share of look-ups that the hot rows should serve.")
    ] = 0.9,
    batch: Annotated[int, typer.Option(min=1, help="Tokens per batch of look-ups.")] = 4096,
    scheme: SchemeOption = None,
    orders: OrdersOption = None,
    heads: HeadsOption = None,
    rows_per_head: RowsOption = None,
    layers: LayersOption = None,
    pad_id: PadIdOption = None,
    seed: SeedOption = None,
    vocab_size: VocabSizeOption = None,
    eos_id: EosIdOption = None,
    stats: Annotated[
        Path | None, typer.Option(help="Statistics of the corpus (engram-stats).")
    ] = None,
    vocab: VocabOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Plan file to write, for build-table --plan: plan.json"),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    workspace: WorkspaceOption = Path(),
) -> None:
    """Size a table: rows and heads for a budget, expected use, where it fits and how fast it is.

    Uses the statistics in the folder, if there are any. Writes nothing except --out.
    """
    terminal = Terminal(as_json=as_json, quiet=quiet)
    with reported(terminal):
        from dataclasses import replace

        from engram_cli.cli.plan_tables import plan_parts
        from engram_cli.commands.plan import Budget, PlanRequest
        from engram_cli.commands.plan import plan as run
        from engram_cli.commands.workspace import Workspace
        from engram_cli.table.planning.placement import find_hardware

        here = Workspace(workspace)
        changed = {
            "hbm_bytes": hbm,
            "host_bytes": host,
            "disk_bytes": disk,
            "hbm_bandwidth": hbm_bandwidth,
            "link": link,
            "disk_bandwidth": disk_bandwidth,
        }
        given = {name: value for name, value in changed.items() if value is not None}
        budgeted = any(x is not None for x in (memory, params, sparse_params))
        request = PlanRequest(
            geometry=layout_choices(context, only_flags=("rows_per_head",) if budgeted else ()),
            stats=stats or here.stats,
            vocab=vocab,
            workspace=here,
            tokens=tokens,
            dim=dim,
            dtype=dtype,
            budget=Budget(memory=memory, params=params, sparse_params=sparse_params, share=share),
            hardware=replace(find_hardware(hardware), **given),
            hit_rate=hit_rate,
            batch=batch,
            out=out,
            force=force,
        )
        result = run(request, terminal)
        following = None if out is None else follow(f"engram build-table --plan {out}", workspace)
        terminal.result(result, *plan_parts(result), next_command=following)
