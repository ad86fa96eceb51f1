"""Which layers of a table go where in a checkpoint's decoder, with which module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engram_cli.commands.checkpoint import ModelShape, is_readable, paper_layers
from engram_cli.errors import EngramError, InputError, MismatchError
from engram_cli.files import sha256_bytes
from engram_cli.formats.bundle_spec import decoder_index
from engram_cli.formats.module_spec import DEFAULT_MODULE, FRESH_KINDS, ModuleSpec, module_spec
from engram_cli.hashing.layout import BASE_VOCABULARY, HashLayout, short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.vocab.kept import token_map
from engram_cli.vocab.lookup import VocabMap, base_lookup, lookup_digest
from engram_cli.vocab.tokenizer import find_tokenizer

_DEFAULT_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedLayers:
    """Layers of a table, the decoder layers (from 0) that get them, and why these, to read."""

    layers: tuple[int, ...]
    decoder_layers: tuple[int, ...]
    why: str


def place_layers(
    layout: HashLayout,
    wanted: tuple[int, ...] | None,
    at: tuple[int, ...] | None,
    model: ModelShape,
    table: Path,
) -> PlacedLayers:
    """Return the layers of a table to attach, and where: `wanted` and `at`, or what suits.

    A layer's number only seeds its hash. It lies in the decoder layer that the number names where
    there is one, else in the second or the middle one, or the free one nearest to the middle.
    Raises MismatchError for a layer that the table does not have or for more layers than the model
    has, InputError for places that cannot be.
    """
    layers, why = _choose_layers(layout, wanted, at, model, table)
    if at is not None:
        _check_places(at, layers, model)
        return _placed(layout, dict(zip(layers, at, strict=True)), f"{why}, at the places given")
    count = model.num_layers
    if len(layers) > count:
        raise MismatchError(
            f"{table} has {len(layers)} layers, the model only {count}",
            f"attach a part of them: --layers {','.join(map(str, layers[:count]))}",
        )
    named = {layer: decoder_index(layout, layer) for layer in layers}
    places = {layer: place for layer, place in named.items() if 0 <= place < count}
    good = paper_layers(count)
    by_distance = sorted(range(count), key=lambda place: (abs(place - count // 2), place))
    free = [place for place in (*good, *by_distance) if place not in places.values()]
    moved = [layer for layer in sorted(layers) if layer not in places]
    places |= dict(zip(moved, dict.fromkeys(free), strict=False))
    if moved:
        why += (
            f"; the model has no decoder layer {listed([named[layer] for layer in moved])}, so the "
            "second and the middle one are taken, as in the paper; --at names others"
        )
    return _placed(layout, places, why)


def _placed(layout: HashLayout, places: Mapping[int, int], why: str) -> PlacedLayers:
    """Return the layers in the order of the table, each with its place."""
    layers = tuple(layer for layer in layout.layer_ids if layer in places)
    return PlacedLayers(
        layers=layers, decoder_layers=tuple(places[layer] for layer in layers), why=why
    )


def _check_places(at: tuple[int, ...], layers: tuple[int, ...], model: ModelShape) -> None:
    """Raise InputError unless `at` is one decoder layer of the model for each of `layers`."""
    hint = f"give {len(layers)} different decoder layers of 0 to {model.num_layers - 1}"
    if len(at) != len(layers):
        raise InputError(f"--at {listed(at)} for layers {listed(layers)}", hint)
    if len(set(at)) != len(at) or not all(0 <= place < model.num_layers for place in at):
        raise InputError(f"--at {listed(at)} in a model of {model.num_layers} layers", hint)


def _choose_layers(
    layout: HashLayout,
    wanted: tuple[int, ...] | None,
    at: tuple[int, ...] | None,
    model: ModelShape,
    table: Path,
) -> tuple[tuple[int, ...], str]:
    """Return the layers of a table to attach, and why: `wanted`, or the two that suit best."""
    known = layout.layer_ids
    missing = [layer for layer in wanted or () if layer not in known]
    if missing:
        raise MismatchError(
            f"{table} has no layer {listed(missing)}, it has {listed(known)}",
            "leave out --layers, or name layers of the table",
        )
    if wanted is not None:
        if not wanted:
            raise InputError("--layers names no layer", f"the table has {listed(known)}")
        if len(set(wanted)) != len(wanted):
            raise InputError(f"--layers {listed(wanted)}", "name each layer once")
        return wanted, "as asked"
    if len(known) <= 2 or (at is not None and len(at) == len(known)):
        return known, "all that the table has"
    places = {layer: decoder_index(layout, layer) for layer in known}
    early = min(known, key=lambda layer: abs(places[layer] - 1))
    rest = [layer for layer in known if layer != early]
    middle = min(rest, key=lambda layer: abs(places[layer] - model.num_layers // 2))
    return tuple(layer for layer in known if layer in (early, middle)), (
        f"of the table's {listed(known)} the nearest to the second and to the middle of the "
        f"model's {model.num_layers}, as in the paper; --layers takes others"
    )


def choose_module(layout: HashLayout, wanted: str | None, model: ModelShape) -> ModuleSpec:
    """Return the module `wanted`, or the one published with the layout's scheme.

    Raises InputError for one that there is not.
    """
    kind = wanted or (layout.scheme if layout.scheme in FRESH_KINDS else DEFAULT_MODULE)
    if kind not in FRESH_KINDS:
        raise InputError(f"unknown module '{kind}'", f"known: {', '.join(FRESH_KINDS)}")
    eps = _DEFAULT_EPS if model.norm_eps is None else model.norm_eps
    return module_spec(kind, streams=model.streams, norm_eps=eps)


def check_vocabulary(
    layout: HashLayout,
    model: ModelShape,
    checkpoint: Path,
    tokenizer: Path | None,
    nearby: Iterable[Path],
) -> None:
    """Raise MismatchError unless the table was built for the checkpoint's tokenizer.

    A scheme that hashes raw ids only needs the size of the vocabulary to be the model's.
    `nearby`: compressed vocabularies that may be on record as made from this tokenizer.
    """
    if takes_raw_ids(layout.scheme):
        if model.vocab_size is not None and layout.vocab_size != model.vocab_size:
            raise MismatchError(
                f"the table hashes {layout.vocab_size:,} token ids, "
                f"the checkpoint has {model.vocab_size:,}",
                f"build the table again with --vocab-size {model.vocab_size}",
            )
        return
    source = tokenizer or checkpoint / "tokenizer.json"
    if tokenizer is None and not source.is_file():
        raise InputError(
            f"no tokenizer.json in {checkpoint}",
            "name the model's tokenizer.json with --tokenizer",
        )
    digest = vocab_digest(source, layout, nearby)
    if digest != layout.vocab_digest:
        raise MismatchError(
            f"the table was built for vocabulary {short(layout.vocab_digest)} of "
            f"{layout.vocab_size:,} ids, {source} gives {short(digest)}",
            f"build it for this tokenizer: engram compress-vocab {source} --force, then hash-stats "
            "and build-table again",
        )
    if model.vocab_size is not None and model.vocab_size < layout.vocab_size:
        raise MismatchError(
            f"{source} has {layout.vocab_size:,} ids, the model only {model.vocab_size:,}",
            "save the model with an embedding for every token, or take the added tokens out of "
            "its tokenizer.json",
        )


def vocab_digest(tokenizer: Path, layout: HashLayout, nearby: Iterable[Path]) -> str:
    """Return the digest of the compressed vocabulary of a tokenizer.

    If a vocabulary `nearby` is that of `layout` and was made from this very file, its digest is on
    record. Compressing 128,000 tokens takes 0.5 s, once for each tokenizer of the user. A map in
    the cache is computed again if it is not that of `layout`.
    """
    source = find_tokenizer(tokenizer)
    for place in nearby if is_readable(source) else ():
        from engram_cli.vocab.parquet import read_about  # with Arrow: 40 ms

        with suppress(EngramError):
            about = read_about(place)
            same = about.get("vocab_digest") == layout.vocab_digest
            if same and about.get("tokenizer_digest") == sha256_bytes(source.read_bytes()):
                return str(layout.vocab_digest)
    made = token_map(source, lambda vocab: _digest_of(vocab, layout) == layout.vocab_digest)
    return _digest_of(made, layout)


def _digest_of(vocab: VocabMap, layout: HashLayout) -> str:
    base = layout.parameters.get(BASE_VOCABULARY)
    if isinstance(base, int):  # added tokens are hashed as they are
        return lookup_digest(base_lookup(vocab.lookup, base))
    return vocab.digest


def listed(layers: tuple[int, ...] | list[int]) -> str:
    """Return layer numbers as text."""
    return ", ".join(map(str, layers))
