"""Reads checkpoints: their shapes, those in a folder, and whether one has a memory already."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engram_cli.commands.geometry import DEFAULT_SCHEME, Geometry
from engram_cli.errors import EngramError, InputError, MismatchError
from engram_cli.files import read_json, sha256_bytes
from engram_cli.formats.bundle_spec import layer_number
from engram_cli.formats.checkpoint import named_as_saved, named_in_config, named_in_layers
from engram_cli.hashing.schemes import SCHEMES, takes_raw_ids
from engram_cli.progress import Progress
from engram_cli.rows.safetensors import checkpoint_files
from engram_cli.vocab.tokenizer import MAX_TOKENIZER_BYTES

# The names that model families give to the same number, by the first one found.
_HIDDEN_SIZE = ("hidden_size", "n_embd", "d_model", "dim")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Of encoder-decoders, whose plain names count the encoder's layers.
_NUM_DECODER_LAYERS = ("decoder_layers", "num_decoder_layers", *_NUM_LAYERS)
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
_STREAMS = ("hc_mult", "hc_count")
_NORM_EPS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "layer_norm_rms_epsilon")
_MODEL_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+/-]{0,99}")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What attach needs to know of a model's config.json.

    `streams` are the copies of the hidden state that a hyper-connection model carries; `norm_eps`
    None where the config has none, as `eos_id`, the first where it names several; `positions`: how
    many tokens the model takes at once, None where the config does not say.
    """

    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int | None
    streams: int = 1
    norm_eps: float | None = None
    eos_id: int | None = None
    positions: int | None = None


def read_model_shape(checkpoint: Path) -> ModelShape:
    """Read the sizes in a checkpoint's config.json, also those in a nested text config.

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
    is_part = bool(config.get("is_encoder_decoder"))
    if text.get("altup_num_inputs", 1) != 1:
        raise InputError(
            f"{path}: the layers carry {text['altup_num_inputs']} predictions of each hidden state "
            "(AltUp, altup_num_inputs), which no memory module reads",
            "choose a model without AltUp",
        )
    return ModelShape(
        model_type=_model_type(path, config.get("model_type", "unknown")),
        hidden_size=_size(path, text, _HIDDEN_SIZE),
        num_layers=_size(path, text, _NUM_DECODER_LAYERS if is_part else _NUM_LAYERS),
        vocab_size=_size(path, text, ("vocab_size",)) if "vocab_size" in text else None,
        streams=_size(path, text, _STREAMS) if any(text.get(n) for n in _STREAMS) else 1,
        eos_id=_eos(text.get("eos_token_id", config.get("eos_token_id"))),
        norm_eps=next((float(text[n]) for n in _NORM_EPS if _is_eps(text.get(n))), None),
        positions=next((text[n] for n in _POSITIONS if _is_length(text.get(n))), None),
    )


def _eos(value: Any) -> int | None:
    first = value[0] if isinstance(value, list) and value else value
    return first if type(first) is int and first >= 0 else None


def _model_type(path: Path, value: Any) -> str:
    """Return a plain name: it goes into a model card, which hubs read as YAML and Markdown."""
    if not isinstance(value, str) or not _MODEL_TYPE.fullmatch(value):
        raise InputError(
            f"{path}: model_type is {value!r}, not a name such as llama", "check the checkpoint"
        )
    return value


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 1


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
        raise InputError(
            f"{path}: {name} is {value!r}, not a positive number", "check the checkpoint"
        )
    return value


def paper_layers(count: int) -> tuple[int, ...]:
    """Return the decoder layers, from 0, that the paper's choice means for `count` layers.

    The second spares the lower layers their work early, the middle one's gate knows its context.
    """
    return tuple(sorted({min(1, count - 1), count // 2}))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCheckpoint:
    """A checkpoint's folder, its sizes, and its tokenizer.json, None where it has none."""

    folder: Path
    model: ModelShape
    tokenizer: Path | None

    @property
    def tokenizer_digest(self) -> str | None:
        """The digest that a vocabulary made from its tokenizer records."""
        return None if self.tokenizer is None else sha256_bytes(self.tokenizer.read_bytes())


def find_checkpoints(folder: Path) -> list[FoundCheckpoint]:
    """Return the language models in `folder` and in the folders directly in it, by name.

    Folders whose config.json is not that of a language model, or cannot be read, are passed over.
    """
    found = []
    for place in (folder, *_folders_in(folder)):
        with suppress(EngramError, OSError):
            model = read_model_shape(place)
            own = place / "tokenizer.json"
            usable = is_readable(own)
            found.append(
                FoundCheckpoint(folder=place, model=model, tokenizer=own if usable else None)
            )
    return found


def is_readable(tokenizer: Path) -> bool:
    """Return whether a tokenizer.json is there and no larger than any that is read."""
    return tokenizer.is_file() and tokenizer.stat().st_size <= MAX_TOKENIZER_BYTES


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders directly in `folder` by name, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in inside]


def for_checkpoint(geometry: Geometry, folder: Path, vocab: Path, progress: Progress) -> Geometry:
    """Return `geometry` with what the checkpoint in `folder` decides where nothing was chosen.

    These are the layers that suit it, and for a scheme of raw ids its vocabulary and EOS. Nothing
    is taken where there is no checkpoint, where several differ, or where the one that is there has
    another tokenizer than the vocabulary.
    """
    scheme = geometry.scheme or DEFAULT_SCHEME
    raw = takes_raw_ids(scheme)
    open_layers = geometry.layers is None and scheme == DEFAULT_SCHEME
    open_ids = raw and geometry.vocab_size is None
    if not open_layers and not open_ids:
        return geometry
    if not raw and not vocab.is_file():  # which is the error that follows
        return geometry
    found = find_checkpoints(folder)
    fitting = found if raw else _of_vocabulary(found, vocab)
    if not fitting:
        for each in found:
            progress.note(
                f"checkpoint {each.folder}: not used, its tokenizer is not that of {vocab}; to "
                f"build a memory for it, run first: engram compress-vocab {each.folder} --force"
            )
        return geometry
    if len({each.model for each in fitting}) > 1:
        names = ", ".join(str(each.folder) for each in fitting)
        progress.note(f"checkpoints {names} differ, so none is used for the geometry")
        return geometry
    chosen = fitting[0]
    if open_layers:
        return _with_layers(geometry, scheme, chosen, progress)
    return _with_ids(geometry, chosen, progress)


def _of_vocabulary(found: Sequence[FoundCheckpoint], vocab: Path) -> list[FoundCheckpoint]:
    """Return those whose tokenizer the vocabulary was made from."""
    if not found:
        return []
    from engram_cli.vocab.parquet import read_about  # with Arrow, which attach does not need

    wanted = read_about(vocab).get("tokenizer_digest")
    return [each for each in found if each.tokenizer_digest == wanted]


def _with_layers(
    geometry: Geometry, scheme: str, chosen: FoundCheckpoint, progress: Progress
) -> Geometry:
    places = paper_layers(chosen.model.num_layers)
    named = " and ".join(map(str, places))
    why = "the second and the middle one" if len(places) > 1 else "the second one, or the only one"
    progress.note(
        f"checkpoint {chosen.folder}: {chosen.model.model_type} with "
        f"{chosen.model.num_layers} decoder layers; tables for {named} (counted from 0), {why}, "
        "as in the paper; choose others with --layers"
    )
    return replace(geometry, layers=tuple(layer_number(scheme, place) for place in places))


def _with_ids(geometry: Geometry, chosen: FoundCheckpoint, progress: Progress) -> Geometry:
    size, eos = chosen.model.vocab_size, chosen.model.eos_id
    if size is None:
        return geometry
    progress.note(f"checkpoint {chosen.folder}: its vocabulary has {size:,} token ids")
    geometry = replace(geometry, vocab_size=size)
    takes_eos = "eos_id" in SCHEMES.load(geometry.scheme or DEFAULT_SCHEME).parameters
    if takes_eos and geometry.eos_id is None and eos is not None:
        progress.note(f"checkpoint {chosen.folder}: its EOS token has id {eos:,}")
        return replace(geometry, eos_id=eos)
    return geometry


def check_first_memory(checkpoint: Path) -> None:
    """Raise MismatchError for a checkpoint with Engram layers, or with a memory in its weights.

    Reads config.json, and the index or the headers of the weights; those that cannot be read here
    show nothing.
    """
    found = named_in_config(read_json(checkpoint / "config.json", "a checkpoint's config"))
    if found is not None:
        raise _second(checkpoint, f"has Engram layers of its own (config.json: {found})")
    try:
        names = sorted(checkpoint_files(checkpoint))
    except EngramError:
        return
    own, saved = named_in_layers(names), named_as_saved(names)
    if own is not None:
        raise _second(checkpoint, f"has Engram layers of its own (tensor {own})")
    if saved is not None:
        raise MismatchError(
            f"the weights of {checkpoint} already contain a memory (tensor {saved})",
            "save that memory with save_engram(model, folder) while it is attached, or attach a "
            "new one with --force",
        )


def _second(checkpoint: Path, what: str) -> MismatchError:
    hint = (
        f"for its own table: engram attach {checkpoint} --table {checkpoint} --reference; a bundle "
        "would be a second memory: give --force if that is meant"
    )
    return MismatchError(f"{checkpoint} {what}", hint)
