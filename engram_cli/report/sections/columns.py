"""What several sections ask of a document: its orders, its layers, the color of an order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from engram_cli.report.sections import Document

Entry = dict[str, Any]


def entries(document: Document, key: str) -> list[Entry]:
    """The objects listed under `key`; none when it is absent. Raises TypeError."""
    found = document.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise TypeError(f"'{key}' is no list of objects")
    return found


def by(found: Iterable[Entry], key: str) -> dict[Any, list[Entry]]:
    """Entries by one of their values, in the order in which the values come."""
    groups: dict[Any, list[Entry]] = {}
    for entry in found:
        groups.setdefault(entry[key], []).append(entry)
    return groups


def order_name(order: Any) -> str:
    """ "2-grams"."""
    return f"{int(order)}-grams"


def color_of(order: Any) -> int:
    """The color of an order: the same in every figure."""
    return max(int(order) - 2, 0) if int(order) != 1 else 7


def layer_suffix(layers: Sequence[Any], layer: Any) -> str:
    """Which layer a figure shows, when there are several."""
    return f", layer {int(layer)}" if len(layers) > 1 else ""


def column_rows(document: Document, layer: Any, order: Any) -> list[float]:
    """The rows of each head of an order of a layer."""
    return [
        float(entry["rows"])
        for entry in entries(document, "columns")
        if entry["layer"] == layer and entry["order"] == order
    ]
