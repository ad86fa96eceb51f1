"""A dtype of another program, described in this file alone, goes through every command and a model.

Its items are bytes of two's complement k that stand for k x |k| / 127, so that small values keep
more digits; -128 is NaN. A row has one float16 scale.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attaching import LLAMA, configure
from cli.conftest import Engram
from numpy.typing import NDArray
from tiny_models import llama, logits, text, wake

from engram_cli.errors import InputError
from engram_cli.formats.bundle import read_bundle
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import Floats, Items, RowType, Scaling
from engram_cli.runtime import attach, save_engram
from engram_cli.table.store import open_table

_CODES = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)
SQUARE8 = RowType(
    name="square8",
    items=Items(
        name="square8",
        tensor="uint8",
        values=np.where(_CODES < -127, np.nan, _CODES * np.abs(_CODES) / 127).astype(np.float32),
    ),
    scaling=Scaling(per="row", tensor="float16"),
    codec=__name__,
)


def encode(row_type: RowType, values: Floats, stored: NDArray[Any], scales: NDArray[Any]) -> None:
    known = np.isfinite(values)
    tops = np.max(np.abs(values), axis=1, where=known, initial=0, keepdims=True)
    scales[:] = tops / 127
    parts = np.abs(np.where(known, values, 0)) / np.maximum(widen(row_type, scales), 2.0**-24)
    codes = np.minimum(np.rint(np.sqrt(parts * 127)), 127).astype(np.int8)
    codes[values < 0] *= -1
    codes[~known] = -128
    stored[:] = codes.view(np.uint8)


def decode(row_type: RowType, stored: NDArray[Any], scales: NDArray[Any], values: Floats) -> None:
    assert row_type.items.values is not None
    np.multiply(row_type.items.values[stored], widen(row_type, scales), out=values)


def widen(row_type: RowType, scales: NDArray[Any]) -> Floats:
    return scales.astype(np.float32)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DTYPES, "_entries", dict(DTYPES._entries))
    DTYPES.register("square8", f"{__name__}:SQUARE8")


def table_of(engram: Engram, tokenizer_file: Path) -> Path:
    """A workspace with a table of the new dtype, and a checkpoint."""
    checkpoint = engram.folder / "ckpt"
    checkpoint.mkdir()
    shutil.copy(tokenizer_file, checkpoint)
    configure(checkpoint, LLAMA)
    for command in (
        "compress-vocab ckpt",
        "build-table --dtype square8 --dim 8 --orders 2,3 --heads 2 --rows-per-head 90"
        " --layers 1,2",
    ):
        done = engram(*command.split())
        assert done.code == 0, done.err
    return engram.folder / "engram-table.zarr"


def test_every_command_knows_it(engram: Engram, tokenizer_file: Path) -> None:
    path = table_of(engram, tokenizer_file)
    found = engram("inspect", path)
    assert found.code == 0, found.err
    assert "of 8 x square8" in found.out
    assert engram("verify", path).code == 0
    found = engram("lookup", path, "a text to look up")
    assert found.code == 0, found.err
    wider = engram("convert", path, "--dtype", "float32", "-o", "wide.zarr")
    assert wider.code == 0, wider.err
    back = engram("convert", "wide.zarr", "--dtype", "square8", "-o", "back.zarr", "--json")
    assert all(each["relative"] < 0.01 for each in json.loads(back.out)["differences"])
    first, again = open_table(path), open_table(engram.folder / "back.zarr")
    rows = np.arange(100)
    assert np.array_equal(first.rows(1, rows), again.rows(1, rows))
    planned = engram(
        "plan",
        "--memory",
        "1MB",
        "--tokens",
        "1M",
        "--vocab",
        "engram-vocab.parquet",
        "--dtype",
        "square8",
        "--dim",
        "8",
    )
    assert planned.code == 0, planned.err


@pytest.mark.parametrize("place", ["hbm", "host", "disk"])
def test_a_model_looks_up_what_the_codec_decodes(
    engram: Engram, tokenizer_file: Path, place: str
) -> None:
    table = open_table(table_of(engram, tokenizer_file))
    done = engram("attach", "ckpt")
    assert done.code == 0, done.err
    assert engram("verify", "ckpt/engram").code == 0
    assert engram("inspect", "ckpt/engram").code == 0
    model = llama(LLAMA["vocab_size"])
    memory = attach(model, engram.folder / "ckpt" / "engram", placement=place)
    rows = torch.arange(90).view(1, -1, 1)
    for layer, module in memory.layers.items():
        vectors = module.multi_head_embedding(rows)[0].numpy()
        assert np.array_equal(vectors, table.rows(int(layer), rows.flatten().numpy()))
    wake(memory)
    ids = text(LLAMA["vocab_size"], 2, 9)
    awake = logits(model, ids)
    saved = read_bundle(save_engram(model, engram.folder / "saved"), verify=True)
    assert saved.spec.dtype == "square8"
    assert torch.isfinite(awake).all()


def test_a_name_is_taken_once() -> None:
    with pytest.raises(InputError, match="there is a dtype 'square8' already"):
        DTYPES.register("square8", f"{__name__}:SQUARE8")
