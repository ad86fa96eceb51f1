"""Which files a corpus is: paths, folders, globs, addresses and "-" in, files out.

What a folder or a file is, is told by `sniff`; where it lies is the matter of `places`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.partitions import total_size
from engram_cli.corpus.places import Place, place_of
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.sniff import (
    TOKEN_BINS,
    dataset_parts,
    format_of,
    is_mds_index,
    is_token_bin,
    main_file,
    unpacked_name,
)
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
        place = place_of(name)
        folders += name != STDIN and place.kind(name) == "folder"
        for path in _expand(name, place, options):
            key = STDIN if path == STDIN else place.key(path)
            if key in met:
                repeated += 1
                continue
            met.add(key)
            files.append(_stdin(options) if path == STDIN else _file(path, place, options))
    return Sources(files=tuple(files), repeated=repeated, folders=folders)


def _expand(name: str, place: Place, options: CorpusOptions) -> Iterator[str]:
    if name == STDIN:
        yield STDIN
        return
    kind = place.kind(name)
    if kind == "folder":
        found = False
        for path in _folder(name, place, options):
            found = True
            yield path
        if not found:
            raise CorpusError(
                f"no corpus file in {name}",
                "name the files, or give their suffixes with --suffixes",
            )
    elif kind is not None:
        yield _main(name, place) or name
    elif (matches := place.matches(name)) is not None:
        if not matches:
            raise CorpusError(f"no file matches {name}", "check the pattern")
        given = set(matches)
        yield from (path for path in matches if _main(path, place) not in given)
    elif place.kind(f"{name}.idx") == place.kind(f"{name}.bin") == "file":
        yield f"{name}.bin"  # Megatron calls its pair of files by what they have in common
    else:
        raise CorpusError(f"corpus not found: {name}", "check the path")


def _main(name: str, place: Place) -> str | None:
    """The file that `name` is an index of, where that file exists."""
    main = main_file(name)
    return main if main is not None and place.kind(main) == "file" else None


def _folder(folder: str, place: Place, options: CorpusOptions) -> Iterator[str]:
    """The files below `folder` that can be read, hidden ones left out; data sets as they say."""
    folders, files = place.entries(folder)
    if not _OURS.isdisjoint(files):
        return
    if "index.json" in files and is_mds_index(folder, place):
        yield place.join(folder, "index.json")
        return
    parts = dataset_parts(folder, folders, files, place)
    if parts is not None:
        for part in parts:
            path = place.join(folder, part)
            if part in folders:
                yield from _folder(path, place, options)
            else:
                yield path
        return
    for name in files:
        if (
            not name.startswith(".")
            and name not in _OURS_ALONE
            and _wanted(folder, name, place, options)
        ):
            yield place.join(folder, name)
    for name in folders:
        if not name.startswith("."):
            yield from _folder(place.join(folder, name), place, options)


def _wanted(folder: str, name: str, place: Place, options: CorpusOptions) -> bool:
    lower = name.lower()
    if options.suffixes is not None:
        return lower.endswith(options.suffixes)
    if lower.endswith(".bin"):
        chosen = options.format in TOKEN_BINS
        return chosen or is_token_bin(place.join(folder, name), place)
    return unpacked_name(lower).endswith(FOLDER_SUFFIXES)


def _stdin(options: CorpusOptions) -> CorpusFile:
    chosen = options.format or "text"
    if chosen not in _PIPED:
        raise CorpusError(f"{chosen} cannot be read from standard input", "give the file's path")
    return CorpusFile(name="<stdin>", path=None, size=None, format=chosen)


def _file(name: str, place: Place, options: CorpusOptions) -> CorpusFile:
    return place.file(name, options.format or format_of(name, place))
