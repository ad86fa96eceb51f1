"""Finds the files of a corpus and detects their formats.

Paths, folders, globs, addresses and "-" in, files out. What tells a format is said by its reader
(`Signs` in `corpus.base`): the first bytes of a file, its neighbours, then its suffix.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from engram_cli.corpus.base import CorpusFile, CorpusOptions, Look, Signs
from engram_cli.corpus.byte_stream import HEAD, archive, compression_of
from engram_cli.corpus.own_files import NAMES, own_file, own_folder, refused
from engram_cli.corpus.partitions import total_size
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.storage import Storage, read_object, storage_of
from engram_cli.errors import CorpusError, InputError, SourceError
from engram_cli.registry import enumerated
from engram_cli.remote.locate import corpus_address

STDIN = "-"
_TEXT = "text"  # the format of what nothing else tells
_PACKED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The files of a corpus in reading order, how many were named more than once, and how many
    folders were searched."""

    files: tuple[CorpusFile, ...]
    repeated: int
    folders: int

    @property
    def size(self) -> int | None:
        """Return the bytes of all files; None when one of them is a pipe."""
        return total_size(self.files)

    @property
    def places(self) -> list[Path]:
        """Return the paths of the files on this machine."""
        return [file.path for file in self.files if file.path is not None]


def find_sources(names: Sequence[str | Path], options: CorpusOptions) -> Sources:
    """Expand files, folders, globs, addresses and "-"; a folder's and a glob's files sorted.

    A file is read once, wherever it was named first. Raises CorpusError for what is not there and
    for what engram wrote, InputError for an unknown format.
    """
    if not names:
        raise InputError("no corpus given", "give files, folders, globs, or - for stdin")
    if options.format is not None:
        READERS.load(options.format)
    files: list[CorpusFile] = []
    met: set[str] = set()
    repeated = folders = 0
    for given in names:
        name = corpus_address(given)
        storage = storage_of(name)
        try:
            folders += name != STDIN and storage.kind(name) == "folder"
        except SourceError as error:
            if name == str(given):
                raise
            raise SourceError(f"{given} is no path here, and {error.message}", error.hint) from None
        for path in _expand(name, storage, options):
            key = STDIN if path == STDIN else storage.key(path)
            if key in met:
                repeated += 1
                continue
            met.add(key)
            if path == STDIN:
                files.append(_stdin(options.format or _TEXT))
            else:
                files.append(storage.file(path, options.format or format_of(path, storage)))
    return Sources(files=tuple(files), repeated=repeated, folders=folders)


def _stdin(chosen: str) -> CorpusFile:
    if not READERS.load(chosen).signs.streams:
        raise CorpusError(f"{chosen} cannot be read from standard input", "give the file's path")
    return CorpusFile(name="<stdin>", path=None, size=None, format=chosen)


def _expand(name: str, storage: Storage, options: CorpusOptions) -> Iterator[str]:
    if name == STDIN:
        yield STDIN
        return
    kind = storage.kind(name)
    if kind == "folder":
        own = own_folder(storage.entries(name)[1])
        if own is not None:
            raise refused(name, own)
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
        _require_foreign(name, storage, options)
        yield _main_file(name, storage) or name
    elif (matches := storage.matches(name)) is not None:
        if not matches:
            raise CorpusError(f"no file matches {name}", "check the pattern")
        given = set(matches)
        for path in matches:
            if _main_file(path, storage) not in given:
                _require_foreign(path, storage, options)
                yield path
    else:
        yield _pair(name, storage)


def _require_foreign(name: str, storage: Storage, options: CorpusOptions) -> None:
    """Raise CorpusError for a file that engram wrote, or that is known not to be a corpus."""
    if options.format is None and (what := NAMES.get(name.rpartition("/")[2])) is not None:
        raise refused(name, what)
    if not storage.distant and storage.kind(name) == "file":
        what = own_file(Path(name))
        if what is not None:
            raise refused(name, what)


def _main_file(name: str, storage: Storage) -> str | None:
    """Return the file that `name` is an index of, where that file exists."""
    for suffix, main in _formats().indexes:
        if name.endswith(suffix):
            path = name[: -len(suffix)] + main
            return path if storage.kind(path) == "file" else None
    return None


def _pair(name: str, storage: Storage) -> str:
    """Return the file of a pair, such as Megatron's, that is named by what both have in common."""
    for suffix, main in _formats().indexes:
        if storage.kind(name + suffix) == storage.kind(name + main) == "file":
            return name + main
    what = "address" if storage.distant else "path"
    raise CorpusError(f"corpus not found: {name}", f"check the {what}")


def _folder(folder: str, storage: Storage, options: CorpusOptions) -> Iterator[str]:
    """Yield the files below `folder` that can be read, hidden ones left out; data sets as they
    say."""
    folders, files = storage.entries(folder)
    if own_folder(files) is not None:
        return
    for described, (_, recognises) in _formats().datasets.items():
        path = storage.join(folder, described)
        if described in files and recognises(_look(path, storage)):
            yield path
            return
    parts = _dataset_parts(folder, folders, files, storage)
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
            and name not in NAMES
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
    formats = _formats()
    if uncompressed_name(lower).endswith(formats.searched):
        return True
    if not lower.endswith(formats.shared):
        return False
    if options.format is not None and lower.endswith(formats.signs[options.format].shared):
        return True
    signs = formats.signs[format_of(storage.join(folder, name), storage)]
    return signs.recognises is not None and lower.endswith(signs.shared)


def _dataset_parts(
    folder: str, folders: list[str], files: list[str], storage: Storage
) -> list[str] | None:
    """Return the files or folders of a folder saved by Hugging Face `datasets`, in its order.

    None for any other folder. Raises CorpusError for listed files that are missing.
    """
    if "dataset_dict.json" in files:
        splits = read_object(storage.join(folder, "dataset_dict.json"), storage).get("splits")
        if isinstance(splits, list):
            return [_present(folder, split, folders) for split in splits]
    if "state.json" in files:
        state = read_object(storage.join(folder, "state.json"), storage)
        if isinstance(state.get("_data_files"), list):
            if state.get("_indices_data_files"):
                raise CorpusError(
                    f"{folder} is a selection from its files", "save it after flatten_indices()"
                )
            named = [
                entry.get("filename") if isinstance(entry, dict) else entry
                for entry in state["_data_files"]
            ]
            return [_present(folder, name, files) for name in named]
    if "dataset_info.json" in files:
        # cache-*.arrow are what map() and filter() left behind.
        shards = [n for n in files if n.endswith((".arrow", ".parquet")) and n[:6] != "cache-"]
        return shards or None
    return None


def _present(folder: str, name: Any, names: list[str]) -> str:
    if not isinstance(name, str) or name not in names:
        raise CorpusError(
            f"{folder} lists {name!r}, which is not in it", "copy or save the data set again"
        )
    return name


def format_of(name: str, storage: Storage) -> str:
    """Return the format of a file. Raises CorpusError for known formats that cannot be read."""
    formats = _formats()
    plain = name.partition("?")[0] if name.startswith(("http:", "https:")) else name  # a signature
    ending = os.path.splitext(uncompressed_name(plain))[1].lower()
    last = plain.rpartition("/")[2]
    usual = formats.usual.get(ending, _TEXT)
    if storage.kind(name) != "file":  # a pipe or a device: looking at its bytes would eat them
        return usual
    if last in formats.datasets:
        key, recognises = formats.datasets[last]
        return key if recognises(_look(name, storage)) else usual
    if storage.distant and ending in formats.signs[usual].certain:
        return usual
    head = storage.head(name, HEAD)
    for magic, key in formats.magic:
        if head.startswith(magic):
            return key
    packed, kept = compression_of(head), archive(head)
    if kept or (packed and (not formats.signs[usual].streams or ending == ".tar")):
        streams = enumerated(key for key, signs in formats.signs.items() if signs.streams)
        raise CorpusError(
            f"{name} is compressed with {packed or kept}",
            f"decompress it first; {streams} may be compressed with gz, zst, bz2 or xz",
        )
    look = _look(name, storage, ending, head)
    return next((key for key, recognises in formats.recognisers if recognises(look)), usual)


def _look(name: str, storage: Storage, ending: str = "", head: bytes = b"") -> Look:
    return Look(
        name=name, ending=ending, head=head, bare=ending in _formats().bare, storage=storage
    )


def uncompressed_name(name: str) -> str:
    """Return `name` without the suffix of its compression."""
    suffix = next((each for each in _PACKED_SUFFIXES if name.lower().endswith(each)), "")
    return name[: len(name) - len(suffix)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Formats:
    """The signs of all registered formats, by what they are compared with; see `Signs`."""

    signs: Mapping[str, Signs]
    usual: Mapping[str, str]  # by suffix
    magic: tuple[tuple[bytes, str], ...]
    datasets: Mapping[str, tuple[str, Callable[[Look], bool]]]  # by the file that describes one
    recognisers: tuple[tuple[str, Callable[[Look], bool]], ...]
    indexes: tuple[tuple[str, str], ...]
    searched: tuple[str, ...]
    shared: tuple[str, ...]
    bare: frozenset[str]


def _formats() -> _Formats:
    return _formats_of(tuple(READERS))


@lru_cache(maxsize=4)
def _formats_of(names: tuple[str, ...]) -> _Formats:
    every = {name: READERS.load(name).signs for name in names}
    recognisers = [(key, each.recognises) for key, each in every.items() if each.recognises]
    datasets = {every[key].dataset: (key, recognises) for key, recognises in recognisers}
    signs = every.values()
    return _Formats(
        signs=every,
        usual={suffix: key for key, each in every.items() for suffix in each.suffixes},
        magic=tuple((magic, key) for key, each in every.items() for magic in each.magic),
        datasets={name: own for name, own in datasets.items() if name is not None},
        recognisers=tuple(recognisers),
        indexes=tuple(pair for each in signs for pair in each.indexes.items()),
        searched=tuple(s for each in signs for s in each.suffixes if s not in each.unsearched),
        shared=tuple(suffix for each in signs for suffix in each.shared),
        bare=frozenset(s for each in signs if each.bare for s in each.suffixes + each.shared),
    )
