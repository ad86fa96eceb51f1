"""Which files a corpus is: paths, folders, globs and "-" in, files with their formats out."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.readers import READERS
from engram_cli.errors import CorpusError, InputError

STDIN = "-"
_MAGIC = {b"\x93NUMPY": "npy", b"PAR1": "parquet"}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"PK\x03\x04": "zip",
}
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".npy": "npy",
}
# What a folder is searched for. Not .json: in folders it is mostly configuration, not JSON lines.
FOLDER_SUFFIXES = (
    *(".jsonl", ".ndjson", ".parquet", ".npy"),
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm"),
    *(".py", ".pyi", ".pyx", ".ipynb", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu"),
    *(".rs", ".go", ".java", ".kt", ".scala", ".cs", ".swift", ".js", ".mjs", ".ts", ".jsx"),
    *(".tsx", ".vue", ".css", ".scss", ".rb", ".php", ".pl", ".pm", ".lua", ".r", ".jl", ".hs"),
    *(".ml", ".ex", ".exs", ".erl", ".clj", ".lisp", ".el", ".f90", ".sql", ".sh", ".bash"),
    *(".zsh", ".ps1", ".bat", ".cmake", ".toml", ".yaml", ".yml", ".ini", ".cfg", ".xml"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files of a corpus in reading order, and how many were named more than once."""

    files: tuple[CorpusFile, ...]
    repeated: int

    @property
    def size(self) -> int | None:
        """The bytes of all files; None when one of them is a pipe."""
        sizes = [file.size for file in self.files]
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None


def find_sources(names: Sequence[str | Path], options: CorpusOptions) -> Sources:
    """Expand files, folders, globs and "-"; a folder's and a glob's files in sorted order.

    A file is read once, wherever it was named first. Raises CorpusError for what is not there,
    InputError for an unknown format.
    """
    if not names:
        raise InputError("no corpus was given", "give files, folders, globs, or - for stdin")
    if options.format is not None:
        READERS.load(options.format)
    files: list[CorpusFile] = []
    met: set[str] = set()
    repeated = 0
    for path in _expand(map(str, names), options):
        key = STDIN if path is None else os.path.realpath(path)
        if key in met:
            repeated += 1
            continue
        met.add(key)
        files.append(_stdin(options) if path is None else _file(path, options))
    return Sources(files=tuple(files), repeated=repeated)


def _expand(names: Iterable[str], options: CorpusOptions) -> Iterator[Path | None]:
    for name in names:
        if name == STDIN:
            yield None
        elif os.path.isdir(name):
            yield from _folder(Path(name), options)
        elif os.path.exists(name):
            yield Path(name)
        elif glob.has_magic(name):
            found = [Path(path) for path in sorted(glob.glob(name, recursive=True))]
            if not found:
                raise CorpusError(f"no file matches {name}", "check the pattern")
            for path in found:
                if path.is_file():
                    yield path
        else:
            raise CorpusError(f"corpus not found: {name}", "check the path")


def _folder(folder: Path, options: CorpusOptions) -> Iterator[Path]:
    """The files below `folder` with a known ending; hidden ones are left out."""
    suffixes = options.suffixes or FOLDER_SUFFIXES
    found = 0
    for here, folders, names in os.walk(folder, onerror=_walk_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(suffixes):
                path = Path(here, name)
                if path.is_file():
                    found += 1
                    yield path
    if not found:
        raise CorpusError(
            f"no corpus file in {folder}", "name the files, or their endings with --suffixes"
        )


def _walk_error(error: OSError) -> None:
    raise CorpusError(f"cannot read {error.filename}: {error.strerror}", "check the folder")


def _stdin(options: CorpusOptions) -> CorpusFile:
    chosen = options.format or "text"
    if chosen in ("parquet", "npy"):
        raise CorpusError(f"{chosen} cannot be read from standard input", "give the file's path")
    return CorpusFile(name="<stdin>", path=None, size=None, format=chosen)


def _file(path: Path, options: CorpusOptions) -> CorpusFile:
    name = str(path)
    if not path.is_file():  # a pipe or a device: looking at its first bytes would eat them
        chosen = options.format or _FORMATS.get(path.suffix.lower(), "text")
        return CorpusFile(name=name, path=path, size=None, format=chosen)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise CorpusError(f"cannot read {name}: {error.strerror}", "check the file") from None
    return CorpusFile(
        name=name, path=path, size=size, format=options.format or _format(name, head, path.suffix)
    )


def _format(name: str, head: bytes, suffix: str) -> str:
    for magic, kind in _PACKED.items():
        if head.startswith(magic):
            raise CorpusError(f"{name} is compressed with {kind}", "unpack it first")
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return _FORMATS.get(suffix.lower(), "text")
