"""The plain look-up equals the NumPy definition, whatever the form of the ids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lookup_cases import FORMS, LAYOUTS, a_table, modulo_hash, same_bits, the_hash

from engram_cli.errors import InputError, TokenIdError
from engram_cli.hashing import reference as numpy_reference
from engram_cli.hashing.layout import HashLayout
from engram_cli.runtime import lookup_reference, ops
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.tables import Table, _e8m0, dequantise

CPU = torch.device("cpu")


def defined_rows(layout: HashLayout, ids: np.ndarray, dead: np.ndarray, starts: np.ndarray) -> Any:
    """int64[L, T, C] of one stream, as `hashing.reference` defines them."""
    tokens = (ids if layout.lookup is None else layout.lookup[ids]).astype(np.int32)
    return np.stack(
        [
            numpy_reference.hash_columns(layout, entry, tokens, dead=dead, starts=starts).T
            + np.array(entry.offsets, dtype=np.int64)
            for entry in layout.layers
        ]
    )


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_rows_equal_the_definition(name: str, data: st.DataObject) -> None:
    layout = LAYOUTS[name]()
    hashed = the_hash(name, CPU)
    batch, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 10))
    shape = (batch, count)
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    ids = random.integers(0, layout.vocab_size, shape)
    dead, starts = random.random(shape) < 0.2, random.random(shape) < 0.2
    expected = np.stack(
        [defined_rows(layout, *line) for line in zip(ids, dead, starts, strict=True)], axis=1
    )
    place = np.broadcast_to(np.arange(count), shape)
    begin = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    masks = {"dead": torch.from_numpy(dead), "ages": torch.from_numpy(place - begin)}
    found = lookup_reference.find_rows(hashed, torch.from_numpy(ids), LookBack(**masks))
    assert np.array_equal(found.numpy(), expected)

    bounds = torch.arange(batch + 1) * count
    flat = LookBack(bounds=bounds, **{name: mask.reshape(-1) for name, mask in masks.items()})
    found = lookup_reference.find_rows(hashed, torch.from_numpy(ids.reshape(-1)), flat)
    assert np.array_equal(found.view(expected.shape).numpy(), expected)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("ring", [4, 5, 16])
def test_steps_of_any_length_equal_the_whole(name: str, ring: int) -> None:
    hashed = the_hash(name, CPU)
    ids = torch.randint(0, 20, (2, 23), generator=torch.Generator().manual_seed(1))
    dead = torch.rand(2, 23, generator=torch.Generator().manual_seed(2)) < 0.2
    whole = lookup_reference.find_rows(hashed, ids, LookBack(dead=dead))
    history = torch.full((3, max(ring, hashed.max_order - 1)), 99, dtype=torch.int32)
    slots, begin = torch.tensor([2, 0]), 0
    for length in (1, 1, 6, 2, 9, 1, 3):
        part = slice(begin, begin + length)
        back = LookBack(
            history=history,
            positions=torch.full((2,), begin),
            slots=slots,
            dead=dead[:, part],
        )
        assert torch.equal(
            lookup_reference.find_rows(hashed, ids[:, part], back), whole[:, :, part]
        )
        lookup_reference.remember(hashed, ids[:, part], back)
        begin += length
    assert (history[1] == 99).all()


def test_ids_outside_the_vocabulary_are_the_filler() -> None:
    hashed = the_hash("engram-v1", CPU, holes=False)
    beyond = torch.tensor([[3, -1, 9, 40, 2**31 - 1, 5]])
    filler = int((hashed.lookup == hashed.filler).nonzero()[0])
    instead = torch.tensor([[3, filler, 9, filler, filler, 5]])
    assert torch.equal(
        lookup_reference.find_rows(hashed, beyond), lookup_reference.find_rows(hashed, instead)
    )
    with pytest.raises(TokenIdError, match=r"token id -1 at \(0, 1\) is outside 0..39"):
        ops.check_ids(hashed, beyond)


def test_a_wall_is_a_hole_or_a_dead_token() -> None:
    hashed = the_hash("wild", CPU)
    ids = torch.tensor([[3, 41, 9, 10]])
    dead = torch.tensor([[False, True, False, False]])
    other = torch.tensor([[3, 8, 9, 10]])
    assert torch.equal(
        lookup_reference.find_rows(hashed, ids),
        lookup_reference.find_rows(hashed, other, LookBack(dead=dead)),
    )


def test_rows_equal_python_at_the_edges_of_the_moduli() -> None:
    hashed, mixes, moduli = modulo_hash(CPU)
    rows = lookup_reference.find_rows(hashed, torch.tensor([[0]]))[:, 0, 0]
    found = (rows - hashed.columns[..., 2]).reshape(-1).tolist()
    assert found == [mix % modulus for mix, modulus in zip(mixes, moduli, strict=True)]


def test_vectors_are_rows_times_scales() -> None:
    raw = torch.tensor([[0x38, 0xB9, 0x01, 0x7E] + [0] * 28, [0x7F] * 32], dtype=torch.uint8)
    scales = torch.tensor([[128], [127]], dtype=torch.uint8)
    found = dequantise(Table(values=raw, scales=scales), torch.tensor([0, 1]), torch.float32)
    assert found[0, :4].tolist() == [2.0, -2.25, 2.0**-8, 896.0]
    assert found[1].isnan().all()
    found = dequantise(
        Table(values=raw, scales=torch.tensor([0.5])), torch.tensor([0]), torch.float32
    )
    assert found[0, :4].tolist() == [0.5, -0.5625, 2.0**-10, 224.0]
    rows = Table(values=torch.tensor([[3, -4]], dtype=torch.int8), scales=torch.tensor([0.25]))
    assert dequantise(rows, torch.tensor([0]), torch.float32).tolist() == [[0.75, -1.0]]
    every = torch.arange(256, dtype=torch.uint8)
    exact = every.view(torch.float8_e8m0fnu).float()
    assert same_bits(_e8m0(every), exact)


def test_a_look_up_is_its_rows_side_by_side() -> None:
    hashed = the_hash("engram-v1", CPU)
    ids, back = FORMS["dead"](CPU)
    tables = [a_table("bfloat16", height, 4, CPU) for height in hashed.heights]
    found = lookup_reference.look_up(hashed, ids, tables, back)
    rows = lookup_reference.find_rows(hashed, ids, back)
    for layer, table in enumerate(tables):
        assert torch.equal(found[layer], table.values[rows[layer]].flatten(-2))
    assert lookup_reference.look_up(hashed, ids, tables, back, torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("values", "scales"),
    [
        (torch.zeros(3, 8, dtype=torch.int64), None),
        (torch.zeros(3, 8, dtype=torch.uint8), None),
        (torch.zeros(8), None),
        (torch.zeros(3, 48, dtype=torch.uint8), torch.zeros(3, 1, dtype=torch.uint8)),
        (torch.zeros(3, 64, dtype=torch.uint8), torch.zeros(3, 1, dtype=torch.uint8)),
        (torch.zeros(3, 64, dtype=torch.int8), torch.zeros(2)),
        (torch.zeros(8, 3).t(), None),
    ],
)
def test_tables_of_no_kind_are_refused(values: torch.Tensor, scales: torch.Tensor | None) -> None:
    with pytest.raises(InputError):
        Table(values=values, scales=scales)


def test_what_does_not_fit_is_refused() -> None:
    hashed = the_hash("engram-v1", CPU)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    good = [a_table("float32", height, 4, CPU) for height in hashed.heights]
    short = Table(values=good[0].values[:10])
    wide = a_table("float32", hashed.heights[0], 8, CPU)
    half = a_table("float16", hashed.heights[0], 4, CPU)
    for tables in ([good[0]], [short, good[1]], [good[0], wide], [good[0], half]):
        with pytest.raises(InputError):
            lookup_reference.look_up(hashed, ids, tables)
    with pytest.raises(InputError):
        lookup_reference.look_up(hashed, ids, good, dtype=torch.float64)
    history = torch.zeros(2, 4, dtype=torch.int32)
    positions = torch.zeros(2, dtype=torch.int64)
    for wrong, back in [
        (ids.float(), LookBack()),
        (ids[0], LookBack()),
        (ids, LookBack(bounds=torch.tensor([0, 6]))),
        (ids[0], LookBack(bounds=torch.tensor([0]))),
        (ids, LookBack(dead=torch.zeros(2, 2, dtype=torch.bool))),
        (ids, LookBack(history=history.long(), positions=positions)),
        (ids, LookBack(history=history[:, :1].contiguous(), positions=positions)),
        (ids, LookBack(history=history)),
        (ids, LookBack(history=history[:1], positions=positions)),
        (ids, LookBack(history=history, positions=positions, slots=positions[:1])),
        (ids, LookBack(ages=ids.bool())),
    ]:
        with pytest.raises(InputError):
            lookup_reference.find_rows(hashed, wrong, back)
    with pytest.raises(InputError):
        lookup_reference.look_up_step(hashed, ids, good, LookBack())
    aged = LookBack(history=history, positions=positions, ages=ids)
    with pytest.raises(InputError):
        ops.look_up_step(hashed, ids, good, aged)


def test_a_gpu_without_triton_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "_HAS_TRITON", False)
    with pytest.warns(UserWarning, match="triton is not installed"):
        assert not ops.has_kernels(torch.device("cuda"))
    assert not ops.has_kernels(CPU)
