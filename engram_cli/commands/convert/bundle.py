"""convert --to bundle: the rows of any source for a model that has not been given one yet.

The module's weights are the source's where it is a bundle, or a checkpoint with a module of its
own that fits; else they start as attach starts them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.attach.layers import check_vocabulary, choose_module, place_layers
from engram_cli.commands.attach.source import fitting_module
from engram_cli.commands.checkpoint import read_model_shape
from engram_cli.errors import InputError
from engram_cli.formats.base import Target, WriteOptions, Written
from engram_cli.formats.bundle import BUNDLE
from engram_cli.formats.bundle_rows import BundleRows
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_stream import bundle_files, stream_bundle
from engram_cli.formats.bundle_writer import Dense
from engram_cli.formats.module_spec import first_values
from engram_cli.formats.row_plan import require_map, require_rows
from engram_cli.outputs import prepare_output
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource
from engram_cli.rows.stored_as import kept_dtype
from engram_cli.rows.views import origin


def write_bundle_of(source: RowSource, out: Path, options: WriteOptions) -> Written:
    """Write a bundle with the rows of `source`, for the model of `options.patch` or its own.

    Raises InputError where no model is known, MismatchError for another vocabulary than the
    model's, OutputError, ArtifactError.
    """
    require_rows(source, "a bundle")
    require_map(source)
    before = origin(source)
    if isinstance(before, BundleRows) and options.patch is None:
        spec, dense, notes = _of_bundle(source, before)
    else:
        spec, dense, notes = _of_model(source, options)
    plan, shards = bundle_files(spec, source)
    done = Written(files=tuple(file.name for file in plan.files) + plan.small, size=plan.size,
                   notes=notes)  # fmt: skip
    if options.check:
        return done
    prepare_output(out, BUNDLE, force=options.force, inputs=(source.path, options.patch))
    names = stream_bundle(out, spec, plan, shards, dense, options)
    return replace(done, files=names, verified=options.verify)


def _of_bundle(source: RowSource, before: BundleRows) -> tuple[BundleSpec, Dense, tuple[str, ...]]:
    """Return the sizes of a bundle made from another one, and its weights."""
    old = before.bundle.spec
    spec = replace(
        old,
        layout=source.layout,
        layers=source.layers,
        decoder_layers=tuple(old.index(layer) for layer in source.layers),
        dtype=source.dtype or "",
    )

    def dense(layer: int, zero_rows: bool) -> Mapping[str, NDArray[np.float32]]:
        return {name: np.array(value) for name, value in before.bundle.dense[layer].items()}

    return spec, dense, ()


def _of_model(
    source: RowSource, options: WriteOptions
) -> tuple[BundleSpec, Dense, tuple[str, ...]]:
    """Return the sizes of a bundle for a model's checkpoint, and its weights."""
    checkpoint = source.path if options.patch is None else options.patch
    try:
        model = read_model_shape(checkpoint)
    except InputError as error:
        if options.patch is not None:
            raise
        raise InputError(
            f"{source.path} does not say which model it is for ({error.message})",
            "name the model's checkpoint with --patch CKPT; engram attach chooses layers and "
            "module too",
        ) from None
    placed = place_layers(source.layout, source.layers, None, model, source.path)
    check_vocabulary(source.layout, model, checkpoint, options.tokenizer, ())
    own = fitting_module(origin(source), model, options.progress)
    module = choose_module(source.layout, None, model) if own is None else own.spec
    spec = BundleSpec(
        layout=source.layout,
        layers=placed.layers,
        decoder_layers=placed.decoder_layers,
        dim=source.dim or 0,
        dtype=kept_dtype(source.dtype or "") or "",
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        model_type=model.model_type,
        module=module,
    )

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        if own is not None:
            return own.dense(layer)
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    note = "the module starts new: it adds nothing until it is trained"
    return spec, dense, (note,) if own is None else ()


TARGET = Target(write=write_bundle_of, dtypes=tuple(DTYPES))
