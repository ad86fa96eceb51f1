"""The sections of a page about an artifact that was inspected: one file each, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engram_cli.registry import Registry
from engram_cli.report.page import Facts, PageKind
from engram_cli.report.sections import Maker

TABLE_SECTIONS: Registry[Maker] = Registry(
    "report section",
    {
        "digests": "engram_cli.report.table.about:digests",
        "probe": "engram_cli.report.table.probe:probe",
        "norms": "engram_cli.report.table.norms:norms",
        "rows-used": "engram_cli.report.table.heads:rows_used",
        "hottest": "engram_cli.report.table.hottest:hottest",
        "duplicates": "engram_cli.report.table.duplicates:duplicates",
        "heads": "engram_cli.report.table.heads:heads",
    },
)


def _facts(document: Mapping[str, Any]) -> Facts:
    size = f"{document['stored_bytes']:,} bytes in {document['files']:,} files"
    return [*((str(name).capitalize(), str(value)) for name, value in document["facts"]),
            ("On disk", size)]  # fmt: skip


TABLE = PageKind(
    kicker="Engram · inspection",
    heading="What this artifact holds",
    sections=TABLE_SECTIONS,
    title=lambda document: f"Engram {document['kind']}: {document['name']}",
    facts=_facts,
    remake="inspect it again",
)
