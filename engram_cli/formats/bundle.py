"""The bundle, what a model loads: a folder with `engram.json`, weights and memory-mappable rows.

`engram.json` says what the other files are, how large, and with which digest. Read as untrusted
input: names, sizes, headers and digests are checked before anything is mapped. `bundle_writer`
writes it; docs/reference/bundle-format.md is the format.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import read_json, sha256_bytes
from engram_cli.formats import tensors
from engram_cli.formats.module_spec import KINDS, ModuleSpec, Part
from engram_cli.formats.tensors import Array, TensorSpec
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import SILENT, Progress

FORMAT = "engram-bundle"
VERSION = 1
DESCRIPTION = "engram.json"
DENSE = "dense.safetensors"
VOCABULARY = "vocabulary.safetensors"
MAX_DESCRIPTION_BYTES = 64 * 2**20
MAX_SMALL_BYTES = 8 * 2**30  # dense weights and the vocabulary, which are read into memory
ROW_DTYPES = ("float32", "float16", "bfloat16")
ONE_BASED_SCHEMES = ("qwen-ple",)  # these count decoder layers from 1

REMAKE = "write the bundle again with engram attach --force"
T = TypeVar("T")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


def decoder_index(layout: HashLayout, layer: int) -> int:
    """The place, from 0, of the decoder layer that a layer id of the scheme names."""
    return layer - 1 if layout.scheme in ONE_BASED_SCHEMES else layer


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """What a bundle holds: the hash, the layers that carry a table, the rows and the module.

    `packed`: positions that restart at 0 begin another document, which sees nothing of the last.
    """

    layout: HashLayout
    layers: tuple[int, ...]
    dim: int
    dtype: str
    hidden_size: int
    num_layers: int
    model_type: str
    module: ModuleSpec = field(default_factory=ModuleSpec)
    packed: bool = False

    @property
    def embed_dim(self) -> int:
        """E: the length of a layer's looked-up vectors, columns x dim."""
        return self.layout.columns * self.dim

    @property
    def conv_dilation(self) -> int:
        """The convolution steps by the longest n-gram (docs/reference/modules.md)."""
        return self.layout.max_order

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.dim * tensors.physical_dtype(self.dtype).itemsize

    @property
    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each dense weight of a layer."""
        return self.module.shapes(self.hidden_size, self.embed_dim)

    @property
    def dense_parts(self) -> list[Part]:
        """The parts of the dense weights of a layer, which say how each starts."""
        return self.module.parts(self.hidden_size, self.embed_dim)

    def rows(self, layer: int) -> int:
        """The height of a layer's table."""
        return self.layout.layer(layer).rows

    def index(self, layer: int) -> int:
        """The decoder layer, from 0, that a layer id names."""
        return decoder_index(self.layout, layer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of rows: rows first_row .. first_row + rows - 1 of a layer's table."""

    layer: int
    file: str
    first_row: int
    rows: int

    def tensor(self, spec: BundleSpec) -> TensorSpec:
        """The only tensor of the file."""
        shape = (self.rows, spec.dim)
        return TensorSpec(name=f"layers.{self.layer}.rows", dtype=spec.dtype, shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """An opened bundle: its spec, and its files, with sizes and small digests checked.

    `dense`: per layer and name, float32. `shards` lie in the order of layers and rows.
    """

    folder: Path
    spec: BundleSpec
    shards: tuple[Shard, ...]
    dense: Mapping[int, Mapping[str, NDArray[np.float32]]] = field(repr=False)

    def row_maps(self, layer: int) -> list[Array]:
        """A layer's table as private memory maps [n, dim], one a shard, ascending.

        The dtype is the physical one: uint16 where the rows are bfloat16. Raises ArtifactError.
        """
        return [
            tensors.map_tensor(
                self.folder / shard.file, _only_tensor(self.folder, self.spec, shard)
            )
            for shard in self.shards
            if shard.layer == layer
        ]

    def row_places(self, layer: int) -> list[tuple[Shard, int]]:
        """A layer's shards, ascending, each with the byte of its file that its rows begin at."""
        return [
            (shard, _only_tensor(self.folder, self.spec, shard).begin)
            for shard in self.shards
            if shard.layer == layer
        ]


def read_bundle(path: str | Path, *, verify: bool = False) -> Bundle:
    """Open the bundle in the folder `path`.

    Checked: the description, every file's name and size, the digests of the dense weights and the
    vocabulary, the shards' headers; with `verify` the shards' digests too, which reads them all.
    Raises InputError when there is none, ArtifactError when it is damaged or of a newer version.
    """
    folder = Path(path)
    document = _read_description(folder)
    files = _Files(folder, document)
    try:
        spec, shards = _parse(document, _lookup(files))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder / DESCRIPTION} is not a bundle: {error!r}", REMAKE) from None
    files.expect({DENSE, *(shard.file for shard in shards)})
    for shard in shards:
        _only_tensor(folder, spec, shard)
        if verify:
            files.check_digest(shard.file)
    return Bundle(folder=folder, spec=spec, shards=shards, dense=_dense(files, spec))


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFiles:
    """What reading all files of a bundle found: a line for each whose digest is another one."""

    files: int
    stored_bytes: int
    problems: tuple[str, ...]


def verify_files(path: str | Path, *, threads: int = 1, progress: Progress = SILENT) -> BundleFiles:
    """Read every file that the description lists and compare its digest.

    Raises what `read_bundle` raises for a description that is not to be trusted.
    """
    listed = _Files(Path(path), _read_description(Path(path)))
    progress.start("verify", sum(map(listed.size, listed.names)), "bytes")
    problems = []
    with ThreadPoolExecutor(threads) as pool:
        for name, problem in zip(listed.names, pool.map(listed.problem, listed.names), strict=True):
            progress.advance(listed.size(name))
            if problem is not None:
                problems.append(problem)
    return BundleFiles(
        files=len(listed.names),
        stored_bytes=sum(map(listed.size, listed.names)),
        problems=tuple(problems),
    )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    try:
        size = path.stat().st_size
    except OSError:
        raise InputError(f"no bundle at {folder}", "make one with engram attach") from None
    if size > MAX_DESCRIPTION_BYTES:
        raise ArtifactError(f"{path} has {size} bytes, too many for a description", REMAKE)
    document = read_json(path, "a bundle's description")
    version = document.get("version")
    if document.get("format") != FORMAT or type(version) is not int:
        raise ArtifactError(f"{path} does not describe a bundle", REMAKE)
    if version > VERSION:
        raise ArtifactError(f"{path} has version {version}, newer than {VERSION}", "upgrade engram")
    return document


class _Files:
    """The files that a description lists; each has a plain name and the size it should have."""

    def __init__(self, folder: Path, document: Mapping[str, Any]) -> None:
        self._folder = folder
        self._listed: dict[str, tuple[int, str]] = {}
        listed = document.get("files")
        for name, about in listed.items() if isinstance(listed, dict) else ():
            if not _PLAIN_NAME.fullmatch(name):
                raise ArtifactError(f"{folder / DESCRIPTION} lists a file {name!r}", REMAKE)
            try:
                self._listed[name] = int(about["bytes"]), str(about["digest"])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise ArtifactError(
                    f"{folder / DESCRIPTION} gives {name} no size and digest", REMAKE
                ) from None
        for name in self._listed:
            self._check_size(name)

    def __contains__(self, name: str) -> bool:
        return name in self._listed

    @property
    def names(self) -> list[str]:
        """The files, by name."""
        return sorted(self._listed)

    def size(self, name: str) -> int:
        """The bytes that a file should have, and has."""
        return self._listed[name][0]

    def problem(self, name: str) -> str | None:
        """What is wrong with a file that is read whole; None where nothing is."""
        try:
            self.check_digest(name)
        except ArtifactError as error:
            return error.message
        return None

    def expect(self, names: set[str]) -> None:
        """Raises ArtifactError for a name that the description does not list."""
        for name in sorted(names - set(self._listed)):
            raise ArtifactError(f"{self._folder / DESCRIPTION} lists no file {name!r}", REMAKE)

    def read(self, name: str) -> bytes:
        """The bytes of a small file, its digest checked."""
        self.expect({name})
        if self._listed[name][0] > MAX_SMALL_BYTES:
            raise ArtifactError(f"{self._folder / name} is too large", REMAKE)
        with _opened(self._folder / name) as file:
            raw = file.read()
        if sha256_bytes(raw) != self._listed[name][1]:
            raise self._changed(name)
        return raw

    def check_digest(self, name: str) -> None:
        """Read the whole file. Raises ArtifactError when it is not the one that was written."""
        with _opened(self._folder / name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if f"sha256:{digest}" != self._listed[name][1]:
            raise self._changed(name)

    def _check_size(self, name: str) -> None:
        path, expected = self._folder / name, self._listed[name][0]
        if not path.is_file():
            raise ArtifactError(f"{path} is missing", REMAKE)
        if path.stat().st_size != expected:
            raise ArtifactError(f"{path}: {path.stat().st_size} bytes, not {expected}", REMAKE)

    def _changed(self, name: str) -> ArtifactError:
        return ArtifactError(
            f"{self._folder / name} was changed after it was written: digests differ", REMAKE
        )


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", REMAKE) from None


def _lookup(files: _Files) -> NDArray[np.int32] | None:
    if VOCABULARY not in files:
        return None
    raw = files.read(VOCABULARY)
    places = tensors.read_header(raw, len(raw), VOCABULARY)
    place = places.get("lookup")
    if place is None or place.spec.dtype != "int32" or len(place.spec.shape) != 1:
        raise ArtifactError(f"{VOCABULARY} holds no int32 vector 'lookup'", REMAKE)
    return tensors.view_tensor(raw, place)


def _parse(
    document: Mapping[str, Any], lookup: NDArray[np.int32] | None
) -> tuple[BundleSpec, tuple[Shard, ...]]:
    """The description as a spec and shards. Raises ValueError and its kin where it is none."""
    layout = HashLayout.from_json(document["layout"], lookup)
    if layout.fingerprint != document["fingerprint"]:
        raise ValueError("the layout has another fingerprint")
    if layout.vocab_digest is not None and lookup is None:
        raise ValueError("the layout's vocabulary is missing")
    module, model, rows = document["module"], document["model"], document["rows"]
    entries = document["layers"]
    if module["kind"] not in KINDS:
        raise ArtifactError(f"the bundle has a module {module['kind']!r}", "upgrade engram")
    spec = BundleSpec(
        layout=layout,
        layers=tuple(_count(entry["layer"], low=0) for entry in entries),
        dim=_count(rows["dim"]),
        dtype=_one_of(rows["dtype"], ROW_DTYPES),
        hidden_size=_count(model["hidden_size"]),
        num_layers=_count(model["num_hidden_layers"]),
        model_type=str(model["model_type"]),
        module=_module(module),
        packed=_one_of(document["packed"], (False, True)),
    )
    if module["conv_dilation"] != spec.conv_dilation:
        raise ValueError(f"conv_dilation {module['conv_dilation']}, not {spec.conv_dilation}")
    if not spec.layers or len(set(spec.layers)) != len(spec.layers):
        raise ValueError(f"layers {spec.layers}")
    shards = [shard for entry in entries for shard in _shards(spec, entry)]
    return spec, tuple(shards)


def _module(about: Mapping[str, Any]) -> ModuleSpec:
    eps = about["norm_eps"]
    if eps is not None and type(eps) is not float:
        raise ValueError(f"norm_eps {eps!r}")
    return ModuleSpec(
        kind=about["kind"],
        streams=_count(about["streams"]),
        conv_kernel=_count(about["conv_kernel"], low=0),
        norm_eps=eps,
    )


def _shards(spec: BundleSpec, entry: Mapping[str, Any]) -> list[Shard]:
    """A layer's shards; they follow each other and end with the layer's last row."""
    layer, end = entry["layer"], 0
    if layer not in spec.layout.layer_ids or entry["decoder_layer"] != spec.index(layer):
        raise ValueError(f"layer {layer} is not the layout's")
    if not 0 <= spec.index(layer) < spec.num_layers:
        raise ValueError(f"layer {layer} of {spec.num_layers}")
    shards = []
    for about in entry["shards"]:
        rows = _count(about["rows"])
        if about["first_row"] != end or not _PLAIN_NAME.fullmatch(about["file"]):
            raise ValueError(f"shard {about['file']!r} from row {about['first_row']}")
        shards.append(Shard(layer=layer, file=about["file"], first_row=end, rows=rows))
        end += rows
    if end != spec.rows(layer) or entry["rows"] != end:
        raise ValueError(f"layer {layer} has {end} rows, not {spec.rows(layer)}")
    return shards


def _dense(files: _Files, spec: BundleSpec) -> dict[int, dict[str, NDArray[np.float32]]]:
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
    with _opened(folder / shard.file) as file:
        places = tensors.open_tensors(file, shard.file)
    expected = shard.tensor(spec)
    if [place.spec for place in places.values()] != [expected]:
        raise ArtifactError(
            f"{shard.file} does not hold {expected.name}, {expected.dtype} {expected.shape}", REMAKE
        )
    return places[expected.name]


def _count(value: Any, *, low: int = 1) -> int:
    if type(value) is not int or not low <= value < 2**31:
        raise ValueError(f"{value!r} is no count")
    return value


def _one_of(value: Any, known: tuple[T, ...]) -> T:
    found = next((one for one in known if type(one) is type(value) and one == value), None)
    if found is None:
        raise ValueError(f"{value!r} is none of {', '.join(map(str, known))}")
    return found
