"""Writes what other programs keep: state dicts, adapters, stores of bare rows, and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from formats.checkpoints import Array, Writer, Written, bfloat16

from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import CompressedVocab

HIDDEN, COPIES = 16, 2


def demo(
    folder: Path,
    vocab: CompressedVocab,
    *,
    layers: Sequence[int] = (1, 15),
    rows_per_head: int | Sequence[int] = (97, 211),
    orders: Sequence[int] = (2, 3),
    prefix: str = "layers.{}.engram.",
    dtype: str = "float32",
    leave_out: str = "",
) -> Written:
    """A state dict of the demo's modules; `leave_out`: the end of names that are missing."""
    layout = hash_layout(
        "engram-v1", vocab, layers=layers, rows_per_head=rows_per_head, orders=orders
    )
    writer, random, rows = Writer(folder=folder), np.random.default_rng(7), {}
    for entry in layout.layers:
        rows[entry.layer] = random.integers(-64, 64, (entry.rows, 8)).astype(np.float32) / 8
        if dtype == "bfloat16":
            rows[entry.layer] = bfloat16(rows[entry.layer])
        shapes: dict[str, tuple[str, Array | None, tuple[int, ...]]] = {
            "multi_head_embedding.embedding.weight": (dtype, rows[entry.layer], ()),
            "multi_head_embedding.offsets": ("int64", np.array(entry.offsets), ()),
            "value_proj.weight": (dtype, None, (HIDDEN, 8 * layout.columns)),
            "value_proj.bias": (dtype, None, (HIDDEN,)),
            "short_conv.conv.weight": (dtype, None, (COPIES * HIDDEN, 1, 4)),
        }
        for copy in range(COPIES):
            shapes[f"key_projs.{copy}.weight"] = (dtype, None, (HIDDEN, 8 * layout.columns))
            shapes[f"key_projs.{copy}.bias"] = (dtype, None, (HIDDEN,))
            for name in ("norm1", "norm2", "short_conv.norms"):
                shapes[f"{name}.{copy}.weight"] = (dtype, None, (HIDDEN,))
        for name, (kind, values, shape) in shapes.items():
            if not (leave_out and name.endswith(leave_out)):
                full = prefix.format(entry.layer) + name
                writer.add("model.safetensors", full, kind, values, *shape)
    path = writer.write({}, index=False)
    (path / "config.json").unlink()
    return Written(path=path, layout=layout, rows=rows, scales={})
