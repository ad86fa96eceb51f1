"""Draws checks and stored layers as views, for inspect and verify."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from engram_cli.formats.model_folder import Check
from engram_cli.formats.stored_layers import StoredLayer
from engram_cli.view import Column, Table, View, counts

_WORST_FIRST = ("differs", "undecided", "ok")
_MOST_TENSORS = 8  # of a layer, shown


def summary(checks: Sequence[Check]) -> str:
    """Return how many checks there are of each result: 20 ok, 2 undecided."""
    results = [check.result for check in checks]
    return ", ".join(f"{results.count(each)} {each}" for each in _WORST_FIRST if each in results)


def checks_view(checks: Sequence[Check]) -> View:
    """Return the checks, those that differ first."""
    rows = sorted(checks, key=lambda check: _WORST_FIRST.index(check.result))
    return View(
        name="checks",
        title="Checks",
        lead="What the files hold, compared with what follows from config and tokenizer. "
        "Undecided: one side is not known.",
        parts=(
            Table(
                title=f"Checks: {summary(checks)}",
                columns=(
                    Column(name="check", kind="text"),
                    Column(name="result", kind="text", alarm="differs"),
                    Column(name="found", kind="text"),
                    Column(name="expected", kind="text"),
                ),
                rows=tuple((c.name, c.result, c.found, c.expected) for c in rows),
            ),
        ),
    )


def layers_view(layers: Sequence[StoredLayer]) -> View:
    """Return the geometry of each layer, and where its tensors are."""
    columns = (
        *(Column("decoder layer", "text"), Column("in the files", "text")),
        *(Column("orders", "text"), *counts("heads", "rows", "width")),
        *(Column("dtype", "text"), Column("bytes on disk"), Column("a token reads")),
    )
    rows = tuple(
        (
            "embedding" if each.layer is None else f"{each.layer}",
            "-" if each.number is None else f"{each.number}",
            ", ".join(map(str, each.orders)),
            each.heads,
            each.rows,
            each.width,
            each.dtype or "none found",
            each.bytes_on_disk,
            each.bytes_per_token,
        )
        for each in layers
    )
    tensors = [_tensors(each) for each in layers if each.tensors]
    return View(
        name="stored",
        title="Layers",
        lead="The memory of each layer, counted from 0, with the number that the files give it.",
        parts=(Table("Layers", columns, rows), *tensors),
    )


def _tensors(layer: StoredLayer) -> Table:
    """Return where the tensors of a layer are; what their names begin with is in the title."""
    names = [tensor.name for tensor in layer.tensors]
    parts = zip(*(name.split(".") for name in names), strict=False)
    alike = list(takewhile(lambda own: len(set(own)) == 1, parts)) if len(names) > 1 else []
    start = "".join(f"{own[0]}." for own in alike)
    shown = layer.tensors[:_MOST_TENSORS]
    files = sorted({tensor.file.name for tensor in layer.tensors})
    one = len(files) == 1 or files == sorted(names)
    columns = [Column("tensor", "text"), Column("dtype", "text"), Column("shape", "text")]
    columns += [Column("offset")] if one else [Column("file", "text"), Column("offset")]
    rows = tuple(
        (
            *(tensor.name[len(start) :], tensor.dtype),
            " x ".join(f"{size:,}" for size in tensor.shape),
            *(() if one else (tensor.file.name,)),
            tensor.offset,
        )
        for tensor in shown
    )
    label = "the embedding" if layer.layer is None else f"layer {layer.layer}"
    title = f"Tensors {start}*" if start else f"Tensors of {label}"
    rest = len(layer.tensors) - len(shown)
    notes = files if len(files) == 1 else []
    notes += [f"{rest:,} more with --json"] if rest else []
    return Table(title, tuple(columns), rows, note="; ".join(notes))
