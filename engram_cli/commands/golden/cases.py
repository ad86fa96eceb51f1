"""The cases of golden vectors: token ids that catch the faults a port of a hash can have.

Their rows come from the same hash as everything else; docs/reference/golden-format.md describes
the document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.hasher import hash_tokens
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.lookback import Mask
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource

FORMAT, VERSION = "engram-golden", 1
SENTENCE = "Only Alexander the Great could tame the horse Bucephalus."
# The scheme that has dead tokens; the others would differ from what is published.
_WITH_DEAD = "deepseek-v4.1"
_NONE = np.zeros(0, dtype=np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """Token ids int64[T] of one sequence, and bool[T] masks; an empty mask marks no token.

    `dead`: tokens that block themselves and what is older. `padding`: tokens in front that belong
    to no sequence; the token after them is the first of one.
    """

    name: str
    why: str
    ids: NDArray[np.int64]
    dead: Mask = field(default_factory=lambda: _NONE)
    padding: Mask = field(default_factory=lambda: _NONE)

    @property
    def dead_mask(self) -> Mask:
        """Return `dead` as bool[T]."""
        return self.dead if len(self.dead) else np.zeros(len(self.ids), dtype=np.bool_)

    @property
    def starts(self) -> Mask:
        """Return bool[T]: the first token of the sequence, and each first token after padding."""
        starts: Mask = np.arange(len(self.ids)) == 0
        if len(self.padding):
            starts[1:] |= self.padding[:-1] & ~self.padding[1:]
        return starts

    @property
    def real(self) -> Mask:
        """Return bool[T]: the tokens that look rows up, which padding does not."""
        return ~self.padding if len(self.padding) else np.ones(len(self.ids), dtype=np.bool_)


def compressed_ids(layout: HashLayout, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the compressed ids int64[T] of ids that the layout takes."""
    return ids if layout.lookup is None else layout.lookup[ids].astype(np.int64)


def rows_of(layout: HashLayout, case: Case, layer: int) -> NDArray[np.int64]:
    """Return the table rows int64[T, C] of a case. Raises TokenIdError, LayoutError."""
    return hash_tokens(layout, case.ids, layer, dead=case.dead_mask, starts=case.starts)


def make_cases(layout: HashLayout, sentence: Sequence[int] | None) -> tuple[Case, ...]:
    """Return the cases of a layout that is bound to its vocabulary, the same ones each time.

    `sentence`: the ids of `SENTENCE`, None where no tokenizer is at hand.
    """
    tokens = _Tokens(layout)
    made = [*_everywhere(tokens), *_special(layout, tokens)]
    if sentence is not None:
        why = f"a real text, as the tokenizer gives it without special tokens: {SENTENCE}"
        made.append(_case("sentence", why, sentence))
    return tuple(made)


def _case(name: str, why: str, ids: Sequence[int]) -> Case:
    return Case(name=name, why=why, ids=np.array(ids, dtype=np.int64))


class _Tokens:
    """Picks token ids of a vocabulary: `used` are the ids that tokens have, ascending."""

    def __init__(self, layout: HashLayout) -> None:
        self.layout = layout
        everything = np.arange(layout.vocab_size, dtype=np.int64)
        self.used = everything if layout.lookup is None else np.flatnonzero(layout.lookup >= 0)

    def raw(self, compressed: int) -> int:
        """Return the first token id with a compressed id."""
        if self.layout.lookup is None:
            return compressed
        return int(np.flatnonzero(self.layout.lookup == compressed)[0])

    def ordinary(self, count: int) -> list[int]:
        """Return ids spread over the vocabulary, their compressed ids distinct where it has so
        many, and none of them the filler or EOS."""
        met = {self.layout.filler_id, self.layout.eos_id}
        found: list[int] = []
        total = len(self.used)
        for place in np.unique(np.linspace(0, total - 1, 8 * count).astype(np.int64)).tolist():
            token = int(self.used[place])
            own = int(compressed_ids(self.layout, np.array([token]))[0])
            if own not in met:
                met.add(own)
                found.append(token)
        found = found or [int(self.used[0])]
        step = max(1, len(found) * 5 // 8)  # neighbours in a case lie far apart
        while np.gcd(step, len(found)) != 1:
            step += 1
        return [found[(1 + at * step) % len(found)] for at in range(count)]

    def alike(self) -> list[int]:
        """Return two token ids with one compressed id; [] where there are none."""
        if self.layout.lookup is None:
            return []
        _, firsts = np.unique(self.layout.lookup[self.used], return_index=True)
        again = np.setdiff1d(np.arange(len(self.used)), firsts)
        if not len(again):
            return []
        second = int(self.used[again[len(again) // 2]])
        return [self.raw(int(self.layout.lookup[second])), second]

    def around_a_hole(self) -> list[int]:
        """Return the token ids before and after the first id that no token has; [] without one."""
        gaps = np.flatnonzero(np.diff(self.used) > 1)
        if not len(gaps):
            return []
        return [int(self.used[gaps[0]]), int(self.used[gaps[0] + 1])]


def _everywhere(tokens: _Tokens) -> Iterator[Case]:
    plain = tokens.ordinary(12)
    yield _case(
        "start of sequence",
        "the first positions read the pad id (the filler) where no token precedes them",
        plain[:7],
    )
    yield _case("one token", "every older token of the n-gram is the filler", plain[7:8])
    yield _case(
        "repeated tokens",
        "equal tokens cancel under XOR unless each place has a multiplier of its own",
        [plain[0]] * 5 + [plain[1], plain[0], plain[1], plain[0]],
    )
    low, high = int(tokens.used[0]), int(tokens.used[-1])
    yield _case(
        "smallest and largest ids",
        "products come close to 2^63, and a map that is one id short shows at its end",
        [low, high, low, low, high, high, high, low],
    )
    alike = tokens.alike()
    if alike:
        why = "two token ids share a compressed id, so their n-grams share rows"
        yield _case("look-alike tokens", why, [plain[2], alike[0], plain[2], alike[1], *plain[3:5]])
    around = tokens.around_a_hole()
    if around:
        why = "an id between these has no token: a map that counts tokens, not ids, is shifted"
        yield _case("hole in the vocabulary", why, [*around, plain[5], around[1], plain[6]])
    yield Case(
        name="padding in front",
        why="the first real token starts the sequence: n-grams do not reach into the padding, and "
        "padding looks nothing up",
        ids=np.array([plain[8]] * 3 + plain[:5], dtype=np.int64),
        padding=np.arange(8) < 3,
    )


def _special(layout: HashLayout, tokens: _Tokens) -> Iterator[Case]:
    plain = tokens.ordinary(12)
    if layout.eos_id is not None:
        eos = tokens.raw(layout.eos_id)
        ids = [*plain[:3], eos, *plain[3:7], eos, eos, *plain[7:10]]
        why = "an n-gram does not reach across an EOS: the tokens before it read as the filler"
        yield _case("EOS inside", why, ids)
    else:
        pad = tokens.raw(layout.filler_id)
        ids = [*plain[:3], pad, *plain[3:7], pad, pad, *plain[7:10]]
        why = "the scheme has no EOS rule: the pad token inside a text is hashed like any other"
        yield _case("pad token inside", why, ids)
    if layout.scheme == _WITH_DEAD:
        ids = [*plain[:4], plain[10], plain[10], *plain[4:8], plain[10], plain[8]]
        dead = np.zeros(len(ids), dtype=np.bool_)
        dead[[4, 5, 10]] = True
        yield Case(
            name="dead tokens",
            why="a dead token (an image span) blocks itself and every older token of the n-gram",
            ids=np.array(ids, dtype=np.int64),
            dead=dead,
        )


def document_of(source: RowSource, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the golden vectors of a source as plain JSON; raises what reading rows raises."""
    layout = source.layout
    layers = source.layers if source.dim is not None else layout.layer_ids
    vectors = source.dim is not None
    return {
        "format": FORMAT,
        "version": VERSION,
        "layout": _layout_json(layout),
        "rows": {"dim": source.dim, "dtype": source.dtype} if vectors else None,
        "cases": [_case_json(layout, case, layers) for case in cases],
        "values": [each for n in layers for each in _values(source, n, cases)] if vectors else [],
    }


def _layout_json(layout: HashLayout) -> dict[str, Any]:
    return {
        "scheme": layout.scheme,
        "fingerprint": layout.fingerprint,
        "vocab_digest": layout.vocab_digest,
        "vocab_size": layout.vocab_size,
        "compressed_size": layout.compressed_size,
        "orders": list(layout.orders),
        "heads": layout.heads,
        "fold": layout.fold,
        "filler_id": layout.filler_id,
        "eos_id": layout.eos_id,
        "layers": [
            {
                "layer": entry.layer,
                "multipliers": [str(each) for each in entry.multipliers],
                "moduli": list(entry.moduli),
                "salts": [str(each) for each in entry.salts],
                "offsets": list(entry.offsets),
                "rows": entry.rows,
            }
            for entry in layout.layers
        ],
    }


def _case_json(layout: HashLayout, case: Case, layers: Sequence[int]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": case.name,
        "why": case.why,
        "ids": case.ids.tolist(),
        "compressed": compressed_ids(layout, case.ids).tolist(),
        "rows": {},
    }
    for name, mask in (("dead", case.dead), ("padding", case.padding)):
        if len(mask):
            found[name] = mask.tolist()
    for layer in layers:
        rows = rows_of(layout, case, layer).tolist()
        real = case.real.tolist()
        found["rows"][str(layer)] = [
            row if used else None for row, used in zip(rows, real, strict=True)
        ]
    return found


def _values(source: RowSource, layer: int, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Yield the stored bytes and float32 values of a few rows of a layer."""
    entry = source.layout.layer(layer)
    looked_up = rows_of(source.layout, cases[0], layer)
    wanted = {0, entry.rows - 1, entry.moduli[0] - 1, entry.moduli[0]}
    wanted |= {int(looked_up[0, 0]), int(looked_up[-1, 0]), int(looked_up[-1, -1])}
    rows = np.array(sorted(row for row in wanted if 0 <= row < entry.rows), dtype=np.int64)
    stored, scales = source.stored(layer, rows)
    values = source.vectors(layer, rows)
    assert source.dtype is not None
    scaling = DTYPES.load(source.dtype).scaling
    for at, row in enumerate(rows.tolist()):
        own = None
        if scales is not None:
            own = scales if scaling is not None and scaling.per == "layer" else scales[at]
        yield {
            "layer": layer,
            "row": row,
            "stored": stored[at].tobytes().hex(),
            "scales": None if own is None else own.tobytes().hex(),
            "values": [decimal(value) for value in values[at]],
        }


def decimal(value: np.float32) -> float | str | None:
    """Return a float32 as the shortest number that reads back as it; NaN as None.

    Infinity, which JSON does not have, is a text: "inf" or "-inf".
    """
    if np.isnan(value):
        return None
    if np.isinf(value):
        return str(float(value))
    short = float(str(value))
    return short if np.float32(short) == value else float(value)
