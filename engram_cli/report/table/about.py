"""Digests, and what they must be those of."""

from __future__ import annotations

from engram_cli.report.markup import tag
from engram_cli.report.sections import Document, Section
from engram_cli.report.sections.columns import entries
from engram_cli.report.tables import table

_SAID = {True: "yes", False: "no", None: "not at hand"}


def digests(document: Document) -> Section | None:
    """A line a digest."""
    found = entries(document, "digests")
    if not found:
        return None
    rows = [
        (entry["name"], tag("code", entry["value"], class_="digest"), entry["must_match"],
         _SAID[entry["matches"]])
        for entry in found
    ]  # fmt: skip
    return Section(
        title="Digests",
        lead="Artifacts go together only where these are equal: equal sizes are not equal maps.",
        body=(table(("of", "digest", "must be that of", "is it"), rows, caption="Digests"),),
    )
