"""What each dialect of GGUF calls the constants of a table, and how a dialect is recognised.

A dialect is known by its keys and tensors, never by the architecture's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.base import LACKING
from engram_cli.formats.model_folder import DAMAGED, Check, compared, pad_token
from engram_cli.formats.stored_layers import StoredTensor
from engram_cli.hashing.layout import MAX_HEADS, MAX_ORDER
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.gguf_file import GgufFile, GgufTensor
from engram_cli.rows.source import RowSource, Span
from engram_cli.vocab.lookup import MOST_VOCABULARY

_MOST = {"heads": MAX_HEADS, "longest": MAX_ORDER}

QWEN_ROWS = "per_layer_token_embd.weight"
# What each dialect calls the constants: the end of a key, or a tensor's name.
CONSTANTS: dict[str, dict[str, str]] = {
    "llama.cpp": {
        "layers": ".engram.layer_ids",
        "heads": ".engram.head_count",
        "dim": ".engram.key_length",
        "longest": ".engram.max_ngram_size",
        "multipliers": ".engram.multipliers",
        "moduli": ".engram.primes",
        "offsets": ".engram.offsets",
        "map": ".engram.token_map",
        "pad": ".engram.pad_id",
    },
    "ds4": {
        "encoding": ".engram.encoding",
        "layers": ".engram.layer_ids",
        "rows": ".engram.rows",
        "size": ".engram.compressed_vocab_size",
        "pad": ".engram.pad_id",
        "map": ".engram.token_map",
        "moduli": ".engram.primes",
        "multipliers": ".engram.multipliers",
    },
    "upper case": {
        "layers": "ENGRAM_LAYERS",
        "longest": "ENGRAM_NGRAM_SIZE",
        "heads": "ENGRAM_HEAD_COUNT",
        "dim": "ENGRAM_HEAD_DIM",
        "size": "ENGRAM_COMPRESSED_VOCAB_SIZE",
        "raw pad": "ENGRAM_PAD_TOKEN_ID",
        "rows": "ENGRAM_EMBEDDING_COUNTS",
        "moduli": "ENGRAM_HEAD_BUCKET_SIZES",
        "offsets": "ENGRAM_HEAD_OFFSETS",
        "multipliers": "ENGRAM_MULTIPLIERS",
        "map": "ENGRAM_TOKEN_MAP",
    },
    "side-car": {
        "layers": ".layers",
        "rows": ".row_counts",
        "longest": ".max_ngram_size",
        "heads": ".head_count",
        "dim": ".head_dim",
        "size": ".compressed_vocab_size",
        "raw pad": ".pad_token_id",
        "pad": ".compressed_pad_id",
        "map": "engram.token_map",
        "multipliers": "engram.hash_multipliers",
        "moduli": "engram.hash_primes",
        "offsets": "engram.hash_offsets",
    },
}
CONSTANTS["tensors"] = {
    **{k: v for k, v in CONSTANTS["llama.cpp"].items() if k not in ("map", "moduli")},
    "map": "engram.token_map",
    "multipliers": "engram.multipliers",
    "offsets": "engram.offsets",
    "moduli": "engram.primes",
}
CONSTANTS["upper case, NUM_EMBEDDINGS"] = {
    **CONSTANTS["upper case"],
    "rows": "ENGRAM_NUM_EMBEDDINGS",
}
QWEN = {
    "layers": ".ple.layers",
    "longest": ".ple.ngram_size",
    "heads": ".ple.heads_per_ngram",
    "eos": ".ple.eos_token_id",
    "multipliers": ".ple.layer_multipliers",
    "moduli": ".ple.head_vocab_sizes",
    "offsets": ".ple.head_offsets",
}
ROW264 = "e4m3_e8m0_32_row264"
DS4 = "deepseek41"  # the architecture in all keys of ds4
DS4_ORDER, DS4_DIM = 4, 256
# The types of arrays, by dialect; counts are u32.
ARRAYS = {
    "llama.cpp": {"layers": "<i4", "multipliers": "<u8", "moduli": "<u8", "offsets": "<u8",
                  "map": "<i4"},
    "ds4": {"layers": "<u4", "rows": "<u4", "multipliers": "<u8", "moduli": "<u4", "map": "<u4"},
    "upper case": {"layers": "<i4", "rows": "<u4", "multipliers": "<u8", "moduli": "<u8",
                   "offsets": "<u8", "map": "<i4"},
    "side-car": {"layers": "<i4", "rows": "<u4", "multipliers": "<i8", "moduli": "<i8",
                 "offsets": "<i8", "map": "<i4"},
    "tensors": {"layers": "<i4", "multipliers": "<i8", "moduli": "<i8", "offsets": "<i8",
                "map": "<i4"},
    "qwen4exp": {"layers": "<i4", "multipliers": "<u8", "moduli": "<u8", "offsets": "<u8"},
}  # fmt: skip
ARRAYS["upper case, NUM_EMBEDDINGS"] = ARRAYS["upper case"]
# The rows of a layer, or their scales where these are a tensor of their own.
ROW_TENSOR = re.compile(
    r"(?:blk\.|engram\.|layers\.)?(\d{1,5})\.(?:engram[._])?embd(_scale)?(?:\.weight)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufRows(FileRows):
    """The rows of an opened file, and what was compared. `tables`: the tensors of each layer."""

    dialect: str
    file: GgufFile
    checks: tuple[Check, ...]
    tables: Mapping[int, tuple[GgufTensor, ...]] = field(default_factory=dict)

    def tensors_of(self, layer: int) -> tuple[StoredTensor, ...]:
        """Return where the tensors of a layer are."""
        return tuple(
            StoredTensor(
                name=tensor.name,
                file=tensor.file,
                dtype=tensor.type.upper(),
                shape=tensor.shape,
                offset=tensor.begin,
            )
            for tensor in self.tables.get(layer, ())
        )


def dialect_of(file: GgufFile) -> str | None:
    """Return the dialect of a file; None where it has no Engram table."""
    keys, tensors = file.keys, file.tensors

    def has(end: str) -> bool:
        return any(key.endswith(end) for key in keys)

    if QWEN_ROWS in tensors and has(".ple.layers"):
        return "qwen4exp"
    if "engram.hash_multipliers" in tensors:
        return "side-car"
    if "engram.token_map" in tensors:
        return "tensors"
    if has(".engram.encoding"):
        return "ds4"
    if "ENGRAM_LAYERS" in keys:
        other = "ENGRAM_NUM_EMBEDDINGS" in keys
        return "upper case, NUM_EMBEDDINGS" if other else "upper case"
    if has(".engram.layer_ids") or any("engram_embd" in name for name in tensors):
        return "llama.cpp"
    return None


@dataclass(slots=True, kw_only=True)
class Constants:
    """What a file says of its hash, by the names that its dialect has for the constants."""

    file: GgufFile
    names: Mapping[str, str]
    checks: list[Check] = field(default_factory=list)

    def get(self, what: str) -> Any:
        """Return a constant: an int, text, or an array of integers; None where it is not there."""
        name = self.names.get(what)
        if name is None:
            return None
        tensor = self.file.tensors.get(name)
        if tensor is not None:
            return _small_tensor(tensor)
        for key, value in self.file.keys.items():
            if key == name or (name.startswith(".") and key.endswith(name)):
                return value
        return None

    def count(self, what: str) -> int | None:
        """Return a count. Raises ArtifactError for anything else."""
        value = self.get(what)
        if value is None:
            return None
        most = _MOST.get(what, MOST_VOCABULARY)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ArtifactError(f"{self.names[what]} is {value!r}", DAMAGED)
        return value

    def counts(self, what: str) -> tuple[int, ...] | None:
        """Return integers; one number counts as a list of it. Raises ArtifactError."""
        value = self.get(what)
        if value is None:
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            value = np.array([value])
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu":
            raise ArtifactError(f"{self.names[what]} is no array of integers", DAMAGED)
        return tuple(int(each) for each in value.reshape(-1).tolist())

    def name_missing(self) -> None:
        """Add a check that names the constants which are not in the file."""
        lacks = [name for what, name in self.names.items() if self.get(what) is None]
        found = f"{len(self.names) - len(lacks)} of {len(self.names)}"
        if lacks:
            found += f"; missing: {', '.join(lacks)}"
        expected = f"{len(self.names)} of {len(self.names)}"
        self.checks.append(compared(LACKING, found, expected))


def _small_tensor(tensor: GgufTensor) -> Any:
    if tensor.type not in ("int32", "int64") or tensor.nbytes is None or tensor.nbytes > 2**26:
        raise ArtifactError(f"{tensor.name} is {tensor.type} {tensor.shape}", DAMAGED)
    span = Span(file=tensor.file, begin=tensor.begin, first=0, rows=int(np.prod(tensor.shape)))
    array = FileArray([span], physical_dtype(tensor.type), hint=DAMAGED)
    return array.read(0, array.rows)


def constant_value(what: str, dialect: str, source: RowSource) -> Any:
    """Return a constant of the layout in the type of the dialect. Raises InputError."""
    layout = source.layout
    if what == "map" and layout.lookup is None:
        raise InputError(
            f"{source.path} has no token map", "give the model's tokenizer with --tokenizer"
        )
    values: dict[str, Any] = {
        "encoding": ROW264,
        "layers": [n - (dialect == "qwen4exp") for n in layout.layer_ids],
        "rows": [entry.rows for entry in layout.layers],
        "size": layout.compressed_size,
        "pad": layout.filler_id,
        "raw pad": pad_token(layout) if what == "raw pad" else None,
        "heads": layout.heads,
        "dim": source.dim,
        "longest": layout.max_order,
        "eos": layout.eos_id,
        "multipliers": [value for entry in layout.layers for value in entry.multipliers],
        "moduli": [value for entry in layout.layers for value in entry.moduli],
        "offsets": [value for entry in layout.layers for value in entry.offsets],
        "map": layout.lookup,
    }
    kind = ARRAYS[dialect].get(what)
    if kind is None:
        return values[what]
    wide = np.asarray(values[what])
    narrow = wide.astype(kind)  # -1, which stands for no token, is 2**32 - 1 as u32
    if what != "map" and not np.array_equal(wide, narrow.astype(wide.dtype)):
        raise InputError(
            f"{source.path}: {what} past what {dialect} stores as {kind_of(narrow)}",
            "choose another dialect",
        )
    return narrow


def kind_of(value: Any) -> str:
    """Return the kind of a key's value: `int`, `str`, or `u32[]` for an array with its bits."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype.kind}{8 * value.dtype.itemsize}[]"
    return type(value).__name__
