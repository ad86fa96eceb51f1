"""Reads and writes patch files: safetensors, with what the patch is for in the metadata.

docs/reference/patch.md describes the format. A file is untrusted: its header is checked against its
size, its tensors against each other, and every row number and value is looked at, before a patch is
returned. The tensors are mapped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import canonical_json, output_errors, parse_json
from engram_cli.hashing.layout import short
from engram_cli.outputs import Kind, Listing, new_file
from engram_cli.patches.patch import LayerPatch, Patch
from engram_cli.remote.copies import local_file
from engram_cli.remote.locate import locate
from engram_cli.rows import DTYPES
from engram_cli.rows.safetensors import (
    TensorPlace,
    TensorSpec,
    file_metadata,
    map_tensor,
    open_tensors,
    write_tensors,
)
from engram_cli.rows.source import ROWS, SCALES

FORMAT, VERSION = "engram-patch", 1
SUFFIX = ".patch.safetensors"
IDS = "ids"
DIGEST = "digest"  # in the metadata, of what the patch does
AGAIN = "take the patch again from where it came"
_NAME = re.compile(rf"layers\.(0|[1-9][0-9]{{0,8}})\.({IDS}|{ROWS}|{SCALES})")
_TEXTS = ("fingerprint", "dtype", "base", "base_format", "replaced", "description")
_MAKE = "engram patch make or engram diff --patch make one"
_START = 9  # bytes: the length of a header, and its first character
_FOLDERS = {"zarr.json": "table", "engram.json": "bundle", "stats.json": "statistics folder"}
_NEEDED = ("fingerprint", "dtype")


def write_patch(path: Path, patch: Patch, *, force: bool = False) -> None:
    """Write a patch to the file `path`, whole or not at all.

    With `force` it replaces a patch. Raises InputError for a patch that is not sound, OutputError.
    """
    patch.require_sound()
    with new_file(path, PATCH, force=force) as part, output_errors(path):
        write_stored(part, patch)


def write_stored(path: Path, patch: Patch) -> None:
    """Write a patch to `path`, whatever is there and whatever its values are. Raises OSError."""
    about = {
        "format": FORMAT,
        "version": str(VERSION),
        "dim": str(patch.dim),
        DIGEST: patch.digest,
        "facts": canonical_json(dict(patch.facts)).decode(),
    }
    about |= {name: text for name in _TEXTS if (text := getattr(patch, name)) is not None}
    tensors = [each for layer, own in patch.layers.items() for each in _tensors(layer, own, patch)]
    # Wide items first, so that each tensor is aligned to its items.
    tensors.sort(key=lambda each: (-each[1].itemsize, each[0].name))
    specs, data = zip(*tensors, strict=True) if tensors else ((), ())
    write_tensors(path, specs, data, metadata=dict(sorted(about.items())))


def _tensors(
    layer: int, own: LayerPatch, patch: Patch
) -> Iterator[tuple[TensorSpec, NDArray[Any]]]:
    parts: list[tuple[str, str, NDArray[Any]]] = [
        (IDS, "int64", own.ids),
        (ROWS, patch.row_type.items.tensor, own.rows),
    ]
    scaling = patch.row_type.scaling
    if scaling is not None and own.scales is not None:
        parts.append((SCALES, scaling.tensor, own.scales))
    for part, dtype, values in parts:
        yield TensorSpec(name=f"layers.{layer}.{part}", dtype=dtype, shape=values.shape), values


def read_patch(path: str | Path) -> Patch:
    """Open the patch at `path`: a file, a folder with one, an address or a repository of the Hub.

    Row numbers, values and the digest are checked, once and in pieces; the rows stay in the file
    until they are used. Raises InputError where there is none, ArtifactError for one that is
    damaged or newer, SourceError for what cannot be downloaded.
    """
    return _read(patch_path(path), finite=True)


def read_stored(file: Path) -> Patch:
    """Open a file of rows that need not be finite: those of a base. Raises as `read_patch`."""
    return _read(file, finite=False)


def _read(file: Path, *, finite: bool) -> Patch:
    try:
        with file.open("rb") as opened:
            _require_tensors(file, opened.read(_START))
            places = open_tensors(opened, str(file))
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}", "check the path") from None
    about = file_metadata(file)
    if about.get("format") != FORMAT:
        raise InputError(f"{file} is no patch", _MAKE)
    version = about.get("version")
    if version != str(VERSION):
        raise ArtifactError(f"{file} has version {str(version)[:20]}", "upgrade engram")
    try:
        patch = _patch(file, about, places)
        patch.require_sound(finite=finite)
        if patch.stated not in (None, patch.digest):
            raise _Odd(
                f"its digest is {short(patch.digest)}, and it says {short(patch.stated[:80])}"
            )
    except _Odd as odd:
        raise ArtifactError(f"{file} is damaged: {odd}", AGAIN) from None
    except InputError as error:
        raise ArtifactError(f"{file} is refused: {error.message}", AGAIN) from None
    return patch


def _require_tensors(file: Path, start: bytes) -> None:
    """Raise InputError for a file that does not begin as safetensors do, such as a vocabulary."""
    if len(start) == _START and start[8:] != b"{":
        raise InputError(f"{file} is no patch, and no safetensors file", _MAKE)


def is_patch(path: Path) -> bool:
    """Return whether the file at `path` says that it is a patch."""
    try:
        return path.is_file() and file_metadata(path).get("format") == FORMAT
    except (EngramError, OSError):
        return False


def patch_path(path: str | Path) -> Path:
    """Return the file of a patch on this machine, downloaded where it is not.

    Of a folder or repository it is the one file that ends in .patch.safetensors.
    """
    found = locate(Path(path))
    if found.is_dir():
        what = next((what for name, what in _FOLDERS.items() if (found / name).is_file()), None)
        if what is not None:
            raise InputError(f"{path} is a {what}, not a patch", _of(what))
        inside = sorted(each for each in found.iterdir() if each.name.endswith(SUFFIX))
        if not inside:
            raise InputError(f"{path} is a folder without a patch (*{SUFFIX})", _MAKE)
        if len(inside) != 1:
            raise InputError(
                f"{found} holds {len(inside)} files that end in {SUFFIX}", "name the one to take"
            )
        found = inside[0]
    return local_file(found)


def _of(what: str) -> str:
    if what == "statistics folder":
        return _MAKE
    return f"the difference of two {what}s is a patch: engram diff BEFORE AFTER --patch OUT"


class _Odd(Exception):
    """What is wrong with a file."""


def _patch(file: Path, about: Mapping[str, Any], places: Mapping[str, TensorPlace]) -> Patch:
    """Return the patch that header and metadata describe; its values are not looked at yet."""
    texts = {name: about[name] for name in _TEXTS if name in about}
    facts = _facts(about.get("facts", "{}"))
    for name in (*_NEEDED, "dim"):
        if name not in about:
            raise _Odd(f"its metadata has no {name}")
    if not all(isinstance(text, str) for text in about.values()):
        raise _Odd("its metadata has values that are no texts")
    if not re.fullmatch(r"[1-9][0-9]{0,6}", about["dim"]):
        raise _Odd(f"dim is {about['dim'][:20]!r}")
    if texts["dtype"] not in DTYPES:
        raise ArtifactError(f"{file} has rows of {texts['dtype'][:40]!r}", "upgrade engram")
    found: dict[int, dict[str, TensorPlace]] = {}
    for name, place in places.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise _Odd(f"it holds a tensor {name[:60]!r}")
        found.setdefault(int(match[1]), {})[match[2]] = place
    tensor_of = {IDS: "int64", ROWS: DTYPES.load(texts["dtype"]).items.tensor}
    scaling = DTYPES.load(texts["dtype"]).scaling
    if scaling is not None:
        tensor_of[SCALES] = scaling.tensor
    layers = {}
    for layer, parts in sorted(found.items()):
        for part, tensor in tensor_of.items():
            if part not in parts:
                raise _Odd(f"layer {layer} has no {part}")
            if parts[part].spec.dtype != tensor or 0 in parts[part].spec.shape:
                raise _Odd(f"{part} of layer {layer} are {parts[part].spec}")
        if len(parts) > len(tensor_of):
            raise _Odd(f"layer {layer} has scales, and rows of {texts['dtype']} have none")
        arrays = {part: map_tensor(file, place) for part, place in parts.items()}
        layers[layer] = LayerPatch(ids=arrays[IDS], rows=arrays[ROWS], scales=arrays.get(SCALES))
    return Patch(
        dim=int(about["dim"]), layers=layers, facts=facts, stated=about.get(DIGEST), **texts
    )


def _facts(text: Any) -> dict[str, str]:
    try:
        facts = parse_json(str(text).encode())
    except (ValueError, json.JSONDecodeError):
        facts = None
    if not isinstance(facts, dict) or not all(isinstance(each, str) for each in facts.values()):
        raise _Odd("its facts are no texts by name")
    return facts


PATCH = Kind(name="patch", listing=lambda path: Listing() if is_patch(path) else None, folder=False)
