"""Golden vectors of stored rows: the fault of dequantising that is found, and damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_cli import hash_layout
from engram_cli.commands.golden.cases import decimal, document_of, make_cases
from engram_cli.commands.golden.command import GoldenCheck, check_golden
from engram_cli.errors import EngramError
from engram_cli.rows import DTYPES
from engram_cli.rows.gather import FileRows, HeldArray
from engram_cli.rows.source import ROWS, SCALES


def through(dtype: str, stored: np.ndarray) -> np.ndarray:
    """Return stored bytes as another dtype, widened to float32 by torch."""
    values = torch.from_numpy(np.array(stored)).view(getattr(torch, dtype))
    return values.to(torch.float32).numpy()


def halves(stored: np.ndarray, first: int, second: int) -> np.ndarray:
    """Return the signed halves of bytes in an order of shifts."""
    pairs = np.stack([stored >> first & 15, stored >> second & 15], axis=-1).astype(np.int8)
    return ((pairs ^ 8) - 8).reshape(len(stored), -1).astype(np.float32)


def powers(scales: np.ndarray, bias: int = 127) -> np.ndarray:
    return np.repeat(np.exp2(scales.astype(np.float64) - bias), 32, axis=1).astype(np.float32)


# By dtype: the right values from stored items and scales; then values of ports, and their fault.
Decode = Callable[[np.ndarray, np.ndarray], np.ndarray]
RIGHT: dict[str, Decode] = {
    "int8": lambda x, s: x.astype(np.float32) * s,
    "int4": lambda x, s: halves(x, 0, 4) * s,
    "fp8": lambda x, s: through("float8_e4m3fn", x) * s,
    "fp8_e8m0": lambda x, s: through("float8_e4m3fn", x) * powers(s),
    "bfloat16": lambda x, s: through("bfloat16", x),
    "float16": lambda x, s: through("float16", x),
    "float32": lambda x, s: x,
}
VALUE_FAULTS: list[tuple[str, str, Decode]] = [
    ("int8", "if bfloat16 rounding is applied to the scale before it multiplies",
     lambda x, s: x.astype(np.float32) * bfloat16(s)),
    ("int8", "if bfloat16 rounding is applied to the scale before it multiplies, and values are "
     "rounded to bfloat16", lambda x, s: bfloat16(x.astype(np.float32) * bfloat16(s))),
    ("int8", "if the scale is left out", lambda x, s: x.astype(np.float32)),
    ("int8", "if items are read as unsigned", lambda x, s: x.view(np.uint8).astype("f4") * s),
    ("int4", "if the halves of a byte are read in reverse", lambda x, s: halves(x, 4, 0) * s),
    ("fp8", "if values are divided by the scale", lambda x, s: through("float8_e4m3fn", x) / s),
    ("fp8", "if items are read as float8 e5m2", lambda x, s: through("float8_e5m2", x) * s),
    ("fp8", "if items are read as float8 e4m3fnuz", lambda x, s: through("float8_e4m3fnuz", x) * s),
    ("fp8", "if items are read as int8", lambda x, s: x.view(np.int8).astype(np.float32) * s),
    ("fp8", "if values are rounded to bfloat16",
     lambda x, s: bfloat16(through("float8_e4m3fn", x) * s)),
    ("fp8_e8m0", "if the exponent bias of the scale is 128",
     lambda x, s: through("float8_e4m3fn", x) * powers(s, 128)),
    ("fp8_e8m0", "if the exponent bias of the scale is 126",
     lambda x, s: through("float8_e4m3fn", x) * powers(s, 126)),
    ("fp8_e8m0", "if the first scale of a row serves all its values",
     lambda x, s: through("float8_e4m3fn", x) * powers(s)[:, :1]),
    ("bfloat16", "if items are read as float16", lambda x, s: through("float16", x)),
    ("float16", "if items are read as bfloat16", lambda x, s: through("bfloat16", x)),
    ("float32", "if values are rounded to bfloat16", lambda x, s: bfloat16(x)),
    ("float32", "if values are cut to bfloat16",
     lambda x, s: (x.view(np.uint32) >> 16 << 16).view(np.float32)),
    ("float32", "if values are rounded to float16", lambda x, s: x.astype("f2").astype("f4")),
]  # fmt: skip


def bfloat16(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()


def rows_of(dtype: str) -> FileRows:
    """A source in memory: one layer of 64 values a row, of one dtype."""
    layout = hash_layout("qwen-ple", vocab_size=50, eos_id=7, heads=1, rows_per_head=31)
    entry, row_type, dim = layout.layers[0], DTYPES.load(dtype), 64
    values = np.random.default_rng(1).normal(size=(entry.rows, dim)).astype(np.float32)
    stored = np.empty((entry.rows, row_type.width(dim)), dtype=row_type.physical)
    parts, scales = {(entry.layer, ROWS): HeldArray(stored)}, None
    if row_type.scaling is not None:
        shape = row_type.scaling.shape(entry.rows, dim)
        scales = np.full(shape, 0.0123456, dtype=row_type.scaling.dtype)
        parts[(entry.layer, SCALES)] = HeldArray(scales)
    row_type.encode(values, stored, scales)
    return FileRows(format="table", path=Path("t"), layout=layout, layers=layout.layer_ids,
                    dim=dim, dtype=dtype, parts=parts)  # fmt: skip


def check_values(source: FileRows, decode: Decode, folder: Path) -> GoldenCheck:
    """Check the golden vectors of a source with values that `decode` makes of the stored bytes."""
    row_type = DTYPES.load(str(source.dtype))
    cases = make_cases(source.layout, None)
    document = document_of(source, cases)
    for each in document["values"]:
        stored = np.frombuffer(bytearray.fromhex(each["stored"]), dtype=row_type.physical)
        scales = np.zeros(1, dtype=np.float32)
        if row_type.scaling is not None:
            scales = np.frombuffer(bytearray.fromhex(each["scales"]), row_type.scaling.dtype)
        made = decode(stored[None], scales[None])[0]
        each["values"] = [decimal(value) for value in made]
    (folder / "theirs.json").write_text(json.dumps(document))
    return check_golden(source, cases, folder / "theirs.json")


@pytest.mark.parametrize("dtype", RIGHT)
def test_right_values_are_equal(dtype: str, tmp_path: Path) -> None:
    check = check_values(rows_of(dtype), RIGHT[dtype], tmp_path)
    assert check.equal
    assert check.values == check.values_equal > 0


@pytest.mark.parametrize(("dtype", "text", "decode"), VALUE_FAULTS, ids=range(len(VALUE_FAULTS)))
def test_a_fault_of_dequantising_is_named(
    dtype: str, text: str, decode: Decode, tmp_path: Path
) -> None:
    check = check_values(rows_of(dtype), decode, tmp_path)
    assert check.first == "dequantisation"
    assert check.explanations[0] == f"equal {text}"
    assert check.rows_equal == check.rows > 0


@given(st.floats(width=32))
def test_decimals_read_back(value: float) -> None:
    written = decimal(np.float32(value))
    back = np.float32(np.nan if written is None else float(written))
    np.testing.assert_equal(back, np.float32(value))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
PLACES = [
    ("format",), ("version",), ("layout",), ("layout", "filler_id"), ("layout", "layers"),
    ("layout", "layers", 0), ("layout", "layers", 0, "layer"), ("layout", "layers", 0, "moduli"),
    ("layout", "layers", 0, "multipliers", 1), ("layout", "layers", 0, "offsets", 0), ("cases",),
    ("cases", 0), ("cases", 0, "name"), ("cases", 0, "ids"), ("cases", 0, "ids", 1),
    ("cases", 0, "compressed"), ("cases", 0, "compressed", 0), ("cases", 0, "dead"),
    ("cases", 4, "padding"), ("cases", 4, "padding", 0), ("cases", 0, "rows"),
    ("cases", 0, "rows", "2"), ("cases", 0, "rows", "2", 0), ("cases", 0, "rows", "2", 0, 0),
    ("values",), ("values", 0), ("values", 0, "layer"), ("values", 0, "row"),
    ("values", 0, "values"), ("values", 0, "values", 3),
]  # fmt: skip


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_damage_is_refused_with_our_errors_only(
    tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    source = rows_of("fp8_e8m0")
    cases = make_cases(source.layout, None)
    document = document_of(source, cases)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "theirs.json").write_text(json.dumps(document))
    with suppress(EngramError):
        check_golden(source, cases, tmp_path / "theirs.json")
