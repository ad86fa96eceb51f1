"""The layout that the figures are of."""

from __future__ import annotations

from engram_cli.report.numbers import brief, count, number
from engram_cli.report.sections import Document, Section
from engram_cli.report.tables import table


def layout(document: Document) -> Section | None:
    """Scheme, orders, heads, and the rows of each layer."""
    found = document.get("layout")
    if not found:
        return None
    facts = [
        ("scheme", found["scheme"]),
        ("orders", ", ".join(f"{order}" for order in found["orders"])),
        ("heads of an order", count(found["heads"])),
        ("fold", found["fold"]),
        ("filler id", count(found["filler_id"])),
        ("end-of-text id", "none" if found.get("eos_id") is None else count(found["eos_id"])),
        ("compressed vocabulary", f"{count(found['compressed_size'])} ids"),
        ("vocabulary digest", found.get("vocab_digest") or "none: raw token ids"),
        ("fingerprint", document.get("fingerprint") or "not stated"),
    ]
    rows = [
        (count(entry["layer"]), count(entry["rows"]), count(len(entry["moduli"])),
         brief(min(number(m) for m in entry["moduli"])),
         brief(max(number(m) for m in entry["moduli"])))
        for entry in found["layers"]
    ]  # fmt: skip
    return Section(
        title="The layout",
        lead="Everything that decides which row an n-gram falls on. Equal fingerprints give "
        "equal rows.",
        body=(
            table(("setting", "value"), facts, caption="Settings"),
            table((">layer", ">rows", ">columns", ">least rows of a head", ">most"), rows,
                  caption="Layers"),
        ),
    )  # fmt: skip
