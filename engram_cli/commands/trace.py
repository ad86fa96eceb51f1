"""trace: a checkpoint with a bundle and a text in; how far each token's gates opened out.

Runs the model once (`runtime.tracing`); `--report` draws the same figures as a page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.artifact import Companions
from engram_cli.commands.attach.layers import vocab_digest
from engram_cli.commands.load_model import check_checkpoint, load_model, require_packages
from engram_cli.commands.requests.evaluation import AUTO
from engram_cli.commands.requests.options import copied, located
from engram_cli.commands.requests.reading import TraceRequest
from engram_cli.errors import InputError, MismatchError
from engram_cli.formats.bundle import BUNDLE_NAME, read_bundle
from engram_cli.hashing.layout import short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.numbers import mean, percent
from engram_cli.report.place import check_page
from engram_cli.view import Column, Page, Shades, Summary, Table, View
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer, typed_text

MAX_TOKENS = 4096
_WIDEST = 5  # tokens named in the summary
_STEPS = 4  # of the colour scale


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTrace:
    """A layer's figures: `gates` [T][streams] in 0..1, `strengths` [T], the addition's share.

    `layer` is the table's number, `decoder_layer` where it lies in the model, counted from 0.
    """

    layer: int
    decoder_layer: int
    gates: tuple[tuple[float, ...], ...]
    strengths: tuple[float, ...]

    @property
    def name(self) -> str:
        """The layer to read, by its place in the model."""
        other = f" (layer {self.layer} of the table)" if self.layer != self.decoder_layer else ""
        return f"decoder layer {self.decoder_layer}{other}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceResult:
    """The traced text: `pieces` are its tokens as they stand in it, `ids` their numbers.

    `untrained`: the layers whose memory added nothing to any token, to the bit.
    """

    ids: tuple[int, ...]
    pieces: tuple[str, ...]
    layers: tuple[LayerTrace, ...]
    untrained: tuple[int, ...] = ()
    report: Path | None = None


def trace_text(request: TraceRequest) -> TraceResult:
    """Trace a text; writes the page if one is asked for.

    Raises InputError for a text without tokens or with too many, MismatchError for a tokenizer
    that the bundle was not made for, DependencyError without transformers, RuntimeAttachError for
    a bundle that does not fit, OutputError.
    """
    request = located(request)
    if request.report is not None:
        check_page(
            request.report,
            request.force,
            option="--report",
            inputs=(request.checkpoint, request.bundle, request.tokenizer),
        )
    request = copied(request)
    check_checkpoint(request.checkpoint)
    tokenizer = load_tokenizer(request.tokenizer or request.checkpoint)
    text = typed_text(request.text)
    ids = tokenizer.encode(text)
    if not 1 <= len(ids) <= MAX_TOKENS:
        raise InputError(
            f"the text has {len(ids)} tokens", f"give a text of 1 to {MAX_TOKENS} tokens"
        )
    bundle = request.bundle or request.checkpoint / BUNDLE_NAME
    if request.verify:
        read_bundle(bundle, verify=True)
    check_tokenizer(bundle, tokenizer)
    model = model_with_memory(
        request.checkpoint,
        bundle,
        device=request.device,
        dtype=request.dtype,
        placement=request.placement,
    )
    layers, untrained = trace_ids(model, ids)
    result = TraceResult(
        ids=tuple(ids),
        pieces=pieces_of(tokenizer, text, ids),
        layers=layers,
        untrained=untrained,
        report=request.report,
    )
    if request.report is not None:
        from engram_cli.report.page import write_page

        write_page(gates_page(result, request.checkpoint.name), request.report, force=request.force)
    return result


def gates_page(result: TraceResult, model: str = "") -> Page:
    """Return the page of a traced text: its tokens shaded by how far each gate opened.

    `model`: the name of the checkpoint.
    """
    views = [
        _gates_view(result.pieces, layer, stream)
        for layer in result.layers
        for stream in range(len(layer.gates[0]))
    ]
    return Page(
        kicker="Engram · gates of a text",
        heading="Where the memory is used",
        title="Engram trace: where the memory is used",
        facts=(
            *((("Model", model),) if model else ()),
            ("Text", f"{len(result.pieces):,} tokens"),
            ("Layers", ", ".join(layer.name for layer in result.layers)),
        ),
        views=(_trace_summary(result), *views),
        data={"pieces": result.pieces, "layers": [asdict(layer) for layer in result.layers]},
    )


def _trace_summary(result: TraceResult) -> View:
    """Draw in a sentence where gates opened, and one line for each layer."""
    if set(result.untrained) == {layer.layer for layer in result.layers}:
        headline = "The memory is untrained: it adds nothing to any token."
    else:
        used = [layer for layer in result.layers if layer.layer not in result.untrained]
        most = max(used, key=lambda layer: max(layer.strengths))
        at = max(range(len(most.strengths)), key=lambda place: most.strengths[place])
        headline = (
            f"The memory adds most at token {at + 1}, \u201c{_marked(result.pieces[at])}\u201d: "
            f"{percent(most.strengths[at])} of the hidden state in {most.name}."
        )
    rows = []
    for layer in result.layers:
        for stream in range(len(layer.gates[0])):
            gates = [row[stream] for row in layer.gates]
            widest = sorted(range(len(gates)), key=lambda place: (-gates[place], place))[:_WIDEST]
            rows.append(
                (
                    _stream_name(layer, stream),
                    *(mean(gates), min(gates), max(gates), mean(layer.strengths)),
                    "   ".join(_marked(result.pieces[place]) for place in widest),
                )
            )
    columns = (
        Column("layer", "text"),
        *(Column(name, "decimal", 3) for name in ("mean gate", "least", "most")),
        Column("added, mean", "percent"),
        Column("gates widest open at", "text"),
    )
    return View(
        name="summary",
        title="Summary",
        lead="A gate of 0 keeps the memory out, a gate of 1 lets all of it in. Added is the size "
        "of what the memory adds, as a share of the hidden state.",
        parts=(Summary(headline), Table("Gates by layer", columns, tuple(rows))),
    )


def _marked(piece: str) -> str:
    return piece.replace(" ", "␣") or "·"


def _stream_name(layer: LayerTrace, stream: int) -> str:
    return layer.name + (f", stream {stream}" if len(layer.gates[0]) > 1 else "")


def _gates_view(pieces: Sequence[str], layer: LayerTrace, stream: int) -> View:
    name = _stream_name(layer, stream)
    name = name[:1].upper() + name[1:]
    gates = [row[stream] for row in layer.gates]
    low, high = min(gates), max(gates)
    span = high - low or 1.0
    pairs = list(zip(gates, layer.strengths, strict=True))
    columns = (
        Column(name="token", kind="ngram"),
        Column(name="gate", kind="decimal", digits=3),
        Column(name="added", kind="percent", digits=2),
    )
    rows = tuple((_marked(piece), *pair) for piece, pair in zip(pieces, pairs, strict=True))
    steps = [step / _STEPS for step in range(_STEPS + 1)] if high > low else [0.0]
    return View(
        name=re.sub(r"\W+", "-", name.lower()),
        title=name,
        lead=f"Gates from {low:.3f} to {high:.3f}, mean {mean(gates):.3f}. The stronger the "
        "colour, the wider the gate.",
        parts=(
            Shades(
                pieces=tuple(pieces),
                shades=tuple((gate - low) / span for gate in gates),
                notes=tuple(
                    f"gate {gate:.3f}, added {percent(share)} of the hidden state"
                    for gate, share in pairs
                ),
                title="Tokens by gate",
                legend=tuple((step, f"{low + step * (high - low):.3f}") for step in steps),
            ),
            Table(title=name, columns=columns, rows=rows, folded=True),
        ),
    )


def pieces_of(tokenizer: TokenizerFile, text: str, ids: list[int]) -> tuple[str, ...]:
    """Return each token's part of `text`; "" if it only continues a character."""
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    if list(encoding.ids) != ids:
        return tuple(tokenizer.decode_each(ids))
    end, pieces = 0, []
    for begin, stop in encoding.offsets:
        pieces.append(text[max(begin, end) : stop])
        end = max(end, stop)
    return tuple(pieces)


def check_tokenizer(bundle: Path, tokenizer: TokenizerFile) -> None:
    """Raise MismatchError for other token ids than the bundle's: they would look at wrong rows.

    A scheme that hashes raw ids has no vocabulary to compare.
    """
    layout = read_bundle(bundle).spec.layout
    if takes_raw_ids(layout.scheme):
        return
    nearby = Companions(artifact=bundle).vocabulary_places()
    digest = vocab_digest(tokenizer.path, layout, nearby)
    if digest != layout.vocab_digest:
        raise MismatchError(
            f"{tokenizer.path} gives vocabulary {short(digest)}, {bundle} was made for "
            f"{short(layout.vocab_digest)}",
            "give the tokenizer that it was made from",
        )


def model_with_memory(
    checkpoint: Path,
    bundle: Path,
    *,
    device: str | None = "cpu",
    dtype: str = AUTO,
    placement: str = "hbm",
) -> Any:
    """Return the model of a checkpoint with the memory of a bundle attached, to be traced.

    `device` None: a GPU if there is one. Raises as `load_model`, InputError for a device that is
    not there, RuntimeAttachError for a bundle that does not fit.
    """
    require_packages("torch", "transformers")
    from engram_cli.commands.evaluate.model import dtype_on, find_processes
    from engram_cli.runtime import attach

    where = find_processes(device).device
    model = load_model(checkpoint, dtype=dtype_on(where, dtype)).to(where)
    attach(model, bundle, rows_trainable=False, placement=placement)
    return model


def trace_ids(model: Any, ids: Sequence[int]) -> tuple[tuple[LayerTrace, ...], tuple[int, ...]]:
    """Return the figures of the layers for some tokens, and which layers are untrained."""
    import torch

    from engram_cli.runtime import trace

    found = trace(model, torch.tensor(ids, device=next(model.parameters()).device))
    layers = tuple(
        LayerTrace(
            layer=layer,
            decoder_layer=found.decoder_layers[layer],
            gates=tuple(tuple(round(gate, 4) for gate in gates) for gates in values.tolist()),
            strengths=tuple(round(share, 6) for share in found.strengths[layer].tolist()),
        )
        for layer, values in found.gates.items()
    )
    return layers, found.untrained
