"""Writes rows as a state dict of the paper's demo: `layers.N.engram.` and the demo's names.

A name that ends in .pt gives an archive that `torch.load(weights_only=True)` reads.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engram_cli.errors import InputError
from engram_cli.formats.base import Target, WriteOptions, Written
from engram_cli.formats.demo import FORMAT, OFFSETS, WEIGHT
from engram_cli.formats.row_files import grown_files, prepare_rows, put_file
from engram_cli.formats.state_dict import (
    FLOATS,
    TORCH_SUFFIXES,
    WRITTEN_BY,
    StateTensor,
    copied_tensor,
    integers_tensor,
    is_own,
    module_tensors,
    require_rows,
    rows_tensor,
    state_dict_file,
)
from engram_cli.outputs import Kind, Listing
from engram_cli.rows.source import RowSource
from engram_cli.rows.stored_as import require_same_rows
from engram_cli.rows.torch_write import plan_torch, write_checksums


def _write(source: RowSource, out: Path, options: WriteOptions) -> Written:
    layout = require_rows(source, "engram-v1", "a state dict of the demo")
    if out.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise InputError(
            f"{out.name} ends in neither .safetensors nor .pt",
            "give another --out, such as demo.safetensors",
        )
    tensors = layer_tensors(source, "demo", "layers.{}.engram.")
    plan = state_dict_file(out.name, tensors, {"format": "pt", **WRITTEN_BY}, source)
    pad, seed = (layout.parameters.get(name, "unknown") for name in ("pad_id", "seed"))
    notes = [f"the file holds no tokenizer, pad id ({pad}) or seed ({seed}): set them in the model"]
    if not any(module_tensors(source, "demo").values()):
        notes.append("gates and convolutions are not in the source: load it with strict=False")
    done = Written(dialect="state dict", files=(out.name,), size=plan.size, notes=tuple(notes))
    if options.check:
        return done
    prepare_rows(out, STATE_DICT, options, (source.path,))
    with grown_files(out, plan, options) as grown:
        file = grown.folder / out.name
        if out.suffix in TORCH_SUFFIXES:
            specs = [tensor.spec for tensor in tensors]
            write_checksums(file, plan_torch(specs), specs)
        if options.verify:
            require_same_rows(
                source, FORMAT.open(file, options.tokenizer), plan.dtype, threads=options.threads,
                progress=options.progress,
            )  # fmt: skip
        put_file(file, out, STATE_DICT, options)
    return replace(done, verified=options.verify)


def layer_tensors(source: RowSource, name: str, prefix: str) -> list[StateTensor]:
    """Return what a file holds: rows, offsets, and the rest of a module where there is one.

    `name`: the format whose modules have its names; `prefix`: of a layer's tensors, with its `{}`.
    """
    tensors = []
    modules = module_tensors(source, name)
    for entry in source.layout.layers:
        own = prefix.format(entry.layer)
        tensors.append(rows_tensor(source, entry.layer, own + WEIGHT))
        tensors.append(integers_tensor(entry.offsets, own + OFFSETS))
        for what, tensor in modules.get(entry.layer, {}).items():
            if what not in (WEIGHT, OFFSETS):
                tensors.append(copied_tensor(tensor, own + what))
    return tensors


def _listing(path: Path) -> Listing | None:
    return Listing() if is_own(path) else None


STATE_DICT = Kind(name="state dict", listing=_listing, folder=False)
TARGET = Target(write=_write, dtypes=FLOATS)
