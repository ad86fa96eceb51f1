"""What flows through the corpus stage: files in, texts of documents or token ids, blocks out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError

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

    `format`: the reader for every file, None to tell it from each file. `field`: the field or
    column that holds the text or the token ids, dotted where nested; None: "text", in Parquet files
    without one "input_ids". `document_separator`: what ends a document inside a text file, None
    where a file is a document. `suffixes`: which files of a folder are read, None for the known
    ones. `errors`: bytes that are not UTF-8 stop the run ("strict") or read U+FFFD ("replace").
    `document_end_id`: the token that parts documents in files of bare token ids. `ids_dtype`: the
    integers of files that do not say it, None to tell it from their bytes. `label`: the field whose
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
    """What a file was like when it was looked at; another one is of another content.

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
        """A key unique to this file and section; documents are numbered from 0 in each."""
        if self.section is None or self.section.number == 0:
            return self.name
        return f"{self.name}\0{self.section.number}"


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
class ReadPosition:
    """Says how far a corpus was read, so that reading can resume there.

    `items` of the file with the index `file` were read, and all of the files before it; `blank`: of
    these items none held anything. `empty_files`, `cuts`: as in `TokenStream`. `open`, `before`: of
    the document at hand, whether no token of it was seen yet, and how many were.
    """

    file: int = 0
    items: int = 0
    blank: bool = True
    empty_files: int = 0
    cuts: int = 0
    open: bool = False
    before: int = 0


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
    """The files or labels of the tokens begin..end-1, counted from `begin`."""
    stops = [at for at, _ in names[1:]] + [end] * bool(names)
    return tuple(
        (max(at - begin, 0), name)
        for (at, name), stop in zip(names, stops, strict=True)
        if at < end and stop > begin
    )


def runs(labels: Sequence[str], begins: Sequence[int]) -> Names:
    """Where the tokens of each label begin: those of document i are begins[i]..begins[i + 1]-1."""
    found: list[tuple[int, str]] = []
    for label, begin, end in zip(labels, begins[:-1], begins[1:], strict=True):
        if begin < end and (not found or found[-1][1] != label):
            found.append((begin, label))
    return tuple(found)


def _nothing(file: CorpusFile, options: CorpusOptions) -> str | None:
    return None


def _alone(file: CorpusFile, options: CorpusOptions) -> Sequence[CorpusFile]:
    return ()


def _unchecked(file: CorpusFile, options: CorpusOptions) -> None:
    return None


def _whole(file: CorpusFile, options: CorpusOptions, size: int) -> Sequence[CorpusFile]:
    return (file,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A format: `read` gives the documents of a file in order, as texts or as token blocks.

    `gives_text` says beforehand whether a tokenizer will be needed, `remark` what the user should
    know about how the file will be read. `check`, asked of every file before any is read, raises
    CorpusError for one whose header says that it cannot be. `divide` gives the sections of a file,
    each of about as many bytes as asked for, `(file,)` where it has no index; `lists` says that a
    file of this format is a list of others, so that its own size says nothing; `labels` that its
    documents have fields to be labelled by; `uses` names the choices of `CorpusOptions` that it
    minds. `companions` gives the other files that decide what is read of a file, as they are now.
    `fields_until`, where no schema says which, gives the names of the fields of each
    document up to the first that has a certain one, and None for that one.
    """

    read: Callable[[CorpusFile, CorpusOptions], Iterator[Item]]
    gives_text: Callable[[CorpusFile, CorpusOptions], bool]
    remark: Callable[[CorpusFile, CorpusOptions], str | None] = _nothing
    check: Callable[[CorpusFile, CorpusOptions], None] = _unchecked
    divide: Callable[[CorpusFile, CorpusOptions, int], Sequence[CorpusFile]] = _whole
    companions: Callable[[CorpusFile, CorpusOptions], Sequence[CorpusFile]] = _alone
    lists: bool = False
    labels: bool = False
    uses: tuple[str, ...] = ()
    fields_until: Callable[[CorpusFile, CorpusOptions, str], Iterator[list[str] | None]] | None = (
        None
    )
