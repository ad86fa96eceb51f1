"""report: a statistics folder becomes a page; what is not one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engram_cli.commands.report import ReportRequest, report
from engram_cli.errors import InputError, OutputError


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        report(ReportRequest(stats=tmp_path / "none", out=tmp_path / "report.html"))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_page_is_refused_first(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    with pytest.raises(OutputError):
        report(ReportRequest(stats=tmp_path / "none", out=page))
    assert page.read_text() == "mine"
