"""A Qwen4-Exp checkpoint: rows in shards, one after another, with the constants of their hash.

Rows are bfloat16, float8 e4m3 with one scale for the layer, or nvfp4, which is read only.
`ple_layer_ids` counts from one; the tensors' names count from zero. The stored multipliers, sizes
and offsets are what the model was trained with: they are compared with what the config gives, and
looked up by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.base import NO_MODULE, Format
from engram_cli.formats.config_checks import (
    ALL_THERE,
    dead_tokens,
    float8_dtypes,
    there,
    token_count,
    token_id,
)
from engram_cli.formats.model_folder import (
    Check,
    CheckpointRows,
    ModelFolder,
    checkpoint_facts,
    compared,
    config_of,
    count_in,
    counts_in,
    eos_in,
    open_folder,
    orders_in,
)
from engram_cli.formats.qwen_tensors import (
    BLOCK_SCALE,
    MODULE,
    NAME,
    TENSOR_SCALE,
    Layer,
    Nvfp4Rows,
    by_layer,
    dtype_of,
    scale_array,
    tensor_scales,
)
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.source import ROWS, SCALES

_KEYS = (
    "ple_layer_ids",
    "ngram_size",
    "heads_per_ngram",
    "ngram_vocab_size_base",
    "ple_embed_dim",
    "eos_token_id",
    "vocab_size",
)
_CONSTANTS = ("layer_multipliers", "ngram_heads_vocab_sizes", "ngram_heads_offsets")
_SEED = 1234  # of the release, whose config may leave it out


def _ple_config(folder: Path) -> Mapping[str, Any] | None:
    whole = config_of(folder)
    if whole is None:
        return None
    inner = whole.get("text_config")
    if isinstance(inner, Mapping) and "ple_layer_ids" in inner:
        return {**whole, **inner}
    return whole if "ple_layer_ids" in whole else None


def _recognise(path: Path) -> Path | None:
    return path if path.is_dir() and _ple_config(path) is not None else None


def _open(path: Path, tokenizer: Path | None = None) -> CheckpointRows:
    config = _ple_config(path)
    if config is None:
        raise InputError(f"{path} has no config with ple_layer_ids", "give a checkpoint's folder")
    folder = open_folder(path, config, lambda name: NAME.fullmatch(name) is not None)
    layers = by_layer(folder)
    computed = _layout(config)
    checks = [*_config_checks(config, tokenizer), *folder.file_checks()]
    numbers = tuple(sorted(layer + 1 for layer, own in layers.items() if own.rows()))
    checks.append(compared("layers with rows", numbers, tuple(sorted(computed.layer_ids))))
    entries, parts, dtypes, factors = [], {}, set(), {}
    for entry in computed.layers:
        own = layers.get(entry.layer - 1, Layer())
        stored, said = _stored_hash(folder, own, entry)
        entries.append(stored)
        checks += said
        checks += _row_checks(folder, own, entry, config)
        if own.rows():
            dtype = dtype_of(folder, own)
            parts[entry.layer, ROWS] = folder.array(own.rows())
            dtypes.add(dtype)
            scales = scale_array(folder, own, dtype)
            if scales is not None:
                parts[entry.layer, SCALES] = scales
            if dtype == "nvfp4":
                factors[entry.layer] = tensor_scales(folder, own)
    if len(dtypes) > 1:
        raise InputError(f"the layers of {path} have several dtypes", "convert them one by one")
    width = next((array.tail[0] for (_, part), array in parts.items() if part == ROWS), None)
    whole: Callable[..., CheckpointRows] = CheckpointRows
    if factors:
        whole, width = partial(Nvfp4Rows, tensor_scales=factors), 2 * (width or 0)
    return whole(
        format="qwen-ple",
        path=path,
        layout=replace(computed, layers=tuple(entries)),
        layers=tuple(entry.layer for entry in entries if (entry.layer, ROWS) in parts),
        dim=width,
        dtype=next(iter(dtypes), None),
        parts=parts,
        dialect=f"{max((len(each.rows()) for each in layers.values()), default=0)} shards",
        folder=folder,
        checks=tuple(checks),
        names={n + 1: own.names() for n, own in layers.items()},
    )


def _config_checks(config: Mapping[str, Any], tokenizer: Path | None) -> list[Check]:
    """Compare the config with itself, and with a given tokenizer."""
    size, eos = config.get("vocab_size"), config.get("eos_token_id")
    first = eos[0] if isinstance(eos, list) and eos else eos
    return [
        there([key for key in _KEYS if key not in config], "config keys"),
        token_count(size, tokenizer),
        token_id("EOS token", first, size),
        *dead_tokens(config, size),
    ]


def _layout(config: Mapping[str, Any]) -> HashLayout:
    """Return the layout that the config gives."""
    return hash_layout(
        "qwen-ple",
        vocab_size=count_in(config, "vocab_size"),
        eos_id=eos_in(config),
        orders=orders_in(config, "ngram_size"),
        heads=count_in(config, "heads_per_ngram"),
        rows_per_head=count_in(config, "ngram_vocab_size_base"),
        layers=counts_in(config, "ple_layer_ids"),
        seed=count_in({"seed": _SEED, **config}, "seed"),
        divisor=count_in(
            {"make_ngram_vocab_size_divisible_by": 128, **config},
            "make_ngram_vocab_size_divisible_by",
        ),
    )


def _stored_hash(
    folder: ModelFolder, own: Layer, computed: LayerHash
) -> tuple[LayerHash, list[Check]]:
    """Return the hash with the stored constants, where they are there, and how they compare."""
    label = f"layer {computed.layer}"
    computed_constants = (computed.multipliers, computed.moduli, computed.offsets)
    wanted = dict(zip(_CONSTANTS, computed_constants, strict=True))
    found: dict[str, tuple[int, ...] | None] = {}
    for name in _CONSTANTS:
        tensor = folder.tensors[own.others[name]] if name in own.others else None
        if tensor is not None and (tensor.dtype != "int64" or np.prod(tensor.shape) > 4096):
            raise ArtifactError(f"{name} is {tensor.dtype} {tensor.shape}", "take the file again")
        found[name] = None if tensor is None else tuple(tensor.values().reshape(-1).tolist())
    checks = [compared(f"{label}: {name}", found[name], wanted[name]) for name in _CONSTANTS]
    multipliers = found["layer_multipliers"] or computed.multipliers
    moduli = found["ngram_heads_vocab_sizes"] or computed.moduli
    offsets = found["ngram_heads_offsets"]
    if offsets is not None and offsets != tuple(accumulate((0, *moduli[:-1]))):
        raise ArtifactError(
            f"{label}: the stored offsets do not follow from the stored sizes",
            "the file is damaged: take it again",
        )
    return (
        replace(
            computed,
            multipliers=multipliers,
            moduli=moduli,
            rows=max(computed.rows, sum(moduli)),
        ),
        checks,
    )


def _row_checks(
    folder: ModelFolder, own: Layer, computed: LayerHash, config: Mapping[str, Any]
) -> list[Check]:
    label = f"layer {computed.layer}"
    names = own.rows()
    if not names:
        return [compared(f"{label}: rows", "missing", "there")]
    tensors = [folder.tensors[name] for name in names]
    checks = [compared(f"{label}: rows", sum(t.shape[0] for t in tensors), computed.rows)]
    if "weight" in own.shards:
        whole_row = sorted(own.shards["weight"]) == list(range(len(names)))
        numbers = f"0 to {len(names) - 1}"
        found = numbers if whole_row else f"{len(names)} with gaps"
        checks.append(compared(f"{label}: shards", found, numbers))
        parts = config.get("split_ngram_parts")
        checks.append(compared(f"{label}: number of shards", len(names), parts))
    whole, columns = config.get("ple_embed_dim"), _columns(config)
    width = whole // columns if type(whole) is int and columns else None
    height = computed.rows // len(names) if computed.rows % len(names) == 0 else None
    packed = tensors[0].dtype == "uint8"
    stored = None if width is None else width // 2 if packed else width
    expected = None if stored is None or height is None else (height, stored)
    shapes = {tensor.shape for tensor in tensors}
    other = next((shape for shape in sorted(shapes) if shape != expected), None)
    checks.append(compared(f"{label}: rows, shape", other or expected, expected))
    checks.append(compared(f"{label}: shards are equally wide", len({s[1:] for s in shapes}), 1))
    checks += _scale_checks(folder, own, label, config)
    checks.append(_module_check(folder, label, own, width and columns * width))
    return checks


def _scale_checks(
    folder: ModelFolder, own: Layer, label: str, config: Mapping[str, Any]
) -> list[Check]:
    """Compare the scales with the rows, and the dtypes with the quantisation config."""
    rows = folder.tensors[own.rows()[0]]
    scales, numbers = own.of(BLOCK_SCALE), own.of(TENSOR_SCALE)
    dtypes = {"rows": rows.dtype}
    if scales:
        dtypes["scale"] = folder.tensors[scales[0]].dtype
    if rows.dtype != "uint8":
        scaled = "there" if rows.dtype == "float8_e4m3fn" else "none"
        found = "there" if scales else "none"
        return [
            compared(f"{label}: scale", found, scaled),
            float8_dtypes(config, label, dtypes),
        ]
    shapes = {folder.tensors[name].shape for name in scales}
    expected = {
        (*tensor.shape[:1], *(-(-2 * width // 16) for width in tensor.shape[1:]))
        for tensor in (folder.tensors[name] for name in own.rows())
    }
    told = config.get("quantization_config")
    text = str(told).lower() if isinstance(told, Mapping) else None
    said = None if text is None else "nvfp4" if "nvfp4" in text else "another"
    return [
        compared(f"{label}: scale", len(scales), len(own.rows())),
        compared(f"{label}: scale, shape", max(shapes, default=None), max(expected)),
        compared(f"{label}: scale of each tensor", len(numbers) in (1, len(scales)), True),
        compared(f"{label}: dtypes", "nvfp4", said),
    ]


def _columns(config: Mapping[str, Any]) -> int:
    """Return the rows that a token reads of a layer."""
    return len(orders_in(config, "ngram_size")) * count_in(config, "heads_per_ngram")


def _module_check(folder: ModelFolder, label: str, own: Layer, width: int | None) -> Check:
    """Say which tensors next to the rows lack; undecided where none is there, as in rows alone."""
    name = f"{label}: module"
    names = [f"{part}.weight" for part in MODULE]
    lost = [part for part in names if part not in own.others]
    if len(lost) == len(names):
        return Check(name=name, result="undecided", found="rows alone", expected=ALL_THERE)
    for part in ("key_proj.weight", "value_proj.weight"):
        shape = () if part in lost else folder.tensors[own.others[part]].shape
        if part not in lost and (len(shape) != 2 or (width is not None and shape[1] != width)):
            return compared(f"{name}, shape of {part}", shape, (*shape[:1], width))
    found = f"{NO_MODULE}: {', '.join(lost)}" if lost else ALL_THERE
    return compared(name, found, ALL_THERE)


FORMAT = Format(
    name="qwen-ple", recognise=_recognise, open=_open, facts=checkpoint_facts, foreign=True
)
