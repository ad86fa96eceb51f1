"""A LongCat-Flash checkpoint: one table for each order and head, at the model's embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram_cli.errors import InputError
from engram_cli.formats.base import Format
from engram_cli.formats.config_checks import there, token_count, token_id
from engram_cli.formats.model_folder import (
    Check,
    CheckpointRows,
    ModelFolder,
    checkpoint_facts,
    compared,
    config_of,
    count_in,
    eos_in,
    open_folder,
    orders_in,
)
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.source import ROWS

_NAME = re.compile(r"(?:model\.)?ngram_embeddings\.(embedders|post_projs)\.(\d{1,4})\.weight")
_RATIOS = ("ngram_vocab_size_ratio", "oe_vocab_size_ratio")
_KEYS = ("emb_neighbor_num", "emb_split_num", "vocab_size", "hidden_size", "eos_token_id")


def _ratio(config: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return the key and the value of the ratio of rows to token ids."""
    for key in _RATIOS:
        value: Any = config.get(key)
        known = isinstance(value, (int, float)) and not isinstance(value, bool)
        if known and 0 < value < 2**20:
            return key, value
    return None


def _recognise(path: Path) -> Path | None:
    config = config_of(path) if path.is_dir() else None
    return None if config is None or _ratio(config) is None else path


def _open(path: Path, tokenizer: Path | None = None) -> CheckpointRows:
    config = config_of(path)
    ratio = None if config is None else _ratio(config)
    if config is None or ratio is None:
        raise InputError(
            f"{path} has no config with ngram_vocab_size_ratio", "give a checkpoint's folder"
        )
    folder = open_folder(path, config, lambda name: _NAME.fullmatch(name) is not None)
    layout = _layout(config, ratio[1])
    tables, projections = _by_table(folder)
    checks = [
        there([key for key in _KEYS if key not in config], "config keys"),
        token_count(config.get("vocab_size"), tokenizer),
        token_id("EOS token", layout.eos_id, config.get("vocab_size")),
        *folder.file_checks(),
        *_table_checks(folder, layout, tables, projections),
    ]
    numbers = range(layout.columns)
    heights = [folder.tensors[tables[i]].shape[0] for i in numbers if i in tables]
    parts, dtype, dim = {}, None, None
    # A part of the tables would put every later row in another place.
    if heights == list(layout.layers[0].moduli):
        array = folder.array([tables[i] for i in numbers])
        dtype, dim = folder.tensors[tables[0]].dtype, array.tail[0]
        if dtype not in ("bfloat16", "float16", "float32"):
            raise InputError(f"rows of {dtype} are not read", "bfloat16, float16 or float32")
        parts[0, ROWS] = array
    return CheckpointRows(
        format="longcat",
        path=path,
        layout=layout,
        layers=(0,) if parts else (),
        dim=dim,
        dtype=dtype,
        parts=parts,
        dialect=ratio[0],
        folder=folder,
        checks=tuple(checks),
        names={0: tuple(own[index] for own in (tables, projections) for index in sorted(own))},
    )


def _layout(config: Mapping[str, Any], ratio: float) -> HashLayout:
    size = count_in(config, "vocab_size")
    return hash_layout(
        "longcat",
        vocab_size=size,
        eos_id=eos_in(config),
        orders=orders_in(config, "emb_neighbor_num"),
        heads=count_in(config, "emb_split_num"),
        rows_per_head=int(ratio * size),
    )


def _by_table(folder: ModelFolder) -> tuple[dict[int, str], dict[int, str]]:
    """Return the names of the tables, and of their projections, by number."""
    found: dict[str, dict[int, str]] = {"embedders": {}, "post_projs": {}}
    for name in folder.tensors:
        match = _NAME.fullmatch(name)
        assert match is not None
        found[match[1]][int(match[2])] = name
    return found["embedders"], found["post_projs"]


def _table_checks(
    folder: ModelFolder, layout: HashLayout, tables: Mapping[int, str], other: Mapping[int, str]
) -> list[Check]:
    config, columns = folder.config, layout.columns
    hidden = config.get("hidden_size")
    width = hidden // columns if isinstance(hidden, int) else None
    checks = [
        compared("tables", len(tables), columns),
        compared("projections", len(other), columns),
    ]
    kinds = {folder.tensors[name].dtype for name in (*tables.values(), *other.values())}
    told = config.get("torch_dtype", config.get("dtype"))
    known = told if isinstance(told, str) else None
    checks.append(compared("dtypes", ", ".join(sorted(kinds)) or None, known))
    for index, modulus in enumerate(layout.layers[0].moduli):
        if index in other:
            shape = None if width is None else (hidden, width)
            checks.append(
                compared(f"projection {index}: shape", folder.tensors[other[index]].shape, shape)
            )
        if index in tables:
            expected = None if width is None else (modulus, width)
            checks.append(
                compared(f"table {index}: shape", folder.tensors[tables[index]].shape, expected)
            )
        else:
            checks.append(compared(f"table {index}", "missing", "there"))
    return checks


FORMAT = Format(
    name="longcat", recognise=_recognise, open=_open, facts=checkpoint_facts, foreign=True
)
