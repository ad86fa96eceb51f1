"""A DeepSeek-V4.1 checkpoint: rows of float8 e4m3 with an e8m0 scale for every 32 values.

The config's engram_* keys lie under `text_config`, or at the top as in inference/config.json,
where the pad token's key has another name. The files hold neither moduli nor multipliers nor a
token map: these follow from config and tokenizer. Other layer numbers and sizes are read too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engram_cli.errors import InputError
from engram_cli.files import read_json
from engram_cli.formats.base import NO_MODULE, Format
from engram_cli.formats.config_checks import dead_tokens, float8_dtypes, there, token_id
from engram_cli.formats.model_folder import (
    CONFIG,
    Check,
    CheckpointRows,
    FolderTokenizer,
    ModelFolder,
    bare_map,
    checkpoint_facts,
    compared,
    config_of,
    count_in,
    counts_in,
    open_folder,
    orders_in,
)
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY, HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.source import ROWS, SCALES
from engram_cli.vocab.lookup import VocabMap

# vLLM renames the scales, and puts "model." before every name.
_NAME = re.compile(
    r"(?:model\.)?layers\.(\d{1,5})\.engram\."
    r"(?:(embed|embed_tokens)\.(weight|scale|weight_scale_inv)|wkv\.(weight|scale)|[qk]_weight)"
)
_BLOCK = 32  # values of a row that share a scale
_KEYS = (
    "engram_layer_ids",
    "engram_num_embeddings",
    "engram_max_ngram_size",
    "engram_vocab_size",
    "engram_n_heads",
    "engram_head_dim",
    "engram_compressed_vocab_size",
)
_PAD = ("engram_pad_token_id", "engram_pad_id")
# The tensors next to the rows of a layer.
PROJECTIONS = ("wkv.weight", "wkv.scale", "q_weight", "k_weight")


def _engram_config(folder: Path) -> tuple[Mapping[str, Any], str] | None:
    """Return the mapping that has the engram_* keys, and where it is."""
    whole = config_of(folder)
    if whole is not None:
        inner = whole.get("text_config")
        if isinstance(inner, Mapping) and "engram_layer_ids" in inner:
            return {**whole, **inner}, "text_config"
        if "engram_layer_ids" in whole:
            return whole, "flat"
    try:
        flat = read_json(folder / "inference" / CONFIG, "a config")
    except Exception:  # not there, or no config
        return None
    return (flat, "flat, inference/") if "engram_layer_ids" in flat else None


def _recognise(path: Path) -> Path | None:
    if not path.is_dir() or _engram_config(path) is None:
        return None
    return path


def _open(path: Path, tokenizer: Path | None = None) -> CheckpointRows:
    found = _engram_config(path)
    if found is None:
        raise InputError(
            f"{path} has no config with engram_layer_ids", "give a checkpoint's folder"
        )
    config, dialect = found
    folder = open_folder(path, config, lambda name: _NAME.fullmatch(name) is not None)
    vocab = FolderTokenizer(folder=path, given=tokenizer).vocab()
    layout = _layout(config, vocab)
    names = layer_tensors(folder)
    parts, kinds = {}, set()
    for layer in layout.layer_ids:
        own = names.get(layer, {})
        if "rows" in own:
            rows = folder.array([own["rows"]])
            scales = folder.array([own["scales"]]) if "scales" in own else None
            expected = (rows.rows, -(-rows.tail[0] // _BLOCK))
            if scales is not None and (scales.rows, *scales.tail) != expected:
                continue  # no row could be read: a check says which shape is expected
            parts[layer, ROWS] = rows
            kinds.add((_dtype(folder, own), rows.tail[0]))
            if scales is not None:
                parts[layer, SCALES] = scales
    if len(kinds) > 1:
        raise InputError(f"the layers of {path} differ in dtype or width", "check the files")
    dtype, dim = kinds.pop() if kinds else (None, None)
    return CheckpointRows(
        format="deepseek-v4.1",
        path=path,
        layout=layout,
        layers=tuple(layer for layer in layout.layer_ids if (layer, ROWS) in parts),
        dim=dim,
        dtype=dtype,
        parts=parts,
        dialect=dialect,
        folder=folder,
        names={layer: tuple(own.values()) for layer, own in names.items()},
        checks=(
            *_config_checks(config, vocab),
            *folder.file_checks(),
            compared("layers with rows", tuple(sorted(names)), tuple(sorted(layout.layer_ids))),
            *(c for layer in layout.layer_ids for c in _layer_checks(folder, layout, layer, names)),
        ),
    )


def layer_tensors(folder: ModelFolder) -> dict[int, dict[str, str]]:
    """Return the names of each layer's tensors by what they are: "rows", "scales", "wkv", ..."""
    found: dict[int, dict[str, str]] = {}
    for name in folder.tensors:
        match = _NAME.fullmatch(name)
        assert match is not None
        layer, embed, kind, _ = match.groups()
        if embed is not None:
            part = "rows" if kind == "weight" else "scales"
        else:
            part = name.rpartition("engram.")[2]
        found.setdefault(int(layer), {})[part] = name
    return found


def _dtype(folder: ModelFolder, names: Mapping[str, str]) -> str:
    """Return the dtype of stored rows. Raises InputError for a pair that is not read."""
    rows = folder.tensors[names["rows"]].dtype
    if "scales" not in names and rows in ("float32", "float16", "bfloat16"):
        return rows
    scales = folder.tensors[names["scales"]].dtype if "scales" in names else "none"
    if (rows, scales) == ("float8_e4m3fn", "float8_e8m0fnu"):
        return "fp8_e8m0"
    raise InputError(
        f"rows of {rows} with scales of {scales} are not read",
        "float8_e4m3fn with float8_e8m0fnu, or plain floats",
    )


def _layout(config: Mapping[str, Any], vocab: VocabMap | None) -> HashLayout:
    """Return the layout that config and tokenizer give; without a tokenizer it hashes nothing."""
    size = count_in(config, "engram_compressed_vocab_size") if vocab is None else vocab.size
    pad = _pad(config)
    if pad is None:
        raise InputError("the config has no engram_pad_token_id", "add it: the model card has it")
    layout = hash_layout(
        "deepseek-v4.1",
        bare_map(size) if vocab is None else vocab,
        orders=orders_in(config, "engram_max_ngram_size"),
        heads=count_in(config, "engram_n_heads"),
        rows_per_head=count_in(config, "engram_vocab_size"),
        layers=counts_in(config, "engram_layer_ids"),
        pad_id=0 if vocab is None else pad,
    )
    if vocab is not None:
        return layout
    return replace(layout, lookup=None, vocab_digest=UNKNOWN_VOCABULARY)


def _pad(config: Mapping[str, Any]) -> int | None:
    return next((count_in(config, key) for key in _PAD if key in config), None)


def _config_checks(config: Mapping[str, Any], vocab: VocabMap | None) -> list[Check]:
    """Compare the config with itself and with the tokenizer."""
    missing = [key for key in _KEYS if key not in config]
    missing += [] if any(key in config for key in _PAD) else [_PAD[0]]
    size, ids = config.get("engram_compressed_vocab_size"), config.get("vocab_size")
    return [
        there(missing, "config keys"),
        compared("compressed size", size, vocab.size if vocab is not None else None),
        compared("token ids", ids, vocab.vocab_size if vocab else None),
        token_id("pad token", _pad(config), ids, vocab),
        *dead_tokens(config, ids, vocab),
    ]


def _layer_checks(
    folder: ModelFolder, layout: HashLayout, layer: int, names: Mapping[int, Mapping[str, str]]
) -> list[Check]:
    """Compare the tensors of a layer with the config, and with the layout it gives."""
    config, own, label = folder.config, names.get(layer, {}), f"layer {layer}"
    rows, entry = layout.layer(layer).rows, layout.layer(layer)
    layers, heights = (
        counts_in(config, key) for key in ("engram_layer_ids", "engram_num_embeddings")
    )
    told = dict(zip(layers, heights, strict=False))
    checks = [compared(f"{label}: rows of the config", told.get(layer), rows)]
    quantised = isinstance(config.get("quantization_config"), Mapping)
    wkv = own.get("wkv.weight")
    narrow = wkv is not None and folder.tensors[wkv].dtype.startswith("float8")
    for part, shape in _shapes(config, layout, layer).items():
        if part in own:
            tensor = folder.tensors[own[part]]
            checks.append(compared(f"{label}: {part}, shape", tensor.shape, shape))
        else:
            is_needed = quantised if part == "scales" else part != "wkv.scale" or narrow
            missing = NO_MODULE if part in PROJECTIONS else "missing"
            found = missing if is_needed else "none"
            checks.append(compared(f"{label}: {part}", found, "there" if is_needed else "none"))
    dtypes = {
        part: folder.tensors[own[part]].dtype
        for part in ("rows", "scales", "wkv.weight", "wkv.scale")
        if part in own
    }
    if dtypes:
        checks.append(float8_dtypes(config, label, dtypes))
    # Moduli and offsets are in no file either: the number of rows is the sum of the moduli.
    checks.append(
        Check(
            name=f"{label}: multipliers",
            result="undecided",
            found="not in the files",
            expected=", ".join(map(str, entry.multipliers)),
        )
    )
    return checks


def _shapes(
    config: Mapping[str, Any], layout: HashLayout, layer: int
) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of each tensor of a layer by the config; None where it does not say."""
    dim, rows = count_in(config, "engram_head_dim"), layout.layer(layer).rows
    width, hidden = layout.columns * dim, config.get("hidden_size")
    streams = config.get("hc_mult", config.get("hyper_connection_size"))
    heads = (streams, hidden) if type(streams) is int and type(hidden) is int else None
    projection = None if heads is None else (heads[0] * heads[1] + heads[1], width)
    quantised = config.get("quantization_config")
    block = quantised.get("weight_block_size") if isinstance(quantised, Mapping) else None
    known = isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)
    scales = None
    if known and isinstance(block, list) and projection is not None and min(block) > 0:
        scales = (-(-projection[0] // block[0]), -(-projection[1] // block[1]))
    return {
        "rows": (rows, dim),
        "scales": (rows, -(-dim // _BLOCK)),
        "wkv.weight": projection,
        "wkv.scale": scales,
        "q_weight": heads,
        "k_weight": heads,
    }


FORMAT = Format(
    name="deepseek-v4.1",
    recognise=_recognise,
    open=_open,
    facts=checkpoint_facts,
    foreign=True,
)
