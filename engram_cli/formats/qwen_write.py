"""Writes the n-gram embedding of a Qwen4-Exp checkpoint: shards of rows, and their constants.

Rows are floats, or float8 e4m3 with one scale for the layer. The module next to them is copied from
a Qwen4-Exp source; of any other it is named, and left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, MismatchError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Target, WriteOptions, Written
from engram_cli.formats.model_folder import CONFIG, CheckpointRows, FoundTensor, open_folder
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
from engram_cli.formats.row_files import grown_files, prepare_rows
from engram_cli.formats.row_plan import NewFile, Place, RowFiles, require_map, require_rows
from engram_cli.rows import DTYPES
from engram_cli.rows.copying import Extent
from engram_cli.rows.safetensors import INDEX, TensorSpec
from engram_cli.rows.source import ROWS, RowSource
from engram_cli.rows.stored_as import layer_scale, require_same_rows
from engram_cli.rows.views import origin

NAME = "qwen-ple"
_SHARDS = 128  # of the release
_FILE_BYTES = 5_000_000_000
_MODULE = ("key_proj", "value_proj", "norm_key", "norm_query", "norm_conv", "conv1d")
_MODULE_NAME = re.compile(
    rf"(?:model\.)?(?:language_model\.)?layers\.(\d{{1,5}})\.ple\.({'|'.join(_MODULE)})\.weight"
)
Tensor = tuple[TensorSpec, NDArray[Any] | FoundTensor | tuple[int, int]]
"""A tensor with its values: an array, a tensor of another file, or (first row, rows)."""


@dataclass(slots=True, kw_only=True)
class _Files:
    """Tensors dealt to files of about `_FILE_BYTES`, in order."""

    files: list[list[tuple[int, Tensor]]] = field(default_factory=lambda: [[]])
    size: int = 0

    def add(self, layer: int, tensor: Tensor) -> None:
        """Add a tensor of a layer to the last file, or to a new one where that is full."""
        nbytes = tensor[0].nbytes
        if self.size and self.size + nbytes > _FILE_BYTES:
            self.files.append([])
            self.size = 0
        self.files[-1].append((layer, tensor))
        self.size += nbytes


def write_qwen(source: RowSource, out: Path, options: WriteOptions) -> Written:
    """Write the n-gram embedding of a checkpoint: files of shards, the index and config.json.

    Raises InputError for rows that it cannot hold, MismatchError for another hash than the config
    gives, OutputError, ArtifactError.
    """
    require_rows(source, NAME)
    require_map(source)
    layout = source.layout
    if layout.lookup is not None or layout.eos_id is None:
        raise MismatchError(
            f"{source.path} hashes compressed token ids, and {NAME} raw ones up to an EOS",
            "convert it to deepseek-v4.1 or to a table",
        )
    if min(layout.layer_ids) < 1:
        raise MismatchError(f"{source.path} has a layer 0, and {NAME} counts from 1", "check it")
    asked = same_scheme(source, NAME, NAME, multipliers=False)
    copied = _module(source)
    before = config_before(source, NAME)
    prefix = "model." if _is_flat(before) else "model.language_model."
    plan, specs, shards = _plan(source, copied, prefix)
    small = {INDEX: index_of(specs), CONFIG: as_json(_config(source, asked, before, shards))}
    tokenizer = tokenizer_bytes(source, options)
    if tokenizer is not None:
        small[TOKENIZER] = tokenizer
    plan = replace(plan, small=(*small, MARKER))
    notes = [] if before else ["config.json has the keys of the embedding alone"]
    if not copied:
        lost = ", ".join(f"ple.{name}" for name in _MODULE)
        notes.insert(0, f"not written, because {source.path.name} has none: {lost}")
    names = tuple(file.name for file in plan.files)
    done = Written(files=(*names, *small, MARKER), size=plan.size, notes=tuple(notes))
    if options.check:
        return done
    prepare_rows(out, CONVERTED, options, (source.path,))
    with grown_files(out, plan, options) as grown:
        for name, raw in small.items():
            (grown.folder / name).write_bytes(raw)
        if options.verify:
            again = FORMATS.load(NAME).open_with(grown.folder, None)
            if again.layout.fingerprint != layout.fingerprint:
                raise ArtifactError(f"{grown.folder} reads as another hash", "convert it again")
            verify_copies(grown.folder, plan.files)
            require_same_rows(
                source, again, plan.dtype, threads=options.threads, progress=options.progress
            )
        put_checkpoint(grown, out, done, source, options)
    return replace(done, verified=options.verify)


def _module(source: RowSource) -> dict[int, dict[str, FoundTensor]]:
    """Return the tensors of the module by layer, from a Qwen4-Exp source; {} of any other."""
    whole = origin(source)
    if not isinstance(whole, CheckpointRows) or whole.format != NAME:
        return {}
    folder = open_folder(whole.path, {}, lambda name: _MODULE_NAME.fullmatch(name) is not None)
    found: dict[int, dict[str, FoundTensor]] = {}
    for name, tensor in folder.tensors.items():
        match = _MODULE_NAME.fullmatch(name)
        assert match is not None
        if int(match[1]) + 1 in source.layers:
            found.setdefault(int(match[1]) + 1, {})[f"{match[2]}.weight"] = tensor
    return found


def _plan(
    source: RowSource, copied: dict[int, dict[str, FoundTensor]], prefix: str
) -> tuple[RowFiles, dict[str, list[TensorSpec]], int]:
    """Return what is written, the tensors of each file, and the number of shards."""
    dtype, layers = source.dtype or "", source.layout.layers
    shards = _SHARDS
    for entry in layers:
        shards = gcd(shards, entry.rows)
    dealt = _Files()
    for entry in layers:
        start, module = f"{prefix}layers.{entry.layer - 1}.ple.", copied.get(entry.layer, {})
        for tensor in _layer_tensors(source, entry.layer, shards, start, module):
            dealt.add(entry.layer, tensor)
    files, places, specs = [], [], {}
    for number, own in enumerate(dealt.files, start=1):
        name = f"model-{number:05}-of-{len(dealt.files):05}.safetensors"
        specs[name] = [spec for _, (spec, _) in own]
        file, begins = tensor_file(name, specs[name])
        head, extents = dict(file.head), []
        for layer, (spec, values) in own:
            at = begins[spec.name]
            if isinstance(values, tuple):
                first, rows = values
                places.append(
                    Place(file=name, layer=layer, part=ROWS, begin=at, first=first, rows=rows,
                          width=spec.nbytes // rows)
                )  # fmt: skip
            elif isinstance(values, FoundTensor):
                extent = Extent(begin=values.place.begin, size=spec.nbytes, to=at)
                extents.append((values.file, extent))
            else:
                head[at] = values.tobytes()
        files.append(NewFile(name=name, size=file.size, head=head, copies=tuple(extents)))
    plan = RowFiles(source=source, dtype=dtype, files=tuple(files), places=tuple(places))
    return plan, specs, shards


def _layer_tensors(
    source: RowSource, layer: int, shards: int, start: str, module: dict[str, FoundTensor]
) -> list[Tensor]:
    """Return the tensors of a layer in the order in which they are written."""
    entry, dim = source.layout.layer(layer), source.dim or 0
    row_type = DTYPES.load(source.dtype or "")
    table = f"{start}ple_embedding."
    constants = {
        "layer_multipliers": entry.multipliers,
        "ngram_heads_vocab_sizes": entry.moduli,
        "ngram_heads_offsets": entry.offsets,
    }
    found: list[Tensor] = []
    for name, values in constants.items():
        spec = TensorSpec(name=table + name, dtype="int64", shape=(len(values),))
        found.append((spec, np.array(values, dtype="<i8")))
    scale = layer_scale(source, layer)
    if scale is not None:
        narrow = scale.astype("<f4").view("<u4")
        is_short = not int(narrow[0]) & 0xFFFF  # the release stores the scale as bfloat16
        stored = (narrow >> 16).astype("<u2") if is_short else scale.astype("<f4")
        kind = "bfloat16" if is_short else "float32"
        spec = TensorSpec(name=f"{table}ngram_embedding.weight_scale", dtype=kind, shape=(1,))
        found.append((spec, stored))
    found += [
        (replace(tensor.place.spec, name=start + name), tensor) for name, tensor in module.items()
    ]
    rows = entry.rows // shards
    for index in range(shards):
        spec = TensorSpec(
            name=f"{table}ngram_embedding.shard_{index}.weight",
            dtype=row_type.items.tensor,
            shape=(rows, dim),
        )
        found.append((spec, (index * rows, rows)))
    return found


def _config(
    source: RowSource, asked: dict[str, Any], before: dict[str, Any] | None, shards: int
) -> dict[str, Any]:
    """Return config.json: that of the source, with the keys of the embedding."""
    layout = source.layout
    keys = {
        "ple_layer_ids": list(layout.layer_ids),
        "ple_embed_dim": layout.columns * (source.dim or 0),
        "ngram_size": layout.max_order,
        "heads_per_ngram": layout.heads,
        "ngram_vocab_size_base": asked["rows_per_head"],
        "make_ngram_vocab_size_divisible_by": asked.get("divisor", 128),
        "split_ngram_parts": shards,
        "eos_token_id": layout.eos_id,
        "vocab_size": layout.compressed_size,
        "seed": asked.get("seed", 1234),
    }
    whole = dict(before or {"model_type": "qwen4_exp"})
    text = whole if _is_flat(before) else dict(whole.get("text_config") or {})
    ends = text.get("eos_token_id")
    if isinstance(ends, list) and ends[:1] == [layout.eos_id]:
        del keys["eos_token_id"]  # the first of several is the one that counts
    if before is None or source.dtype != origin(source).dtype:
        whole.pop("quantization_config", None)
        text.pop("quantization_config", None)
        if source.dtype == "fp8":
            whole["quantization_config"] = {"quant_method": "fp8"}
    if text is whole:
        return {**whole, **keys}
    return {**whole, "text_config": {"model_type": "qwen4_exp_text", **text, **keys}}


def _is_flat(config: dict[str, Any] | None) -> bool:
    """Return whether a config is that of a text model alone, whose tensors have shorter names."""
    return config is not None and not isinstance(config.get("text_config"), dict)


TARGET = Target(write=write_qwen, dtypes=("bfloat16", "fp8", "float16", "float32"))
