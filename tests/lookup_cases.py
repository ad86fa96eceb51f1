"""Small look-ups that every implementation must agree on, on any device.

Hashes of all schemes, and wild ones; ids in every form with every limit; tables of every kind.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engram_cli.hashing.layout import HashLayout, LayerHash
from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime.loading import hash_tensors
from engram_cli.runtime.lookup_reference import LookBack
from engram_cli.runtime.reference import HashTensors
from engram_cli.runtime.tables import Table
from engram_cli.vocab.compress import CompressedVocab

VOCAB = 40


def bare_vocab(size: int, groups: int) -> CompressedVocab:
    """A vocabulary of `size` ids that compress to `groups`."""
    blank = [""] * size
    return CompressedVocab(
        lookup=(np.arange(size) % groups).astype(np.int32),
        size=groups,
        texts=blank,
        tokens=blank,
        keys=blank,
        special_ids=frozenset(),
        tokenizer_digest="",
        source="",
    )


def scheme_layout(scheme: str, **options: Any) -> HashLayout:
    """A small layout of a published scheme."""
    options = {"orders": (2, 3), "heads": 3, "rows_per_head": 61, "layers": (1, 4)} | options
    if scheme in ("engram-v1", "deepseek-v4.1"):
        return hash_layout(scheme, bare_vocab(VOCAB, 23), pad_id=5, **options)
    if scheme == "qwen-ple":
        options["eos_id"] = 2
    return hash_layout(scheme, vocab_size=VOCAB, **options)


def wild_layout(seed: int, orders: tuple[int, ...], heads: int, *, largest: int) -> HashLayout:
    """A layout whose products wrap and turn negative, with salts and an EOS."""
    pick = random.Random(seed)

    def layer(number: int) -> LayerHash:
        moduli = tuple(pick.randint(2, largest) for _ in range(len(orders) * heads))
        return LayerHash(
            layer=number,
            multipliers=tuple(pick.randint(-(2**63), 2**63 - 1) for _ in range(orders[-1])),
            moduli=moduli,
            salts=tuple(pick.randint(-(2**63), 2**63 - 1) for _ in moduli),
            rows=sum(moduli),
        )

    return HashLayout(
        scheme="wild",
        orders=orders,
        heads=heads,
        fold=pick.choice(["newest-first", "oldest-first"]),
        filler_id=3,
        eos_id=7,
        compressed_size=VOCAB,
        vocab_digest=None,
        layers=(layer(0), layer(5)),
        parameters={},
    )


LAYOUTS: dict[str, Callable[[], HashLayout]] = {
    "engram-v1": lambda: scheme_layout("engram-v1"),
    "deepseek-v4.1": lambda: scheme_layout("deepseek-v4.1", orders=(2, 3, 4), heads=8),
    "qwen-ple": lambda: scheme_layout("qwen-ple", heads=4),
    "tutorial": lambda: scheme_layout("tutorial", orders=(2,), heads=5),
    "one head": lambda: scheme_layout("engram-v1", orders=(3,), heads=1, layers=(2,)),
    "wild": lambda: wild_layout(1, (1, 3, 5), 2, largest=2**32),
    "wild, small": lambda: wild_layout(2, (2, 4), 3, largest=50),
}


def the_hash(name: str, device: torch.device, *, holes: bool = True) -> HashTensors:
    """The hash of a layout's layers; with `holes` the vocabulary ends in ids without a token."""
    layout = LAYOUTS[name]()
    size = layout.vocab_size + (4 if holes else 0)
    return hash_tensors(layout, layout.layer_ids, vocab_size=size, device=device)


def modulo_hash(device: torch.device) -> tuple[HashTensors, list[int], list[int]]:
    """A hash whose mixes are its salts, at the edges of moduli; the mixes and the moduli."""
    moduli = [2, 3, 7, 8191, 8209, 65537, 16000057, 2**31 - 1, 2**31 + 11, 2**32 - 5, 2**32]
    mixes, used = [], []
    for modulus in moduli:
        top = (2**63 - 1) // modulus
        for k in (0, 1, 2, top // 3, top - 1, top):
            for value in (k * modulus - 1, k * modulus, k * modulus + modulus - 1):
                for mix in (value, -value, -value - 1):
                    if -(2**63) <= mix < 2**63:
                        mixes.append(mix)
                        used.append(modulus)
        mixes += [2**63 - 1, -(2**63)]
        used += [modulus] * 2
    whole = len(mixes) // 256 * 256
    layers = tuple(
        LayerHash(
            layer=place,
            multipliers=(0,),
            moduli=tuple(used[begin : begin + 256]),
            salts=tuple(mixes[begin : begin + 256]),
            rows=sum(used[begin : begin + 256]),
        )
        for place, begin in enumerate(range(0, whole, 256))
    )
    layout = HashLayout(
        scheme="salts",
        orders=(1,),
        heads=256,
        fold="newest-first",
        filler_id=0,
        eos_id=None,
        compressed_size=2,
        vocab_digest=None,
        layers=layers,
        parameters={},
    )
    return hash_tensors(layout, layout.layer_ids, device=device), mixes[:whole], used[:whole]


def _ids(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, low: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, VOCAB - low, shape, generator=generator).to(device, dtype)


def _flags(device: torch.device, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return (torch.rand(shape, generator=generator) < 0.3).to(device)


def _ages(device: torch.device, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(-1, 6, shape, generator=generator).to(device)


def _packed(device: torch.device) -> tuple[Tensor, LookBack]:
    bounds = torch.tensor(
        [0, 4, 4, 5, 9], device=device
    )  # one is empty, the last two ids are in none
    return _ids(device, (11,), torch.int64), LookBack(bounds=bounds)


def _remembered(device: torch.device, ring: int) -> tuple[Tensor, LookBack]:
    history = torch.arange(5 * ring, device=device, dtype=torch.int32).view(5, ring) % 20
    history[2, 1] = -1
    return _ids(device, (4, 3), torch.int32), LookBack(
        history=history,
        positions=torch.tensor([0, 1, 7, 1000], device=device),
        slots=torch.tensor([3, 0, 2, -1], device=device),
        dead=_flags(device, (4, 3)),
    )


def _flat_history(device: torch.device) -> tuple[Tensor, LookBack]:
    history = torch.arange(24, device=device, dtype=torch.int32).view(3, 8) % 20
    return _ids(device, (6,), torch.int64), LookBack(
        bounds=torch.tensor([0, 1, 4, 5], device=device, dtype=torch.int32),
        history=history,
        positions=torch.tensor([5, 0, 2], device=device, dtype=torch.int32),
    )


def _aged_history(device: torch.device) -> tuple[Tensor, LookBack]:
    ids, back = _remembered(device, 7)
    return ids, dataclasses.replace(back, ages=_ages(device, (4, 3)).int())


FORMS: dict[str, Callable[[torch.device], tuple[Tensor, LookBack]]] = {
    "int32": lambda d: (_ids(d, (2, 5), torch.int32), LookBack()),
    "one token": lambda d: (_ids(d, (1, 1), torch.int64), LookBack()),
    "no token": lambda d: (_ids(d, (3, 0), torch.int64), LookBack()),
    "not contiguous": lambda d: (_ids(d, (6, 9), torch.int64).t()[::2, 1::2], LookBack()),
    "outside the vocabulary": lambda d: (_ids(d, (2, 9), torch.int64, low=-9), LookBack()),
    "dead": lambda d: (_ids(d, (2, 9), torch.int64), LookBack(dead=_flags(d, (2, 9)))),
    "documents": lambda d: (_ids(d, (2, 9), torch.int32), LookBack(ages=_ages(d, (2, 9)))),
    "packed": _packed,
    "history": lambda d: _remembered(d, 7),
    "short history": lambda d: _remembered(d, 5),
    "packed history": _flat_history,
    "history, documents": _aged_history,
}

_GENTLE = (100, 150)  # e8m0 bytes whose products bfloat16 and float16 hold without subnormals


def a_table(kind: str, rows: int, dim: int, device: torch.device, *, wide: bool = False) -> Table:
    """A table of random rows; with `wide` quantised ones of all bytes, NaNs and extremes too."""
    generator = torch.Generator().manual_seed(dim)
    spare = 3  # tables may be padded

    def floats(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def raw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).to(torch.uint8)

    shape = (rows + spare, dim)
    if kind in ("float32", "bfloat16", "float16"):
        return Table(values=floats(*shape).to(device, getattr(torch, kind)))
    if kind == "int8":
        values = raw(0, 256, *shape).view(torch.int8)
        return Table(values=values.to(device), scales=floats(shape[0]).to(device))
    if kind in DECODED:
        return _decoded(kind, raw(0, 256, *shape), floats(shape[0], -(-dim // 32)).half(), device)
    values = raw(0, 256, *shape)
    if not wide:
        values = values & 0xFE  # no NaN
    if kind == "fp8 + one scale":
        return Table(values=values.to(device), scales=torch.tensor(0.37, device=device))
    scales = raw(*((0, 256) if wide else _GENTLE), shape[0], dim // 32)
    if kind == "fp8 + e8m0, one array":
        whole = torch.cat((values, scales), dim=1).to(device)
        return Table(values=whole[:, :dim], scales=whole[:, dim:])
    return Table(values=values.to(device), scales=scales.to(device))


def _decoded(kind: str, values: Tensor, scales: Tensor, device: torch.device) -> Table:
    """Rows that only the twin decodes, of random bytes and float16 scales."""
    dim = values.shape[1]
    values, scales = values.to(device), scales.to(device)
    if kind == "fp8 + e8m0, ragged":
        return Table(values=values, scales=scales.view(torch.uint8)[:, ::2].contiguous())
    if kind == "int8_b32":
        return Table(values=values.view(torch.int8), scales=scales)
    if kind == "int4":
        scales = scales[:, 0].float()
    return Table(values=values[:, : -(-dim // 2)].contiguous(), scales=scales, dim=dim)


DECODED = {"fp8 + e8m0, ragged": 40, "int8_b32": 64, "int4": 7, "int4_b32": 33}
TABLES = {
    "float32": (64, 12, 5, 1),
    "bfloat16": (64, 12, 5),
    "float16": (24, 1500),
    "int8": (64, 20),
    "fp8 + e8m0": (32, 96, 256),
    "fp8 + e8m0, one array": (256,),
    "fp8 + one scale": (160, 7, 1),
}


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Equal to the bit, any NaN being equal to any other."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.element_size()]
    equal = found.view(whole) == expected.view(whole)
    if found.is_floating_point():
        equal |= found.isnan() & expected.isnan()
    return bool(equal.all())
