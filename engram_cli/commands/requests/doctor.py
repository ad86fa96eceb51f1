"""The request of doctor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engram_cli.commands.requests.options import WORKSPACE, Option, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorRequest(Request):
    """What to look at besides the machine.

    `paths`: tables and bundles, whose rows each placement could hold, and folders, whose disks are
    measured; without any on this machine, the current folder. `disk`: measure random reads.
    """

    paths: Annotated[
        tuple[Path, ...],
        Option(
            "Tables, bundles or checkpoints with tables, to see which placements hold their rows: "
            "paths, org/name of the Hugging Face Hub, or addresses. Folders, to measure their "
            "disks (the current folder).",
            argument=True,
            reads="ranges",
        ),
    ] = ()
    disk: Annotated[
        bool,
        Option("Measure random reads for a second; writes 64 MiB where there is no file to read."),
    ] = True
    folder: Annotated[Path, WORKSPACE] = Path()
