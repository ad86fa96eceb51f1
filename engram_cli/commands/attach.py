"""attach: a checkpoint folder and a table in, a bundle that the runtime loads out.

Reads the checkpoint's config.json and tokenizer.json, refuses a table that was built for another
vocabulary or for layers the model has not, and writes `engram/` into the checkpoint. The table may
be that of another program's checkpoint, whose gates are taken with it where they fit the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions, open_vectors, require_sound
from engram_cli.commands.attach_cost import AttachCost, attach_cost, describe_cost
from engram_cli.commands.attach_layers import (
    PlacedLayers,
    check_vocabulary,
    choose_module,
    place_layers,
)
from engram_cli.commands.checkpoint import ModelShape, check_first_memory, read_model_shape
from engram_cli.commands.load_model import require_packages
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.tables import AttachRequest
from engram_cli.commands.workspace import refusal
from engram_cli.errors import InputError, OutputError
from engram_cli.files import address_of
from engram_cli.formats import FORMATS
from engram_cli.formats.bundle import BUNDLE, BUNDLE_NAME, CARD
from engram_cli.formats.bundle_description import Reference
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import model_card, write_bundle, write_referring
from engram_cli.formats.checkpoint_bundle import (
    attached_layout,
    has_spans,
    refer_to_source,
    require_attachable,
)
from engram_cli.formats.module_spec import first_values
from engram_cli.formats.own_modules import DEFAULT_EPS, OwnModule, own_module
from engram_cli.formats.statistics import statistics_rows
from engram_cli.formats.table_reference import refer
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import prepare_output
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.copies import is_writable_here, local_copy
from engram_cli.remote.path import is_remote
from engram_cli.rows.source import HITS, SCALES, RowSource
from engram_cli.sizes import processors
from engram_cli.table.attributes import read_description
from engram_cli.table.build import free_bytes
from engram_cli.table.store import TableStore
from engram_cli.version import __version__

if TYPE_CHECKING:
    from engram_cli.commands.fit_gates import Dense
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
    store, dim, dtype = open_vectors(request.table, _tokenizer(request))
    counted = _counted(store, request)
    own = _own(store, request, model, progress)
    placed = place_layers(store.layout, request.layers, request.at, model, request.table)
    nearby = Companions(artifact=request.table, folder=request.folder or Path())
    vocabularies = nearby.vocabulary_places()
    check_vocabulary(store.layout, model, request.checkpoint, request.tokenizer, vocabularies)
    spec = _spec(request, attached_layout(store), dim, dtype, placed, model)
    if own is not None:
        spec = replace(spec, module=own.spec)
    place = partial(
        prepare_output,
        out,
        BUNDLE,
        force=request.force,
        inputs=(request.checkpoint, request.table, request.tokenizer),
        dry_run=request.dry_run,
    )
    in_the_way = refusal(place, request.dry_run)
    fitter = None
    if request.fit is not None:
        from engram_cli.commands.fit_gates import GateFitter

        fitter = GateFitter(request, model, progress)
    result = AttachResult(
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
    for line in describe_cost(spec, result.cost, out, request.reference):
        progress.note(line)
    if request.dry_run:
        return result
    _check_space(result, request.reference)
    if not request.reference:
        require_sound(
            store,
            "build it again, or copy what is there: engram convert --no-verify",
            threads=request.threads or processors(),
            progress=progress,
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


def _counted(store: RowSource, request: AttachRequest) -> RowSource | None:
    """Return what has the hits of the rows: the statistics that were named, else the source.

    Raises InputError for statistics of another hash, and for those of a table that is referred to.
    """
    if request.stats is None:
        return store if store.has_hits else None
    if request.reference and isinstance(store, TableStore):
        raise InputError(
            f"--stats {request.stats}: a bundle that refers to a table takes the table's own hits",
            "build the table with engram build-table --stats, or leave out --reference",
        )
    named = Companions(artifact=request.table, stats=request.stats)
    statistics = named.statistics(store.layout, SILENT)
    return None if statistics is None else statistics_rows(statistics)


def _hits(counted: RowSource, layer: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield the hits of a layer as a bundle stores them."""
    if counted.format == "statistics":
        yield 0, counted.lines(layer, HITS, 0, counted.layout.layer(layer).rows)
    else:
        yield from counted.chunks(layer, HITS)


def _tokenizer(request: AttachRequest) -> Path | None:
    """Return the model's tokenizer for a checkpoint's table that may lack its token map."""
    near = request.checkpoint / "tokenizer.json"
    return request.tokenizer or (near if near.is_file() else None)


def _own(
    store: RowSource, request: AttachRequest, model: ModelShape, progress: Progress
) -> OwnModule | None:
    """Return the module of the checkpoint that has the rows, where it is wanted and fits the model.

    Raises as `fitting_module`.
    """
    if FORMATS.load(store.format).foreign:
        require_attachable(store)
    if (request.init_value, request.init_gate) != ("auto", "random"):
        return None
    return fitting_module(store, model, progress, request.module)


def fitting_module(
    store: RowSource, model: ModelShape, progress: Progress, kind: str | None = None
) -> OwnModule | None:
    """Return the module of the checkpoint that has the rows; None where it does not fit the model.

    `kind`: the one wanted, None for any. Raises InputError and ArtifactError for a damaged one.
    """
    if not FORMATS.load(store.format).foreign:
        return None
    own = own_module(store, DEFAULT_EPS if model.norm_eps is None else model.norm_eps)
    if own is None:
        progress.note(f"{store.path} has rows and no module of its own: a new one starts")
        return None
    if kind not in (None, own.spec.kind):
        return None
    found = own.hidden_size, own.spec.carried_streams
    if found != (model.hidden_size, model.streams):
        progress.note(
            f"the module of {store.path} is for {found[1]} x {found[0]:,}, the model has "
            f"{model.streams} x {model.hidden_size:,}: a new one starts"
        )
        return None
    progress.note(f"{own.spec.kind} module: its weights are those of {store.path}")
    return own


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
    gate = request.init_gate
    if request.fit is not None and gate == "random":
        gate = "even"  # so that no gate begins by chance nearly closed

    def dense(layer: int, zero_rows: bool) -> Mapping[str, NDArray[np.float32]]:
        if zero_rows:
            zero_layers.append(layer)
        if fitted is not None:
            return fitted[layer]
        if own is not None:
            return own.dense(layer)
        return first_values(
            spec.dense_parts,
            layer=layer,
            seed=request.seed,
            zero_rows=zero_rows,
            value=request.init_value,
            gate=gate,
        )

    hits = None if counted is None else partial(_hits, counted)
    card = {CARD: model_card(spec).encode()}
    reference = _reference(spec, store, planned.out) if request.reference else None
    if reference is not None:
        records = write_referring(
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
    else:
        stored = planned.cost.table_bytes + planned.cost.hits_bytes
        progress.start("rows into the bundle", stored, "bytes")
        records = write_bundle(
            planned.out,
            spec,
            store.chunks,
            dense,
            scales=partial(store.chunks, part=SCALES),
            hits=hits,
            tool_version=__version__,
            force=request.force,
            extra_files=card,
            advance=progress.advance,
        )
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


def _reference(spec: BundleSpec, store: RowSource, out: Path) -> Reference:
    """Return the reference of a bundle to the files of a table or checkpoint.

    Raises InputError for anything else.
    """
    if is_remote(store.path):
        raise InputError(
            f"{store.path} is not on this machine, so that a bundle cannot refer to it",
            "leave out --reference, or download it first",
        )
    if isinstance(store, TableStore):
        if any(array.inner_rows is not None for array in store.arrays.values()):
            raise InputError(
                f"{store.path} has inner chunks, and a bundle maps whole chunk files",
                "leave out --reference, or convert the table without --inner-chunk-size",
            )
        return refer(store.path, store.digest, read_description(store.path).files, spec, out)
    if has_spans(FORMATS.load(store.format)):
        return refer_to_source(store, out, spec)
    raise InputError(
        f"{store.path} is no table, so that a bundle cannot refer to it", "leave out --reference"
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
