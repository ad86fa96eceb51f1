"""Detects the format of a file or folder by its first bytes, its neighbours, then its suffix."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from engram_cli.corpus.decompress import HEAD, archive, compression_of
from engram_cli.corpus.json_text import MOST_DESCRIPTION, check_size, loads
from engram_cli.corpus.storage import Storage
from engram_cli.errors import CorpusError

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
