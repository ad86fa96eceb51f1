"""The bundle, what a model loads: a folder with `engram.json`, weights and memory-mappable rows.

`engram.json` says what the other files are, how large, and with which digest. It is untrusted:
every name, count, size, header and digest is checked before anything is mapped. `bundle_writer`
writes bundles; docs/reference/bundle-format.md describes the format. The runtime imports this file,
so it needs NumPy only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, IncompleteError, InputError
from engram_cli.files import read_json, sha256_bytes
from engram_cli.formats.bundle_description import FORMAT, VERSION, Reference, parse
from engram_cli.formats.bundle_files import (
    CARD,
    DENSE,
    DESCRIPTION,
    REMAKE,
    VOCABULARY,
    ListedFiles,
    opened,
)
from engram_cli.formats.bundle_spec import BundleSpec, Shard
from engram_cli.formats.checkpoint_reference import CheckpointReference
from engram_cli.outputs import Kind, Listing
from engram_cli.patches.patch import LayerPatch
from engram_cli.remote.path import is_remote, readable_path
from engram_cli.rows import safetensors as tensors
from engram_cli.rows.safetensors import Array, TensorPlace
from engram_cli.rows.source import HITS, ROWS, SCALES, Span
from engram_cli.table.grid import half_patched_hint

BUNDLE_NAME = "engram"  # of a bundle's folder in a checkpoint's
PATCHING = "engram-bundle-patching"  # the format of a bundle whose rows are being patched
SAVED_WITH = "saved_with"  # in a description: the folders of all bundles saved with one model
MAX_DESCRIPTION_BYTES = 64 * 2**20
_CARD_HEAD = b"---\nlibrary_name: engram-tables\n"
_NAMED = re.compile(rf"{BUNDLE_NAME}(_[a-z0-9_]{{1,40}})?")
# Files that a bundle consists of; the folder of another model has others.
_OWN_NAME = re.compile(
    r"(?:rows|scales|hits)-\d{5,}-of-\d{5,}\.safetensors|(?:dense|vocabulary)\.safetensors"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle: its spec, and its files, with sizes and small digests checked.

    `dense`: per layer and name, float32. `shards` lie in the order of layers, parts and rows. With
    a `reference` they are the chunk files of the table in `table`, or in the files of a checkpoint.
    `patched`: rows that stand in the place of those in the files (`formats.bundle_patches`).
    """

    folder: Path
    spec: BundleSpec
    shards: tuple[Shard, ...]
    dense: Mapping[int, Mapping[str, NDArray[np.float32]]] = field(repr=False)
    reference: Reference | None = None
    table: Path | None = None
    patched: Mapping[int, LayerPatch] = field(default_factory=dict, repr=False)

    @property
    def has_hits(self) -> bool:
        """Whether the bundle says how often the corpus looked each row up."""
        return any(shard.part == HITS for shard in self.shards)

    def spans(self, layer: int, part: str = ROWS) -> tuple[Span, ...]:
        """Return the spans of files that hold a part of a layer, ascending. Raises ArtifactError.

        The scales of a layer that has one for all rows are one row. They are in no file (()) of a
        bundle that refers to a checkpoint. Rows of `patched` are not those in the files.
        """
        if isinstance(self.reference, CheckpointReference) and part != HITS:
            return self.reference.places(self.folder, layer, part)
        own = [shard for shard in self.shards if (shard.layer, shard.part) == (layer, part)]
        return tuple(
            Span(
                file=(self.table or self.folder) / shard.file,
                begin=0 if self.table else only_tensor(self.folder, self.spec, shard).begin,
                first=shard.first_row,
                rows=shard.rows,
            )
            for shard in own
        )

    def maps(self, layer: int, part: str = ROWS) -> list[Array]:
        """Map a layer's rows, scales or hits privately, one array a shard, ascending.

        The dtype is the physical one: uint16 where the rows are bfloat16. Rows of `patched` are in
        the maps, and never in the files. Raises ArtifactError.
        """
        maps = self._maps(layer, part)
        own = self.patched.get(layer) if part in (ROWS, SCALES) else None
        if own is not None:
            new = own.rows if part == ROWS else own.row_scales
            return maps if new is None else _with_rows(maps, own.ids, new)
        return maps

    def _maps(self, layer: int, part: str) -> list[Array]:
        whole = self.spec.tensor(layer, part)
        if isinstance(self.reference, CheckpointReference):
            held = self.reference.held(layer, part)
            if held is not None:
                return [held]
        return [
            tensors.map_tensor(
                span.file,
                TensorPlace(
                    spec=tensors.TensorSpec(
                        name=whole.name, dtype=whole.dtype, shape=(span.rows, *whole.shape[1:])
                    ),
                    begin=span.begin,
                ),
                span.stride,
            )
            for span in self.spans(layer, part)
        ]

    def hits(self, layer: int) -> NDArray[np.uint32]:
        """Return how often the corpus looked each row of a layer up, uint32[rows]; mapped if it is
        one file.

        Only for a bundle that `has_hits`. Raises ArtifactError.
        """
        maps = self.maps(layer, HITS)
        return maps[0] if len(maps) == 1 else np.concatenate(maps)


def _with_rows(maps: list[Array], ids: NDArray[np.int64], new: Array) -> list[Array]:
    """Write rows [n, ...] at ascending `ids` into private maps, copies of read-only arrays."""
    found, first = [], 0
    for each in maps:
        begin, stop = np.searchsorted(ids, [first, first + len(each)])
        own = each if each.flags.writeable else each.copy()
        own[ids[begin:stop] - first] = new[begin:stop].reshape(-1, *each.shape[1:])
        found.append(own)
        first += len(each)
    return found


def bundle_folder(path: str | Path, name: str = BUNDLE_NAME) -> Path:
    """Return the folder of a bundle: `path`, or in it the folder `name`, else `engram`."""
    folder = readable_path(path)
    if not (folder / DESCRIPTION).exists():
        for inside in (folder / name, folder / BUNDLE_NAME):
            if (inside / DESCRIPTION).exists():
                return inside
    return folder


def saved_bundles(path: str | Path) -> dict[str, Path]:
    """Return the bundles of a checkpoint's folder by name, in the order in which they are attached.

    {} where there is none. A model with several memories is saved with one folder each, `engram`
    and such as `engram_code`. Raises ArtifactError where one of them is missing.
    """
    folder = Path(path)
    found = bundles_in(folder)
    order = next(filter(None, map(saved_with, found.values())), None)
    if order is None:
        return {name: found[name] for name in found if name == BUNDLE_NAME}
    for name in order:
        if name not in found:
            raise ArtifactError(
                f"{folder} was saved with a bundle {name!r}, which is missing",
                "take the checkpoint again, or attach one bundle by its name=",
            )
    return {name: found[name] for name in order}


def bundles_in(folder: Path) -> dict[str, Path]:
    """Return the folders in `folder` that are called as bundles are and have a description."""
    return {
        inside.name: inside
        for inside in (sorted(folder.iterdir()) if folder.is_dir() else ())
        if _NAMED.fullmatch(inside.name) and (inside / DESCRIPTION).is_file()
    }


def saved_with(bundle: Path) -> list[str]:
    """Return the folders of the bundles that were saved with one, [] if it was saved alone.

    Raises what `read_description` does.
    """
    order = read_description(bundle).get(SAVED_WITH, [])
    known = isinstance(order, list) and all(isinstance(name, str) for name in order)
    return order if known else []


def read_bundle(path: str | Path, *, verify: bool = False, patching: bool = False) -> Bundle:
    """Open the bundle in the folder `path`.

    Checked: the description, every file's name and size, the digests of the dense weights and the
    vocabulary, the shards' headers; with `verify` the shards' digests too, which reads them all; of
    what it refers to, what `check` of the reference says. `patching`: a half-patched one too.
    Raises InputError when there is no bundle or what it refers to is missing, IncompleteError for a
    half-patched one, ArtifactError for damage or a newer version, MismatchError for another table,
    and for a checkpoint that was changed.
    """
    folder = readable_path(path)
    document = read_description(folder, patching=patching)
    files = ListedFiles(folder, document)
    try:
        spec, shards, reference = parse(document, _lookup(files))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{folder / DESCRIPTION} is not a bundle: {error!r}", REMAKE) from None
    table = None
    inside = shards
    if isinstance(reference, CheckpointReference):
        inside = tuple(shard for shard in shards if shard.part == HITS)
    if reference is not None:
        if is_remote(folder):
            raise InputError(
                f"the bundle {folder} refers to rows by a path: {reference.path}",
                "give the table or checkpoint with the rows, or attach again without --reference",
            )
        if isinstance(reference, CheckpointReference):
            reference.check(folder)
        else:
            table = reference.check(folder, spec)
        if verify:
            raise InputError(
                f"the bundle {folder} refers to {table or reference.folder(folder)}, whose bytes "
                "are not checked here",
                f"run engram verify {folder}, and load it without verify",
            )
    if table is None:
        files.expect({shard.file for shard in inside})
        for shard in inside:
            only_tensor(folder, spec, shard)
            if verify:
                files.check_digest(shard.file)
    return Bundle(
        folder=folder,
        spec=spec,
        shards=shards,
        dense=_dense(files, spec),
        reference=reference,
        table=table,
    )


def read_description(folder: Path, *, patching: bool = False) -> dict[str, Any]:
    """Return the JSON of `engram.json`; with `patching` also of a half-patched bundle.

    Raises InputError where there is none, IncompleteError, ArtifactError.
    """
    path = folder / DESCRIPTION
    try:
        size = path.stat().st_size
    except OSError:
        raise InputError(f"no bundle at {folder}", "make one with engram attach") from None
    if size > MAX_DESCRIPTION_BYTES:
        raise ArtifactError(f"{path} has {size} bytes, too many for a description", REMAKE)
    document = read_json(path, "a bundle's description")
    version, form = document.get("version"), document.get("format")
    if form == PATCHING and not patching:
        raise IncompleteError(f"{folder} is half-patched", half_patched_hint(folder))
    if form not in (FORMAT, PATCHING) or type(version) is not int:
        raise ArtifactError(f"{path} does not describe a bundle", REMAKE)
    if version > VERSION:
        raise ArtifactError(f"{path} has version {version}, newer than {VERSION}", "upgrade engram")
    return document


def _listing(path: Path) -> Listing | None:
    """Return the files that the description lists, and the card if it was not edited.

    Bundles of versions before this one do not say what their card was: its head must do.
    """
    try:
        document = read_description(path)
    except EngramError:
        return None
    listed, unlisted = document.get("files"), document.get("unlisted", {CARD: None})
    if not isinstance(listed, dict) or not all(map(_OWN_NAME.fullmatch, listed)):
        return None
    own = {CARD} & set(unlisted) if isinstance(unlisted, dict) else set()
    return Listing(
        frozenset(listed) | {DESCRIPTION},
        frozenset(name for name in own if _as_written(path / name, unlisted[name])),
    )


def _as_written(path: Path, digest: Any) -> bool:
    try:
        raw = path.read_bytes()
    except OSError:
        return False
    return raw.startswith(_CARD_HEAD) if digest is None else sha256_bytes(raw) == digest


BUNDLE = Kind(name="bundle", listing=_listing, last=DESCRIPTION)


def _lookup(files: ListedFiles) -> NDArray[np.int32] | None:
    if VOCABULARY not in files:
        return None
    raw = files.read(VOCABULARY)
    places = tensors.read_header(raw, len(raw), VOCABULARY)
    place = places.get("lookup")
    if place is None or place.spec.dtype != "int32" or len(place.spec.shape) != 1:
        raise ArtifactError(f"{VOCABULARY} holds no int32 vector 'lookup'", REMAKE)
    return tensors.view_tensor(raw, place)


def _dense(files: ListedFiles, spec: BundleSpec) -> dict[int, dict[str, NDArray[np.float32]]]:
    raw = files.read(DENSE)
    places = tensors.read_header(raw, len(raw), DENSE)
    shapes = {f"layers.{i}.{n}": s for i in spec.layers for n, s in spec.dense_shapes.items()}
    found = {n: place.spec.shape for n, place in places.items() if place.spec.dtype == "float32"}
    if found != shapes or len(places) != len(shapes):
        raise ArtifactError(f"{DENSE} does not hold the weights of {spec.module.kind}", REMAKE)
    return {
        layer: {
            name: tensors.view_tensor(raw, places[f"layers.{layer}.{name}"])
            for name in spec.dense_shapes
        }
        for layer in spec.layers
    }


def only_tensor(folder: Path, spec: BundleSpec, shard: Shard) -> tensors.TensorPlace:
    """Return the one tensor of a shard, as its description has it. Raises ArtifactError."""
    with opened(folder / shard.file) as file:
        places = tensors.open_tensors(file, shard.file)
    expected = shard.tensor(spec)
    if [place.spec for place in places.values()] != [expected]:
        raise ArtifactError(
            f"{shard.file} does not hold {expected.name}, {expected.dtype} {expected.shape}", REMAKE
        )
    return places[expected.name]
