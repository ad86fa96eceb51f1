"""Recognises the files that engram writes, none of which is a corpus."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engram_cli.errors import CorpusError

# Files whose folder is one artifact, and files that are one by their name.
MARKERS = {"stats.json": "statistics", "engram.json": "a bundle", "zarr.json": "a table"}
NAMES = {
    "engram-vocab.parquet": "a compressed vocabulary",
    "engram.toml": "the settings of a workspace",
    "tokenizer.json": "a tokenizer",
}
_SUFFIXES = {
    ".patch.safetensors": "a patch",
    ".safetensors": "a file of tensors",
    ".gguf": "a GGUF model",
    ".pleo": "an overlay",
    ".plepatch": "an overlay",
}
_SAMPLES = tuple({"order", "hash", "count", ids, "text"} for ids in ("compressed_ids", "tokens"))
_PAGE = b'<meta name="generator" content="engram '
_HEAD = 4096
_MOST_JSON = 2**24  # bytes; larger files are not parsed
_DEPTH = 6  # folders between a part of a table and its zarr.json


def refused(name: str, what: str) -> CorpusError:
    """Return the error for a file or folder that is `what`."""
    return CorpusError(
        f"{name} is {what}, not a corpus",
        "give the documents: text, JSONL, Parquet with a column of texts, or token ids",
    )


def own_folder(files: Collection[str]) -> str | None:
    """Return what a folder with these files is, None for one that engram did not write."""
    return next((what for marker, what in MARKERS.items() if marker in files), None)


def own_file(path: Path) -> str | None:
    """Return what a file on this machine is, None for one that may be a corpus."""
    if path.name in MARKERS:
        return f"part of {MARKERS[path.name]}"
    by_name = next((what for end, what in _SUFFIXES.items() if path.name.endswith(end)), None)
    if by_name is not None:
        return by_name
    inside = [each for each in list(path.absolute().parents)[:_DEPTH] if _is_table(each)]
    if inside:
        return f"part of the table {inside[-1]}"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if head.startswith(b"PAR1"):
            return own_schema(pq.read_schema(path))
        if head.lstrip()[:1] == b"{" and path.suffix == ".json":
            return _own_json(path)
    except (
        OSError,
        ValueError,
        RecursionError,
        pa.ArrowException,
    ):  # the reader says what is wrong
        return None
    return "a report" if _PAGE in head else None


def own_schema(schema: pa.Schema) -> str | None:
    """Return what Parquet of this schema is, None for one that engram does not write."""
    if b"engram-vocab" in (schema.metadata or {}).get(b"engram", b""):
        return NAMES["engram-vocab.parquet"]
    return "the sample of statistics" if set(schema.names) in _SAMPLES else None


def _own_json(path: Path) -> str | None:
    if path.stat().st_size > _MOST_JSON:
        return None
    document = json.loads(path.read_bytes())
    form = document.get("format") if isinstance(document, dict) else None
    is_own = isinstance(form, str) and form.startswith("engram-")
    return f"a file of engram ({form[:40]})" if is_own and form is not None else None


def _is_table(folder: Path) -> bool:
    try:
        return b"engram-table" in (folder / "zarr.json").read_bytes()
    except OSError:
        return False
