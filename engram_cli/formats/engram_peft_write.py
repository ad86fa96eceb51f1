"""Writes rows as an adapter of engram-peft: its config, and its safetensors file.

The package stores no multipliers, primes or token map: it computes them from its config and the
tokenizer. So a layout is held only if the config gives every constant of it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import EngramError, InputError
from engram_cli.files import read_json
from engram_cli.formats.base import Target, WriteOptions, Written
from engram_cli.formats.bundle_rows import BundleRows
from engram_cli.formats.demo_write import layer_tensors
from engram_cli.formats.engram_peft import ADAPTER, FORMAT
from engram_cli.formats.model_folder import CONFIG, CheckpointRows, bare_map, config_of
from engram_cli.formats.row_files import grown_files, prepare_rows, put_folder
from engram_cli.formats.state_dict import (
    FLOATS,
    WRITTEN_BY,
    module_tensors,
    require_rows,
    state_dict_file,
)
from engram_cli.hashing.layout import BASE_VOCABULARY, UNKNOWN_VOCABULARY, HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.outputs import Kind, Listing
from engram_cli.rows.source import RowSource
from engram_cli.rows.stored_as import require_same_rows
from engram_cli.rows.views import origin

_SCHEME = "engram-peft"
_COPIES, _KERNEL = 4, 4  # what the package takes where nobody says


def _write(source: RowSource, out: Path, options: WriteOptions) -> Written:
    layout = require_rows(source, _SCHEME, "an adapter of engram-peft")
    checkpoint = origin(source)
    if checkpoint.format == _SCHEME and isinstance(checkpoint, CheckpointRows):
        config = {**checkpoint.folder.config, "target_layers": list(layout.layer_ids), **WRITTEN_BY}
    else:
        config = _config(source, layout, _hidden_size(checkpoint, options.patch))
    _require_same_hash(source, layout, config)
    tensors = layer_tensors(source, _SCHEME, "{}.")
    plan = state_dict_file(ADAPTER, tensors, {"format": _SCHEME, **WRITTEN_BY}, source)
    notes = []
    if not any(module_tensors(source, _SCHEME).values()):
        notes.append("gates and convolutions are not in the source: engram-peft draws new ones")
    done = Written(files=(ADAPTER, CONFIG), size=plan.size, notes=tuple(notes))
    if options.check:
        return done
    prepare_rows(out, ADAPTER_FOLDER, options, (source.path,))
    with grown_files(out, replace(plan, small=(CONFIG,)), options) as grown:
        text = json.dumps(config, indent=2) + "\n"
        (grown.folder / CONFIG).write_text(text, encoding="utf-8")
        if options.verify:
            require_same_rows(
                source, FORMAT.open(grown.folder, options.tokenizer), plan.dtype,
                threads=options.threads, progress=options.progress,
            )  # fmt: skip
        put_folder(grown.folder, out, ADAPTER_FOLDER, options, done.files)
    return replace(done, verified=options.verify)


def _config(source: RowSource, layout: HashLayout, hidden: int) -> dict[str, Any]:
    """Return the config for rows that were in no adapter. Raises InputError for another map."""
    base, size = _vocabulary(source, layout)
    pad = layout.parameters.get("pad_id")
    lookup = layout.lookup
    if lookup is not None and (type(pad) is not int or not 0 <= pad < len(lookup)
                               or lookup[pad] != layout.filler_id):  # fmt: skip
        pad = int(np.argmax(lookup == layout.filler_id))
    firsts = layout.layers[0].moduli[:: layout.heads]
    gates: dict[str, Any] = next(iter(module_tensors(source, _SCHEME).values()), {})
    conv = gates.get("short_conv.conv.weight")
    return {
        "model_type": "engram",
        "engram_vocab_size_per_ngram": [first * layout.heads for first in firsts],
        "ngram_sizes": list(layout.orders),
        "max_ngram_size": layout.max_order,
        "n_head_per_ngram": layout.heads,
        "embedding_dim": layout.columns * (source.dim or 0),
        "enable_tokenizer_compression": base > 0,
        "target_layers": list(layout.layer_ids),
        "hidden_size": hidden,
        "hc_mult": sum(name.startswith("gating.w_k.") for name in gates) or _COPIES,
        "conv_kernel_size": _KERNEL if conv is None else conv.shape[-1],
        "conv_dilation": layout.max_order,
        "compressed_vocab_size": size,
        "pad_id": pad,
        "seed": layout.parameters.get("seed", 0),
        "engine": "deepseek",
        "table_spec": None,
        **WRITTEN_BY,
    }


def _vocabulary(source: RowSource, layout: HashLayout) -> tuple[int, int]:
    """Return how many ids are compressed, and to how many; 0 where all are hashed as they are.

    Raises InputError for a map that the package does not make.
    """
    lookup, base = layout.lookup, layout.parameters.get(BASE_VOCABULARY)
    if layout.vocab_digest == UNKNOWN_VOCABULARY or (lookup is None and base is None):
        raise InputError(
            f"{source.path} has no token map, so that no token finds its row",
            "give the model's tokenizer with --tokenizer",
        )
    if lookup is None:
        return 0, layout.compressed_size
    ids = np.arange(len(lookup))
    if np.array_equal(lookup, ids):
        return 0, len(lookup)
    if base is None:
        base = len(lookup)
    if not (0 < base <= len(lookup) and np.array_equal(lookup[base:], ids[base:])):
        raise InputError(
            f"{source.path} compresses ids in a way that engram-peft does not",
            "build the table from the base vocabulary of the tokenizer",
        )
    return base, int(lookup[:base].max()) + 1


def _hidden_size(checkpoint: RowSource, model: Path | None) -> int:
    """Return the width of the model that the adapter is for. Raises InputError if nobody says."""
    if isinstance(checkpoint, BundleRows):
        return checkpoint.bundle.spec.hidden_size
    config = {} if model is None else config_of(model) or {}
    text = config.get("text_config")
    found = (text if isinstance(text, Mapping) else config).get("hidden_size")
    if type(found) is not int or not 0 < found < 2**31:
        raise InputError(
            "an adapter needs the hidden size of its model"
            if model is None
            else f"{model} has no config.json with hidden_size",
            "name the model's folder with --patch MODEL",
        )
    return found


def _require_same_hash(source: RowSource, layout: HashLayout, config: Mapping[str, Any]) -> None:
    """Raise InputError unless the package computes the same primes and multipliers."""
    heads = config["n_head_per_ngram"]
    computed = hash_layout(
        _SCHEME,
        bare_map(config["compressed_vocab_size"]),
        orders=config["ngram_sizes"],
        heads=heads,
        rows_per_head=[size // heads for size in config["engram_vocab_size_per_ngram"]],
        layers=config["target_layers"],
        pad_id=0,
        seed=config.get("seed", 0),
    )
    for ours, theirs in zip(layout.layers, computed.layers, strict=True):
        for what in ("moduli", "multipliers"):
            if getattr(ours, what) != getattr(theirs, what):
                raise InputError(
                    f"{source.path}: engram-peft computes other {what} for layer {ours.layer}",
                    "give all layers of the layout, and a table of --scheme engram-peft",
                )


def _listing(path: Path) -> Listing | None:
    try:
        config = read_json(path / CONFIG, "a config")
    except EngramError:
        return None
    own = config.get("written_by") == WRITTEN_BY["written_by"]
    return Listing(frozenset((CONFIG, ADAPTER))) if own else None


ADAPTER_FOLDER = Kind(name="adapter of engram-peft", listing=_listing)
TARGET = Target(write=_write, dtypes=FLOATS)
