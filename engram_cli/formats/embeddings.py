"""The token embeddings of a model's checkpoint, found by name in safetensors files.

Only headers and the one tensor are read, by rows, from a folder or from behind an address: no
configuration, no torch, no pickle. Names and headers are untrusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.rows.checksum import Checksum
from engram_cli.rows.gather import FileArray
from engram_cli.rows.safetensors import checkpoint_files, raw_header
from engram_cli.rows.source import Span

Side = Literal["input", "output"]
# What models call them; the first that is there is taken.
_INPUT = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
    "gpt_neox.embed_in.weight",
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "embed.weight",
)
_OUTPUT = (
    "lm_head.weight",
    "model.lm_head.weight",
    "language_model.lm_head.weight",
    "embed_out.weight",
    "output.weight",
    "head.weight",
)
_TYPES: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_LARGEST = 2**16  # hidden size
_PIECE = 2**23  # bytes read at a time for the checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingTensor:
    """A matrix [tokens, hidden] of F32, F16 or BF16 that begins at byte `begin` of `path`."""

    path: Path
    name: str
    code: str
    tokens: int
    hidden: int
    begin: int

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Return the rows from `begin` to `end` exactly, float32[end - begin, hidden]."""
        stored = self.rows().read(begin, end - begin)
        if self.code == "BF16":
            return cast("NDArray[np.float32]", (stored.astype(np.uint32) << 16).view(np.float32))
        return stored.astype(np.float32)

    def rows(self) -> FileArray:
        """Return the stored values [tokens, hidden]; BF16 as uint16."""
        span = Span(file=self.path, begin=self.begin, first=0, rows=self.tokens)
        return FileArray([span], np.dtype(_TYPES[self.code]), (self.hidden,), "take it again")

    def checksum(self) -> str:
        """Return the XXH64 of the stored values, which are read once."""
        found, array = Checksum(), self.rows()
        step = max(1, _PIECE // array.row_bytes)
        for first in range(0, self.tokens, step):
            piece = array.read(first, min(step, self.tokens - first))
            found.update(piece.reshape(-1).view(np.uint8))
        return found.hexdigest()


def find_embeddings(folder: Path, side: Side, name: str | None = None) -> EmbeddingTensor:
    """Find the input or output embeddings of a checkpoint's folder, or the tensor called `name`.

    Where a model has no output embeddings they are tied to the input's, which are taken. Raises
    InputError when there is none, ArtifactError for a damaged file.
    """
    if name is not None:
        wanted: tuple[str, ...] = (name,)
    else:
        wanted = _OUTPUT + _INPUT if side == "output" else _INPUT
    places = checkpoint_files(folder)
    for candidate in wanted:
        if candidate in places:
            return _tensor(places[candidate], candidate)
    some = sorted(n for n in places if "emb" in n or "head" in n or "wte" in n)[:8]
    what = "embeddings under a known name" if name is None else f"tensor {name}"
    raise InputError(
        f"{folder} holds no {what}",
        f"name it with --embedding-tensor; there are {', '.join(some) or 'none that look like it'}",
    )


def _tensor(path: Path, name: str) -> EmbeddingTensor:
    header, data = raw_header(path)
    entry = header.get(name)
    if not isinstance(entry, dict):
        raise ArtifactError(f"{path} has no tensor {name}", "take the checkpoint again")
    code, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(code, str) or code not in _TYPES:
        raise InputError(f"{name} in {path} is {code!r}", "embeddings must be F32, F16 or BF16")
    pairs = [pair for pair in (shape, offsets) if isinstance(pair, list) and len(pair) == 2]
    numbers = [value if type(value) is int else -1 for pair in pairs for value in pair]
    good = len(numbers) == 4 and all(n >= 0 for n in numbers)
    if not good or not (0 < numbers[0] < 2**31 and 0 < numbers[1] <= _LARGEST):
        raise ArtifactError(f"{name} in {path} has shape {shape!r}", "give a matrix [V, hidden]")
    tokens, hidden, begin, end = numbers
    size = tokens * hidden * np.dtype(_TYPES[code]).itemsize
    if end - begin != size or data + end > path.stat().st_size:
        raise ArtifactError(f"{name} in {path} does not fit in the file", "take it again")
    return EmbeddingTensor(
        path=path, name=name, code=str(code), tokens=tokens, hidden=hidden, begin=data + begin
    )
