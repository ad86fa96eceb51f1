"""The page of an inspection: its result as a document, drawn by the report."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engram_cli.report.page import write_report
from engram_cli.report.table import TABLE

if TYPE_CHECKING:
    from engram_cli.commands.inspect import InspectResult


def write_page(result: InspectResult, path: Path, *, force: bool) -> None:
    """Draw `result` as one HTML page. Raises OutputError."""
    document = json.loads(json.dumps(asdict(result), default=str))
    document |= {"name": result.path.name}
    for said in ("seconds", "report"):  # the same artifact gives the same page
        del document[said]
    write_report(document, path, force=force, kind=TABLE)
