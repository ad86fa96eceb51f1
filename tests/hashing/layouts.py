"""Random layouts, and the rows of an n-gram written out one position at a time."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from engram_cli.hashing.layout import HashLayout, LayerHash

INT64 = st.integers(-(2**63), 2**63 - 1)
MODULI = st.one_of(
    st.integers(2, 2**31),
    st.sampled_from([2, 3, 8191, 8192, 8193, 16000057, 2**31 - 1, 2**31, 2**32]),
)


@st.composite
def layouts(draw: st.DrawFn, *, max_heads: int = 16) -> HashLayout:
    """Layouts with orders among 2..6, up to 16 heads, any moduli, multipliers that may wrap."""
    orders = tuple(sorted(draw(st.sets(st.integers(2, 6), min_size=1, max_size=3))))
    heads = draw(st.integers(1, max_heads))
    size = draw(st.integers(1, 2**17))
    fold = draw(st.sampled_from(["newest-first", "oldest-first", "oldest-first-late", "powers"]))
    wraps, salted = draw(st.booleans()), draw(st.booleans()) and fold != "powers"
    largest = (2**63 - 1) // size // 2
    multiplier = INT64 if wraps else st.integers(0, largest).map(lambda r: 2 * r + 1)
    columns = len(orders) * heads
    moduli = tuple(draw(MODULI) for _ in range(columns))
    layer = LayerHash(
        layer=draw(st.integers(0, 100)),
        multipliers=tuple(draw(multiplier) for _ in range(orders[-1])),
        moduli=moduli,
        salts=tuple(draw(INT64) if salted else 0 for _ in range(columns)),
        rows=sum(moduli) + draw(st.integers(0, 100)),
    )
    token = st.integers(0, size - 1)
    return HashLayout(
        scheme="random",
        orders=orders,
        heads=heads,
        fold=fold,
        filler_id=draw(token),
        eos_id=draw(st.one_of(st.none(), token)),
        compressed_size=size,
        vocab_digest=None,
        layers=(layer,),
        parameters={},
    )


@st.composite
def streams(draw: st.DrawFn, layout: HashLayout, max_size: int = 40) -> dict[str, np.ndarray]:
    """Token ids with few different values (so that EOS is met), dead tokens and starts."""
    few = draw(st.lists(st.integers(0, layout.compressed_size - 1), min_size=1, max_size=4))
    few += [] if layout.eos_id is None else [layout.eos_id]
    count = draw(st.integers(0, max_size))
    pick = st.lists(st.sampled_from(few), min_size=count, max_size=count)
    mask = st.lists(st.booleans(), min_size=count, max_size=count)
    return {
        "ids": np.array(draw(pick), dtype=np.int64),
        "dead": np.array(draw(mask), dtype=bool),
        "starts": np.array(draw(mask), dtype=bool),
    }


def plain_rows(
    layout: HashLayout,
    layer: LayerHash,
    ids: np.ndarray,
    dead: np.ndarray | None,
    starts: np.ndarray | None,
) -> list[list[int]]:
    """Global rows, walking back from each position by hand, with Python's own integers."""
    rows = []
    for position in range(len(ids)):
        window = _walk_back(layout, ids, dead, starts, position)
        line, column, offset = [], 0, 0
        for order in layout.orders:
            tokens = window[:order]
            if layout.fold == "oldest-first-late":
                tokens = window[layout.max_order - order :]
            by_token = tokens[::-1] if layout.fold.startswith("oldest") else tokens
            mix, power = 0, 1
            for token, multiplier in zip(by_token, layer.multipliers, strict=False):
                power *= multiplier
                if layout.fold == "powers":
                    mix += token * power
                else:
                    mix ^= _wrap(token * multiplier)
            for _ in range(layout.heads):
                line.append((mix ^ layer.salts[column]) % layer.moduli[column] + offset)
                offset += layer.moduli[column]
                column += 1
        rows.append(line)
    return rows


def _walk_back(layout, ids, dead, starts, position) -> list[int]:
    window: list[int] = []
    at, open_ = position, True
    while len(window) < layout.max_order:
        if at < 0 or (dead is not None and dead[at]):
            open_ = False
        if at != position and open_ and layout.eos_id is not None and ids[at] == layout.eos_id:
            open_ = False
        window.append(int(ids[at]) if open_ else layout.filler_id)
        if open_ and (at == 0 or (starts is not None and starts[at])):
            open_ = False
        at -= 1
    return window


def _wrap(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63
