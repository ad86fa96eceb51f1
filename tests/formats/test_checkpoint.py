"""Embeddings found in checkpoints of every shape, and headers that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.embeddings import find_embeddings
from engram_cli.rows.checksum import file_checksum
from engram_cli.rows.safetensors import INDEX

MATRIX = torch.arange(24, dtype=torch.float32).reshape(6, 4) / 7
HEAD = MATRIX.flip(0)


def two_shards(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A tensor a file, with an index."""
    places = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        file = f"model-{number:05}.safetensors"
        save_file({name: tensor, f"other{number}": torch.zeros(3)}, folder / file)
        places |= {name: file, f"other{number}": file}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sharded", [False, True])
def test_both_sides_are_read_exactly(tmp_path: Path, dtype: torch.dtype, sharded: bool) -> None:
    tensors = {"model.embed_tokens.weight": MATRIX.to(dtype), "lm_head.weight": HEAD.to(dtype)}
    if sharded:
        two_shards(tmp_path, tensors)
    else:
        save_file(tensors, tmp_path / "model.safetensors")
    for side, tensor in (("input", MATRIX), ("output", HEAD)):
        found = find_embeddings(tmp_path, side)  # type: ignore[arg-type]
        assert (found.tokens, found.hidden) == (6, 4)
        np.testing.assert_array_equal(found.read(1, 5), tensor.to(dtype).float().numpy()[1:5])
        raw = tensor.to(dtype).contiguous().view(torch.uint8).numpy()
        (tmp_path / "raw").write_bytes(raw.tobytes())
        assert found.checksum() == file_checksum(tmp_path / "raw")


def test_tied_models_give_the_input_for_the_output(tmp_path: Path) -> None:
    save_file({"transformer.wte.weight": MATRIX}, tmp_path / "pytorch.safetensors")
    found = find_embeddings(tmp_path, "output")
    assert found.name == "transformer.wte.weight"
    assert find_embeddings(tmp_path / "pytorch.safetensors", "input") == found


def test_a_name_can_be_given_and_an_unknown_one_lists_what_there_is(tmp_path: Path) -> None:
    save_file({"my.embedding": MATRIX, "norm": torch.ones(3)}, tmp_path / "model.safetensors")
    assert find_embeddings(tmp_path, "input", "my.embedding").tokens == 6
    with pytest.raises(InputError) as caught:
        find_embeddings(tmp_path, "input")
    assert "my.embedding" in caught.value.hint
    assert "--embedding-tensor" in caught.value.hint
    with pytest.raises(ArtifactError, match="matrix"):
        find_embeddings(tmp_path, "input", "norm")
    with pytest.raises(InputError, match="no safetensors"):
        find_embeddings(tmp_path.parent, "input")
    with pytest.raises(InputError, match="no checkpoint"):
        find_embeddings(tmp_path / "none", "input")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"dtype": "F8_E4M3"}, InputError),
        ({"shape": [6, 4, 1]}, ArtifactError),
        ({"shape": [6, -4]}, ArtifactError),
        ({"shape": [2**40, 4]}, ArtifactError),
        ({"shape": [6, True]}, ArtifactError),
        ({"data_offsets": [0, 95]}, ArtifactError),
        ({"data_offsets": [96, 192]}, ArtifactError),
        ({"data_offsets": None}, ArtifactError),
    ],
)
def test_headers_that_lie_are_refused(
    tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    entry = {"dtype": "F32", "shape": [6, 4], "data_offsets": [0, 96]} | change
    header = json.dumps({"embed.weight": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(96))
    with pytest.raises(error):
        find_embeddings(tmp_path, "input")


@pytest.mark.parametrize("file", ["../model.safetensors", "", 3, "/etc/passwd", ".."])
def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path, file: Any) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"embed.weight": file}}))
    with pytest.raises(ArtifactError, match="names the file"):
        find_embeddings(tmp_path, "input")
