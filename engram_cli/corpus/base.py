"""Defines what flows through the corpus stage: options, files, documents, blocks, and readers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import CorpusError, InputError
from engram_cli.numbers import counted

Errors = Literal["strict", "replace"]
Names: TypeAlias = tuple[tuple[int, str], ...]

BLOCK_TOKENS = 2**18  # the most tokens of a block: 1 MB of ids, a few milliseconds of counting
TEXT_FIELD = "text"
IDS_FIELD = "input_ids"
NO_LABEL = "(none)"  # documents without the field of labels, or with a null there
LONGEST_LABEL = 120  # characters
IDS_DTYPES = ("uint16", "uint32", "int32", "int64")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusOptions:
    """How files become documents.

    `format`: the reader for every file; None detects it for each. `field`: the field or column that
    holds the text or the token ids, dotted where nested; None: "text", in Parquet files without one
    "input_ids". `document_separator`: what ends a document inside a text file; None: each file is
    one document. `suffixes`: the files of a folder that are read; None: the known ones. `errors`:
    bytes that are not UTF-8 stop the run ("strict") or are read as U+FFFD ("replace").
    `document_end_id`: the token between documents in files of bare token ids. `ids_dtype`: the
    integers of files that do not say it; None detects it from their bytes. `label`: the field whose
    value labels each document, dotted where nested.
    """

    format: str | None = None
    field: str | None = None
    document_separator: str | None = None
    suffixes: tuple[str, ...] | None = None
    errors: Errors = "strict"
    document_end_id: int | None = None
    ids_dtype: str | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.errors not in ("strict", "replace"):
            raise InputError(f"unknown --errors '{self.errors}'", "give strict or replace")
        if self.document_separator == "":
            raise InputError(
                "the document separator is empty", "give the text that separates documents"
            )
        if self.field == "":
            raise InputError("the field has no name", "give the field that holds the text")
        if self.suffixes is not None and not all(s.startswith(".") for s in self.suffixes):
            raise InputError(
                f"suffixes {', '.join(self.suffixes)}: one has no dot", "give .txt,.md and so on"
            )
        if self.document_end_id is not None and self.document_end_id < 0:
            raise InputError(f"document end id {self.document_end_id}", "give a token id")
        if self.ids_dtype not in (None, *IDS_DTYPES):
            raise InputError(
                f"unknown type of token ids '{self.ids_dtype}'", f"known: {', '.join(IDS_DTYPES)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a file, the `number`-th: the units begin..end-1 of which its format has an index.

    Units are row groups, record batches, lines of an array, documents or shards.
    """

    number: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a file was like when it was looked at; one of other content has another stamp.

    `size`: bytes. `changed`: the time of the last change in ns, or what a store calls the version.
    `inode`: where the system has one; a file put in the place of another has a new one.
    """

    size: int | None
    changed: int | str | None
    inode: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFile:
    """A file of the corpus: `name` as shown to the user, `size` in bytes where it is known.

    `format` names a reader of `corpus.readers`. A local file has a `path`, a remote one a `url`,
    standard input neither. With a `section` only that part of the file is meant, and `size` is that
    part's. `stamp`: of the whole file when the corpus was planned, None for pipes and devices.
    """

    name: str
    path: Path | None
    size: int | None
    format: str
    url: str | None = None
    section: Section | None = None
    stamp: Stamp | None = None

    @property
    def key(self) -> str:
        """Return a key unique to this file and section; documents start at 0 in each."""
        if self.section is None or self.section.number == 0:
            return self.name
        return f"{self.name}\0{self.section.number}"

    def units(self, count: int, what: str) -> range:
        """Return which of the `count` units of the file to read: all, or those of its section.

        Raises CorpusError when the file has changed since it was divided.
        """
        if self.section is None:
            return range(count)
        if self.section.end > count:
            raise CorpusError(f"{self.name} has changed: {count:,} {what}", "run it again")
        return range(self.section.begin, self.section.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The text of a document, or of the next piece of one; only the first piece is `first`.

    `place` says where it is in the file ("line 3", "" for the whole file); `size` is how many bytes
    of the file were read for it. `label`: the value of `CorpusOptions.label`, None without it.
    """

    file: str
    place: str
    text: str
    first: bool
    size: int
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """How many times long documents were cut: at line ends, at other white space, before
    punctuation marks, and inside words."""

    line_ends: int = 0
    spaces: int = 0
    marks: int = 0
    words: int = 0

    def __add__(self, other: Cuts) -> Cuts:
        return Cuts(
            line_ends=self.line_ends + other.line_ends,
            spaces=self.spaces + other.spaces,
            marks=self.marks + other.marks,
            words=self.words + other.words,
        )

    def __str__(self) -> str:
        """Return the kinds there are, with their numbers: 60 spaces and 7 places inside words."""
        named = (
            (self.line_ends, "line end"),
            (self.spaces, "space"),
            (self.marks, "punctuation mark"),
        )
        said = [counted(number, noun) for number, noun in named if number]
        if self.words:
            said.append(f"{counted(self.words, 'place')} inside words")
        *most, last = said or ["no place"]
        return f"{', '.join(most)} and {last}" if most else last

    @property
    def total(self) -> int:
        """The number of all cuts."""
        return self.line_ends + self.spaces + self.marks + self.words


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPosition:
    """How far a corpus was read, so that reading can resume there.

    `items` of the file with the index `file` were read, and all of the files before it; `blank`: of
    these items none held anything. `empty_files`, `empty_documents`, `cuts`: as in `TokenStream`.
    `open`, `before`: of the document at hand, whether no token of it was seen yet, and how many
    were.
    """

    file: int = 0
    items: int = 0
    blank: bool = True
    empty_files: int = 0
    empty_documents: int = 0
    cuts: Cuts = Cuts()
    open: bool = False
    before: int = 0

    @classmethod
    def read(cls, stored: Any) -> ReadPosition:
        """Return a position that was stored as `asdict` gives it. Raises ValueError."""
        if isinstance(stored, dict):
            stored = {"empty_documents": 0} | stored  # versions before did not count them
        numbers = _checked(cls, stored)
        return cls(**numbers | {"cuts": Cuts(**_checked(Cuts, numbers["cuts"]))})


def _checked(kind: type[ReadPosition] | type[Cuts], stored: Any) -> dict[str, Any]:
    """Return the fields of `kind`, of their types and not below 0. Raises ValueError."""
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(kind)}
    if not isinstance(stored, dict) or stored.keys() != kinds.keys():
        raise ValueError("names no place in the corpus")
    for name, expected in kinds.items():
        value = stored[name]
        if expected is not Cuts and (type(value) is not expected or not 0 <= value < 2**63):
            raise ValueError(f"has the {name} {value!r}")
    return stored


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenBlock:
    """T token ids of any integer type, `starts` bool[T] at the first token of each document.

    A block may begin inside a document that the block before it began. `size`: bytes of the files
    read for it. `locate` names the file, document and position of the token at an index, for
    messages. `files`: (index, name) where the tokens of a file begin, the first at 0; `labels`: the
    same for the values of `CorpusOptions.label`, () without it. `partition`: the number of the
    partition it is of. `read_position`: where reading can resume after this block, None where it
    cannot.
    """

    ids: NDArray[np.integer]
    starts: NDArray[np.bool_]
    size: int
    locate: Callable[[int], str]
    files: Names = ((0, ""),)
    labels: Names = ()
    partition: int = 0
    read_position: ReadPosition | None = None


Item: TypeAlias = Document | TokenBlock


def cut_names(names: Sequence[tuple[int, str]], begin: int, end: int) -> Names:
    """Return the files or labels of the tokens begin..end-1, counted from `begin`."""
    stops = [at for at, _ in names[1:]] + [end] * bool(names)
    return tuple(
        (max(at - begin, 0), name)
        for (at, name), stop in zip(names, stops, strict=True)
        if at < end and stop > begin
    )


def runs(labels: Sequence[str], begins: Sequence[int]) -> Names:
    """Return where the tokens of each label begin; document i has begins[i]..begins[i + 1]-1."""
    found: list[tuple[int, str]] = []
    for label, begin, end in zip(labels, begins[:-1], begins[1:], strict=True):
        if begin < end and (not found or found[-1][1] != label):
            found.append((begin, label))
    return tuple(found)


class Neighbours(Protocol):
    """Reads files by name, for `Look`: a `storage.Storage`. All methods raise CorpusError."""

    def kind(self, name: str) -> str | None:
        """Return "file", "folder", "thing" for a pipe or device, or None for nothing."""

    def head(self, name: str, length: int) -> bytes:
        """Return the first `length` bytes of a file."""

    def file(self, name: str, format_: str) -> CorpusFile:
        """Return the corpus file of that name; the size of a pipe is unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What tells the format of a file: its name, suffix, first bytes and neighbours.

    `ending`: the suffix in lower case, without that of a compression. `head`: the first 16 bytes,
    empty for the file that describes a data set. `bare`: files with this suffix may begin with any
    bytes. `storage` reads the neighbours.
    """

    name: str
    ending: str
    head: bytes
    bare: bool
    storage: Neighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """How the files of a format are recognised; the first bytes count more than the suffix.

    - `magic`: first bytes of files of this format, whatever their suffix.
    - `suffixes`: the suffixes of files whose first bytes decide nothing. Folders are searched for
      them, except for those in `unsearched`.
    - `shared`: suffixes that other formats have too. In folders such a file is read only if
      `recognises` accepts it or the user chose the format.
    - `certain`: suffixes of this format alone; remote files with them are not opened to check.
    - `streams`: the files may be compressed or come through a pipe.
    - `bare`: the files have no header and may begin with any bytes.
    - `dataset`: the name of a file that makes its folder one data set, if it is recognised.
    - `indexes`: maps the suffix of index files to that of the files they belong to.
    - `recognises`: decides if no magic does. Raises CorpusError for a relative of the format that
      cannot be read.
    """

    magic: tuple[bytes, ...] = ()
    suffixes: tuple[str, ...] = ()
    unsearched: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    certain: tuple[str, ...] = ()
    streams: bool = False
    bare: bool = False
    dataset: str | None = None
    indexes: Mapping[str, str] = field(default_factory=dict)
    recognises: Callable[[Look], bool] | None = None


def always_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Return True: the files of a format hold text."""
    return True


def never_text(file: CorpusFile, options: CorpusOptions) -> bool:
    """Return False: the files of a format hold token ids."""
    return False


def _undivided(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    return (file,)


def _alone(file: CorpusFile, options: CorpusOptions) -> Sequence[CorpusFile]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A corpus format: how its files are recognised, checked, divided and read.

    `read` gives the documents of a file in order, as texts or as token blocks. `gives_text` says
    beforehand whether a tokenizer will be needed, `remark` what the user should know about how the
    file will be read. `check`, called for every file before any is read, raises CorpusError for
    one whose header says that it cannot be. `divide` gives the sections of a file, each of about as
    many bytes as asked for, `(file,)` where it has no index. `companions` gives the other files
    that decide what is read of a file, as they are now. `lists`: the file is a list of others, so
    its own size says nothing. `labels`: documents have fields to be labelled by. `uses`: the
    choices of `CorpusOptions` that have an effect. `fields_until`, for formats without a schema,
    gives the field names of each document up to the first that has a certain field, and None for
    that one.
    """

    read: Callable[[CorpusFile, CorpusOptions], Iterator[Item]]
    signs: Signs
    gives_text: Callable[[CorpusFile, CorpusOptions], bool] = always_text
    remark: Callable[[CorpusFile, CorpusOptions], str | None] = lambda file, options: None
    check: Callable[[CorpusFile, CorpusOptions], None] = lambda file, options: None
    divide: Callable[[CorpusFile, CorpusOptions, int], Sequence[CorpusFile]] = _undivided
    companions: Callable[[CorpusFile, CorpusOptions], Sequence[CorpusFile]] = _alone
    lists: bool = False
    labels: bool = False
    uses: tuple[str, ...] = ()
    fields_until: Callable[[CorpusFile, CorpusOptions, str], Iterator[list[str] | None]] | None = (
        None
    )
