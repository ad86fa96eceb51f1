"""A bundle that refers to another program's checkpoint: which bytes of its files are rows.

In: what `engram.json` records of the checkpoint, or a source that was opened. Out: the spans of its
files, once these were found unchanged. No reader of the checkpoint's format is needed, so that the
runtime imports this file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError
from engram_cli.files import read_json
from engram_cli.formats.bundle_spec import SCALES, BundleSpec, Shard
from engram_cli.formats.checkpoint import OWN_LAYERS
from engram_cli.formats.file_stamp import FileStamp
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.source import Span

MAX_FILES, MAX_SPANS = 2**16, 2**20
_AGAIN = "attach the checkpoint again: engram attach --reference --force"
_LISTS = ("file", "begin", "first_row", "rows", "stride")

Spans = Mapping[tuple[int, str], tuple[Span, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReference:
    """A checkpoint by its `path` (relative to the bundle, or absolute): a folder, or one file.

    `format` and `dialect` say what it was recognised as. `files`: those with rows, by their path in
    the folder. `spans`: where in them the parts of each layer are; their files are such paths too.
    `scales`: the one scale of a layer, of dtypes that have it, since it may be stored as another
    type than float32.
    """

    path: str
    format: str
    dialect: str
    files: Mapping[str, FileStamp]
    spans: Spans
    scales: Mapping[int, float]

    def folder(self, bundle: Path) -> Path:
        """Return the folder that has the files."""
        place = Path(os.path.normpath(bundle.resolve() / self.path))
        return place.parent if place.is_file() else place

    def shards(self, spec: BundleSpec) -> tuple[Shard, ...]:
        """Return the spans as shards, in the order of layers, parts and rows."""
        return tuple(
            Shard(layer=layer, part=part, file=str(span.file), first_row=span.first, rows=span.rows)
            for layer in spec.layers
            for part in spec.parts
            for span in self.spans.get((layer, part), ())
        )

    def places(self, bundle: Path, layer: int, part: str) -> tuple[Span, ...]:
        """Return the spans of a part, with the paths of their files."""
        folder = self.folder(bundle)
        found = self.spans.get((layer, part), ())
        return tuple(replace(span, file=folder / span.file) for span in found)

    def held(self, layer: int, part: str) -> NDArray[np.float32] | None:
        """Return the one scale of a layer, float32[1]; None where a part is in the files."""
        if part != SCALES or layer not in self.scales:
            return None
        return np.array([self.scales[layer]], dtype=np.float32)

    def check(self, bundle: Path) -> None:
        """Raise InputError where a file is missing, MismatchError where it has changed."""
        folder = self.folder(bundle)
        for name, stamp in self.files.items():
            try:
                found = FileStamp.of(folder / name)
            except OSError as error:
                raise InputError(
                    f"the bundle {bundle} refers to {folder / name}, which cannot be read: "
                    f"{error.strerror}",
                    f"put the checkpoint back, or {_AGAIN}",
                ) from None
            if found != stamp:
                raise MismatchError(
                    f"{folder / name} was changed since the bundle {bundle} was made: "
                    f"{stamp.difference(found)}",
                    _AGAIN,
                )

    def to_json(self) -> dict[str, Any]:
        """Return the object `checkpoint` of engram.json."""
        parts = [
            {
                "layer": layer,
                "part": part,
                "spans": [
                    [str(s.file), s.begin, s.first, s.rows, s.stride]
                    for s in spans
                ],
            }
            for (layer, part), spans in sorted(self.spans.items())
        ]  # fmt: skip
        return {
            "path": self.path,
            "format": self.format,
            "dialect": self.dialect,
            "files": {name: stamp.to_json() for name, stamp in sorted(self.files.items())},
            "parts": parts,
            "scales": {str(layer): scale for layer, scale in sorted(self.scales.items())},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], spec: BundleSpec) -> CheckpointReference:
        """Read the object `checkpoint` of engram.json. Raises ValueError and its kin."""
        texts = [document[key] for key in ("path", "format", "dialect")]
        if not all(isinstance(text, str) for text in texts) or not texts[0] or "\0" in texts[0]:
            raise ValueError("the checkpoint has a path or format that is no text")
        files = {name: _stamp(name, about) for name, about in document["files"].items()}
        if len(files) > MAX_FILES:
            raise ValueError(f"{len(files)} files")
        spans = {
            (entry["layer"], entry["part"]): tuple(_span(each) for each in entry["spans"])
            for entry in document["parts"]
        }
        scales = {int(layer): _scale(value) for layer, value in document["scales"].items()}
        found = cls(
            path=texts[0],
            format=texts[1],
            dialect=texts[2],
            files=files,
            spans=spans,
            scales=scales,
        )
        found.require_whole(spec)
        return found

    def require_whole(self, spec: BundleSpec) -> None:
        """Raise ValueError unless the spans are all rows of the spec's layers, inside the files."""
        held = {layer for layer in spec.layers if spec.row_type.of_layer}
        if set(self.scales) != held:
            raise ValueError(f"scales of layers {sorted(self.scales)}, not {sorted(held)}")
        wanted = {(n, part) for n in spec.layers for part in spec.parts}
        wanted -= {(n, SCALES) for n in held}
        if set(self.spans) != wanted or sum(map(len, self.spans.values())) > MAX_SPANS:
            raise ValueError("the spans are not those of the layers")
        for (layer, part), spans in self.spans.items():
            tensor, end = spec.tensor(layer, part), 0
            width = math.prod(tensor.shape[1:]) * physical_dtype(tensor.dtype).itemsize
            for span in spans:
                stride = span.stride or width
                last = span.begin + (span.rows - 1) * stride + width
                file = self.files.get(str(span.file))
                if file is None or span.first != end or stride < width or last > file.size:
                    raise ValueError(f"rows {span.first} and on of layer {layer} in {span.file}")
                end += span.rows
            if end != tensor.shape[0]:
                raise ValueError(f"layer {layer} has {end} {part}, not {tensor.shape[0]}")


def refers_to_itself(checkpoint: Path, bundle: Path) -> bool:
    """Return whether a bundle's rows are the table of this very checkpoint, so that its model must
    be loaded without it. False where there is no bundle that can be read."""
    try:
        document = read_json(bundle / "engram.json", "a bundle's description")
        path = document["checkpoint"]["path"]
        place = Path(os.path.normpath(bundle.resolve() / path))
        return place == checkpoint.resolve()
    except (EngramError, KeyError, TypeError, ValueError, OSError):
        return False


def without_own_table(config: Any) -> Any:
    """Return a model's config after its Engram layers were taken out of it, so that transformers
    makes none and loads none of their tensors."""
    inner = getattr(config, "get_text_config", None)
    for each in (config, inner() if callable(inner) else None):
        for name in OWN_LAYERS:
            if getattr(each, name, None):
                setattr(each, name, [])
    return config


def refer_to(
    path: Path,
    bundle: Path,
    spec: BundleSpec,
    *,
    format: str,
    dialect: str,
    spans: Spans,
    scales: Mapping[int, float],
) -> CheckpointReference:
    """Return the reference of a bundle at `bundle` to the checkpoint at `path`.

    The files of `spans` are paths as they were opened. The path is relative where the bundle lies
    in the checkpoint's folder, so that both can move; else absolute. Raises InputError for files
    outside the checkpoint or that cannot be read, ArtifactError for spans that are not its rows.
    """
    folder = path.parent if path.is_file() else path
    names: dict[Path, str] = {}
    for span in (span for found in spans.values() for span in found):
        if not isinstance(span.file, Path) or not span.file.is_file():
            raise InputError(
                f"{path} has rows in {span.file}, which is no local file",
                "download the checkpoint, and attach the local folder",
            )
        names[span.file] = Path(os.path.relpath(span.file, folder)).as_posix()
    try:
        files = {name: FileStamp.of(file) for file, name in names.items()}
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}", "check it") from None
    made = CheckpointReference(
        path=_path_from(path.resolve(), bundle),
        format=format,
        dialect=dialect,
        files=files,
        spans={
            key: tuple(replace(span, file=Path(names[span.file])) for span in found)
            for key, found in spans.items()
        },
        scales=dict(scales),
    )
    try:
        made.require_whole(spec)
        for name in files:
            _plain_path(name)
    except ValueError as error:
        raise ArtifactError(
            f"{path}: {error}", "see what is wrong with engram inspect, and take it again"
        ) from None
    return made


def _path_from(checkpoint: Path, bundle: Path) -> str:
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    place = bundle.resolve()
    if folder in (place, *place.parents):
        return Path(os.path.relpath(checkpoint, place)).as_posix()
    return str(checkpoint)


def _plain_path(name: Any) -> Path:
    """Return a path inside a folder. Raises ValueError for any other."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or parts[0] == "/" or "\0" in name or len(name) > 4096:
        raise ValueError(f"a file {name!r}")
    return Path(*parts)


def _stamp(name: str, about: Mapping[str, Any]) -> FileStamp:
    _plain_path(name)
    return FileStamp.from_json(name, about)


def _span(entry: Sequence[Any]) -> Span:
    file, *numbers = entry
    if len(numbers) != 4 or any(type(n) is not int or not 0 <= n < 2**62 for n in numbers):
        raise ValueError(f"a span {entry!r}: {', '.join(_LISTS)} are needed")
    begin, first, rows, stride = numbers
    if not rows:
        raise ValueError("a span without rows")
    return Span(file=_plain_path(file), begin=begin, first=first, rows=rows, stride=stride)


def _scale(value: Any) -> float:
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"a scale {value!r}")
    return value
