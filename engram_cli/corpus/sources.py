"""Finds the files of a corpus: paths, folders, globs, addresses and "-" in, files out.

`detect` tells the format of a file or folder, `storage` reads local and remote names alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.detect import (
    TOKEN_BINS,
    dataset_parts,
    format_of,
    is_mds_index,
    is_token_bin,
    main_file,
    uncompressed_name,
)
from engram_cli.corpus.partitions import total_size
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.storage import Storage, storage_of
from engram_cli.errors import CorpusError, InputError
from engram_cli.files import address_of

STDIN = "-"
_PIPED = ("text", "jsonl")
# What a folder is searched for. Not .json: in folders it is mostly configuration, not JSON lines.
FOLDER_SUFFIXES = (
    *(".jsonl", ".ndjson", ".parquet", ".npy", ".arrow", ".feather", ".ds"),
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm"),
    *(".py", ".pyi", ".pyx", ".ipynb", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu"),
    *(".rs", ".go", ".java", ".kt", ".scala", ".cs", ".swift", ".js", ".mjs", ".ts", ".jsx"),
    *(".tsx", ".vue", ".css", ".scss", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".hs"),
    *(".ml", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".f90", ".sql", ".sh", ".bash"),
    *(".zsh", ".ps1", ".bat", ".cmake", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".xml"),
)


# What this tool wrote is no corpus: folders that hold one of these, and files of these names.
_OURS = frozenset({"stats.json", "engram.json", "zarr.json"})
_OURS_ALONE = frozenset({"engram-vocab.parquet", "engram.toml", "tokenizer.json"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files of a corpus in reading order, how many were named more than once, and how many
    folders were searched."""

    files: tuple[CorpusFile, ...]
    repeated: int
    folders: int

    @property
    def size(self) -> int | None:
        """The bytes of all files; None when one of them is a pipe."""
        return total_size(self.files)

    @property
    def places(self) -> list[Path]:
        """Where the files of this machine lie."""
        return [file.path for file in self.files if file.path is not None]


def find_sources(names: Sequence[str | Path], options: CorpusOptions) -> Sources:
    """Expand files, folders, globs, addresses and "-"; a folder's and a glob's files sorted.

    A file is read once, wherever it was named first. Raises CorpusError for what is not there,
    InputError for an unknown format.
    """
    if not names:
        raise InputError("no corpus given", "give files, folders, globs, or - for stdin")
    if options.format is not None:
        READERS.load(options.format)
    files: list[CorpusFile] = []
    met: set[str] = set()
    repeated = folders = 0
    for given in names:
        name = given if isinstance(given, str) else address_of(given) or str(given)
        storage = storage_of(name)
        folders += name != STDIN and storage.kind(name) == "folder"
        for path in _expand(name, storage, options):
            key = STDIN if path == STDIN else storage.key(path)
            if key in met:
                repeated += 1
                continue
            met.add(key)
            if path == STDIN:
                files.append(_stdin(options))
            else:
                files.append(storage.file(path, options.format or format_of(path, storage)))
    return Sources(files=tuple(files), repeated=repeated, folders=folders)


def _expand(name: str, storage: Storage, options: CorpusOptions) -> Iterator[str]:
    if name == STDIN:
        yield STDIN
        return
    kind = storage.kind(name)
    if kind == "folder":
        found = False
        for path in _folder(name, storage, options):
            found = True
            yield path
        if not found:
            raise CorpusError(
                f"no corpus file in {name}",
                "name the files, or give their suffixes with --suffixes",
            )
    elif kind is not None:
        yield _main(name, storage) or name
    elif (matches := storage.matches(name)) is not None:
        if not matches:
            raise CorpusError(f"no file matches {name}", "check the pattern")
        given = set(matches)
        yield from (path for path in matches if _main(path, storage) not in given)
    elif storage.kind(f"{name}.idx") == storage.kind(f"{name}.bin") == "file":
        yield f"{name}.bin"  # Megatron calls its pair of files by what they have in common
    else:
        raise CorpusError(f"corpus not found: {name}", "check the path")


def _main(name: str, storage: Storage) -> str | None:
    """The file that `name` is an index of, where that file exists."""
    main = main_file(name)
    return main if main is not None and storage.kind(main) == "file" else None


def _folder(folder: str, storage: Storage, options: CorpusOptions) -> Iterator[str]:
    """The files below `folder` that can be read, hidden ones left out; data sets as they say."""
    folders, files = storage.entries(folder)
    if not _OURS.isdisjoint(files):
        return
    if "index.json" in files and is_mds_index(folder, storage):
        yield storage.join(folder, "index.json")
        return
    parts = dataset_parts(folder, folders, files, storage)
    if parts is not None:
        for part in parts:
            path = storage.join(folder, part)
            if part in folders:
                yield from _folder(path, storage, options)
            else:
                yield path
        return
    for name in files:
        if (
            not name.startswith(".")
            and name not in _OURS_ALONE
            and _wanted(folder, name, storage, options)
        ):
            yield storage.join(folder, name)
    for name in folders:
        if not name.startswith("."):
            yield from _folder(storage.join(folder, name), storage, options)


def _wanted(folder: str, name: str, storage: Storage, options: CorpusOptions) -> bool:
    lower = name.lower()
    if options.suffixes is not None:
        return lower.endswith(options.suffixes)
    if lower.endswith(".bin"):
        chosen = options.format in TOKEN_BINS
        return chosen or is_token_bin(storage.join(folder, name), storage)
    return uncompressed_name(lower).endswith(FOLDER_SUFFIXES)


def _stdin(options: CorpusOptions) -> CorpusFile:
    chosen = options.format or "text"
    if chosen not in _PIPED:
        raise CorpusError(f"{chosen} cannot be read from standard input", "give the file's path")
    return CorpusFile(name="<stdin>", path=None, size=None, format=chosen)
