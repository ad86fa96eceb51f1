"""Published numbers: multipliers, moduli and rows that real models use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engram_cli import hash_layout, hash_tokens
from engram_cli.errors import LayoutError
from engram_cli.hashing.schemes.base import is_prime, next_prime
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.tokenizer import load_tokenizer

SENTENCE = "Only Alexander the Great could tame the horse Bucephalus."
FIRST_ROWS = [
    *(417228, 479277, 11032, 383138, 46642, 17954, 102944, 15908),
    *(1336, 311707, 83314, 17558, 239192, 502156, 402774, 357036),
]


def test_engram_v1(deepseek_vocab: CompressedVocab, deepseek_tokenizer_file: Path) -> None:
    layout = hash_layout("engram-v1", deepseek_vocab)
    assert layout.layer(1).multipliers == (76632096046245, 4839876093313, 35959672319349)
    assert layout.layer(15).multipliers == (28919099099511, 56020370062535, 53929037264533)
    ids = load_tokenizer(deepseek_tokenizer_file).encode(SENTENCE)
    rows = hash_tokens(layout, ids, layer=1, head_local=True)
    assert rows.dtype == np.int64
    assert rows.shape == (len(ids), 16)
    assert rows[0].tolist() == FIRST_ROWS
    offsets = np.concatenate([[0], np.cumsum(layout.layer(1).moduli)[:-1]])
    assert np.array_equal(hash_tokens(layout, ids, layer=1), rows + offsets)


def test_engram_v1_moduli_are_distinct_primes(deepseek_vocab: CompressedVocab) -> None:
    layout = hash_layout("engram-v1", deepseek_vocab)
    moduli = [m for layer in layout.layers for m in layer.moduli]
    assert len(moduli) == len(set(moduli)) == 32
    assert all(is_prime(m) and m >= 646400 - 1 for m in moduli)
    # Order 3 of the first layer starts at the base again and skips what order 2 took.
    assert moduli[:16] == sorted(moduli[:16])


def test_deepseek_v41(deepseek_vocab: CompressedVocab) -> None:
    layout = hash_layout("deepseek-v4.1", deepseek_vocab)
    assert layout.layer(1).multipliers == (
        *(76632096046245, 4839876093313),
        *(35959672319349, 73987337458391),
    )
    assert layout.layer(14).multipliers == (
        *(67716810739261, 51510806800915),
        *(30921347202721, 82619226485591),
    )
    assert [layer.rows for layer in layout.layers] == [384_006_168, 384_016_682]
    assert [sum(layer.moduli) for layer in layout.layers] == [384_006_168, 384_016_682]
    assert layout.columns == 24


def test_qwen_ple() -> None:
    layout = hash_layout("qwen-ple", vocab_size=248320, eos_id=248044)
    layer = layout.layers[0]
    assert layer.multipliers == (23703573157769, 20109073645365, 8052911324071)
    assert layer.moduli[:3] == (20000003, 20000023, 20000033)
    assert layer.rows == 320001536
    assert hash_tokens(layout, [5]).shape == (1, 16)  # one layer: it need not be named


def test_tutorial() -> None:
    layout = hash_layout("tutorial", vocab_size=1000)
    rows = hash_tokens(layout, [42, 108, 256, 512], head_local=True)
    assert rows[3, 0] == 292
    assert layout.columns * (128 // layout.heads) == 256


@pytest.mark.parametrize("value", [0, 1, 4, 561, 3215031751, 3825123056546413051, 2**61 + 1])
def test_composites(value: int) -> None:
    assert not is_prime(value)


@pytest.mark.parametrize("value", [2, 3, 37, 41, 2**31 - 1, 2**61 - 1, 18446744073709551557])
def test_primes(value: int) -> None:
    assert is_prime(value)


def test_primes_against_a_sieve() -> None:
    sieve = np.ones(5000, dtype=bool)
    sieve[:2] = False
    for i in range(2, 71):
        sieve[i * i :: i] = False
    assert [is_prime(i) for i in range(5000)] == sieve.tolist()
    assert next_prime(-5) == 2
    assert next_prime(7) == 11


def longcat_rows(ids: list[int], vocab: int, heads: int, most: int, m: int, eos: int) -> list:
    """Rows by the published formula, position by position, in Python's integers."""
    found = []
    for position in range(len(ids)):
        line, offset = [], 0
        for column in range((most - 1) * heads):
            order, size = column // heads + 2, m + 2 * column + 1
            total = 0
            for lag in range(min(order, position + 1)):
                token = ids[position - lag]
                if lag and token == eos:
                    break
                total += token * (vocab**lag % size)
            line.append(total % size + offset)
            offset += size
        found.append(line)
    return found


@pytest.mark.parametrize(
    ("vocab", "heads", "most", "m"),
    [
        (131072, 4, 4, 78 * 131072),  # LongCat-Flash-Lite
        (163840, 4, 5, int(100.567 * 163840)),  # LongCat-2.0
        (120, 2, 3, 12),
    ],
)
def test_longcat(vocab: int, heads: int, most: int, m: int) -> None:
    eos = 2
    layout = hash_layout(
        "longcat",
        vocab_size=vocab,
        eos_id=eos,
        heads=heads,
        orders=tuple(range(2, most + 1)),
        rows_per_head=m,
    )
    assert layout.layers[0].moduli[:2] == (m + 1, m + 3)  # odd, not prime
    ids = np.random.default_rng(0).integers(0, vocab, 300)
    ids[::7], ids[1::50], ids[:3] = eos, vocab - 1, (0, vocab - 1, eos)
    rows = hash_tokens(layout, ids)
    assert rows.tolist() == longcat_rows(ids.tolist(), vocab, heads, most, m, eos)


def test_longcat_has_one_layer_and_all_orders() -> None:
    for wrong in ({"layers": (1,)}, {"orders": (2, 4)}, {"rows_per_head": 2**32}):
        with pytest.raises(LayoutError):
            hash_layout("longcat", **wrong)
