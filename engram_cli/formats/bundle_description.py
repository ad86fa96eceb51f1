"""`engram.json` as a spec, shards and a reference, and the other way round.

What is read is untrusted: every name, count and dtype is checked here, before a file is opened.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.formats.bundle_spec import BundleSpec, Shard
from engram_cli.formats.checkpoint_reference import CheckpointReference
from engram_cli.formats.module_spec import MODULE_KINDS, ModuleSpec
from engram_cli.formats.table_reference import TableReference
from engram_cli.hashing.layout import HashLayout
from engram_cli.rows import DTYPES
from engram_cli.rows.safetensors import FileRecord
from engram_cli.rows.source import HITS, ROWS, SCALES

FORMAT, VERSION = "engram-bundle", 3
Reference = TableReference | CheckpointReference
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
T = TypeVar("T")
# Where a layer lists the files of each part.
_LISTS = {ROWS: "shards", SCALES: "scales", HITS: "hits"}


def document_of(
    spec: BundleSpec,
    records: Sequence[FileRecord],
    tool_version: str,
    *,
    shards: Sequence[Shard] = (),
    reference: Reference | None = None,
) -> dict[str, Any]:
    """Return the description of a bundle with these shards, or with a reference instead of them.

    A bundle that refers to a checkpoint may have shards of hits.
    """
    return {
        "format": FORMAT,
        "version": _version(spec, reference),
        "tool_version": tool_version,
        "module": {
            "kind": spec.module.kind,
            "streams": spec.module.streams,
            "conv_kernel": spec.module.conv_kernel,
            "conv_dilation": spec.conv_dilation,
            "norm_eps": spec.module.norm_eps,
        },
        "packed": spec.packed,
        "model": {
            "model_type": spec.model_type,
            "hidden_size": spec.hidden_size,
            "num_hidden_layers": spec.num_layers,
        },
        "rows": {"dim": spec.dim, "dtype": spec.dtype},
        "layers": [_layer_document(spec, layer, shards) for layer in spec.layers],
        **({} if reference is None else {_key(reference): reference.to_json()}),
        "layout": spec.layout.to_json(),
        "fingerprint": spec.layout.fingerprint,
        "files": {
            record.name: {"bytes": record.size, "digest": record.digest} for record in records
        },
    }


def parse(
    document: Mapping[str, Any], lookup: NDArray[np.int32] | None
) -> tuple[BundleSpec, tuple[Shard, ...], Reference | None]:
    """Return the description as a spec, its shards and the table or checkpoint it refers to.

    Raises ValueError and its kin where it is none, ArtifactError for a module that is not known.
    """
    layout = HashLayout.from_json(document["layout"], lookup)
    if layout.fingerprint != document["fingerprint"]:
        raise ValueError("the layout has another fingerprint")
    if layout.vocab_digest is not None and lookup is None:
        raise ValueError("the layout's vocabulary is missing")
    module, model, rows = document["module"], document["model"], document["rows"]
    entries = document["layers"]
    if module["kind"] not in MODULE_KINDS:
        raise ArtifactError(f"the bundle has a module {module['kind']!r}", "upgrade engram")
    spec = BundleSpec(
        layout=layout,
        layers=tuple(_count(entry["layer"], low=0) for entry in entries),
        dim=_count(rows["dim"]),
        dtype=_one_of(rows["dtype"], tuple(DTYPES)),
        hidden_size=_count(model["hidden_size"]),
        num_layers=_count(model["num_hidden_layers"]),
        model_type=str(model["model_type"]),
        module=_module(module),
        packed=_one_of(document["packed"], (False, True)),
        decoder_layers=tuple(_count(entry["decoder_layer"], low=0) for entry in entries),
    )
    if module["conv_dilation"] != spec.conv_dilation:
        raise ValueError(f"conv_dilation {module['conv_dilation']}, not {spec.conv_dilation}")
    for layers in (spec.layers, spec.decoder_layers):
        if not layers or len(set(layers)) != len(layers):
            raise ValueError(f"layers {layers}")
    if document["version"] == 1 and spec.decoder_layers != spec.named_layers:
        raise ValueError(f"decoder layers {spec.decoder_layers} in version 1")
    for entry in entries:
        _check_layer(spec, entry)
    if "table" in document:
        reference = TableReference.from_json(document["table"])
        return spec, reference.shards(spec), reference
    counted = {HITS in entry for entry in entries}
    if len(counted) > 1:
        raise ValueError("only some layers have hits")
    hits = (HITS,) if counted.pop() else ()
    if "checkpoint" in document:
        referred = CheckpointReference.from_json(document["checkpoint"], spec)
        own = [shard for entry in entries for part in hits for shard in _shards(spec, entry, part)]
        return spec, (*referred.shards(spec), *own), referred
    parts = (*spec.parts, *hits)
    shards = [shard for entry in entries for part in parts for shard in _shards(spec, entry, part)]
    return spec, tuple(shards), None


def _version(spec: BundleSpec, reference: Reference | None) -> int:
    """Return the least version whose readers take such a bundle for what it is.

    Readers of version 1 take the decoder layer from the layer's number, those of version 2 know
    references to tables only.
    """
    if isinstance(reference, CheckpointReference):
        return 3
    return 1 if spec.decoder_layers == spec.named_layers else 2


def _key(reference: Reference) -> str:
    return "table" if isinstance(reference, TableReference) else "checkpoint"


def _module(about: Mapping[str, Any]) -> ModuleSpec:
    eps = about["norm_eps"]
    if eps is not None and type(eps) is not float:
        raise ValueError(f"norm_eps {eps!r}")
    return ModuleSpec(
        kind=about["kind"],
        streams=_count(about["streams"]),
        conv_kernel=_count(about["conv_kernel"], low=0),
        norm_eps=eps,
    )


def _check_layer(spec: BundleSpec, entry: Mapping[str, Any]) -> None:
    layer = entry["layer"]
    if layer not in spec.layout.layer_ids:
        raise ValueError(f"layer {layer} is not the layout's")
    if spec.index(layer) >= spec.num_layers:
        raise ValueError(f"decoder layer {spec.index(layer)} of {spec.num_layers}")
    if entry["rows"] != spec.rows(layer):
        raise ValueError(f"layer {layer} has {entry['rows']} rows, not {spec.rows(layer)}")


def _shards(spec: BundleSpec, entry: Mapping[str, Any], part: str) -> list[Shard]:
    """Return the files of a layer's part, which follow each other and end with its last line."""
    layer, end = entry["layer"], 0
    shards = []
    for about in entry[_LISTS[part]]:
        rows = _count(about["rows"])
        if about["first_row"] != end or not PLAIN_NAME.fullmatch(about["file"]):
            raise ValueError(f"shard {about['file']!r} from row {about['first_row']}")
        shards.append(Shard(layer=layer, part=part, file=about["file"], first_row=end, rows=rows))
        end += rows
    if end != spec.tensor(layer, part).shape[0]:
        raise ValueError(f"the {part} of layer {layer} are {end}")
    return shards


def _layer_document(spec: BundleSpec, layer: int, shards: Sequence[Shard]) -> dict[str, Any]:
    present = {shard.part for shard in shards}
    lists = {
        name: [
            {"file": shard.file, "first_row": shard.first_row, "rows": shard.rows}
            for shard in shards
            if (shard.layer, shard.part) == (layer, part)
        ]
        for part, name in _LISTS.items()
        if part in present
    }
    return {"layer": layer, "decoder_layer": spec.index(layer), "rows": spec.rows(layer), **lists}


def _count(value: Any, *, low: int = 1) -> int:
    if type(value) is not int or not low <= value < 2**31:
        raise ValueError(f"{value!r} is no count")
    return value


def _one_of(value: Any, known: tuple[T, ...]) -> T:
    found = next((one for one in known if type(one) is type(value) and one == value), None)
    if found is None:
        raise ValueError(f"{value!r} is none of {', '.join(map(str, known))}")
    return found
