"""Finds the files of a corpus and detects their formats.

Paths, folders, globs, addresses and "-" in, files out. A format is detected by the first bytes of a
file, its neighbours, then its suffix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.byte_stream import HEAD, archive, compression_of
from engram_cli.corpus.partitions import total_size
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.storage import Storage, storage_of
from engram_cli.corpus.text import MOST_DESCRIPTION, check_size, loads
from engram_cli.errors import CorpusError, InputError
from engram_cli.files import address_of

MEGATRON_MAGIC = b"MMIDIDX\x00\x00"
LLMC_MAGIC = {
    (20240520).to_bytes(4, "little"): "uint16",
    (20240801).to_bytes(4, "little"): "uint32",
}
LLMC_EVAL_MAGIC = (20240522).to_bytes(4, "little")
ARROW_MAGIC = b"ARROW1"
ARROW_STREAM = b"\xff\xff\xff\xff"
TOKEN_BINS = ("nanogpt", "llmc", "megatron")

_MAGIC = {b"\x93NUMPY": "npy", b"PAR1": "parquet", ARROW_MAGIC: "arrow"}
_PACKED_ENDINGS = (".gz", ".zst", ".bz2", ".xz")
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".npy": "npy",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ds": "datatrove",
}
_TEXTS = ("text", "jsonl")
# Suffixes that leave no doubt: remote files with these are not opened.
_CERTAIN = (".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".text", ".md")
_INDEXES = {".idx": ".bin", ".ds.index": ".ds", ".ds.loss": ".ds", ".ds.metadata": ".ds"}


def uncompressed_name(name: str) -> str:
    """Return `name` without the suffix of its compression."""
    lower = name.lower()
    ending = next((e for e in _PACKED_ENDINGS if lower.endswith(e)), "")
    return name[: len(name) - len(ending)]


def main_file(name: str) -> str | None:
    """Return the file that `name` would be an index of."""
    for ending, main in _INDEXES.items():
        if name.endswith(ending):
            return name[: -len(ending)] + main
    return None


def is_token_bin(name: str, storage: Storage) -> bool:
    """Return whether a .bin file has a header of token ids; any file may be called .bin."""
    return format_of(name, storage) in ("llmc", "megatron")


def format_of(name: str, storage: Storage) -> str:
    """Return the format of a file. Raises CorpusError for known, unsupported formats."""
    ending = PurePosixPath(uncompressed_name(name).lower()).suffix
    usual = _FORMATS.get(ending, "text")
    if storage.kind(name) != "file":  # a pipe or a device: looking at its bytes would eat them
        return usual
    if PurePosixPath(name).name == "index.json":
        folder = name[: -len("index.json")] or "."
        return "mds" if is_mds_index(folder, storage) else usual
    if storage.distant and ending in _CERTAIN:
        return usual
    head = storage.head(name, HEAD)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if ending == ".bin" and head[:4] in LLMC_MAGIC:
        return "llmc"
    if head.startswith(ARROW_STREAM):  # bare token ids may begin with 0xFFFFFFFF too
        return {".bin": "nanogpt", ".npy": "olmo", ".ds": "datatrove"}.get(ending, "arrow")
    _refuse(name, ending, usual, head)
    if ending == ".bin":
        return "megatron" if storage.kind(name[: -len(".bin")] + ".idx") == "file" else "nanogpt"
    if ending == ".npy" and _may_be_raw(name, storage, head):
        return "olmo"
    return usual


def _refuse(name: str, ending: str, usual: str, head: bytes) -> None:
    packed, kept = compression_of(head), archive(head)
    if kept is not None or (
        packed is not None and (usual not in _TEXTS or ending in (".bin", ".tar"))
    ):
        raise CorpusError(
            f"{name} is compressed with {packed or kept}",
            "decompress it first; text and jsonl may be compressed with gz, zst, bz2 or xz",
        )
    if ending == ".bin" and head.startswith(LLMC_EVAL_MAGIC):
        raise CorpusError(f"{name} is an llm.c evaluation file", "leave it out")
    if head.startswith(MEGATRON_MAGIC):
        raise CorpusError(f"{name} is the index of a file that is not there", "copy the .bin too")
    if head.startswith(b"FEA1"):
        raise CorpusError(f"{name} is Feather version 1", "write it again with pyarrow.feather")
    if ending == ".mds":
        raise CorpusError(f"{name} is a shard of an MDS data set", "give the folder of index.json")


def _may_be_raw(name: str, storage: Storage, head: bytes) -> bool:
    """Return whether a .npy file without its header may be bare token ids."""
    size = storage.file(name, "olmo").size
    whole = size is None or (size > 0 and size % 2 == 0)
    return whole and not b"\x93NUMPY".startswith(head[:6])


def is_mds_index(folder: str, storage: Storage) -> bool:
    """Return whether a folder's index.json describes MDS shards."""
    about = _json(storage.join(folder, "index.json"), storage)
    return isinstance(about.get("shards"), list) and about.get("version") == 2


def dataset_parts(
    folder: str, folders: list[str], files: list[str], storage: Storage
) -> list[str] | None:
    """Return the files or folders of a folder saved by Hugging Face `datasets`, in its order.

    None for any other folder. Raises CorpusError for listed files that are missing.
    """
    if "dataset_dict.json" in files:
        splits = _json(storage.join(folder, "dataset_dict.json"), storage).get("splits")
        if isinstance(splits, list):
            return [_present(folder, split, folders) for split in splits]
    if "state.json" in files:
        state = _json(storage.join(folder, "state.json"), storage)
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


def _json(name: str, storage: Storage) -> dict[str, Any]:
    """Return a JSON object; empty for anything else."""
    raw = storage.head(name, MOST_DESCRIPTION + 1)
    try:
        check_size(raw, name)
        about = loads(raw)
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


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
