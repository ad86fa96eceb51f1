"""Runs convert for tests, and reads what it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.commands.convert.command import ConvertResult, convert_table
from engram_cli.commands.convert.to import WriteResult, convert
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.rows.source import RowSource


def converted(source: Path, to: str, out: Path, **options: Any) -> WriteResult:
    """Write `source` in another format."""
    result = convert(ConvertRequest(source=source, to=to, out=out, **options))
    assert isinstance(result, WriteResult)
    return result


def table(source: Path, out: Path, **options: Any) -> ConvertResult:
    """Write `source` as a table."""
    return convert_table(ConvertRequest(source=source, to="table", out=out, **options))


def stored(source: RowSource, layer: int, part: str) -> np.ndarray:
    """All rows or scales of a layer, as stored."""
    return source.lines(layer, part, 0, source.layout.layer(layer).rows)
