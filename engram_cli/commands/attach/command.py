"""attach: a checkpoint folder and a table in, a bundle that the runtime loads out.

Reads the checkpoint's config.json and tokenizer.json, refuses a table that was built for another
vocabulary or for layers the model has not, and writes `engram/` into the checkpoint. The table may
be that of another program's checkpoint, whose gates are taken with it where they fit the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions, open_vectors, require_sound
from engram_cli.commands.attach.cost import AttachCost, attach_cost, describe_cost
from engram_cli.commands.attach.layers import (
    PlacedLayers,
    check_vocabulary,
    choose_module,
    place_layers,
)
from engram_cli.commands.attach.source import (
    BUILD_AGAIN,
    copied_files,
    counted_rows,
    near_tokenizer,
    reference_to,
    stored_part,
    wanted_module,
)
from engram_cli.commands.checkpoint import ModelShape, check_first_memory, read_model_shape
from engram_cli.commands.load_model import require_packages
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.tables import AttachRequest
from engram_cli.commands.workspace import refusal
from engram_cli.errors import InputError, OutputError
from engram_cli.files import address_of
from engram_cli.formats.bundle import BUNDLE, BUNDLE_NAME
from engram_cli.formats.bundle_description import Reference
from engram_cli.formats.bundle_files import CARD
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import model_card, write_bundle, write_referring
from engram_cli.formats.checkpoint_bundle import attached_layout
from engram_cli.formats.module_spec import first_values
from engram_cli.formats.own_modules import OwnModule
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import prepare_output
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.copies import is_writable_here, local_copy
from engram_cli.rows.safetensors import FileRecord
from engram_cli.rows.source import HITS, ROWS, SCALES, RowSource
from engram_cli.sizes import processors
from engram_cli.table.build import free_bytes
from engram_cli.table.store import TableStore
from engram_cli.version import __version__

if TYPE_CHECKING:
    from engram_cli.commands.attach.fit_gates import Dense
    from engram_cli.runtime.fitting import FitResult


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachResult:
    """What was written (or, after a dry run, would be). `files` are names and sizes in bytes.

    `layers` are the table's, `decoder_layers` those of the model, from 0, that carry them.
    `in_the_way`: why the run itself would not write, after a dry run; None where it would.

    `reference`: the table's path as the bundle has it, None where it holds a copy. `free_bytes` are
    those of the disk, before.

    `zero_rows`: the layers whose rows are all zero. `identity`: no output of the model changes yet.
    `trained`: the module's weights are those of the checkpoint that has the rows. `fit`: how they
    were fitted to a text, None where they were not.
    """

    out: Path
    model: ModelShape
    scheme: str
    module: str
    layers: tuple[int, ...]
    decoder_layers: tuple[int, ...]
    rows: Mapping[int, int]
    dim: int
    dtype: str
    why: str
    cost: AttachCost
    free_bytes: int
    written: bool
    in_the_way: str | None = None
    reference: str | None = None
    identity: bool = True
    trained: bool = False
    zero_rows: tuple[int, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    fit: FitResult | None = None

    @property
    def fits(self) -> bool:
        """Whether the disk has room for the bundle."""
        return self.cost.disk_bytes <= self.free_bytes


def attach_checkpoint(request: AttachRequest, progress: Progress = SILENT) -> AttachResult:
    """Write the bundle of `request`, its byte arithmetic first.

    Raises InputError for a checkpoint or a table that cannot be read, MismatchError when they do
    not belong together, OutputError when the bundle cannot be written, DependencyError where a fit
    needs torch or transformers and they are not installed.
    """
    if request.fit is not None:
        require_packages("torch", "transformers")
    request = located(request)
    if is_address(request.out):
        return _at_address(request, progress)
    if request.fit is not None:
        request = replace(request, checkpoint=local_copy(request.checkpoint, progress))
    out = request.out or _folder_of(request) / BUNDLE_NAME
    model = read_model_shape(request.checkpoint)
    if not (request.force or request.checkpoint.resolve() == request.table.resolve()):
        check_first_memory(request.checkpoint)
    store, dim, dtype = open_vectors(request.table, near_tokenizer(request))
    counted = counted_rows(store, request)
    own = wanted_module(store, request, model, progress)
    placed = place_layers(store.layout, request.layers, request.at, model, request.table)
    nearby = Companions(artifact=request.table, folder=request.folder or Path())
    vocabularies = nearby.vocabulary_places()
    check_vocabulary(store.layout, model, request.checkpoint, request.tokenizer, vocabularies)
    spec = _spec(request, attached_layout(store), dim, dtype, placed, model)
    if own is not None:
        spec = replace(spec, module=own.spec)
    in_the_way = _in_the_way(request, out)
    fitter = None
    if request.fit is not None:
        from engram_cli.commands.attach.fit_gates import GateFitter

        fitter = GateFitter(request, model, progress)
    result = _planned(request, out, spec, placed, model, store, counted, in_the_way)
    for line in describe_cost(spec, result.cost, out, request.reference):
        progress.note(line)
    if request.dry_run:
        return result
    _check_space(result, request.reference)
    if not request.reference:
        parts = (ROWS, SCALES, HITS) if counted is store else (ROWS, SCALES)
        require_sound(
            store,
            BUILD_AGAIN,
            threads=request.threads or processors(),
            progress=progress,
            copied=copied_files(store, spec.layers, parts),
        )
    result = _write(spec, store, counted, own, request, result, progress)
    if fitter is None:
        return result
    fitted, dense = fitter.fit(out)
    if fitted.kept:  # the bundle that is there is the one just written
        again = replace(request, force=True)
        result = _write(spec, store, counted, own, again, result, progress, fitted=dense)
        result = replace(result, identity=False)
    return replace(result, fit=fitted)


def _in_the_way(request: AttachRequest, out: Path) -> str | None:
    """Check the output; return why it would be refused, after a dry run. Raises OutputError."""
    place = partial(
        prepare_output,
        out,
        BUNDLE,
        force=request.force,
        inputs=(request.checkpoint, request.table, request.tokenizer),
        dry_run=request.dry_run,
    )
    return refusal(place, request.dry_run)


def _planned(
    request: AttachRequest,
    out: Path,
    spec: BundleSpec,
    placed: PlacedLayers,
    model: ModelShape,
    store: RowSource,
    counted: RowSource | None,
    in_the_way: str | None,
) -> AttachResult:
    """Return what is about to be written, with its cost."""
    return AttachResult(
        out=out,
        model=model,
        scheme=spec.layout.scheme,
        module=spec.module.kind,
        layers=spec.layers,
        decoder_layers=spec.decoder_layers,
        why=placed.why,
        rows={layer: spec.rows(layer) for layer in spec.layers},
        dim=spec.dim,
        dtype=spec.dtype,
        cost=attach_cost(
            spec,
            reference=request.reference,
            counted=counted is not None,
            hits_inside=counted is not None and counted is not store,
        ),
        free_bytes=free_bytes(out),
        written=False,
        in_the_way=in_the_way,
    )


def _at_address(request: AttachRequest, progress: Progress) -> AttachResult:
    if request.reference:
        raise InputError(
            f"a bundle at {address_of(request.out or '')} cannot refer to rows elsewhere",
            "leave out --reference",
        )
    return at_address(
        attach_checkpoint, request, BUNDLE, progress, folder=request.folder, dry_run=request.dry_run
    )


def _folder_of(request: AttachRequest) -> Path:
    """Return the folder that the bundle goes into: the one that was named, the checkpoint's; the
    working folder for a checkpoint of the Hub or behind an address."""
    if request.into is not None:
        return request.into
    if is_writable_here(request.checkpoint):
        return request.checkpoint
    return request.folder or Path()


def _spec(
    request: AttachRequest,
    layout: HashLayout,
    dim: int,
    dtype: str,
    placed: PlacedLayers,
    model: ModelShape,
) -> BundleSpec:
    """Return the sizes of the bundle."""
    return BundleSpec(
        layout=layout,
        layers=placed.layers,
        decoder_layers=placed.decoder_layers,
        dim=dim,
        dtype=dtype,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        model_type=model.model_type,
        module=choose_module(layout, request.module, model),
        packed=request.packed,
    )


def _write(
    spec: BundleSpec,
    store: RowSource,
    counted: RowSource | None,
    own: OwnModule | None,
    request: AttachRequest,
    planned: AttachResult,
    progress: Progress,
    *,
    fitted: Dense | None = None,
) -> AttachResult:
    """Write the bundle, with its own rows or with a reference to the table's.

    `fitted`: the dense weights, where they are not those that a module starts with.
    """
    zero_layers = []

    def dense(layer: int, zero_rows: bool) -> Mapping[str, NDArray[np.float32]]:
        if zero_rows:
            zero_layers.append(layer)
        if fitted is not None:
            return fitted[layer]
        return _first_values(spec, request, layer, zero_rows) if own is None else own.dense(layer)

    reference = reference_to(spec, store, planned.out) if request.reference else None
    records = _write_files(spec, store, counted, reference, dense, request, planned, progress)
    return replace(
        planned,
        written=True,
        reference=None if reference is None else reference.path,
        identity=own is None
        and (request.init_value != "random" or len(zero_layers) == len(spec.layers)),
        trained=own is not None,
        zero_rows=tuple(zero_layers),
        files={record.name: record.size for record in records},
    )


def _write_files(
    spec: BundleSpec,
    store: RowSource,
    counted: RowSource | None,
    reference: Reference | None,
    dense: Callable[[int, bool], Mapping[str, NDArray[np.float32]]],
    request: AttachRequest,
    planned: AttachResult,
    progress: Progress,
) -> Sequence[FileRecord]:
    """Write the files of the bundle; `dense` gives the weights of a layer."""
    hits = None if counted is None else partial(stored_part, counted, HITS)
    card = {CARD: model_card(spec).encode()}
    if reference is not None:
        return write_referring(
            planned.out,
            spec,
            store.chunks if isinstance(store, TableStore) else None,
            dense,
            reference,
            hits=None if counted is store else hits,
            tool_version=__version__,
            force=request.force,
            extra_files=card,
        )
    stored = planned.cost.table_bytes + planned.cost.hits_bytes
    progress.start("rows into the bundle", stored, "bytes")
    return write_bundle(
        planned.out,
        spec,
        partial(stored_part, store, ROWS),
        dense,
        scales=partial(stored_part, store, SCALES),
        hits=hits,
        tool_version=__version__,
        force=request.force,
        extra_files=card,
        advance=progress.advance,
        threads=request.threads or processors(),
    )


def _first_values(
    spec: BundleSpec, request: AttachRequest, layer: int, zero_rows: bool
) -> Mapping[str, NDArray[np.float32]]:
    """Return the dense weights that a new module of a layer starts with."""
    gate = request.init_gate
    if request.fit is not None and gate == "random":
        gate = "even"  # so that no gate begins by chance nearly closed
    return first_values(
        spec.dense_parts,
        layer=layer,
        seed=request.seed,
        zero_rows=zero_rows,
        value=request.init_value,
        gate=gate,
    )


def _check_space(planned: AttachResult, reference: bool) -> None:
    """Raise OutputError with the sizes if the bundle does not fit on the disk."""
    need, free = planned.cost.disk_bytes, planned.free_bytes
    if not planned.fits:
        raise OutputError(
            f"{planned.out} needs {need:,} bytes, only {free:,} are free",
            f"free {need - free:,} bytes, or write to another disk with --out"
            + ("" if reference else ", or leave the rows in the table with --reference"),
        )
