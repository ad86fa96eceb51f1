"""The token embeddings of a checkpoint: found by name in its safetensors files, read by rows.

In: a folder of a model (one file, or shards with an index). Out: float32 rows. Only the header and
the one tensor are read; no configuration, no torch, no pickle. Headers are untrusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import parse_json, read_json
from engram_cli.formats.tensors import header_length
from engram_cli.table.checksum import Checksum

Side = Literal["input", "output"]

INDEX = "model.safetensors.index.json"
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
_PIECE = 2**22
_LARGEST = 2**16  # hidden size


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
        """float32[end - begin, hidden]: rows as they are, exactly."""
        stored = self._map()[begin:end]
        if self.code == "BF16":
            return cast("NDArray[np.float32]", (stored.astype(np.uint32) << 16).view(np.float32))
        return stored.astype(np.float32)

    def digest(self) -> str:
        """The XXH64 of the tensor's bytes."""
        checksum = Checksum()
        flat = self._map().reshape(-1).view(np.uint8)
        for first in range(0, len(flat), _PIECE):
            checksum.update(np.array(flat[first : first + _PIECE]))
        return checksum.hexdigest()

    def _map(self) -> NDArray[Any]:
        shape = (self.tokens, self.hidden)
        return np.memmap(
            self.path, dtype=_TYPES[self.code], mode="r", offset=self.begin, shape=shape
        )


def find_embeddings(folder: Path, side: Side, name: str | None = None) -> EmbeddingTensor:
    """The input or output embeddings of the checkpoint in `folder`, or the tensor called `name`.

    Where a model has no output embeddings they are tied to the input's, which are taken. Raises
    InputError when there is none, ArtifactError for a damaged file.
    """
    if name is not None:
        wanted: tuple[str, ...] = (name,)
    else:
        wanted = _OUTPUT + _INPUT if side == "output" else _INPUT
    places = _places(folder)
    for candidate in wanted:
        if candidate in places:
            return _tensor(places[candidate], candidate)
    some = sorted(n for n in places if "emb" in n or "head" in n or "wte" in n)[:8]
    what = "embeddings under a known name" if name is None else f"tensor {name}"
    raise InputError(
        f"{folder} holds no {what}",
        f"name it with --embedding-tensor; there are {', '.join(some) or 'none that look like it'}",
    )


def tensor_names(folder: Path) -> list[str]:
    """The names of a checkpoint's tensors, sorted; of shards with an index those that it lists.

    Raises InputError when there are none, ArtifactError for a damaged file.
    """
    return sorted(_places(folder))


def _places(folder: Path) -> dict[str, Path]:
    """Tensor name: file."""
    if folder.is_file() and folder.suffix == ".safetensors":
        return dict.fromkeys(_header(folder)[0], folder)
    if not folder.is_dir():
        raise InputError(f"no checkpoint at {folder}", "give a folder with safetensors files")
    if (folder / INDEX).is_file():
        listed = read_json(folder / INDEX, "an index of shards").get("weight_map")
        if not isinstance(listed, dict):
            raise ArtifactError(f"{folder / INDEX} has no weight_map", "take the checkpoint again")
        return {str(name): _shard(folder, file) for name, file in listed.items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"{folder} holds no safetensors file", "give a checkpoint's folder")
    return {name: file for file in files for name in _header(file)[0]}


def _shard(folder: Path, file: Any) -> Path:
    """A file of the folder itself: an index must not lead elsewhere."""
    if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
        raise ArtifactError(f"{folder / INDEX} names the file {file!r}", "take it again")
    return folder / file


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The tensors of a file as its header has them, and where their data begins."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = header_length(start, size, str(path))
            header = parse_json(file.read(length))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}", "check the checkpoint") from None
    except ValueError:
        raise ArtifactError(f"{path} has no safetensors header", "take it again") from None
    if not isinstance(header, dict):
        raise ArtifactError(f"{path} has no safetensors header", "take it again")
    header.pop("__metadata__", None)
    return header, 8 + length


def _tensor(path: Path, name: str) -> EmbeddingTensor:
    header, data = _header(path)
    entry = header.get(name)
    if not isinstance(entry, dict):
        raise ArtifactError(f"{path} has no tensor {name}", "take the checkpoint again")
    code, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(code, str) or code not in _TYPES:
        raise InputError(f"{name} in {path} is {code!r}", "embeddings must be F32, F16 or BF16")
    numbers = list(_counts(shape)) + list(_counts(offsets))
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


def _counts(values: Any) -> Iterator[int]:
    if isinstance(values, list) and len(values) == 2:
        yield from (value if type(value) is int else -1 for value in values)
