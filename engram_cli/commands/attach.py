"""attach: a checkpoint folder and a table in, a bundle that the runtime loads out.

Reads the checkpoint's config.json and tokenizer.json, refuses a table that was built for another
vocabulary or for layers the model has not, and writes `engram/` into the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.geometry import RAW_ID_SCHEMES
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.files import read_json, refuse_existing
from engram_cli.formats.bundle import DESCRIPTION, ROW_DTYPES, BundleSpec, decoder_index
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.dense import INIT_GATES, INIT_VALUES, first_values
from engram_cli.formats.module_spec import DEFAULT_MODULE, KINDS, ModuleSpec, module_spec
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.progress import SILENT, Progress
from engram_cli.table.build import free_bytes
from engram_cli.table.store import TableStore, open_table
from engram_cli.version import __version__
from engram_cli.vocab.compress import compress_vocab

BUNDLE_NAME = "engram"

# The names that model families give to the same number, by the first one found.
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_STREAMS = ("hc_mult", "hc_count")
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layer_norm_rms_epsilon")
_DEFAULT_EPS = 1e-6
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """What to attach to what. `out` None is `<checkpoint>/engram`; `layers` None all the table's.

    `tokenizer` is a tokenizer.json or a folder with one, None the checkpoint's. `module` None is
    that of the table's scheme. `seed` draws the random weights, `init_value` and `init_gate` say
    which are random (docs/reference/modules.md). With `dry_run` nothing is written.
    """

    checkpoint: Path
    table: Path
    out: Path | None = None
    layers: tuple[int, ...] | None = None
    tokenizer: Path | None = None
    module: str | None = None
    init_value: str = "auto"
    init_gate: str = "random"
    packed: bool = False
    seed: int = 0
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What attach needs to know of a model's config.json.

    `streams` are the copies of the hidden state that a hyper-connection model carries; `norm_eps`
    None where the config has none.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int | None
    streams: int = 1
    norm_eps: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachCost:
    """The byte arithmetic: on disk and in memory, and what a token reads."""

    table_bytes: int
    dense_bytes: int
    dense_parameters: int
    token_rows: int
    token_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachResult:
    """What was written (or, after a dry run, would be). `files` are names and sizes in bytes.

    `zero_rows`: the layers whose rows are all zero. `identity`: no output of the model changes yet.
    """

    out: Path
    model: ModelShape
    scheme: str
    module: str
    layers: tuple[int, ...]
    rows: Mapping[int, int]
    dim: int
    dtype: str
    cost: AttachCost
    written: bool
    identity: bool = True
    zero_rows: tuple[int, ...] = ()
    files: Mapping[str, int] = field(default_factory=dict)


def attach_checkpoint(request: AttachRequest, progress: Progress = SILENT) -> AttachResult:
    """Write the bundle of `request`, its byte arithmetic first.

    Raises InputError for a checkpoint or a table that cannot be read, MismatchError when they do
    not belong together, OutputError when the bundle cannot be written.
    """
    out = request.out or request.checkpoint / BUNDLE_NAME
    if not request.dry_run:
        _refuse_output(out, request.force)
    model = read_model_shape(request.checkpoint)
    store = open_table(request.table)
    if store.dtype not in ROW_DTYPES:
        raise MismatchError(
            f"{request.table} has rows of {store.dtype}, a bundle has {', '.join(ROW_DTYPES)}",
            f"convert it first: engram convert {request.table} --dtype bfloat16 --out NAME.zarr",
        )
    layers = choose_layers(store.layout, request.layers, model, request.table)
    check_vocabulary(store.layout, model, request)
    _check_choices(request)
    spec = BundleSpec(
        layout=store.layout,
        layers=layers,
        dim=store.dim,
        dtype=store.dtype,
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        model_type=model.model_type,
        module=choose_module(store.layout, request.module, model),
        packed=request.packed,
    )
    result = AttachResult(
        out=out,
        model=model,
        scheme=spec.layout.scheme,
        module=spec.module.kind,
        layers=layers,
        rows={layer: spec.rows(layer) for layer in layers},
        dim=spec.dim,
        dtype=spec.dtype,
        cost=attach_cost(spec),
        written=False,
    )
    for line in describe_cost(spec, result.cost, out):
        progress.note(line)
    if request.dry_run:
        return result
    _check_space(out, result.cost)
    return _write(spec, store, request, result, progress)


def _write(
    spec: BundleSpec,
    store: TableStore,
    request: AttachRequest,
    planned: AttachResult,
    progress: Progress,
) -> AttachResult:
    zero_layers = []

    def dense(layer: int, zero_rows: bool) -> dict[str, NDArray[np.float32]]:
        if zero_rows:
            zero_layers.append(layer)
        return first_values(
            spec.dense_parts,
            layer=layer,
            seed=request.seed,
            zero_rows=zero_rows,
            value=request.init_value,
            gate=request.init_gate,
        )

    progress.start("rows into the bundle", planned.cost.table_bytes, "bytes")
    records = write_bundle(
        planned.out,
        spec,
        store.chunks,
        dense,
        tool_version=__version__,
        force=request.force,
        advance=progress.advance,
    )
    return replace(
        planned,
        written=True,
        identity=request.init_value != "random" or len(zero_layers) == len(spec.layers),
        zero_rows=tuple(zero_layers),
        files={record.name: record.size for record in records},
    )


def read_model_shape(checkpoint: Path) -> ModelShape:
    """The sizes in a checkpoint's config.json, also where they lie in a text config.

    Raises InputError when the folder, the file or a size is missing.
    """
    path = checkpoint / "config.json"
    if not path.is_file():
        raise InputError(
            f"no config.json in {checkpoint}", "give the folder of a Hugging Face checkpoint"
        )
    config = read_json(path, "a checkpoint's config")
    nested = (config[name] for name in _TEXT_CONFIGS if isinstance(config.get(name), dict))
    text = next(nested, config)
    return ModelShape(
        model_type=str(config.get("model_type", "unknown")),
        hidden_size=_size(path, text, _HIDDEN_SIZE),
        num_layers=_size(path, text, _NUM_LAYERS),
        vocab_size=_size(path, text, ("vocab_size",)) if "vocab_size" in text else None,
        streams=_size(path, text, _STREAMS) if any(text.get(n) for n in _STREAMS) else 1,
        norm_eps=next((float(text[n]) for n in _NORM_EPS if _is_eps(text.get(n))), None),
    )


def _is_eps(value: Any) -> bool:
    return type(value) in (float, int) and 0 <= value < 1


def _size(path: Path, config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None:
        raise InputError(
            f"{path} has no {names[0]} (nor {', '.join(names[1:]) or 'another name for it'})",
            "give the folder of a decoder-only language model",
        )
    value = config[name]
    if type(value) is not int or not 1 <= value < 2**31:
        raise InputError(f"{path}: {name} is {value!r}", "a positive number was expected")
    return value


def choose_layers(
    layout: HashLayout, wanted: tuple[int, ...] | None, model: ModelShape, table: Path
) -> tuple[int, ...]:
    """The layers to attach to: `wanted`, or all that the table has.

    Raises MismatchError for a layer that the table or the model has not.
    """
    known = layout.layer_ids
    layers = tuple(layer for layer in known if wanted is None or layer in wanted)
    missing = [layer for layer in wanted or () if layer not in known]
    fitting = [layer for layer in known if 0 <= decoder_index(layout, layer) < model.num_layers]
    first = 1 - decoder_index(layout, 1)
    last = first + model.num_layers - 1
    good = ",".join(map(str, sorted({min(first + 1, last), first + model.num_layers // 2})))
    rebuild = (
        f"build the table for layers the model has: engram build-table --layers {good} --force"
    )
    if missing:
        raise MismatchError(
            f"{table} has no layer {_listed(missing)}, it has {_listed(known)}",
            f"leave out --layers, or {rebuild}",
        )
    if not layers:
        raise InputError("no layer was named", f"the table has {_listed(known)}")
    beyond = [layer for layer in layers if layer not in fitting]
    if beyond:
        keep = f", or attach only --layers {','.join(map(str, fitting))}" if fitting else ""
        raise MismatchError(
            f"{table} has layer {_listed(beyond)}, the model has layers {first} to {last}",
            rebuild + keep,
        )
    return layers


def choose_module(layout: HashLayout, wanted: str | None, model: ModelShape) -> ModuleSpec:
    """The module `wanted`, or the one published with the layout's scheme, for this model.

    Raises InputError for one that there is not.
    """
    kind = wanted or (layout.scheme if layout.scheme in KINDS else DEFAULT_MODULE)
    if kind not in KINDS:
        raise InputError(f"unknown module '{kind}'", f"known: {', '.join(KINDS)}")
    eps = _DEFAULT_EPS if model.norm_eps is None else model.norm_eps
    return module_spec(kind, streams=model.streams, norm_eps=eps)


def _check_choices(request: AttachRequest) -> None:
    """Raises InputError for a way to start that there is not."""
    for name, value, known in (
        ("init-value", request.init_value, INIT_VALUES),
        ("init-gate", request.init_gate, INIT_GATES),
    ):
        if value not in known:
            raise InputError(f"--{name} '{value}'", f"known: {', '.join(known)}")


def check_vocabulary(layout: HashLayout, model: ModelShape, request: AttachRequest) -> None:
    """Raises MismatchError unless the table was built for the checkpoint's tokenizer.

    A scheme that hashes raw ids only needs the size of the vocabulary to be the model's.
    """
    if layout.scheme in RAW_ID_SCHEMES:
        if model.vocab_size is not None and layout.vocab_size != model.vocab_size:
            raise MismatchError(
                f"the table hashes {layout.vocab_size:,} token ids, "
                f"the checkpoint has {model.vocab_size:,}",
                f"build the table again with --vocab-size {model.vocab_size}",
            )
        return
    source = request.tokenizer or request.checkpoint / "tokenizer.json"
    if request.tokenizer is None and not source.is_file():
        raise InputError(
            f"no tokenizer.json in {request.checkpoint}",
            "name the model's tokenizer.json with --tokenizer",
        )
    digest = compress_vocab(source).digest
    if digest != layout.vocab_digest:
        raise MismatchError(
            f"the table was built for vocabulary {short(layout.vocab_digest)}, "
            f"{source} gives {short(digest)}",
            "build it for this tokenizer: engram compress-vocab, hash-stats and build-table again",
        )


def attach_cost(spec: BundleSpec) -> AttachCost:
    """What the bundle takes, from its shapes alone."""
    count = sum(int(np.prod(shape)) for shape in spec.dense_shapes.values()) * len(spec.layers)
    token_rows = spec.layout.columns * len(spec.layers)
    return AttachCost(
        table_bytes=sum(spec.rows(layer) for layer in spec.layers) * spec.row_bytes,
        dense_bytes=4 * count,
        dense_parameters=count,
        token_rows=token_rows,
        token_bytes=token_rows * spec.row_bytes,
    )


def describe_cost(spec: BundleSpec, cost: AttachCost, out: Path) -> list[str]:
    """The arithmetic as lines to read."""
    rows = " + ".join(f"{spec.rows(layer):,}" for layer in spec.layers)
    return [
        f"tables of layers {_listed(spec.layers)}: {rows} rows x {spec.dim} x {spec.dtype} "
        f"= {cost.table_bytes:,} bytes on disk, as much in memory when all of it is touched",
        f"{spec.module.kind} module: {cost.dense_parameters:,} dense parameters, "
        f"{cost.dense_bytes:,} bytes",
        f"a token reads {cost.token_rows} rows, {cost.token_bytes:,} bytes; bundle: {out}",
    ]


def _check_space(out: Path, cost: AttachCost) -> None:
    """Raises OutputError, with the arithmetic, when the bundle does not fit on the disk."""
    need, free = cost.table_bytes + cost.dense_bytes, free_bytes(out)
    if need > free:
        raise OutputError(
            f"{out} needs {need:,} bytes, {free:,} are free",
            f"free {need - free:,} bytes, or write to another disk with --out",
        )


def _refuse_output(out: Path, force: bool) -> None:
    """Raises OutputError when `out` exists, and also with `force` when it is no bundle."""
    refuse_existing(out, force)
    if out.exists() and not (out / DESCRIPTION).is_file() and not _is_empty(out):
        raise OutputError(
            f"{out} is no bundle, so --force does not replace it", "write elsewhere with --out"
        )


def _is_empty(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _listed(layers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, layers))
