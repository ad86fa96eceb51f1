"""Writes the rows of a qwen-ple layer as an EngramDB Store-I: shards without headers, and a bundle.

EngramDB's own bundle reader decodes float8 under one scale. Shards of plain floats are read by its
`Store`, whose callers name the dtype; `ple.dtype` says it to engram.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from engram_cli.errors import EngramError, InputError
from engram_cli.files import read_json
from engram_cli.formats.base import Target, WriteOptions, Written
from engram_cli.formats.engramdb import BUNDLE, DIVISOR, FORMAT, SCHEMA
from engram_cli.formats.row_files import grown_files, prepare_rows, put_folder
from engram_cli.formats.row_plan import NewFile, Place, RowFiles, require_rows
from engram_cli.hashing.layout import INT64, HashLayout, LayerHash
from engram_cli.hashing.schemes.qwen_ple import multipliers
from engram_cli.outputs import Kind, Listing
from engram_cli.rows import DTYPES
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.stored_as import require_same_rows

_WRITTEN_BY = "engram-tables"
_MOST_LAYERS = 256
_MOST_SHARDS = 128  # those of the release
_LEAST_SHARD = 2**26  # bytes


def _require_store(source: RowSource) -> LayerHash:
    """Return the layer to write. Raises InputError for what a store cannot hold."""
    layout = source.layout
    if layout.scheme != "qwen-ple":
        raise InputError(
            f"{source.path} is hashed by {layout.scheme}, and EngramDB's bundle by qwen-ple",
            "convert a table or a checkpoint of Qwen4-Exp",
        )
    require_rows(source, "a store")
    if len(source.layers) != 1:
        raise InputError(
            f"{source.path} has rows of {len(source.layers)} layers, and a store holds one",
            "choose it with --layers",
        )
    entry = layout.layers[0]
    if max(entry.multipliers) * (layout.compressed_size - 1) >= INT64:
        raise InputError(
            f"{source.path}: token x multiplier passes 2^63, where EngramDB's two hashers differ",
            "build the table with the multipliers of its vocabulary",
        )
    if entry.rows > _padded(entry):
        raise InputError(
            f"{source.path} has {entry.rows:,} rows, and EngramDB pads {sum(entry.moduli):,} to "
            f"{_padded(entry):,}",
            f"build the table with a divisor of {DIVISOR}",
        )
    return entry


def _padded(entry: LayerHash) -> int:
    return -(-sum(entry.moduli) // DIVISOR) * DIVISOR


def _write(source: RowSource, out: Path, options: WriteOptions) -> Written:
    entry = _require_store(source)
    width, rows = DTYPES.load(source.dtype or "").row_bytes(source.dim or 0), _padded(entry)
    shards = _MOST_SHARDS
    while shards > 1 and rows // shards * width < _LEAST_SHARD:
        shards //= 2
    height = rows // shards
    names = [f"shard_{index:03d}.bin" for index in range(shards)]
    plan = RowFiles(
        source=source,
        dtype=source.dtype or "",
        # Rows behind the source's last one are holes, which are zeros.
        files=tuple(NewFile(name=name, size=height * width) for name in names),
        places=tuple(
            Place(file=name, layer=entry.layer, part=ROWS, begin=0, first=first,
                  rows=min(height, entry.rows - first), width=width)
            for name, first in zip(names, range(0, rows, height), strict=True)
            if first < entry.rows
        ),
        small=(BUNDLE,),
    )  # fmt: skip
    done = Written(
        dialect="Store-I", files=(*names, BUNDLE), size=plan.size, notes=_notes(source.dtype)
    )
    if options.check:
        return done
    prepare_rows(out, STORE, options, (source.path,))
    with grown_files(out, plan, options) as grown:
        bundle = _bundle(source, entry, out.name, shards, height, width)
        (grown.folder / BUNDLE).write_text(json.dumps(bundle, indent=2) + "\n", encoding="utf-8")
        if options.verify:
            require_same_rows(
                source, FORMAT.open(grown.folder, None), plan.dtype, threads=options.threads,
                progress=options.progress,
            )  # fmt: skip
        put_folder(grown.folder, out, STORE, options, done.files)
    return replace(done, verified=options.verify)


def _notes(dtype: str | None) -> tuple[str, ...]:
    if dtype == "fp8":
        return ()
    return (f"EngramDB's bundle reader decodes float8 alone: give {dtype} to what reads the Store",)


def _bundle(
    source: RowSource, entry: LayerHash, name: str, shards: int, height: int, width: int
) -> dict[str, Any]:
    layout, dim = source.layout, source.dim or 0
    ple: dict[str, Any] = {
        "ple_embed_dim": layout.columns * dim,
        "head_dim": dim,
        "num_heads": layout.columns,
        "ngram_size": layout.max_order,
        "heads_per_ngram": layout.heads,
        "eos": layout.eos_id,
        "vocab_size": layout.compressed_size,
        "ple_layer_ids": [entry.layer],
        "ple_layer_index": _place(layout),
        "seed": _seed(layout),
        "multipliers": list(entry.multipliers),
        "prime_sizes": list(entry.moduli),
        "offsets": list(accumulate((0, *entry.moduli[:-1]))),
    }
    if source.dtype == "fp8":
        ple["scale"] = float(source.lines(entry.layer, SCALES, 0, 1)[0])
    else:
        ple["dtype"] = source.dtype
    store = {"path": ".", "shards": shards, "rows_per_shard": height, "width": width}
    return {
        "schema": SCHEMA,
        "id": name,
        "written_by": _WRITTEN_BY,
        "memory": {"type": "store", "store": store},
        "ple": ple,
    }


def _seed(layout: HashLayout) -> int:
    return int(layout.parameters.get("seed", 1234))


def _place(layout: HashLayout) -> int:
    """Return the place among the model's layers for which the multipliers were drawn."""
    wanted, seed = layout.layers[0].multipliers, _seed(layout)
    for index in range(_MOST_LAYERS):
        if multipliers(layout.compressed_size, layout.max_order, index, seed) == wanted:
            return index
    return 0


def _listing(path: Path) -> Listing | None:
    try:
        said = read_json(path / BUNDLE, "a bundle of EngramDB")
        if said.get("written_by") != _WRITTEN_BY:
            return None
        shards = said["memory"]["store"]["shards"]
    except (EngramError, KeyError, TypeError):
        return None
    if type(shards) is not int or not 0 < shards <= _MOST_SHARDS:
        return None
    return Listing(frozenset((BUNDLE, *(f"shard_{index:03d}.bin" for index in range(shards)))))


STORE = Kind(name="store of EngramDB", listing=_listing)
TARGET = Target(write=_write, dtypes=("fp8", "float32", "float16", "bfloat16"))
