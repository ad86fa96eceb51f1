"""The request of plan: a budget, a machine, and a geometry to size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.options import (
    Force,
    Group,
    Here,
    Option,
    Request,
    Rule,
    Vocab,
    revision_of,
)
from engram_cli.commands.requests.tables import DEFAULT_DIM, DEFAULT_DTYPE
from engram_cli.commands.workspace import Workspace
from engram_cli.registry import enumerated
from engram_cli.rows import DTYPES
from engram_cli.sizes import read_size
from engram_cli.table.planning.placement import HARDWARE, Hardware, find_hardware

SHARE = (0.20, 0.25)  # of the sparse parameters, the paper's optimum between memory and experts
_BUDGET, _HARDWARE = "Budget", "Hardware"


def read_count(text: str) -> int:
    """Parse a count with K, M, B (10**9) or T: 5.7B, 1T."""
    return read_size(text[:-1] + "G" if text[-1:] in ("b", "B") else text)


def read_share(text: str) -> tuple[float, float]:
    """Parse a share, or the two ends of a range of shares: 0.2..0.25."""
    try:
        parts = [float(part) for part in text.split("..")]
        return parts[0], parts[-1]
    except ValueError:
        raise ValueError(f"'{text}' is not a range such as 0.2..0.25") from None


def _size(help_: str) -> Option:
    return Option(help_, parser=read_size, metavar="SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Request):
    """How large the rows may be: bytes, or parameters, or a share of all sparse parameters.

    None of them keeps the size that the geometry has. `share`: of `sparse_params`, None for
    `SHARE`; of its range the middle is planned.
    """

    PANEL = _BUDGET

    memory: Annotated[
        int | None, Option("Budget in bytes for the rows: 94GB.", metavar="SIZE", parser=read_size)
    ] = None
    params: Annotated[
        int | None,
        Option("Budget in parameters for the rows: 5.7B.", metavar="COUNT", parser=read_count),
    ] = None
    sparse_params: Annotated[
        int | None,
        Option(
            "All sparse parameters: 27B. Rows get --share of them.",
            metavar="COUNT",
            parser=read_count,
        ),
    ] = None
    share: Annotated[
        tuple[float, float] | None,
        Option(
            "Share of --sparse-params that rows get (0.2..0.25, the paper's optimum).",
            metavar="RANGE",
            parser=read_share,
        ),
    ] = None

    RULES = (
        Rule(lambda budget: len(budget.given) > 1, "more than one budget",
             "give one of --memory, --params, --sparse-params"),
        Rule(lambda budget: min(budget.given, default=1) < 1, "a budget below 1",
             "give --memory, --params or --sparse-params as 94GB or 5.7B"),
        Rule(lambda budget: budget.share is not None and budget.sparse_params is None,
             "--share without --sparse-params",
             "give --sparse-params too, or leave out --share and give --params or --memory"),
        Rule(lambda budget: not 0.0 < budget.range[0] <= budget.range[1] <= 1.0,
             "a share of {0.range[0]} to {0.range[1]}", "give a range such as 0.2..0.25"),
    )  # fmt: skip

    @property
    def given(self) -> list[int]:
        """The budgets that are given."""
        return [x for x in (self.memory, self.params, self.sparse_params) if x is not None]

    @property
    def range(self) -> tuple[float, float]:
        """The least and the largest share of the sparse parameters that rows may get."""
        return self.share or SHARE

    def rows(self, dim: int, row_bytes: int) -> int | None:
        """Return the rows of all layers that fit it; None without a budget."""
        if self.memory is not None:
            return self.memory // row_bytes
        if self.sparse_params is not None:
            return int(self.sparse_params * sum(self.range) / 2) // dim
        return None if self.params is None else self.params // dim


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine(Request):
    """The options for a `Hardware`: a known one by name, and what is different about it."""

    PANEL = _HARDWARE

    hardware: Annotated[str, Option(f"Accelerator: {enumerated(HARDWARE, 'or')}.")] = "h200"
    hbm_bytes: Annotated[
        int | None, replace(_size("Accelerator memory available for rows."), name="hbm")
    ] = None
    host_bytes: Annotated[int | None, replace(_size("Host memory (512GB)."), name="host")] = None
    disk_bytes: Annotated[int | None, replace(_size("Disk space (2TB)."), name="disk")] = None
    hbm_bandwidth: Annotated[
        int | None, _size("Bandwidth of the accelerator's memory, in bytes per second.")
    ] = None
    link: Annotated[
        int | None, _size("Bandwidth from host to accelerator, in bytes per second.")
    ] = None
    disk_bandwidth: Annotated[int | None, _size("Disk bandwidth, in bytes per second.")] = None

    def resolved(self, given: Mapping[str, Any]) -> Hardware:
        """Return the hardware with the given changes. Raises InputError for an unknown name."""
        changed = {each.name: getattr(self, each.name) for each in fields(self)}
        name = changed.pop("hardware")
        changed = {field: value for field, value in changed.items() if value is not None}
        return replace(find_hardware(name), **changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest(Request):
    """What to plan.

    `stats` or `vocab` (with `tokens`) say what is hashed; a `vocab` that is given must be that of
    the statistics, None takes the one in `workspace`. `tokens` also: how much will be trained on,
    by the growth curve of the statistics. `hit_rate`: of the hot rows. `batch`: tokens looked up
    together. `out`: where plan.json goes.
    """

    budget: Annotated[Budget, Group(Budget)] = field(default_factory=Budget)
    tokens: Annotated[
        int | None,
        Option(
            "Tokens you will train on (those of the statistics): 1T.",
            metavar="COUNT",
            parser=read_count,
            least=1,
        ),
    ] = None
    dim: Annotated[int, Option("Values per row, the width of one head.", least=1)] = DEFAULT_DIM
    dtype: Annotated[str, Option(f"Data type of the stored rows: {DTYPES.choices()}.")] = (
        DEFAULT_DTYPE
    )
    hardware: Annotated[Hardware, Group(Machine)] = field(
        default_factory=lambda: find_hardware("h200")
    )
    hit_rate: Annotated[float, Option("Share of look-ups that the hot rows should serve.")] = 0.9
    batch: Annotated[int, Option("Tokens per batch of look-ups.", least=1)] = 4096
    geometry: Annotated[Geometry, Group(Geometry)] = field(default_factory=Geometry)
    stats: Annotated[
        Path | None,
        Option("Statistics of the corpus (engram-stats).", place="stats", reads="ranges"),
    ] = None
    revision: Annotated[str | None, revision_of("stats", "the statistics")] = None
    vocab: Vocab = None
    out: Annotated[
        Path | None, Option("Plan file to write, for build-table --plan: plan.json", short="-o")
    ] = None
    force: Force = False
    workspace: Here = field(default_factory=Workspace)

    RULES = (
        Rule(
            lambda request: not 0.0 < request.hit_rate < 1.0,
            "a hit rate of {0.hit_rate}",
            "give a share such as 0.9",
        ),
    )

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the rows per head if a budget decides them."""
        budgets = (given["memory"], given["params"], given["sparse_params"])
        return frozenset(("rows_per_head",) if any(x is not None for x in budgets) else ())
