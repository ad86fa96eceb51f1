"""The faults that a port of a hash can have, tried one by one and in pairs on somebody's rows.

A `Reading` is a way to compute rows, the right one or one with faults, in plain NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.golden.cases import compressed_ids
from engram_cli.commands.golden.file import TheirCase, Theirs
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import engram_v1, qwen_ple

MAP, PAD, WINDOW = "vocabulary map", "pad id", "window"
MULTIPLIERS, MODULI, OFFSETS = "multipliers", "moduli", "offsets"
STEPS = (MAP, PAD, WINDOW, MULTIPLIERS, MODULI, OFFSETS)
Numbers = Mapping[int, tuple[int, ...]]  # by layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A way to compute rows.

    `shift`: tokens between a position and the newest token of its n-grams. `shorter`: tokens that
    each n-gram lacks. `last`: an order of n tokens takes the last n multipliers. `bits`: of a
    product. `eos`: the compressed id that ends a segment, None where none does; with `before_eos`
    the segment ends before it. `dead`: what dead tokens block: themselves and what is older
    ("latch"), themselves, what is older, nothing. `offsets`: None where the moduli give them.
    """

    multipliers: Numbers
    moduli: Numbers
    filler: int
    tokens: Literal["compressed", "raw", "theirs"] = "compressed"
    reverse: bool = False
    shift: int = 0
    shorter: int = 0
    last: bool = False
    bits: int = 64
    eos: int | None = None
    before_eos: bool = False
    dead: Literal["latch", "alone", "older", "ignored"] = "latch"
    padding: bool = True
    place: Literal["table", "head", "order", "all layers", "heads first"] = "table"
    offsets: Numbers | None = None

    @classmethod
    def right(cls, layout: HashLayout) -> Reading:
        """Return the reading without a fault."""
        return cls(
            multipliers={entry.layer: entry.multipliers for entry in layout.layers},
            moduli={entry.layer: entry.moduli for entry in layout.layers},
            filler=layout.filler_id,
            eos=layout.eos_id,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """A fault: the steps of the hash it is in, "equal if ...", and what it changes in a Reading."""

    steps: tuple[str, ...]
    text: str
    changes: Mapping[str, Any]


def rows_by(layout: HashLayout, reading: Reading, their: TheirCase, layer: int) -> NDArray[Any]:
    """Return the rows int64[T, C] of a case, as a reading has them."""
    x = _tokens(layout, reading, their)
    reach = _reach(reading, their, x)
    if reading.dead == "alone":
        x = np.where(their.case.dead_mask, reading.filler, x)
    older = np.full(layout.max_order + reading.shift, reading.filler, dtype=np.int64)
    stream, count = np.concatenate([older, x]), len(x)
    multipliers, moduli = reading.multipliers[layer], reading.moduli[layer]
    lags = range(reading.shift, reading.shift + layout.max_order)
    seen = [
        np.where(reach > lag, stream[len(older) - lag :][:count], reading.filler) for lag in lags
    ]
    rows = np.empty((count, layout.columns), dtype=np.int64)
    salts, mix = layout.layer(layer).salts, np.zeros(count, dtype=np.int64)
    for column, modulus in enumerate(moduli):
        if column % layout.heads == 0 or layout.fold == "powers":
            own = _lag_multipliers(layout, reading, multipliers, column, modulus)
            mix = np.zeros(count, dtype=np.int64)
            for token, multiplier in zip(seen, own, strict=False):
                product = token * np.int64(multiplier)
                if reading.bits < 64:
                    product &= np.int64(2**reading.bits - 1)
                mix = mix + product if layout.fold == "powers" else mix ^ product
        rows[:, column] = np.remainder(mix ^ np.int64(salts[column]), np.int64(modulus))
    return _placed(layout, reading, rows, layer)


def _lag_multipliers(
    layout: HashLayout, reading: Reading, multipliers: tuple[int, ...], column: int, modulus: int
) -> tuple[int, ...]:
    """Return what a column multiplies each token of its n-gram by, the newest first."""
    order = layout.orders[column // layout.heads]
    own = multipliers[-order:] if reading.last else multipliers[:order]
    if layout.fold == "powers":
        products = accumulate(own, lambda a, b: a * b % modulus)
        own = tuple(product % modulus for product in products)
    if reading.reverse != (layout.fold == "oldest-first"):
        own = own[::-1]
    return own[: order - reading.shorter]


def _tokens(layout: HashLayout, reading: Reading, their: TheirCase) -> NDArray[np.int64]:
    if reading.tokens == "raw":
        return their.case.ids
    if reading.tokens == "theirs" and their.compressed is not None:
        return their.compressed
    return compressed_ids(layout, their.case.ids)


def _reach(reading: Reading, their: TheirCase, x: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[T]: how many tokens each position may see, itself included."""
    case, position = their.case, np.arange(len(x))
    begin = np.where(case.starts & reading.padding, position, 0)
    if reading.eos is not None:
        ends = np.flatnonzero(x[:-1] == reading.eos) + (0 if reading.before_eos else 1)
        begin[ends] = ends
        if reading.before_eos and x[-1] == reading.eos:
            begin[-1] = len(x) - 1
    if reading.dead in ("latch", "older"):
        begin = np.where(case.dead_mask, position + (reading.dead == "latch"), begin)
    reach: NDArray[np.int64] = position - np.maximum.accumulate(begin) + 1
    return reach


def _placed(
    layout: HashLayout, reading: Reading, rows: NDArray[np.int64], layer: int
) -> NDArray[np.int64]:
    """Add the offsets to head-local rows [T, C], in place."""
    moduli = reading.moduli[layer]
    offsets = np.array([0, *accumulate(moduli)][:-1], dtype=np.int64)
    if reading.offsets is not None:
        offsets = np.array(reading.offsets[layer], dtype=np.int64)
    if reading.place == "head":
        return rows
    if reading.place == "order":
        offsets -= np.repeat(offsets[:: layout.heads], layout.heads)
    if reading.place == "all layers":
        before = layout.layers[: layout.layer_ids.index(layer)]
        offsets += sum(entry.rows for entry in before)
    rows += offsets
    if reading.place == "heads first":
        by_order = rows.reshape(len(rows), len(layout.orders), layout.heads)
        return by_order.transpose(0, 2, 1).reshape(rows.shape)
    return rows


def hypotheses(layout: HashLayout, theirs: Theirs) -> list[Hypothesis]:
    """Return the single faults that change rows of this layout, the likeliest of a step first."""
    right = Reading.right(layout)
    found = [
        *_of_tokens(layout, theirs),
        *_of_window(layout),
        *_of_multipliers(layout, theirs),
        *_of_moduli(layout, theirs),
        *_of_offsets(layout, theirs),
    ]
    layers = {layer for each in theirs.cases for layer in each.rows}
    kept: list[Hypothesis] = []
    met = [_of_layers(right, layers)]
    for each in found:  # of two that are the same fault here, the first is tried
        reading = _of_layers(replace(right, **each.changes), layers)
        if reading not in met:
            met.append(reading)
            kept.append(each)
    return kept


def _of_layers(reading: Reading, layers: set[int]) -> Reading:
    """Return a reading that knows these layers only, to compare it with others."""
    own: dict[str, Any] = {
        name: {layer: values[layer] for layer in layers}
        for name in ("multipliers", "moduli", "offsets")
        if (values := getattr(reading, name)) is not None
    }
    return replace(reading, **own)


def _one(step: str, text: str, **changes: Any) -> Hypothesis:
    return Hypothesis(steps=(step,), text=text, changes=changes)


def _of_tokens(layout: HashLayout, theirs: Theirs) -> Iterator[Hypothesis]:
    if layout.lookup is not None:
        yield _one(MAP, "if raw ids are hashed, not compressed ones", tokens="raw")
    if any(each.compressed is not None for each in theirs.cases):
        yield _one(MAP, "with their compressed ids", tokens="theirs")
    yield _one(PAD, "if the pad id is 0", filler=0)
    raw = layout.parameters.get("pad_id")
    if type(raw) is int and 0 <= raw < 2**31:
        yield _one(PAD, f"if the pad id is {raw}, which was not compressed", filler=raw)
    if theirs.filler_id is not None:
        yield _one(PAD, f"if the pad id is {theirs.filler_id}, as in their layout",
                   filler=theirs.filler_id)  # fmt: skip
    for token in (1, 2, 3, layout.compressed_size - 1, -1):
        yield _one(PAD, f"if the pad id is {token}", filler=token)


def _of_window(layout: HashLayout) -> Iterator[Hypothesis]:
    end = "newest" if layout.fold == "oldest-first" else "oldest"
    yield _one(WINDOW, f"if the window is read {end} first", reverse=True)
    yield _one(WINDOW, "if n-grams look one token further back", shift=1)
    yield _one(WINDOW, "if every n-gram is one token shorter", shorter=1)
    if layout.eos_id is None:
        yield _one(WINDOW, "if the pad token inside a text ends n-grams", eos=layout.filler_id)
    else:
        yield _one(WINDOW, "if EOS does not end n-grams", eos=None)
        yield _one(WINDOW, "if n-grams end before an EOS, not after it", before_eos=True)
    yield _one(WINDOW, "if dead tokens are hashed like any other", dead="ignored")
    yield _one(WINDOW, "if a dead token blocks itself but not what is older", dead="alone")
    yield _one(WINDOW, "if a dead token blocks what is older but not itself", dead="older")
    yield _one(WINDOW, "if n-grams reach into the padding in front", padding=False)


def _of_multipliers(layout: HashLayout, theirs: Theirs) -> Iterator[Hypothesis]:
    own = {entry.layer: entry.multipliers for entry in layout.layers}
    for layer, multipliers in own.items():
        text = f"with the multipliers of layer {layer}"
        yield _one(MULTIPLIERS, text, multipliers=dict.fromkeys(own, multipliers))
    last = list(own.values())
    turned = dict(zip(own, last[::-1], strict=True))
    yield _one(MULTIPLIERS, "with the layers' multipliers in reverse order", multipliers=turned)
    if layout.fold != "powers":
        yield _one(MULTIPLIERS, "if a short n-gram takes the last multipliers", last=True)
        yield _one(MULTIPLIERS, "if products are cut to 32 bits", bits=32)
    for text, drawn in _drawn(layout):
        yield _one(MULTIPLIERS, text, multipliers=drawn)
    given = {n: each.multipliers for n, each in theirs.layers.items() if each.multipliers}
    if given:
        yield _one(MULTIPLIERS, "with the multipliers of their layout", multipliers=own | given)


def _drawn(layout: HashLayout) -> Iterator[tuple[str, Numbers]]:
    """Yield multipliers as the scheme draws them for other layer numbers, sizes and seeds."""
    seed = layout.parameters.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**62:
        return
    size, order = layout.compressed_size, layout.max_order
    if layout.scheme == "qwen-ple":
        for text, step in (("", 0), (" less one", -1)):
            yield (
                f"with the multipliers drawn by the layer's number{text}, not by its place",
                {n: qwen_ple.multipliers(size, order, n + step, seed) for n in layout.layer_ids},
            )
    elif layout.scheme in ("engram-v1", "deepseek-v4.1"):
        draw = engram_v1.multipliers
        for step in (1, -1):
            layers = [n for n in layout.layer_ids if n + step >= 0]
            if len(layers) == len(layout.layers):
                text = f"with layer numbers {'+' if step > 0 else '-'} 1 as seeds of multipliers"
                yield text, {n: draw(size, order, n + step, seed) for n in layers}
        yield (
            f"with multipliers drawn for {layout.vocab_size:,} raw ids, not {size:,} compressed",
            {n: draw(layout.vocab_size, order, n, seed) for n in layout.layer_ids},
        )
        yield (
            "with the seed alone, the same in every layer",
            dict.fromkeys(layout.layer_ids, draw(size, order, 0, seed)),
        )


def _of_moduli(layout: HashLayout, theirs: Theirs) -> Iterator[Hypothesis]:
    own = {entry.layer: entry.moduli for entry in layout.layers}
    heads, orders = layout.heads, len(layout.orders)
    for layer, moduli in own.items():
        yield _one(MODULI, f"with the moduli of layer {layer}", moduli=dict.fromkeys(own, moduli))
    alike = {n: moduli[:heads] * orders for n, moduli in own.items()}
    yield _one(MODULI, "if every order has the moduli of the first one", moduli=alike)
    first = {
        n: tuple(m for m in moduli[::heads] for _ in range(heads)) for n, moduli in own.items()
    }
    yield _one(MODULI, "if all heads of an order have its first modulus", moduli=first)
    sizes = layout.parameters.get("rows_per_head")
    listed = list(sizes) if isinstance(sizes, list | tuple) else [sizes] * orders
    if len(listed) == orders and all(type(size) is int and 0 < size < 2**62 for size in listed):
        base = tuple(size for size in listed for _ in range(heads))
        text = "if the modulus is the size that was asked for, not the prime above it"
        yield _one(MODULI, text, moduli=dict.fromkeys(own, base))
    given = {n: each.moduli for n, each in theirs.layers.items() if each.moduli}
    if given:
        yield _one(MODULI, "with the moduli of their layout", moduli=own | given)


def _of_offsets(layout: HashLayout, theirs: Theirs) -> Iterator[Hypothesis]:
    yield _one(OFFSETS, "if rows are counted within a head", place="head")
    yield _one(OFFSETS, "if rows are counted within an order", place="order")
    yield _one(OFFSETS, "if rows are counted over all layers", place="all layers")
    yield _one(OFFSETS, "if columns go by head, orders inside", place="heads first")
    given = {n: each.offsets for n, each in theirs.layers.items() if each.offsets}
    if given:
        own = {entry.layer: entry.offsets for entry in layout.layers}
        yield _one(OFFSETS, "with the offsets of their layout", offsets=own | given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """What the search found: rows compared and equal, the hypotheses under which all are equal.

    `closest`: where there is none, the best one, and how many rows are equal under it.
    """

    compared: int
    equal: int
    exact: tuple[Hypothesis, ...] = ()
    closest: Hypothesis | None = None
    closest_equal: int = 0


def explain(layout: HashLayout, theirs: Theirs) -> Explained:
    """Try every fault, then every pair of faults in different steps, until some explain all."""
    right = Reading.right(layout)
    compared = sum(int(given.sum()) * layout.columns
                   for each in theirs.cases for _, given in each.rows.values())  # fmt: skip
    equal = _equal(layout, right, theirs.cases)
    if equal == compared:
        return Explained(compared=compared, equal=equal)
    single = hypotheses(layout, theirs)
    counts = [_equal(layout, replace(right, **each.changes), theirs.cases) for each in single]
    exact = [each for each, count in zip(single, counts, strict=True) if count == compared]
    if not exact:
        exact = [pair for pair in _pairs(single) if _all_equal(layout, right, pair, theirs.cases)]
    best = int(np.argmax(counts))
    near = not exact and counts[best] > equal
    return Explained(
        compared=compared,
        equal=equal,
        exact=tuple(exact),
        closest=single[best] if near else None,
        closest_equal=counts[best] if near else 0,
    )


def _pairs(single: Sequence[Hypothesis]) -> Iterator[Hypothesis]:
    """Yield two faults at once; two of the window go together, where they change other things."""
    for one, other in combinations(single, 2):
        if one.changes.keys() & other.changes.keys():
            continue
        if one.steps == other.steps and one.steps != (WINDOW,):
            continue
        yield Hypothesis(
            steps=one.steps + other.steps,
            text=f"{one.text}, and {other.text}",
            changes={**one.changes, **other.changes},
        )


def _equal(layout: HashLayout, reading: Reading, cases: Sequence[TheirCase]) -> int:
    """Return how many of the given rows a reading has."""
    return sum(_of_case(layout, reading, each)[0] for each in cases)


def _all_equal(
    layout: HashLayout, right: Reading, tried: Hypothesis, cases: Sequence[TheirCase]
) -> bool:
    """Return whether a reading has all of the given rows; stops at the first case it has not."""
    reading = replace(right, **tried.changes)
    for each in cases:
        equal, total = _of_case(layout, reading, each)
        if equal != total:
            return False
    return True


def _of_case(layout: HashLayout, reading: Reading, their: TheirCase) -> tuple[int, int]:
    """Return how many of a case's rows are equal, and how many are given."""
    equal = total = 0
    for layer, (rows, given) in their.rows.items():
        ours = rows_by(layout, reading, their, layer)
        equal += int(np.count_nonzero((ours == rows)[given]))
        total += int(given.sum()) * layout.columns
    return equal, total
