"""What writers of other programs' checkpoints share: their kind of output, config and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, EngramError, MismatchError
from engram_cli.files import read_json
from engram_cli.formats.base import WriteOptions, Written
from engram_cli.formats.model_folder import CheckpointRows, FolderTokenizer, pad_token
from engram_cli.formats.row_files import Grown, put_folder
from engram_cli.formats.row_plan import NewFile
from engram_cli.hashing.schemes import hash_layout
from engram_cli.outputs import Kind, Listing
from engram_cli.registry import enumerated
from engram_cli.rows.copying import differing_byte
from engram_cli.rows.safetensors import TensorSpec, encode_header
from engram_cli.rows.source import RowSource
from engram_cli.rows.views import origin
from engram_cli.vocab.lookup import VocabMap
from engram_cli.vocab.tokenizer import find_tokenizer

MARKER, _FORMAT = "engram-conversion.json", "engram-conversion"
TOKENIZER = "tokenizer.json"


def same_scheme(
    source: RowSource, scheme: str, target: str, *, multipliers: bool = True
) -> dict[str, Any]:
    """Return the parameters from which `scheme` gives the layout of a source.

    Only then does a config, which holds no moduli, describe it. `multipliers` False: for files that
    hold these themselves. Raises MismatchError.
    """
    layout = source.layout
    base = layout.parameters.get("rows_per_head")
    first = layout.layers[0].moduli[0]
    for rows in (base if isinstance(base, int) else first, first):
        asked: dict[str, Any] = {
            "orders": layout.orders,
            "heads": layout.heads,
            "rows_per_head": rows,
            "layers": layout.layer_ids,
        }
        if layout.lookup is not None:
            asked["vocab"] = VocabMap(lookup=layout.lookup, size=layout.compressed_size)
            asked["pad_id"] = pad_token(layout)
        else:
            asked |= {"vocab_size": layout.compressed_size, "eos_id": layout.eos_id}
            asked |= {k: v for k, v in layout.parameters.items() if k in ("seed", "divisor")}
        try:
            made = hash_layout(scheme, **asked)
        except EngramError as error:
            raise MismatchError(
                f"{source.path} cannot be {target}: {error.message}",
                f"{target} looks rows up by scheme {scheme}",
            ) from None
        if not multipliers:
            pairs = zip(made.layers, layout.layers, strict=True)
            entries = tuple(replace(one, multipliers=other.multipliers) for one, other in pairs)
            made = replace(made, layers=entries)
        if made.fingerprint == layout.fingerprint:
            return asked
    same = {
        "fold": layout.fold == made.fold,
        "multipliers": [e.multipliers for e in layout.layers]
        == [e.multipliers for e in made.layers],
        "rows of each head": [e.moduli for e in layout.layers] == [e.moduli for e in made.layers],
        "salts": [e.salts for e in layout.layers] == [e.salts for e in made.layers],
    }
    differ = [name for name, is_same in same.items() if not is_same]
    raise MismatchError(
        f"{source.path} has another hash than {target} looks rows up by: "
        f"{enumerated(differ) if differ else 'the token map'} of scheme {layout.scheme}",
        "tokens would find other rows; convert it to a format that holds its hash, such as table",
    )


def tokenizer_bytes(source: RowSource, options: WriteOptions) -> bytes | None:
    """Return the tokenizer.json that goes with the rows: the one given, or the source's own.

    None where there is none. Raises MismatchError for one that gives another token map.
    """
    place = options.tokenizer
    if place is None:
        folder = source.path if source.path.is_dir() else source.path.parent
        if not (folder / TOKENIZER).is_file():
            return None
        place = folder
    if source.layout.lookup is not None:
        vocab = FolderTokenizer(folder=place, given=place).vocab()
        if vocab is None or not np.array_equal(vocab.lookup, source.layout.lookup):
            if options.tokenizer is None:
                return None  # that of something else in the folder
            raise MismatchError(
                f"{place} gives another token map than {source.path} has", "give its own tokenizer"
            )
    return find_tokenizer(place).read_bytes()


def config_before(source: RowSource, format_name: str) -> dict[str, Any] | None:
    """Return the whole config.json of a source that is a checkpoint of this format."""
    whole = origin(source)
    if not isinstance(whole, CheckpointRows) or whole.format != format_name:
        return None
    try:
        return read_json(whole.path / "config.json", "a model's config")
    except EngramError:
        return None


def as_json(value: Any) -> bytes:
    """Return a JSON document as a file has it."""
    return (json.dumps(value, indent=2) + "\n").encode()


def index_of(files: Mapping[str, list[TensorSpec]]) -> bytes:
    """Return the index of safetensors files, by name."""
    total = sum(spec.nbytes for own in files.values() for spec in own)
    places = {spec.name: name for name, own in files.items() for spec in own}
    return as_json({"metadata": {"total_size": total}, "weight_map": places})


def tensor_file(name: str, specs: list[TensorSpec]) -> tuple[NewFile, dict[str, int]]:
    """Return a safetensors file without its data, and where each tensor begins."""
    header = encode_header(specs, {"format": "pt"})
    begins, at = {}, len(header)
    for spec in specs:
        begins[spec.name] = at
        at += spec.nbytes
    return NewFile(name=name, size=at, head={0: header}), begins


def verify_copies(folder: Path, files: Iterable[NewFile]) -> None:
    """Raise ArtifactError unless all that was copied into `files` is what was copied."""
    for file in files:
        for path, extent in file.copies:
            at = differing_byte(path, folder / file.name, [extent])
            if at is not None:
                raise ArtifactError(
                    f"{folder / file.name}: byte {at:,} is not what was copied", "check the disk"
                )


def put_checkpoint(
    grown: Grown,
    out: Path,
    done: Written,
    source: RowSource,
    options: WriteOptions,
    inner: Mapping[str, bytes] | None = None,
) -> None:
    """Write the marker, and put the files of a checkpoint in place. Raises OutputError."""
    about = {
        "format": _FORMAT,
        "version": 1,
        "files": [name for name in done.files if name != MARKER],
        "layers": list(source.layers),
        "fingerprint": source.layout.fingerprint,
    }
    (grown.folder / MARKER).write_bytes(as_json(about))
    names = [name for name in done.files if name not in (inner or {})]
    put_folder(grown.folder, out, CONVERTED, options, names, inner)


def _listing(path: Path) -> Listing | None:
    try:
        about = read_json(path / MARKER, "a conversion")
    except EngramError:
        return None
    files = about.get("files")
    if about.get("format") != _FORMAT or not isinstance(files, list):
        return None
    if not all(isinstance(name, str) and _is_plain(name) for name in files):
        return None
    return Listing(frozenset((*files, MARKER)))


def _is_plain(name: str) -> bool:
    """Return whether a path leads to a file of the folder, or of inference/ in it."""
    path = Path(name)
    return name == path.as_posix() and path.parent.as_posix() in (".", "inference")


CONVERTED = Kind(name="checkpoint converted by engram", listing=_listing)
