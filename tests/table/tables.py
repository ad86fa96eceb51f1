"""Small tables: a layout with a vocabulary map, one without, and what is built from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import BuildReport, build_store
from engram_cli.table.grid import content_digest
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import TableStore

LAYERS = (0, 3)


def mapped_layout() -> HashLayout:
    """Two layers of 4 x 53 rows, with a lookup of 40 ids."""
    sizes: dict[str, Any] = {"rows_per_head": 53, "heads": 2}
    return hash_layout("tutorial", vocab_size=40, layers=LAYERS, **sizes)


def raw_layout() -> HashLayout:
    """A layer of four heads padded to 128 rows more, without a lookup."""
    return hash_layout("qwen-ple", vocab_size=90, eos_id=1, rows_per_head=50, heads=2)


def table_spec(layout: HashLayout | None = None, **options: Any) -> TableSpec:
    """A float32 table of 5 values a row, normal, in chunks of 32 rows."""
    names = {"init", "std", "seed"} & set(options)
    init = {name: options.pop(name) for name in names}
    made = make_init(init.pop("init", "normal"), **init)
    defaults: dict[str, Any] = {"dim": 5, "dtype": "float32", "chunk_rows": 32}
    return TableSpec(layout=layout or mapped_layout(), init=made, **defaults | options)


def counted(layer: int) -> np.ndarray:
    """Hits that no other layer or row has."""
    return (np.arange(mapped_layout().layer(layer).rows) * 7 + layer).astype(np.uint32)


def build(out: Path, layout: HashLayout | None = None, **options: Any) -> BuildReport:
    """Build such a table at `out`."""
    names = {"force", "threads", "progress"} & set(options)
    how = {name: options.pop(name) for name in names}
    return build_store(table_spec(layout, **options), out, hits=counted, **how)


def stored_rows(table: TableStore, layer: int | None = None) -> bytes:
    """All rows of a layer as they are stored."""
    return b"".join(rows.tobytes() for _, rows in table.chunks(layer))


def tamper(path: Path, edit: Callable[[dict[str, Any]], None], *, signed: bool = True) -> None:
    """Change a table's attributes; `signed`: as one would who knows how the digest is made."""
    document = json.loads((path / "zarr.json").read_bytes())
    edit(document["attributes"])
    if signed:
        document["attributes"]["digest"] = content_digest(document["attributes"])
    (path / "zarr.json").write_text(json.dumps(document))
