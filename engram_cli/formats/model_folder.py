"""A folder that another program wrote: its config, and the tensors in its safetensors files.

Only the headers of files that hold a wanted tensor are read. Configs, indices and headers are
untrusted: every number is checked against the file before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import read_json
from engram_cli.formats.base import Facts, rows_facts
from engram_cli.formats.stored_layers import StoredTensor
from engram_cli.hashing.layout import MAX_ORDER, HashLayout
from engram_cli.remote.path import look_at
from engram_cli.rows.dtypes import TENSOR_DTYPES, physical_dtype
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.safetensors import TensorPlace, checkpoint_files, raw_header, tensor_place
from engram_cli.rows.source import Span
from engram_cli.vocab.kept import token_map
from engram_cli.vocab.lookup import MOST_VOCABULARY, VocabMap

Result = Literal["ok", "differs", "undecided"]
CONFIG = "config.json"
_SHOWN = 4  # values of a list
_MOST_VALUES = 2**28  # bytes of a tensor that is read whole
_SHOWN_VALUE = 60  # characters, of a value that a message refuses
_SHOWN_TEXT = 400  # characters, of a value of unknown origin
DAMAGED = "the file is damaged or was not downloaded whole: take it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was compared: `found` in the files, `expected` from config and tokenizer."""

    name: str
    result: Result
    found: str
    expected: str


def compared(name: str, found: object, expected: object) -> Check:
    """Compare two values; None is one that is not known, which leaves the check undecided."""
    unknown = found is None or expected is None
    result: Result = "undecided" if unknown else "ok" if found == expected else "differs"
    if result == "differs" and isinstance(found, tuple) and isinstance(expected, tuple):
        first = next(
            (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), 0
        )
        if first >= _SHOWN:  # show where they part
            name, found, expected = f"{name}, from {first} on", found[first:], expected[first:]
    between = " x " if "shape" in name else ", "
    texts = (_text(value, between) for value in (found, expected))
    return Check(name=name, result=result, found=next(texts), expected=next(texts))


def _text(value: object, between: str) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, (tuple, list)):
        # A comma between thousands would look like one between values.
        thousands = between != ", "
        shown = [f"{each:,}" if thousands else str(each) for each in value[:_SHOWN]]
        if len(value) > _SHOWN:
            return f"{between.join(shown)}, ... ({len(value)} values)"
        return between.join(shown) or "none"
    return str(value)[:_SHOWN_TEXT]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTensor:
    """A tensor of a checkpoint: the file it is in, and where."""

    file: Path
    place: TensorPlace

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.place.spec.shape

    @property
    def dtype(self) -> str:
        """Its logical dtype, such as "float8_e4m3fn"."""
        return self.place.spec.dtype

    def span(self, first: int = 0) -> Span:
        """Return its rows as a span that begins at row `first`; a single value is one row."""
        rows = self.shape[0] if self.shape else 1
        return Span(file=self.file, begin=self.place.begin, first=first, rows=rows)

    def values(self) -> NDArray[Any]:
        """Read all of a small tensor, as stored. Raises ArtifactError for one that is not small."""
        if self.place.spec.nbytes > _MOST_VALUES:
            raise ArtifactError(f"{self.place.spec.name} is {self.shape}", DAMAGED)
        array = FileArray([self.span()], physical_dtype(self.dtype), self.shape[1:], DAMAGED)
        return array.read(0, array.rows).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFolder:
    """An opened folder. `tensors`: the wanted ones that are there, by name.

    `lost`: wanted tensors that the index names and no file has. `missing_files`: files that the
    index names. `short_files`: files that end before their tensors do, as after a download that was
    interrupted. `unread`: files whose headers were not needed. `header_bytes`: what was read.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, FoundTensor]
    lost: tuple[str, ...] = ()
    missing_files: tuple[str, ...] = ()
    short_files: tuple[str, ...] = ()
    unread: int = 0
    header_bytes: int = 0

    def array(self, names: Iterable[str]) -> FileArray:
        """Return matrices [n, width] one after another as one array of rows.

        Raises ArtifactError for tensors that are no matrices, or differ in width or dtype.
        """
        found = [self.tensors[name] for name in names]
        kinds = {(tensor.dtype, tensor.shape[1:]) for tensor in found}
        if len(kinds) > 1 or len(found[0].shape) != 2 or not all(found[0].shape):
            shapes = ", ".join(f"{dtype} {shape}" for dtype, shape in sorted(kinds))
            raise ArtifactError(f"{found[0].place.spec.name} and its like: {shapes}", DAMAGED)
        spans, first = [], 0
        for tensor in found:
            spans.append(tensor.span(first))
            first += tensor.shape[0]
        return FileArray(spans, physical_dtype(found[0].dtype), found[0].shape[1:], DAMAGED)

    def file_checks(self) -> tuple[Check, ...]:
        """Return whether all files and wanted tensors that the index names are there."""
        lost = [*self.missing_files, *self.lost]
        return (
            compared("files and tensors of the index", _some(lost), "all there"),
            compared("sizes of the files read", _some(self.short_files, "too short"), "all there"),
        )


def _some(names: Sequence[str], what: str = "missing") -> str:
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{what}: {shown}" if names else "all there"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRows(FileRows):
    """The rows of an opened checkpoint, and what was compared. `dialect`: how it spells things.

    `modules`: the tensors of a layer's memory by what they are, where a writer may copy them.
    `names`: the tensors of each layer of the layout, in order.
    """

    dialect: str
    folder: ModelFolder
    checks: tuple[Check, ...]
    modules: Mapping[int, Mapping[str, str]] = field(default_factory=dict)
    names: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def tensors_of(self, layer: int) -> tuple[StoredTensor, ...]:
        """Return where the tensors of a layer are."""
        return tuple(
            StoredTensor(
                name=name,
                file=tensor.file,
                dtype=TENSOR_DTYPES[tensor.dtype][0],
                shape=tensor.shape,
                offset=tensor.place.begin,
            )
            for name in self.names.get(layer, ())
            for tensor in (self.folder.tensors[name],)
        )


def checkpoint_facts(source: CheckpointRows) -> Facts:
    """Return what a checkpoint says of itself, for people."""
    place = source.folder
    read = f"{place.header_bytes:,} bytes of headers"
    unread = f"; the headers of {place.unread:,} more files were not needed" if place.unread else ""
    return [*rows_facts(source), ("dialect", source.dialect), ("read", read + unread)]


def config_of(folder: Path) -> dict[str, Any] | None:
    """Return the config.json of a folder; None where there is none that can be read."""
    try:
        return read_json(folder / CONFIG, "a model's config")
    except (InputError, ArtifactError):
        return None


def open_folder(
    folder: Path, config: Mapping[str, Any], wanted: Callable[[str], bool]
) -> ModelFolder:
    """Open the tensors of `folder`, or of one safetensors file, whose names are `wanted`.

    Raises InputError where there are no safetensors files, ArtifactError for a damaged one.
    """
    places = checkpoint_files(folder)
    names = [name for name in places if wanted(name)]
    tensors: dict[str, FoundTensor] = {}
    short, size = [], 0
    look_at(places.values())
    read = [file for file in sorted({places[name] for name in names}) if file.is_file()]
    for file in read:
        header, begin = raw_header(file)
        _require_apart(file, header)
        size += begin
        own = [name for name in names if places[name] == file and name in header]
        found = {name: _found(file, name, header[name], begin) for name in own}
        ends = {n: tensor.place.begin + tensor.place.spec.nbytes for n, tensor in found.items()}
        available = file.stat().st_size
        if any(end > available for end in ends.values()):
            short.append(file.name)
        tensors |= {name: found[name] for name in own if ends[name] <= available}
    named = set(places.values())
    return ModelFolder(
        path=folder,
        config=config,
        tensors=tensors,
        lost=tuple(n for n in names if n not in tensors and places[n] in read),
        missing_files=tuple(sorted(file.name for file in named if not file.is_file())),
        short_files=tuple(short),
        unread=len(named) - len(read),
        header_bytes=size,
    )


def _require_apart(file: Path, header: Mapping[str, Any]) -> None:
    """Raise ArtifactError for tensors whose bytes overlap; what is no offset is found later."""
    begun = []
    for entry in header.values():
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int for n in offsets):
            begun.append(tuple(offsets))
    for (_, end), (begin, _) in pairwise(sorted(begun)):
        if begin < end:
            raise ArtifactError(f"{file}: tensors overlap at byte {begin:,} of the data", DAMAGED)


def _found(file: Path, name: str, entry: Any, data: int) -> FoundTensor:
    """Return a tensor of a header. Raises ArtifactError for an entry that cannot be true."""
    try:
        return FoundTensor(file=file, place=tensor_place(name, entry, data))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{file}, tensor {name}: {error}", DAMAGED) from None


@dataclass(slots=True, kw_only=True)
class FolderTokenizer:
    """The map of the tokenizer of a folder, or of the one that was given, made on first use."""

    folder: Path
    given: Path | None = None
    _vocab: VocabMap | None = field(default=None, repr=False)

    def vocab(self) -> VocabMap | None:
        """Return the vocabulary map; None where there is no tokenizer."""
        if self._vocab is None:
            place = self.given or self.folder
            if self.given is None and not (self.folder / "tokenizer.json").is_file():
                return None
            self._vocab = token_map(place)
        return self._vocab


def bare_map(size: int) -> VocabMap:
    """Return a map that stands for one onto `size` compressed ids which is not known.

    Raises VocabularyError, and ArtifactError for more ids than a vocabulary has.
    """
    if size > MOST_VOCABULARY:
        raise ArtifactError(f"the config names {size:,} token ids", "check it")
    return VocabMap(lookup=np.arange(size, dtype=np.int32), size=size)


def pad_token(layout: HashLayout) -> int:
    """Return the token id that stands before a text: the layout's, or the first of its id.

    Raises InputError for a layout that has no such token.
    """
    named = layout.parameters.get("pad_id")
    if isinstance(named, int):
        return named
    if layout.lookup is None:
        return layout.filler_id
    found = np.flatnonzero(layout.lookup == layout.filler_id)
    if not len(found):
        raise InputError(f"no token has the pad's compressed id {layout.filler_id}", "check it")
    return int(found[0])


def count_in(config: Mapping[str, Any], key: str) -> int:
    """Return an integer of 0 or more of a config. Raises ArtifactError for anything else."""
    value = config.get(key)
    if type(value) is not int or not 0 <= value < 2**63:
        raise ArtifactError(
            f"the config has {key} = {_shown(value)}", "a count is needed: check it"
        )
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_VALUE else f"{text[:_SHOWN_VALUE]}..."


def orders_in(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the orders 2 to the longest n-gram of a config. Raises ArtifactError."""
    longest = count_in(config, key)
    if longest > MAX_ORDER:
        raise ArtifactError(f"the config has {key} = {longest:,}", f"at most {MAX_ORDER}: check it")
    return tuple(range(2, longest + 1))


def eos_in(config: Mapping[str, Any]) -> int:
    """Return the EOS token id of a config, the first of several. Raises ArtifactError."""
    value = config.get("eos_token_id")
    first = value[0] if isinstance(value, list) and value else value
    return count_in({"eos_token_id": first}, "eos_token_id")


def counts_in(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return a list of integers of a config. Raises ArtifactError for anything else."""
    value = config.get(key)
    if not isinstance(value, list) or not 0 < len(value) <= 4096:
        raise ArtifactError(f"the config has {key} = {_shown(value)}", "a list is needed: check it")
    return tuple(count_in({key: each}, key) for each in value)
