"""Another program's checkpoint as a bundle that a model loads: its rows where they are.

Opening reads headers, config and tokenizer. The rows stay in the checkpoint's files; gates and
projections are read layer by layer when a model asks for them. The runtime imports this file only
for a checkpoint, because its readers need more than torch and NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Format, require_agreement
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.checkpoint_reference import CheckpointReference, refer_to
from engram_cli.formats.model_folder import CheckpointRows
from engram_cli.formats.module_spec import (
    DEFAULT_MODULE,
    FRESH_KINDS,
    ModuleSpec,
    first_values,
    module_spec,
)
from engram_cli.formats.own_modules import DEFAULT_EPS, OwnModule, own_module
from engram_cli.hashing.layout import DEAD_TOKENS, UNKNOWN_SCHEME, UNKNOWN_VOCABULARY, HashLayout
from engram_cli.rows import DTYPES
from engram_cli.rows.source import SCALES, RowSource, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class HostModel:
    """What is known of the model that gets the memory; None for what is not."""

    hidden_size: int | None = None
    num_layers: int | None = None
    model_type: str = "unknown"
    streams: int = 1
    norm_eps: float = DEFAULT_EPS


class _Dense(Mapping[int, Mapping[str, NDArray[np.float32]]]):
    """The dense weights of a checkpoint by layer, read each time they are asked for."""

    def __init__(self, spec: BundleSpec, own: OwnModule | None) -> None:
        self._spec, self._own = spec, own

    @property
    def is_own(self) -> bool:
        """Whether the checkpoint has them."""
        return self._own is not None

    def __getitem__(self, layer: int) -> Mapping[str, NDArray[np.float32]]:
        if layer not in self._spec.layers:
            raise KeyError(layer)
        return dense_values(self._spec, self._own, layer)

    def __iter__(self) -> Iterator[int]:
        return iter(self._spec.layers)

    def __len__(self) -> int:
        return len(self._spec.layers)


def dense_values(
    spec: BundleSpec, own: OwnModule | None, layer: int
) -> Mapping[str, NDArray[np.float32]]:
    """Return the weights of a layer: the checkpoint's, else those that a module starts with."""
    if own is not None:
        return own.dense(layer)
    return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=False)


def find_checkpoint(path: Path) -> tuple[Format, Path] | None:
    """Return the format of another program's checkpoint, or of row264, and its own path.

    None for anything else: the rows of a table are attached through a bundle.
    """
    for name in FORMATS:
        found = FORMATS.load(name)
        own = found.recognise(path)
        if own is not None:
            return (found, own) if has_spans(found) else None
    return None


def has_spans(format_: Format) -> bool:
    """Return whether a bundle may refer to the files of a format without any reader of it.

    Tables have a reference of their own, and a bundle's rows are a bundle's already.
    """
    return format_.foreign or format_.name == "row264"


def open_checkpoint(path: Path, tokenizer: Path | None, model: HostModel) -> Bundle | None:
    """Open the checkpoint at `path` as a bundle, for `model`; None where it is no checkpoint.

    Sizes that the checkpoint does not say are the model's. Raises InputError and ArtifactError, as
    the checkpoint's reader does, for one whose rows are not those that its config and tokenizer
    name, and for rows that no model reads as they are.
    """
    found = find_checkpoint(path)
    if found is None:
        return None
    format_, own_path = found
    source = format_.open_with(own_path, tokenizer)
    require_attachable(source)
    own = own_module(source, model.norm_eps)
    spec = spec_of(source, own, model)
    return Bundle(
        folder=own_path,
        spec=spec,
        shards=(reference := refer_to_source(source, own_path, spec)).shards(spec),
        dense=_Dense(spec, own),
        reference=reference,
    )


def require_attachable(source: RowSource) -> None:
    """Raise InputError or ArtifactError for rows that a model cannot read where they are."""
    layout, dtype = source.layout, source.dtype
    require_agreement(source, "see engram inspect; the rows of another config are other rows")
    lost = sorted(set(layout.layer_ids) - set(source.layers))
    if lost or dtype is None:
        raise InputError(
            f"{source.path} has no rows of layer {', '.join(map(str, lost))}",
            "see engram inspect, and take the checkpoint again",
        )
    if layout.vocab_digest == UNKNOWN_VOCABULARY:
        raise InputError(
            f"{source.path} has no token map, so that no token finds its row",
            "name the model's tokenizer.json (tokenizer=, or --tokenizer)",
        )
    if layout.scheme == UNKNOWN_SCHEME:
        raise InputError(
            f"{source.path} hashes in a way that is not known", "see engram inspect for what it is"
        )
    if dtype not in tuple(DTYPES):
        to = "fp8_e8m0" if dtype == "e8m0_e4m3" else "int8_b32"
        raise InputError(
            f"{source.path} has rows of {dtype}, which models do not read as they are",
            f"copy them: engram convert {source.path} --to table --dtype {to}",
        )


def spec_of(source: RowSource, own: OwnModule | None, model: HostModel) -> BundleSpec:
    """Return what a bundle of a checkpoint holds. Raises InputError where no size is known."""
    hidden = model.hidden_size if own is None else own.hidden_size
    count = model.num_layers if own is None or own.num_layers is None else own.num_layers
    if hidden is None or count is None:
        raise InputError(
            f"neither {source.path} nor the model says its hidden size and number of layers",
            "attach to a model whose config has hidden_size and num_hidden_layers",
        )
    spec = BundleSpec(
        layout=attached_layout(source),
        layers=source.layers,
        dim=source.dim or 0,
        dtype=source.dtype or "",
        hidden_size=hidden,
        num_layers=count,
        model_type=model.model_type if own is None else own.model_type or model.model_type,
        module=_fresh_module(source, model) if own is None else own.spec,
    )
    beyond = [place for place in spec.decoder_layers if not 0 <= place < count]
    if beyond:
        raise InputError(
            f"{source.path} has rows for decoder layer {beyond[0]}, the model has {count} layers",
            "attach to the model that the checkpoint is of, or place a table's layers with "
            "engram attach --at",
        )
    return spec


def attached_layout(source: RowSource) -> HashLayout:
    """Return the layout by which a model looks rows up, which names the tokens that are dead.

    V4.1's n-grams do not look across an image.
    """
    layout = source.layout
    if source.format != "deepseek-v4.1" or not isinstance(source, CheckpointRows):
        return layout
    token = source.folder.config.get("image_token_id")
    if type(token) is not int or not 0 <= token < layout.vocab_size:
        return layout
    return replace(layout, parameters={**layout.parameters, DEAD_TOKENS: [token]})


def _fresh_module(source: RowSource, model: HostModel) -> ModuleSpec:
    """Return the module of the source's scheme, for a model that carries so many streams."""
    scheme = source.layout.scheme
    if scheme == "longcat":
        raise InputError(
            f"{source.path} lacks the projections of its n-grams (post_projs), without which they "
            "add to nothing",
            "take the checkpoint again; engram inspect and lookup read its rows",
        )
    kind = scheme if scheme in FRESH_KINDS else DEFAULT_MODULE
    return module_spec(kind, streams=model.streams, norm_eps=model.norm_eps)


def refer_to_source(source: RowSource, bundle: Path, spec: BundleSpec) -> CheckpointReference:
    """Return the reference of a bundle at `bundle` to an opened checkpoint.

    Raises InputError for rows that are in no local files, ArtifactError.
    """
    spans: dict[tuple[int, str], tuple[Span, ...]] = {}
    scales: dict[int, float] = {}
    for layer in spec.layers:
        for part in spec.parts:
            if part == SCALES and spec.row_type.of_layer:
                scales[layer] = float(source.lines(layer, SCALES, 0, 1)[0])
            else:
                spans[layer, part] = source.spans(layer, part)
    return refer_to(
        source.path,
        bundle,
        spec,
        format=source.format,
        dialect=dialect_of(source),
        spans=spans,
        scales=scales,
    )


def dialect_of(source: Any) -> str:
    """Return the dialect of a checkpoint."""
    return str(getattr(source, "dialect", ""))


def _files(count: int) -> str:
    return "its file" if count == 1 else f"{count} of its files"


def describe(bundle: Bundle) -> tuple[str, ...]:
    """Return what was found in a checkpoint, as lines to read."""
    reference, spec = bundle.reference, bundle.spec
    assert isinstance(reference, CheckpointReference)
    places = ", ".join(spec.label(layer) for layer in spec.layers)
    rows = " + ".join(f"{spec.rows(layer):,}" for layer in spec.layers)
    dense = bundle.dense
    dialect = f", dialect {reference.dialect}" if reference.dialect else ""
    trained = isinstance(dense, _Dense) and dense.is_own
    return (
        f"{bundle.folder}: {reference.format} checkpoint{dialect}",
        f"decoder layers {places}, counted from 0: {rows} rows x {spec.dim} x {spec.dtype}, "
        f"{spec.table_bytes:,} bytes in {_files(len(reference.files))}; nothing is copied",
        f"{spec.module.kind} module: its weights are the checkpoint's"
        if trained
        else f"{spec.module.kind} module: the checkpoint has no weights for it, so it adds nothing "
        "until it is trained",
    )
