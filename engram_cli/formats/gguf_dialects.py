"""What each dialect of GGUF calls the constants of a table, and how a dialect is recognised.

A dialect is known by its keys and tensors, never by the architecture's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engram_cli.formats.model_folder import Check
from engram_cli.rows.gather import FileRows
from engram_cli.rows.gguf_file import GgufFile

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
# The rows of a layer, or their scales where these are a tensor of their own.
ROW_TENSOR = re.compile(
    r"(?:blk\.|engram\.|layers\.)?(\d{1,5})\.(?:engram[._])?embd(_scale)?(?:\.weight)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufRows(FileRows):
    """The rows of an opened file, and what was compared."""

    dialect: str
    file: GgufFile
    checks: tuple[Check, ...]


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
