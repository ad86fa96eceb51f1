"""The kernels equal the definition, whatever the layout, the cuts and the threads."""

from __future__ import annotations

import numpy as np
import pytest
from hashing.layouts import layouts, plain_rows, streams
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_cli import hash_layout, hash_tokens
from engram_cli.errors import InputError, LayoutError, TokenIdError
from engram_cli.hashing import kernels, lookback, reference
from engram_cli.hashing.hasher import StreamHasher, plan_layer
from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.vocab.compress import CompressedVocab


def head_local(layout: HashLayout, rows: list[list[int]]) -> np.ndarray:
    offsets = np.array(layout.layers[0].offsets, dtype=np.int64)
    return np.array(rows, dtype=np.int64).reshape(len(rows), layout.columns) - offsets


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_numpy_and_numba_equal_the_walk_by_hand(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    stream = data.draw(streams(layout))
    ids, dead, starts = stream["ids"], stream["dead"], stream["starts"]
    layer = layout.layers[0]
    truth = head_local(layout, plain_rows(layout, layer, ids, dead, starts))
    x = ids.astype(np.int32)
    plain = reference.hash_columns(layout, layer, x, dead=dead, starts=starts)
    assert np.array_equal(plain.T, truth)
    fast = hash_tokens(layout, ids, dead=dead, starts=starts, head_local=True)
    assert np.array_equal(fast, truth)


@given(st.data(), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_where_a_stream_is_cut_changes_nothing(data: st.DataObject, pieces: int) -> None:
    layout = data.draw(layouts(max_heads=2))
    stream = data.draw(streams(layout))
    count = len(stream["ids"])
    cuts = sorted(data.draw(st.lists(st.integers(0, count), min_size=pieces, max_size=pieces)))
    hasher = StreamHasher(layout)
    whole = hasher.columns(
        hasher.push(stream["ids"], dead=stream["dead"], starts=stream["starts"]),
        layout.layers[0].layer,
    )
    hasher.reset()
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, count], strict=True):
        window = hasher.push(
            stream["ids"][begin:end],
            dead=stream["dead"][begin:end],
            starts=stream["starts"][begin:end],
        )
        parts.append(hasher.columns(window, layout.layers[0].layer))
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_look_back_kernel_equals_its_twin(data: st.DataObject) -> None:
    layout = data.draw(layouts(max_heads=1))
    stream = data.draw(streams(layout))
    carry = data.draw(st.integers(0, layout.max_order - 1))
    x = stream["ids"].astype(np.int32)
    plain = lookback.visible(layout, x, dead=stream["dead"], starts=stream["starts"], carry=carry)
    fast = np.empty(len(x), dtype=np.uint8)
    eos = -1 if layout.eos_id is None else layout.eos_id
    kernels.visible(x, stream["dead"], stream["starts"], eos, layout.max_order, carry, fast)
    assert np.array_equal(plain, fast)


@pytest.mark.parametrize(
    "modulus", [8193, 8209, 65537, 646403, 16000057, 20000003, 2**30, 2**31 - 1]
)
def test_the_reciprocal_is_exact_beside_multiples(modulus: int) -> None:
    # mix = x * (k * modulus) XOR 0 or 1: multiples of the modulus up to 2**63 and their neighbours.
    size = 2**15
    k = (2**63 - 1) // size // modulus
    layer = LayerHash(
        layer=0, multipliers=(k * modulus, 1), moduli=(modulus,), salts=(0,), rows=modulus
    )
    layout = HashLayout(
        scheme="multiples",
        orders=(2,),
        heads=1,
        fold="newest-first",
        filler_id=0,
        eos_id=None,
        compressed_size=size,
        vocab_digest=None,
        layers=(layer,),
        parameters={},
    )
    assert plan_layer(layout, layer).fast.all()
    ids = np.empty(2 * size, dtype=np.int64)
    ids[0::2] = np.arange(size)
    ids[1::2] = np.random.default_rng(modulus).integers(0, 2, size)
    for stream in (ids, ids[::-1].copy(), ids[1:].copy()):
        x = stream.astype(np.int32)
        expected = reference.hash_columns(layout, layer, x)
        assert np.array_equal(hash_tokens(layout, stream, head_local=True).T, expected)


def test_the_reciprocal_is_used_only_where_it_is_exact() -> None:
    def fast(modulus: int, multiplier: int = 3, salt: int = 0, size: int = 100) -> bool:
        layer = LayerHash(
            layer=0, multipliers=(multiplier,), moduli=(modulus,), salts=(salt,), rows=modulus
        )
        layout = HashLayout(
            scheme="one",
            orders=(1,),
            heads=1,
            fold="newest-first",
            filler_id=0,
            eos_id=None,
            compressed_size=size,
            vocab_digest=None,
            layers=(layer,),
            parameters={},
        )
        return bool(plan_layer(layout, layer).fast[0])

    assert fast(8193)
    assert fast(2**31 - 1)
    assert not fast(8192)
    assert not fast(2**31)
    assert not fast(10007, salt=1)
    assert not fast(10007, multiplier=-3)
    assert not fast(10007, multiplier=2**62, size=3)
    assert fast(10007, multiplier=2**62, size=2)


def test_both_geometries_on_many_tokens(deepseek_vocab: CompressedVocab) -> None:
    ids = np.random.default_rng(7).integers(0, deepseek_vocab.vocab_size, 30_011)
    for scheme in ("engram-v1", "deepseek-v4.1"):
        layout = hash_layout(scheme, deepseek_vocab)
        for layer in layout.layers:
            expected = reference.hash_columns(layout, layer, deepseek_vocab.lookup[ids])
            for threads in (1, 2, 3):
                rows = hash_tokens(layout, ids, layer.layer, head_local=True, threads=threads)
                assert np.array_equal(rows.T, expected)


def test_a_batch_is_independent_lines(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=9001, layers=(3,))
    ids = np.random.default_rng(1).integers(0, small_vocab.vocab_size, (4, 25))
    dead = np.random.default_rng(2).random((4, 25)) < 0.2
    batch = hash_tokens(layout, ids, dead=dead)
    assert batch.shape == (4, 25, 16)
    for line in range(4):
        assert np.array_equal(batch[line], hash_tokens(layout, ids[line], dead=dead[line]))


def test_packed_documents_are_as_if_alone(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=9001, layers=(3,))
    ids = np.random.default_rng(3).integers(0, small_vocab.vocab_size, 30)
    starts = np.zeros(30, dtype=bool)
    starts[[11, 12]] = True
    packed = hash_tokens(layout, ids, starts=starts)
    alone = [hash_tokens(layout, part) for part in (ids[:11], ids[11:12], ids[12:])]
    assert np.array_equal(packed, np.concatenate(alone))


def test_qwen_rows_equal_the_model_in_transformers() -> None:
    theirs_of = pytest.importorskip("transformers.models.qwen4_exp.modeling_qwen4_exp")
    config = theirs_of.Qwen4ExpTextConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=4,
        eos_token_id=7,
        ngram_vocab_size_base=1000,
        ple_embed_dim=32,
        seed=1234,
    )
    layout = hash_layout("qwen-ple", vocab_size=500, eos_id=7, rows_per_head=1000, layers=(1, 3))
    ids = np.random.default_rng(0).integers(0, 12, (3, 40))
    for index, layer in enumerate(layout.layers):
        theirs = theirs_of.Qwen4ExpTextNGramEmbedding(config, 32, layer.layer - 1, index)
        assert theirs.layer_multipliers.tolist() == list(layer.multipliers)
        assert theirs.ngram_heads_vocab_sizes.tolist() == list(layer.moduli)
        assert theirs.ngram_embedding.weight.shape[0] == layer.rows
        seen = []
        theirs.ngram_embedding.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(inputs[0].numpy())
        )
        theirs(_long(ids), None)
        assert np.array_equal(hash_tokens(layout, ids, layer.layer), seen[0])


def _long(ids: np.ndarray):
    import torch

    return torch.from_numpy(ids)


@pytest.mark.parametrize(
    "dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_every_integer_type_gives_the_same_rows(dtype: str, small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=100, layers=(0,))
    ids = np.arange(100)
    assert np.array_equal(hash_tokens(layout, ids.astype(dtype)), hash_tokens(layout, ids))
    swapped = ids.astype(np.dtype(dtype).newbyteorder(">"))
    assert np.array_equal(hash_tokens(layout, swapped), hash_tokens(layout, ids))


def test_read_only_arrays_hash_as_any_other(small_vocab: CompressedVocab) -> None:
    lookup = small_vocab.lookup.copy()
    lookup.flags.writeable = False
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=10007, layers=(1,))
    ids = np.arange(40, dtype=np.uint32)
    frozen = np.frombuffer(ids.tobytes(), dtype=np.uint32)
    starts = np.zeros(40, dtype=np.bool_)
    starts.flags.writeable = False
    expected = hash_tokens(layout, ids)
    assert np.array_equal(hash_tokens(layout.bind(lookup), frozen, starts=starts), expected)


def test_no_tokens_give_no_rows(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=100, layers=(0,))
    assert hash_tokens(layout, []).shape == (0, 16)
    assert hash_tokens(layout, np.empty((3, 0), np.int64)).shape == (3, 0, 16)


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([1, -1], r"token id -1 is negative, at position 1"),
        ([1, 2, 10**6], r"token id 1000000 is beyond the vocabulary of \d+, at position 2"),
        ([2**62], "is beyond the vocabulary"),
        (np.array([2**63], dtype=np.uint64), "beyond int64"),
    ],
)
def test_ids_outside_the_vocabulary(ids, match: str, small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=100, layers=(0,))
    with pytest.raises(TokenIdError, match=match):
        hash_tokens(layout, ids)


def test_a_bad_id_leaves_the_stream_as_it_was(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=100, layers=(0,))
    hasher = StreamHasher(layout)
    hasher.push(np.array([5, 6]))
    with pytest.raises(TokenIdError):
        hasher.push(np.array([7, -1]))
    after = hasher.columns(hasher.push(np.array([8])), 0)
    assert np.array_equal(after[:, 0], hash_tokens(layout, [5, 6, 8], head_local=True)[-1])


@pytest.mark.parametrize("ids", [[1.5, 2.0], ["a"], [[[1]]], [True, False], [[1], [1, 2]]])
def test_what_is_no_token_ids(ids, small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=100, layers=(0,))
    with pytest.raises(InputError):
        hash_tokens(layout, ids)


def test_masks_of_another_shape_and_unknown_layers(small_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", small_vocab, rows_per_head=100)
    with pytest.raises(InputError, match="dead"):
        hash_tokens(layout, [1, 2], 1, dead=np.array([True]))
    with pytest.raises(LayoutError, match="no layer was named"):
        hash_tokens(layout, [1, 2])
    with pytest.raises(LayoutError, match="no layer 2"):
        hash_tokens(layout, [1, 2], layer=2)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_mixes_and_rows_equal_their_definitions(order: int) -> None:
    """What hashing, statistics and inits call, on blocked and on open positions."""
    generator = np.random.default_rng(2)
    x = generator.integers(0, 99_092, 5003).astype(np.int32)
    multipliers = (2 * generator.integers(0, 2**45, order) + 1).astype(np.int64)
    for seen in (generator.integers(0, 5, 5000), np.full(5000, 4)):
        wanted = reference.mix_ngrams(x, seen.astype(np.uint8), 7, multipliers)
        for done in range(order):
            mix = np.zeros(5000, dtype=np.int64)
            for first, last in ((0, done), (done, order)):  # a mix extends the one of less tokens
                if first < last:
                    kernels.mix_ngrams(x, seen.astype(np.uint8), 7, multipliers[:last], first, mix)
            np.testing.assert_array_equal(mix, wanted)
        wanted[:5] = [0, 1, 2**63 - 1, 16_000_057 * 3, 16_000_057 * 3 - 1]
        for modulus, salt, fast in ((16_000_057, 0, True), (53, 10007, False), (8209, 0, True)):
            rows = np.empty(5000, dtype=np.uint32)
            kernels.rows_of(wanted.view(np.uint64), modulus, salt, fast, rows)
            np.testing.assert_array_equal(rows, reference.rows_of(wanted, modulus, salt))
