"""What a bundle takes from the source of its rows: hits, a module, a reference to its files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from numpy.typing import NDArray

from engram_cli.commands.artifact import Companions
from engram_cli.commands.checkpoint import ModelShape
from engram_cli.commands.requests.tables import AttachRequest
from engram_cli.errors import InputError
from engram_cli.formats import FORMATS
from engram_cli.formats.bundle_description import Reference
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.checkpoint_bundle import has_spans, refer_to_source, require_attachable
from engram_cli.formats.own_modules import DEFAULT_EPS, OwnModule, own_module
from engram_cli.formats.statistics import statistics_rows
from engram_cli.formats.table_reference import refer
from engram_cli.formats.zarr_table import checked_chunks
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.path import is_remote
from engram_cli.rows.source import HITS, RowSource
from engram_cli.table.attributes import read_description
from engram_cli.table.grid import array_name
from engram_cli.table.store import TableStore

BUILD_AGAIN = "build it again, or copy what is there: engram convert --no-verify"


def near_tokenizer(request: AttachRequest) -> Path | None:
    """Return the model's tokenizer for a checkpoint's table that may lack its token map."""
    near = request.checkpoint / "tokenizer.json"
    return request.tokenizer or (near if near.is_file() else None)


def counted_rows(store: RowSource, request: AttachRequest) -> RowSource | None:
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


def copied_files(store: RowSource, layers: Sequence[int], parts: Sequence[str]) -> frozenset[str]:
    """Return the files of a table that `stored_part` checks; none of other sources."""
    if not _reads_once(store):
        return frozenset()
    names = (array_name(layer, part) for layer in layers for part in parts)
    return frozenset(
        file for name in names if name in store.arrays for file in store.arrays[name].files
    )


def stored_part(store: RowSource, part: str, layer: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first row, [n, ...]) of a part of a layer as a bundle stores it, a piece at a time.

    Of a table on this machine, the checksums of what is read are compared. Raises ArtifactError.
    """
    if store.format == "statistics":
        yield 0, store.lines(layer, HITS, 0, store.layout.layer(layer).rows)
    elif _reads_once(store):
        yield from checked_chunks(store, BUILD_AGAIN, layer, part)
    else:
        yield from store.chunks(layer, part)


def _reads_once(store: RowSource) -> TypeGuard[TableStore]:
    """Return whether the files of a source are read whole, in the order of their rows."""
    if not isinstance(store, TableStore) or is_remote(store.path):
        return False
    return all(array.inner_rows is None for array in store.arrays.values())


def wanted_module(
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


def reference_to(spec: BundleSpec, store: RowSource, out: Path) -> Reference:
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
