"""A checkpoint's shape, and what of a table and of the modules fits it.

In: config.json, tokenizer.json and a table's layout. Out: layers and a module, or a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.geometry import RAW_ID_SCHEMES
from engram_cli.errors import InputError, MismatchError
from engram_cli.files import read_json
from engram_cli.formats.bundle_spec import decoder_index
from engram_cli.formats.module_spec import DEFAULT_MODULE, KINDS, ModuleSpec, module_spec
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.vocab.compress import compress_vocab

# The names that model families give to the same number, by the first one found.
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_STREAMS = ("hc_mult", "hc_count")
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layer_norm_rms_epsilon")
_DEFAULT_EPS = 1e-6
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


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
) -> tuple[tuple[int, ...], str]:
    """The layers to attach to, and why these: `wanted`, or the two of the table that suit best.

    Early enough to spare the lower layers their work, and in the middle where the gate knows its
    context: the paper's choice is the second layer and about the middle. Raises MismatchError for a
    layer that the table or the model has not.
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
            f"{table} has no layer {listed(missing)}, it has {listed(known)}",
            f"leave out --layers, or {rebuild}",
        )
    if not layers:
        raise InputError("no layer was named", f"the table has {listed(known)}")
    beyond = [layer for layer in layers if layer not in fitting]
    if beyond:
        keep = f", or attach only --layers {','.join(map(str, fitting))}" if fitting else ""
        raise MismatchError(
            f"{table} has layer {listed(beyond)}, the model has layers {first} to {last}",
            rebuild + keep,
        )
    if wanted is not None:
        return layers, "as asked"
    if len(layers) <= 2:
        return layers, "all that the table has"
    places = {layer: decoder_index(layout, layer) for layer in layers}
    early = min(layers, key=lambda layer: abs(places[layer] - 1))
    rest = [layer for layer in layers if layer != early]
    middle = min(rest, key=lambda layer: abs(places[layer] - model.num_layers // 2))
    chosen = tuple(layer for layer in layers if layer in (early, middle))
    return chosen, (
        f"of the table's {listed(layers)} the nearest to the second and to the middle of the "
        f"model's {model.num_layers}, as in the paper; --layers takes others"
    )


def choose_module(layout: HashLayout, wanted: str | None, model: ModelShape) -> ModuleSpec:
    """The module `wanted`, or the one published with the layout's scheme, for this model.

    Raises InputError for one that there is not.
    """
    kind = wanted or (layout.scheme if layout.scheme in KINDS else DEFAULT_MODULE)
    if kind not in KINDS:
        raise InputError(f"unknown module '{kind}'", f"known: {', '.join(KINDS)}")
    eps = _DEFAULT_EPS if model.norm_eps is None else model.norm_eps
    return module_spec(kind, streams=model.streams, norm_eps=eps)


def check_vocabulary(
    layout: HashLayout, model: ModelShape, checkpoint: Path, tokenizer: Path | None
) -> None:
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
    source = tokenizer or checkpoint / "tokenizer.json"
    if tokenizer is None and not source.is_file():
        raise InputError(
            f"no tokenizer.json in {checkpoint}",
            "name the model's tokenizer.json with --tokenizer",
        )
    if model.vocab_size is not None and model.vocab_size < layout.vocab_size:
        raise MismatchError(
            f"the tokenizer has {layout.vocab_size:,} ids, "
            f"the checkpoint takes {model.vocab_size:,}",
            f"use the model's own tokenizer, or resize_token_embeddings({layout.vocab_size}) first",
        )
    digest = compress_vocab(source).digest
    if digest != layout.vocab_digest:
        raise MismatchError(
            f"the table was built for vocabulary {short(layout.vocab_digest)}, "
            f"{source} gives {short(digest)}",
            "build it for this tokenizer: engram compress-vocab, hash-stats and build-table again",
        )


def listed(layers: tuple[int, ...] | list[int]) -> str:
    """Layer ids to read."""
    return ", ".join(map(str, layers))
