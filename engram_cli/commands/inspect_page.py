"""The page of an inspection: its result as a document, drawn by the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram_cli.report.page import write_report
from engram_cli.report.table import TABLE


def write_page(result: Mapping[str, Any], name: str, path: Path, *, force: bool) -> None:
    """Draw what was found of the artifact `name` as one HTML page. Raises OutputError."""
    document = json.loads(json.dumps(result, default=str)) | {"name": name}
    for said in ("seconds", "report"):  # the same artifact gives the same page
        del document[said]
    write_report(document, path, force=force, kind=TABLE)
