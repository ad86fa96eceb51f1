"""Rows of several owners in one launch: run by test_interpreted.py, and by tests/gpu on a GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lookup_cases import FORMS, same_bits
from shard_cases import KINDS, distribute, simulated, whole

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import lookup_reference, ops, torch_ops
from engram_cli.runtime.tiers import with_index

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter truncates to bfloat16 where a GPU rounds.
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
CASES = [
    ("float32", 2, None, 0.0),
    ("float16", 3, None, 0.3),
    ("bfloat16", 3, None, 0.0),
    ("fp8_e8m0", 2, True, 0.3),
    ("fp8_e8m0", 3, False, 0.3),
    ("fp8_e8m0", 8, False, 0.0),
    ("fp8", 2, None, 0.0),
    ("int8", 2, True, 0.0),
    ("int8", 3, False, 0.3),
    ("int8_b32", 2, True, 0.0),
    ("int8_b32", 3, False, 0.0),
    ("int4", 2, None, 0.0),
]


@pytest.fixture(autouse=True)
def _kernels_run() -> None:
    assert ops.has_kernels(DEVICE)


@pytest.mark.parametrize(("dtype", "world", "scales_here", "share"), CASES)
def test_vectors_equal_those_of_one_table(
    dtype: str, world: int, scales_here: bool | None, share: float
) -> None:
    spec, hashed, tables = whole(dtype, DEVICE)
    device = torch.device("cuda", 0) if DEVICE.type == "cuda" else DEVICE
    made = distribute(
        spec,
        tables,
        simulated(world, device),
        [device],
        dtype=DTYPE,
        scales_here=scales_here,
        share=share,
    )
    ids, back = FORMS["dead"](DEVICE)
    ids, back = ids[:, :3], lookup_reference.LookBack(dead=back.dead[:, :3])
    found = ops.look_up_shards(hashed, ids, made, back)
    expected = lookup_reference.look_up(hashed, ids, tables, back, made.dtype)
    assert same_bits(found, expected)
    rows = lookup_reference.find_rows(hashed, ids, back)
    for place in range(2):
        assert same_bits(made.read(place, rows[place]), expected[place])
    assert made.one_launch == (dtype not in ("int8_b32", "int4"))
    here = rows % world == 0
    if share:
        for place, hot in enumerate(made.copies[device].sets or ()):
            here[place] |= hot.rank(rows[place]) >= 0
    assert made.counted() == (2 * rows.numel(), 2 * int(here.sum()))


@pytest.mark.parametrize("form", ["packed", "history, documents", "no token", "one token"])
def test_every_form_of_ids(form: str) -> None:
    spec, hashed, tables = whole("bfloat16", DEVICE)
    made = distribute(spec, tables, simulated(3, DEVICE), [DEVICE])
    ids, back = FORMS[form](DEVICE)
    found = ops.look_up_shards(hashed, ids, made, back)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, back))


def test_every_kind_is_tried() -> None:
    assert {dtype for dtype, *_ in CASES} == set(KINDS)


def test_the_operator_keeps_torchs_rules() -> None:
    spec, hashed, tables = whole("float32", DEVICE)
    made = distribute(spec, tables, simulated(2, DEVICE), [DEVICE])
    ids, back = FORMS["one token"](DEVICE)
    arguments = (ids, made.number, made.width, made.dtype)
    arguments += (*torch_ops.hash_arguments(hashed), *torch_ops.limit_arguments(back))
    rules = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch_ops.look_up_shards, arguments, test_utils=rules)


def test_closed_rows_are_an_error() -> None:
    spec, hashed, tables = whole("float32", DEVICE)
    made = distribute(spec, tables, simulated(2, DEVICE), [DEVICE])
    for _ in spec.layers:
        made.close()
    with pytest.raises(RuntimeAttachError, match="was detached"):
        ops.look_up_shards(hashed, FORMS["one token"](DEVICE)[0], made)


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8_e8m0", "fp8", "int8", "int4"])
@pytest.mark.parametrize("scales_here", [True, False])
def test_rows_that_are_brought_are_decoded_by_a_kernel(dtype: str, scales_here: bool) -> None:
    spec, hashed, tables = whole(dtype, DEVICE)
    device = with_index(DEVICE)
    group = replace(simulated(2, device), reads_peers=False, reason="told so")
    made = distribute(spec, tables, group, [device], dtype=DTYPE, scales_here=scales_here)
    assert not made.one_launch
    ids = FORMS["one token"](DEVICE)[0]
    found = ops.look_up_shards(hashed, ids, made)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, dtype=made.dtype))
