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
from engram_cli.commands.attach_layers import vocab_digest
from engram_cli.commands.load_model import check_checkpoint, load_model
from engram_cli.commands.requests.reading import TraceRequest
from engram_cli.errors import InputError, MismatchError
from engram_cli.formats.bundle import BUNDLE_NAME, read_bundle
from engram_cli.hashing.layout import short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.report.place import check_page
from engram_cli.view import Column, Page, Shades, Table, View
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer, typed_text

MAX_TOKENS = 4096


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
    if request.report is not None:
        check_page(
            request.report,
            request.force,
            option="--report",
            inputs=(request.checkpoint, request.bundle, request.tokenizer),
        )
    check_checkpoint(request.checkpoint)
    tokenizer = load_tokenizer(request.tokenizer or request.checkpoint)
    text = typed_text(request.text)
    ids = tokenizer.encode(text)
    if not 1 <= len(ids) <= MAX_TOKENS:
        raise InputError(
            f"the text has {len(ids)} tokens", f"give a text of 1 to {MAX_TOKENS} tokens"
        )
    check_tokenizer(request.bundle or request.checkpoint / BUNDLE_NAME, tokenizer)
    model = model_with_memory(
        request.checkpoint, request.bundle or request.checkpoint / BUNDLE_NAME
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

        write_page(gates_page(result), request.report, force=request.force)
    return result


def gates_page(result: TraceResult) -> Page:
    """Return the page of a traced text: its tokens shaded by how far each gate opened."""
    views = [
        _gates_view(result.pieces, layer, stream)
        for layer in result.layers
        for stream in range(len(layer.gates[0]))
    ]
    return Page(
        kicker="Engram · gates of a text",
        heading="Where the memory speaks",
        title="Where the memory speaks",
        facts=(
            ("Tokens", f"{len(result.pieces):,}"),
            ("Shades", "the darker a token, the further its gate let the memory in"),
            ("Tables", "the gates, and what was added as a share of the hidden state"),
        ),
        views=tuple(views),
        data={"pieces": result.pieces, "layers": [asdict(layer) for layer in result.layers]},
    )


def _gates_view(pieces: Sequence[str], layer: LayerTrace, stream: int) -> View:
    several = len(layer.gates[0]) > 1
    name = layer.name[:1].upper() + layer.name[1:] + (f", stream {stream}" if several else "")
    gates = [row[stream] for row in layer.gates]
    low, high = min(gates), max(gates)
    span = high - low or 1.0
    pairs = list(zip(gates, layer.strengths, strict=True))
    columns = (
        Column(name="token", kind="ngram"),
        Column(name="gate", kind="decimal", digits=3),
        Column(name="added", kind="percent", digits=2),
    )
    rows = tuple(
        (piece.replace(" ", "␣") or "·", *pair) for piece, pair in zip(pieces, pairs, strict=True)
    )
    return View(
        name=re.sub(r"\W+", "-", name.lower()),
        title=name,
        lead=f"Gates from {low:.3f} to {high:.3f}, mean {sum(gates) / len(gates):.3f}.",
        parts=(
            Shades(
                pieces=tuple(pieces),
                shades=tuple((gate - low) / span for gate in gates),
                notes=tuple(f"gate {gate:.3f}, added {share:.1%}" for gate, share in pairs),
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


def model_with_memory(checkpoint: Path, bundle: Path) -> Any:
    """Return the model of a checkpoint with the memory of a bundle attached, to be traced.

    Raises as `load_model`, RuntimeAttachError for a bundle that does not fit.
    """
    model = load_model(checkpoint)
    from engram_cli.runtime import attach

    attach(model, bundle, rows_trainable=False)
    return model


def trace_ids(model: Any, ids: Sequence[int]) -> tuple[tuple[LayerTrace, ...], tuple[int, ...]]:
    """Return the figures of the layers for some tokens, and which layers are untrained."""
    import torch

    from engram_cli.runtime import trace

    found = trace(model, torch.tensor(ids))
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
