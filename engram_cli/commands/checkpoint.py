"""The checkpoint in a working folder: what a table for it needs, found before it is attached."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.commands.geometry import DEFAULT_SCHEME, Geometry
from engram_cli.commands.model_shape import ModelShape, paper_layers, read_model_shape
from engram_cli.errors import EngramError
from engram_cli.files import sha256_bytes
from engram_cli.formats.bundle_spec import layer_number
from engram_cli.hashing.schemes import SCHEMES, takes_raw_ids
from engram_cli.progress import Progress
from engram_cli.vocab.parquet import read_about
from engram_cli.vocab.tokenizer import MAX_TOKENIZER_BYTES


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
    """The language models in `folder` itself and in the folders right in it, by name.

    Folders whose config.json is not that of a language model, or cannot be read, are passed over.
    """
    found = []
    for place in (folder, *_folders_in(folder)):
        with suppress(EngramError, OSError):
            model = read_model_shape(place)
            own = place / "tokenizer.json"
            usable = own.is_file() and own.stat().st_size <= MAX_TOKENIZER_BYTES
            found.append(
                FoundCheckpoint(folder=place, model=model, tokenizer=own if usable else None)
            )
    return found


def _folders_in(folder: Path) -> list[Path]:
    """The folders right in `folder`, by name, hidden ones left out."""
    try:
        with os.scandir(folder) as entries:
            inside = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in inside]


def for_checkpoint(geometry: Geometry, folder: Path, vocab: Path, progress: Progress) -> Geometry:
    """The choices of `geometry`, and what the checkpoint in `folder` decides where none was made.

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
    """Those whose tokenizer the vocabulary was made from."""
    if not found or not vocab.is_file():
        return []
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
