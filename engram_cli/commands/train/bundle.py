"""Makes the bundle of a training run from its text: vocabulary, size, statistics, rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from engram_cli.commands.attach.command import attach_checkpoint
from engram_cli.commands.attach.layers import place_layers
from engram_cli.commands.build_table import build_table
from engram_cli.commands.checkpoint import ModelShape, paper_layers
from engram_cli.commands.compress_vocab import run_compress_vocab
from engram_cli.commands.geometry import DEFAULT_SCHEME, Geometry
from engram_cli.commands.hash_stats import hash_stats
from engram_cli.commands.plan.sizes import fit_layout
from engram_cli.commands.requests.corpus import CompressVocabRequest, FillRequest, HashStatsRequest
from engram_cli.commands.requests.tables import AttachRequest, BuildTableRequest
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError
from engram_cli.formats.bundle import BUNDLE_NAME
from engram_cli.formats.bundle_spec import layer_number
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import SCHEMES, takes_raw_ids
from engram_cli.numbers import bytes_text
from engram_cli.progress import Progress, WithoutNotes
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import RowType
from engram_cli.rows.safetensors import checkpoint_files, raw_header
from engram_cli.table.inits.corpus.pairs import has_mixes
from engram_cli.training import defaults

PACKED_FORMAT, PACKED_DTYPE = "nanogpt", "uint32"


def vocabulary(tokenizer: Path, here: Workspace, progress: Progress) -> Path:
    """Write the compressed vocabulary of a tokenizer, or take the one that is there."""
    if not here.vocab.is_file():
        request = CompressVocabRequest(source=tokenizer, workspace=here)
        run_compress_vocab(request, WithoutNotes(progress))
    return here.vocab


def choose_geometry(
    request: TrainRequest, model: ModelShape, parameters: int, tokens: int, vocab: Path
) -> HashLayout:
    """Return a layout that suits a model of so many `parameters` and a text of so many `tokens`.

    A head gets a row for every few tokens of the text, while all rows have no more parameters than
    a share of the model's. What the request names stays.
    """
    scheme = request.geometry.scheme or DEFAULT_SCHEME
    first = Geometry()
    if not SCHEMES.load(scheme).at_embedding:
        places = paper_layers(model.num_layers)
        first = Geometry(layers=tuple(layer_number(scheme, place) for place in places))
    if scheme == DEFAULT_SCHEME:
        first = replace(first, orders=defaults.ORDERS, heads=defaults.HEADS)
    if takes_raw_ids(scheme):
        eos = model.eos_id if "eos_id" in SCHEMES.load(scheme).parameters else None
        first = replace(first, vocab_size=model.vocab_size, eos_id=eos)
    geometry = replace(first, **request.geometry.given)
    if geometry.rows_per_head is not None:
        return geometry.resolve(vocab)

    def resolve(size: int) -> HashLayout:
        return replace(geometry, rows_per_head=(size,)).resolve(vocab)

    smallest = resolve(defaults.LEAST_ROWS)
    columns = len(smallest.layers) * smallest.columns
    affordable = int(defaults.ROW_SHARE * parameters) // (request.dim or defaults.DIM) // columns
    size = min(tokens // defaults.TOKENS_A_ROW, affordable, defaults.MOST_ROWS)
    if size <= defaults.LEAST_ROWS:
        return smallest
    return fit_layout(smallest, size * columns, resolve)


def count_parameters(checkpoint: Path) -> int:
    """Return the number of parameters in a checkpoint's safetensors files, by their headers."""
    files = set(checkpoint_files(checkpoint).values())
    return sum(prod(e.get("shape", ())) for file in files for e in raw_header(file)[0].values())


def check_first_rows(request: TrainRequest, layout: HashLayout) -> None:
    """Raise InputError for rows that stay as they start, and can only start random."""
    if request.rows == "frozen" and not has_mixes(layout):
        raise InputError(
            f"--rows frozen: rows of {layout.scheme} start random, for a text cannot fill them",
            "leave --rows out, so that they learn, or name another --scheme",
        )


def _described(layout: HashLayout, dim: int, stored: RowType, places: Sequence[int]) -> str:
    """Return what a new memory consists of, to read; `places`: the decoder layers that get it."""
    layers = [str(place) for place in places]
    rows = sum(entry.rows for entry in layout.layers)
    size = rows * stored.row_bytes(dim)
    start = "filled with the text's next tokens" if has_mixes(layout) else "random at first"
    return (
        f"making a memory for decoder layer{'s' * (len(layers) > 1)} {', '.join(layers)}: "
        f"{rows:,} rows of {dim} values, {bytes_text(size)}, {start}"
    )


def make_bundle(
    request: TrainRequest,
    model: ModelShape,
    layout: HashLayout,
    text: Path | None,
    end: int | None,
    here: Workspace,
    progress: Progress,
) -> Path:
    """Write the bundle that training begins with, or take the one that is there.

    `text`: a packed file whose n-grams fill the rows; None leaves the rows zero, for a dry run.
    """
    geometry = Geometry.from_layout(layout)
    out = here.folder / BUNDLE_NAME
    if (out / "engram.json").is_file():
        return out
    quiet = WithoutNotes(progress)  # they are of files and commands that train does not have
    dim = request.dim or defaults.DIM
    dtype = defaults.ROW_DTYPE if request.rows == "trained" else "bfloat16"
    base = BuildTableRequest(
        geometry=geometry, dim=dim, dtype=dtype, init="zeros", vocab=here.vocab, out=here.table
    )
    if not here.table.exists():
        if text is not None:
            every = place_layers(layout, layout.layer_ids, None, model, here.table)
            placed = every.decoder_layers
            progress.note(_described(layout, dim, DTYPES.load(dtype), placed))
            packed: dict[str, Any] = {
                "sources": (text,),
                "format": PACKED_FORMAT,
                "ids_dtype": PACKED_DTYPE,
                "document_end_id": end,
                "workspace": here,
            }
            if not here.stats.exists():
                counting = HashStatsRequest(geometry=geometry, vocab=here.vocab, **packed)
                hash_stats(counting, quiet)
            base = replace(base, init="normal", stats=here.stats)
            if has_mixes(layout):
                base = replace(base, init="next-token", fill=FillRequest(**packed))
        build_table(base, quiet)
    attach_checkpoint(
        AttachRequest(
            checkpoint=request.checkpoint,
            table=here.table,
            out=out,
            layers=layout.layer_ids,
            tokenizer=request.tokenizer,
            reference=True,
            seed=request.train_seed,
            folder=here.folder,
        ),
        quiet,
    )
    return out
