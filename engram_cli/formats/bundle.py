"""The bundle, what a model loads: a folder with `engram.json`, weights and memory-mappable rows.

`engram.json` says what the other files are, how large, and with which digest. Read as untrusted
input: names, sizes, headers and digests are checked before anything is mapped. `bundle_writer`
writes it; docs/reference/bundle-format.md is the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import local_path
from engram_cli.formats import tensors
from engram_cli.formats.bundle_description import parse
from engram_cli.formats.bundle_files import (
    DENSE,
    DESCRIPTION,
    REMAKE,
    VOCABULARY,
    ListedFiles,
    opened,
    read_description,
)
from engram_cli.formats.bundle_spec import HITS, ROWS, BundleSpec, Shard
from engram_cli.formats.table_reference import TableReference
from engram_cli.formats.tensors import Array, TensorPlace

BUNDLE_NAME = "engram"  # of a bundle's folder in a checkpoint's


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a shard's lines lie: in the file at `path`, from byte `begin` on."""

    path: Path
    begin: int
    shard: Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle: its spec, and its files, with sizes and small digests checked.

    `dense`: per layer and name, float32. `shards` lie in the order of layers, parts and rows. With
    a `reference` they are the chunk files of the table in `table`.
    """

    folder: Path
    spec: BundleSpec
    shards: tuple[Shard, ...]
    dense: Mapping[int, Mapping[str, NDArray[np.float32]]] = field(repr=False)
    reference: TableReference | None = None
    table: Path | None = None

    def maps(self, layer: int, part: str = ROWS) -> list[Array]:
        """A layer's rows, scales or hits as private memory maps, one a shard, ascending.

        The dtype is the physical one: uint16 where the rows are bfloat16. Raises ArtifactError.
        """
        return [
            tensors.map_tensor(
                place.path, TensorPlace(spec=place.shard.tensor(self.spec), begin=place.begin)
            )
            for place in self.places(layer, part)
        ]

    @property
    def has_hits(self) -> bool:
        """Whether the bundle says how often the corpus fell on each row."""
        return any(shard.part == HITS for shard in self.shards)

    def hits(self, layer: int) -> NDArray[np.uint32]:
        """uint32[rows]: how often the corpus fell on each row of a layer; a map where it can be.

        Only for a bundle that `has_hits`. Raises ArtifactError.
        """
        maps = self.maps(layer, HITS)
        return maps[0] if len(maps) == 1 else np.concatenate(maps)

    def places(self, layer: int, part: str = ROWS) -> list[Place]:
        """A layer's shards, ascending, each with the byte of its file that its lines begin at."""
        own = [shard for shard in self.shards if (shard.layer, shard.part) == (layer, part)]
        if self.table is not None:
            return [Place(path=self.table / shard.file, begin=0, shard=shard) for shard in own]
        return [
            Place(
                path=self.folder / shard.file,
                begin=_only_tensor(self.folder, self.spec, shard).begin,
                shard=shard,
            )
            for shard in own
        ]


def bundle_folder(path: str | Path) -> Path:
    """The folder of a bundle: `path`, or `engram` in it, where `engram attach` writes it."""
    folder = Path(path)
    inside = folder / BUNDLE_NAME
    if not (folder / DESCRIPTION).exists() and (inside / DESCRIPTION).exists():
        return inside
    return folder


def read_bundle(path: str | Path, *, verify: bool = False) -> Bundle:
    """Open the bundle in the folder `path`.

    Checked: the description, every file's name and size, the digests of the dense weights and the
    vocabulary, the shards' headers; with `verify` the shards' digests too, which reads them all; of
    a table that it refers to what `TableReference.check` says. Raises InputError when there is no
    bundle or no table, ArtifactError for damage or a newer version, MismatchError for another
    table.
    """
    folder = local_path(path)
    document = read_description(folder)
    files = ListedFiles(folder, document)
    try:
        spec, shards, reference = parse(document, _lookup(files))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{folder / DESCRIPTION} is not a bundle: {error!r}", REMAKE) from None
    table = None
    if reference is not None:
        table = _referred(reference, folder, spec, verify=verify)
    else:
        _check_shards(files, folder, spec, shards, verify=verify)
    return Bundle(
        folder=folder,
        spec=spec,
        shards=shards,
        dense=_dense(files, spec),
        reference=reference,
        table=table,
    )


def _referred(reference: TableReference, folder: Path, spec: BundleSpec, *, verify: bool) -> Path:
    table = reference.check(folder, spec)
    if verify:
        raise InputError(
            f"the bundle {folder} refers to the table {table}, whose bytes are not checked here",
            f"run engram verify {folder}, and load it without verify",
        )
    return table


def _check_shards(
    files: ListedFiles, folder: Path, spec: BundleSpec, shards: tuple[Shard, ...], *, verify: bool
) -> None:
    files.expect({shard.file for shard in shards})
    for shard in shards:
        _only_tensor(folder, spec, shard)
        if verify:
            files.check_digest(shard.file)


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


def _only_tensor(folder: Path, spec: BundleSpec, shard: Shard) -> tensors.TensorPlace:
    with opened(folder / shard.file) as file:
        places = tensors.open_tensors(file, shard.file)
    expected = shard.tensor(spec)
    if [place.spec for place in places.values()] != [expected]:
        raise ArtifactError(
            f"{shard.file} does not hold {expected.name}, {expected.dtype} {expected.shape}", REMAKE
        )
    return places[expected.name]
