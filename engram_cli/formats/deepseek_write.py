"""Writes the Engram part of a DeepSeek-V4.1 checkpoint: a file a layer, the index, both configs.

With a release to fit into (`--patch`), its files with other rows instead. What the source does not
have, such as the projections next to the rows, is named and left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engram_cli.errors import ArtifactError, MismatchError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Target, WriteOptions, Written
from engram_cli.formats.deepseek_patch import write_patch
from engram_cli.formats.deepseek_v41 import PROJECTIONS, layer_tensors
from engram_cli.formats.model_folder import CONFIG, CheckpointRows, FoundTensor
from engram_cli.formats.model_writer import (
    CONVERTED,
    MARKER,
    TOKENIZER,
    as_json,
    config_before,
    index_of,
    put_checkpoint,
    same_scheme,
    tensor_file,
    tokenizer_bytes,
    verify_copies,
)
from engram_cli.formats.row264 import BLOCK, DTYPE
from engram_cli.formats.row_files import grown_files, prepare_rows
from engram_cli.formats.row_plan import Place, RowFiles, require_map, require_rows
from engram_cli.rows import DTYPES
from engram_cli.rows.copying import Extent
from engram_cli.rows.safetensors import INDEX, TensorSpec
from engram_cli.rows.source import ROWS, SCALES, RowSource
from engram_cli.rows.stored_as import kept_dtype, require_same_rows
from engram_cli.rows.views import origin

NAME = "deepseek-v4.1"
_DTYPES = (DTYPE, "bfloat16", "float16", "float32")
_FLAT = "inference/config.json"
_QUANTISED = {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}


def write_deepseek(source: RowSource, out: Path, options: WriteOptions) -> Written:
    """Write the Engram part of a checkpoint, or the files of `options.patch` that hold rows.

    Raises InputError for rows that it cannot hold, MismatchError for another hash than the config
    gives, OutputError, ArtifactError.
    """
    if options.patch is not None:
        return write_patch(source, out, options.patch, options)
    require_rows(source, NAME)
    require_map(source)
    dtype, dim = kept_dtype(source.dtype or "") or "", source.dim or 0
    if source.layout.lookup is None:
        raise MismatchError(
            f"{source.path} hashes token ids as they are, and {NAME} compressed ones",
            "convert it to qwen-ple or to a table",
        )
    if dtype == DTYPE and dim % BLOCK:
        raise MismatchError(
            f"{source.path} has {dim} values a row, and {NAME} needs blocks of {BLOCK}",
            "give --dtype bfloat16",
        )
    asked = same_scheme(source, NAME, NAME)
    tokenizer = tokenizer_bytes(source, options)
    plan, specs, copied = _plan(source, dtype)
    nested, flat, whole = _configs(source, dtype, asked)
    small = {INDEX: index_of(specs), CONFIG: as_json(nested)}
    if tokenizer is not None:
        small[TOKENIZER] = tokenizer
    plan = replace(plan, small=(*small, MARKER))
    names = tuple(file.name for file in plan.files)
    done = Written(
        files=(*names, *small, _FLAT, MARKER),
        size=plan.size,
        notes=_notes(source, copied, tokenizer is not None, whole),
    )
    if options.check:
        return done
    prepare_rows(out, CONVERTED, options, (source.path,))
    with grown_files(out, plan, options) as grown:
        for name, raw in small.items():
            (grown.folder / name).write_bytes(raw)
        if options.verify:
            _verify(source, dtype, plan, grown.folder, options)
        put_checkpoint(grown, out, done, source, options, {_FLAT: as_json(flat)})
    return replace(done, verified=options.verify)


def _plan(
    source: RowSource, dtype: str
) -> tuple[RowFiles, dict[str, list[TensorSpec]], dict[int, dict[str, FoundTensor]]]:
    """Return what is written, the tensors of each file, and the projections that are copied."""
    dim, row_type = source.dim or 0, DTYPES.load(dtype)
    copied = _projections(source)
    files, places, specs = [], [], {}
    count = len(source.layers)
    for number, entry in enumerate(source.layout.layers, start=1):
        start, name = (
            f"layers.{entry.layer}.engram.",
            f"model-{number:05}-of-{count:05}.safetensors",
        )
        parts = {ROWS: TensorSpec(name=f"{start}embed.weight", dtype=row_type.items.tensor,
                                  shape=(entry.rows, dim))}  # fmt: skip
        if row_type.scaling is not None:
            shape = row_type.scaling.shape(entry.rows, dim)
            parts[SCALES] = TensorSpec(
                name=f"{start}embed.scale", dtype=row_type.scaling.tensor, shape=shape
            )
        others = copied.get(entry.layer, {})
        # A checkpoint of vLLM has other names for them.
        specs[name] = [
            *parts.values(),
            *(replace(each.place.spec, name=start + part) for part, each in others.items()),
        ]
        file, begins = tensor_file(name, specs[name])
        extents = tuple(
            (each.file, Extent(begin=each.place.begin, size=each.place.spec.nbytes,
                               to=begins[start + part]))
            for part, each in others.items()
        )  # fmt: skip
        files.append(replace(file, copies=extents))
        places += [
            Place(file=name, layer=entry.layer, part=part, begin=begins[spec.name], first=0,
                  rows=entry.rows, width=spec.nbytes // entry.rows)
            for part, spec in parts.items()
        ]  # fmt: skip
    plan = RowFiles(source=source, dtype=dtype, files=tuple(files), places=tuple(places))
    return plan, specs, copied


def _projections(source: RowSource) -> dict[int, dict[str, FoundTensor]]:
    """Return the tensors next to the rows of a V4.1 checkpoint; {} for any other source."""
    whole = origin(source)
    if not isinstance(whole, CheckpointRows) or whole.format != NAME:
        return {}
    names = layer_tensors(whole.folder)
    return {
        layer: {
            part: whole.folder.tensors[name]
            for part, name in sorted(names.get(layer, {}).items())
            if part not in (ROWS, SCALES)
        }
        for layer in source.layers
    }


def _configs(
    source: RowSource, dtype: str, asked: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return config.json, inference/config.json, and whether the rest of the model is in them."""
    layout = source.layout
    assert layout.lookup is not None
    engram = {
        "engram_layer_ids": list(layout.layer_ids),
        "engram_num_embeddings": [entry.rows for entry in layout.layers],
        "engram_max_ngram_size": layout.max_order,
        "engram_vocab_size": asked["rows_per_head"],
        "engram_n_heads": layout.heads,
        "engram_head_dim": source.dim,
        "engram_pad_token_id": asked["pad_id"],
        "engram_compressed_vocab_size": layout.compressed_size,
        "vocab_size": len(layout.lookup),
    }
    before = config_before(source, NAME)
    whole = dict(before or {"model_type": "deepseek_v41"})
    inner = whole.pop("text_config", None)
    text = dict(inner) if isinstance(inner, dict) else {}
    for key in [key for key in whole if key.startswith("engram_")]:
        del whole[key]
    for where in (whole, text):
        where.pop("quantization_config", None)
    # Of a flat config, what is known of the model lies at the top.
    text = {"model_type": "deepseek_v41_text", **({} if inner else _sizes(whole)), **text, **engram}
    quantised = {"quantization_config": _quantised(before)} if dtype == DTYPE else {}
    flat = {**_sizes(whole), **text, **quantised, "dtype": "fp8" if dtype == DTYPE else dtype}
    flat["engram_pad_id"] = flat.pop("engram_pad_token_id")
    return {**whole, "text_config": text, **quantised}, flat, before is not None


def _sizes(whole: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key not in ("model_type", "dtype")}


def _quantised(before: dict[str, Any] | None) -> Any:
    for where in (before or {}, (before or {}).get("text_config") or {}):
        if isinstance(where, dict) and isinstance(where.get("quantization_config"), dict):
            return where["quantization_config"]
    return _QUANTISED


def _notes(
    source: RowSource, copied: dict[int, dict[str, FoundTensor]], tokenizer: bool, whole: bool
) -> tuple[str, ...]:
    """Return what is not in the files, because the source does not have it."""
    notes = []
    if any(len(copied.get(layer, ())) < len(PROJECTIONS) - 1 for layer in source.layers):
        notes.append(f"not written, because {source.path.name} has none: {', '.join(PROJECTIONS)}")
    if not whole:
        notes.append("config.json has the Engram keys alone: the model's own are not known")
    if not tokenizer:
        notes.append("no tokenizer.json was given: put the model's own next to config.json")
    return tuple(notes)


def _verify(
    source: RowSource, dtype: str, plan: RowFiles, folder: Path, options: WriteOptions
) -> None:
    """Raise ArtifactError unless the files read as the same rows under the same hash."""
    again = FORMATS.load(NAME).open_with(folder, options.tokenizer)
    known = (folder / TOKENIZER).is_file() or options.tokenizer is not None
    if known and again.layout.fingerprint != source.layout.fingerprint:
        raise ArtifactError(f"{folder} reads as another hash", "convert it again")
    verify_copies(folder, plan.files)
    require_same_rows(source, again, dtype, threads=options.threads, progress=options.progress)


TARGET = Target(write=write_deepseek, dtypes=_DTYPES)
