"""The torch look-up equals the NumPy definition bit for bit, batched and in pieces."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_cli.errors import TokenIdError
from engram_cli.hashing import reference as numpy_reference
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.lookback import carry_after, visible
from engram_cli.hashing.schemes import SCHEMES, hash_layout
from engram_cli.runtime import gate_reference, reference
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.reference import HashTensors
from engram_cli.vocab.compress import CompressedVocab


def a_vocab(size: int, groups: int) -> CompressedVocab:
    lookup = (np.arange(size) % groups).astype(np.int32)
    blank = [""] * size
    return CompressedVocab(
        lookup=lookup,
        size=groups,
        texts=blank,
        tokens=blank,
        keys=blank,
        special_ids=frozenset(),
        tokenizer_digest="",
        source="",
    )


@st.composite
def scheme_layouts(draw: st.DrawFn) -> HashLayout:
    """Layouts of the schemes, with two layers where they have so many."""
    scheme = draw(st.sampled_from(list(SCHEMES)))
    options: dict[str, Any] = {
        "orders": draw(st.sampled_from([(2,), (2, 3), (2, 3, 4)])),
        "heads": draw(st.integers(1, 4)),
        "rows_per_head": draw(st.sampled_from([2, 97, 8191, 16_000_000])),
        "layers": draw(st.sampled_from([(1, 4), (3,)])),
    }
    size = draw(st.integers(4, 50))
    if scheme in ("engram-v1", "deepseek-v4.1", "engram-peft"):
        vocab = a_vocab(size, draw(st.integers(2, size)))
        return hash_layout(scheme, vocab, pad_id=draw(st.integers(0, size - 1)), **options)
    if scheme in ("qwen-ple", "longcat"):
        options["eos_id"] = draw(st.integers(0, size - 1))
    if scheme == "longcat":
        options["layers"] = (0,)
    return hash_layout(scheme, vocab_size=size, **options)


@st.composite
def wild_layouts(draw: st.DrawFn) -> HashLayout:
    """Layouts whose products wrap, with salts, in all folds of XOR, with orders that leave gaps."""
    orders = tuple(sorted(draw(st.sets(st.integers(1, 5), min_size=1, max_size=3))))
    heads, size = draw(st.integers(1, 3)), draw(st.integers(2, 30))
    whole = st.integers(-(2**63), 2**63 - 1)
    columns = len(orders) * heads

    def layer(number: int) -> LayerHash:
        moduli = tuple(draw(st.integers(2, 2**32)) for _ in range(columns))
        return LayerHash(
            layer=number,
            multipliers=tuple(draw(whole) for _ in range(orders[-1])),
            moduli=moduli,
            salts=tuple(draw(whole) for _ in range(columns)),
            rows=sum(moduli),
        )

    return HashLayout(
        scheme="wild",
        orders=orders,
        heads=heads,
        fold=draw(st.sampled_from(["newest-first", "oldest-first", "oldest-first-late"])),
        filler_id=draw(st.integers(0, size - 1)),
        eos_id=draw(st.none() | st.integers(0, size - 1)),
        compressed_size=size,
        vocab_digest=None,
        layers=(layer(0), layer(5)),
        parameters={},
    )


def compressed(layout: HashLayout, ids: np.ndarray) -> np.ndarray:
    tokens = ids if layout.lookup is None else layout.lookup[ids]
    return tokens.astype(np.int32)


def torch_rows(
    tensors: HashTensors, ids: np.ndarray, dead: np.ndarray, cuts: list[int]
) -> np.ndarray:
    """int64[L, B, T, C], computed in pieces that hand history and carry on."""
    tokens = reference.compress(tensors, torch.from_numpy(ids))
    walls = torch.from_numpy(dead)
    older = tensors.max_order - 1
    history = torch.zeros(len(ids), older, dtype=torch.int64)
    carry = torch.zeros(len(ids), dtype=torch.int64)
    found = []
    for begin, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        if begin == end:
            continue
        part = tokens[:, begin:end]
        seen = reference.visible(tensors, part, carry, walls[:, begin:end])
        window = torch.cat((history, part), dim=1)
        found.append(reference.hash_rows(tensors, window, seen))
        history = window[:, window.shape[1] - older :]
        carry = reference.carry_after(tensors, part[:, -1], seen[:, -1])
    return torch.cat(found, dim=2).numpy()


@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_rows_equal_the_definition(data: st.DataObject) -> None:
    layout = data.draw(st.one_of(scheme_layouts(), wild_layouts()))
    tensors = hash_tensors(layout, layout.layer_ids)
    batch, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    pick = st.integers(0, min(3, layout.vocab_size - 1))  # few ids, so that EOS is met
    line = st.lists(pick, min_size=count, max_size=count)
    ids = np.array([data.draw(line) for _ in range(batch)])
    masks = st.lists(st.booleans(), min_size=count, max_size=count)
    dead = np.array([data.draw(masks) for _ in range(batch)])
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=2)))

    found = torch_rows(tensors, ids, dead, cuts)
    for place, entry in enumerate(layout.layers):
        offsets = np.array(entry.offsets)[:, None]
        for line_ids, line_dead, rows in zip(ids, dead, found[place], strict=True):
            expected = numpy_reference.hash_columns(
                layout, entry, compressed(layout, line_ids), dead=line_dead
            )
            assert np.array_equal(rows.T, expected.astype(np.int64) + offsets)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_look_back_equals_the_definition(data: st.DataObject) -> None:
    layout = data.draw(wild_layouts())
    tensors = hash_tensors(layout, layout.layer_ids)
    count = data.draw(st.integers(1, 12))
    pick = st.integers(0, min(3, layout.compressed_size - 1))
    ids = np.array(data.draw(st.lists(pick, min_size=count, max_size=count)), dtype=np.int32)
    masks = st.lists(st.booleans(), min_size=count, max_size=count)
    dead = np.array(data.draw(masks))
    carry = data.draw(st.integers(0, layout.max_order - 1))

    expected = visible(layout, ids, dead=dead, carry=carry)
    tokens = torch.from_numpy(ids.astype(np.int64))[None]
    seen = reference.visible(tensors, tokens, torch.tensor([carry]), torch.from_numpy(dead)[None])
    assert seen[0].tolist() == expected.tolist()
    after = reference.carry_after(tensors, tokens[:, -1], seen[:, -1])
    assert after.tolist() == [carry_after(layout, ids, expected, carry)]


def test_left_padding_reads_before_the_start(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, heads=2, rows_per_head=97, layers=(1,))
    tensors = hash_tensors(layout, (1,))
    ids = np.array([[2, 2, 50, 60, 70]])
    pad = np.array([[True, True, False, False, False]])
    padded = torch_rows(tensors, ids, pad, [3])
    alone = torch_rows(tensors, ids[:, 2:], pad[:, 2:], [])
    assert np.array_equal(padded[:, :, 2:], alone)
    # The pad token is the filler here, so only a layout whose filler differs can tell.
    other = hash_layout("engram-v1", small_vocab, heads=2, rows_per_head=97, layers=(1,), pad_id=9)
    tensors = hash_tensors(other, (1,))
    seen_as_tokens = torch_rows(tensors, ids, np.zeros_like(pad), [])
    assert not np.array_equal(seen_as_tokens[:, :, 2:], torch_rows(tensors, ids, pad, [])[:, :, 2:])


def test_real_geometry_equals_the_kernel(deepseek_vocab: CompressedVocab) -> None:
    for scheme in ("engram-v1", "deepseek-v4.1"):
        layout = hash_layout(scheme, deepseek_vocab)
        ids = np.random.default_rng(0).integers(0, deepseek_vocab.vocab_size, (2, 300))
        none = np.zeros_like(ids, dtype=bool)
        found = torch_rows(hash_tensors(layout, layout.layer_ids), ids, none, [])
        for place, layer in enumerate(layout.layer_ids):
            assert np.array_equal(found[place], hash_tokens(layout, ids, layer))


def test_ids_without_a_token_are_holes_and_ids_beyond_fail(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, layers=(1,))
    size = small_vocab.vocab_size
    tensors = hash_tensors(layout, (1,), vocab_size=size + 10)
    tokens = reference.compress(tensors, torch.tensor([[5, size - 1, size, size + 9]]))
    assert reference.is_hole(tokens).tolist() == [[False, False, True, True]]
    for bad in (-1, size + 10):
        with pytest.raises(IndexError):
            reference.compress(tensors, torch.tensor([[bad]]))
    with pytest.raises(TokenIdError):
        hash_tokens(layout, [size])


@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4), st.data())
@settings(max_examples=40, deadline=None)
def test_the_convolution_is_torchs_and_may_be_cut(
    batch: int, count: int, kernel: int, dilation: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    values = torch.randn(batch, count, 5, generator=generator)
    weight = torch.randn(5, 1, kernel, generator=generator)
    reach = (kernel - 1) * dilation
    history = torch.zeros(batch, reach, 5)
    taps = weight.squeeze(1).t()
    whole = gate_reference.dilated_conv(values, taps, dilation, gate_reference.NO_PAST)
    padded = torch.nn.functional.pad(values.transpose(1, 2), (reach, 0))
    expected = torch.nn.functional.conv1d(padded, weight, groups=5, dilation=dilation)
    torch.testing.assert_close(whole, expected.transpose(1, 2), atol=1e-6, rtol=0)

    cut = data.draw(st.integers(1, count))
    stream = torch.cat((history, values), dim=1)
    past = gate_reference.Past(history=stream[:, cut : cut + reach])
    tail = gate_reference.dilated_conv(values[:, cut:], taps, dilation, past)
    assert torch.equal(tail, whole[:, cut:])
