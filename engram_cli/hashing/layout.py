"""HashLayout: everything that decides which row an n-gram falls on, resolved once.

A scheme (`hashing.schemes`) meets a vocabulary and makes a layout; every artifact stores it, and
its fingerprint says whether two artifacts belong together. Plain Python and NumPy: the runtime
reads layouts too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from numbers import Integral
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, LayoutError, MismatchError
from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.vocab.lookup import lookup_digest

MAX_ORDER = 16
MAX_HEADS = 256
MAX_MODULUS = 2**32
INT64 = 2**63
VERSION = 1
# The vocabulary digest of a layout whose vocabulary map nobody has: it hashes no token.
UNKNOWN_VOCABULARY = "unknown"
UNKNOWN_SCHEME = "unknown"
# The parameter of a layout that compresses only ids below it, and hashes the others as they are.
BASE_VOCABULARY = "base_vocabulary"
# The parameter that names token ids which are dead wherever they are: a model gives no mask.
DEAD_TOKENS = "dead_tokens"

# How the tokens of an n-gram become one number; see `HashLayout.lag_multipliers` and `weights`.
FOLDS = ("newest-first", "oldest-first", "oldest-first-late", "powers")
Fold = Literal["newest-first", "oldest-first", "oldest-first-late", "powers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHash:
    """The hash of one layer: `multipliers` int64[N], and per column a modulus, a salt, an offset.

    A column is one head of one order; columns go by order, heads inside. `rows` is the height of
    the layer's table: the moduli's sum, or more where the scheme pads it.
    """

    layer: int
    multipliers: tuple[int, ...]
    moduli: tuple[int, ...]
    salts: tuple[int, ...]
    rows: int

    @property
    def offsets(self) -> tuple[int, ...]:
        """Return the first table row of each column."""
        sums = [0]
        for modulus in self.moduli[:-1]:
            sums.append(sums[-1] + modulus)
        return tuple(sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashLayout:
    """A resolved layout. `lookup` (int32[vocab_size]) is bound, not stored: only its digest is.

    `fold` says how a row follows from the tokens of an n-gram. "newest-first" and "oldest-first":
    the XOR of token x multiplier over the lags, XOR the column's salt, modulo its modulus.
    "oldest-first-late": the same over the n oldest of the last N tokens, so that all orders below
    N skip the newest ones.
    "powers": the sum of token x weight, modulo the modulus; a column's `weights` are products of
    the multipliers modulo its modulus, such as the powers of a base.
    `filler_id` is the compressed id read at blocked positions; `eos_id` (compressed) ends a segment
    that no n-gram crosses, None where the scheme has no such rule. `parameters` are what the scheme
    was asked for, enough to make the layout again.
    """

    scheme: str
    orders: tuple[int, ...]
    heads: int
    fold: Fold
    filler_id: int
    eos_id: int | None
    compressed_size: int
    vocab_digest: str | None
    layers: tuple[LayerHash, ...]
    parameters: Mapping[str, Any]
    lookup: NDArray[np.int32] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_layout(self)

    @property
    def max_order(self) -> int:
        """Return N, the longest n-gram."""
        return self.orders[-1]

    @property
    def columns(self) -> int:
        """Return C = orders x heads, the rows looked up for a token and a layer."""
        return len(self.orders) * self.heads

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Return the layers that have a table, in the order of the scheme's walk."""
        return tuple(entry.layer for entry in self.layers)

    @property
    def vocab_size(self) -> int:
        """Return how many raw token ids the layout takes."""
        return self.compressed_size if self.lookup is None else len(self.lookup)

    @property
    def fingerprint(self) -> str:
        """Return the digest of all that decides rows. Equal fingerprints: the same row for every
        token."""
        decisive = {k: v for k, v in self.to_json().items() if k not in ("parameters", "scheme")}
        return sha256_bytes(b"engram layout 1\n", canonical_json(decisive))

    def layer(self, layer: int | None = None) -> LayerHash:
        """Return the hash of `layer`; without one, of the only layer. Raises LayoutError."""
        if layer is None and len(self.layers) == 1:
            return self.layers[0]
        for entry in self.layers:
            if entry.layer == layer:
                return entry
        known = ", ".join(map(str, self.layer_ids))
        wanted = "no layer was named" if layer is None else f"the layout has no layer {layer}"
        raise LayoutError(wanted, f"its layers are {known}")

    def lag_multipliers(self, layer: LayerHash, order: int) -> tuple[int, ...]:
        """Return the multiplier of each token from the newest one back, `order` of them, or N where
        the fold is "oldest-first-late": 0 for the tokens that are skipped."""
        own = layer.multipliers[:order]
        if self.fold == "oldest-first-late":
            return (0,) * (self.max_order - order) + own[::-1]
        return own[::-1] if self.fold == "oldest-first" else own

    def weights(self, layer: LayerHash, column: int) -> tuple[int, ...]:
        """Return what a column multiplies each of its n-gram's tokens by, the newest first, where
        the fold is "powers": the product of the multipliers up to a lag, modulo the column's
        modulus."""
        modulus, order = layer.moduli[column], self.orders[column // self.heads]
        products = accumulate(layer.multipliers[:order], lambda a, b: a * b % modulus)
        return tuple(product % modulus for product in products)

    def column_names(self) -> list[str]:
        """ "2-gram head 0" and so on, one a column."""
        return [f"{n}-gram head {h}" for n in self.orders for h in range(self.heads)]

    def bind(self, lookup: NDArray[np.int32] | None) -> HashLayout:
        """Return the same layout with its vocabulary map. Raises MismatchError for another map."""
        digest = None if lookup is None else lookup_digest(lookup)
        if digest != self.vocab_digest:
            raise MismatchError(
                f"the layout was made for vocabulary {short(self.vocab_digest)}, "
                f"this one is {short(digest)}",
                "use the vocabulary that the layout was made with, or make the layout again",
            )
        return replace(self, lookup=lookup)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; multipliers and salts, which exceed 53 bits, as strings."""
        value = {name: getattr(self, name) for name in self.__slots__ if name != "lookup"}
        value["version"] = VERSION
        value["orders"] = list(self.orders)
        value["parameters"] = dict(self.parameters)
        value["layers"] = [
            asdict(entry)
            | {
                "multipliers": [str(m) for m in entry.multipliers],
                "salts": [str(s) for s in entry.salts],
                "moduli": list(entry.moduli),
            }
            for entry in self.layers
        ]
        return value

    @classmethod
    def from_json(cls, value: Any, lookup: NDArray[np.int32] | None = None) -> HashLayout:
        """Read `to_json`'s value, every field checked, and bind `lookup` when given.

        Raises ArtifactError when it is not a layout, MismatchError for another vocabulary.
        """
        try:
            if _count(value["version"]) > VERSION:
                raise ArtifactError(
                    f"the layout has version {value['version']}, newer than {VERSION}",
                    "upgrade engram",
                )
            layout = cls(
                scheme=str(value["scheme"]),
                orders=_integers(value["orders"]),
                heads=_count(value["heads"]),
                fold=cast(Fold, value["fold"]),
                filler_id=_count(value["filler_id"]),
                eos_id=None if value["eos_id"] is None else _count(value["eos_id"]),
                compressed_size=_count(value["compressed_size"]),
                vocab_digest=_text_or_none(value["vocab_digest"]),
                layers=tuple(
                    LayerHash(
                        layer=_count(entry["layer"]),
                        multipliers=_integers(entry["multipliers"]),
                        moduli=_integers(entry["moduli"]),
                        salts=_integers(entry["salts"]),
                        rows=_count(entry["rows"]),
                    )
                    for entry in value["layers"]
                ),
                parameters=dict(value["parameters"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError, LayoutError) as error:
            raise ArtifactError(f"not a hash layout: {error}", "make the artifact again") from None
        return layout if lookup is None else layout.bind(lookup)


def rows_alone(rows: int) -> HashLayout:
    """Return a layout of `rows` rows, 2 or more, of which nobody knows the hash: it hashes nothing.

    Its one layer, 0, has one column.
    """
    entry = LayerHash(
        layer=0, multipliers=(0,), moduli=(min(rows, MAX_MODULUS),), salts=(0,), rows=rows
    )
    return HashLayout(
        scheme=UNKNOWN_SCHEME,
        orders=(1,),
        heads=1,
        fold="newest-first",
        filler_id=0,
        eos_id=None,
        compressed_size=1,
        vocab_digest=UNKNOWN_VOCABULARY,
        layers=(entry,),
        parameters={},
    )


def dead_tokens(layout: HashLayout) -> list[int]:
    """Return the token ids of a layout's vocabulary that no n-gram looks across, in any text."""
    named = layout.parameters.get(DEAD_TOKENS)
    ids = named if isinstance(named, list) else []
    return [i for i in ids if type(i) is int and 0 <= i < layout.vocab_size]


def short(digest: str | None) -> str:
    """Return the first digits of a digest, for messages."""
    return "none" if digest is None else digest.removeprefix("sha256:")[:12]


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MAX_ORDER * MAX_HEADS:
        raise ValueError("a list of integers was expected")
    if not all(type(value) in (int, str) for value in values):
        raise ValueError("a list of integers was expected")
    return tuple(int(value) for value in values)


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r} is no count")
    return value


def _text_or_none(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no digest")
    return value


def check_shape(orders: Sequence[int], heads: int, layers: Sequence[int]) -> None:
    """Raise LayoutError for orders, heads or layers that no layout can have."""
    orders, layers = list(orders), list(layers)
    if not all(isinstance(n, Integral) for n in (heads, *orders, *layers)):
        raise LayoutError(
            f"orders {orders}, heads {heads}, layers {layers}: not all are integers",
            "give integers, such as orders (2, 3), heads 8, layers (1, 15)",
        )
    if not orders or sorted(set(orders)) != orders or orders[0] < 1:
        raise LayoutError(
            f"orders {orders} are not ascending and distinct", "give orders such as 2,3"
        )
    if orders[-1] > MAX_ORDER:
        raise LayoutError(f"order {orders[-1]} is too long", f"at most {MAX_ORDER}")
    if not 1 <= heads <= MAX_HEADS:
        raise LayoutError(f"{heads} heads", f"give 1 to {MAX_HEADS}")
    if not layers:
        raise LayoutError("the layout has no layer", "give at least one, such as --layers 1")
    if len(set(layers)) != len(layers):
        raise LayoutError(f"layers {layers} are not different", "name each layer once")
    if not all(0 <= layer < 2**31 for layer in layers):
        raise LayoutError(f"layers {layers}: below 0 or beyond 2^31", "layers count from 0")


def _check_layout(layout: HashLayout) -> None:
    def need(true: bool, message: str, hint: str) -> None:
        if not true:
            raise LayoutError(message, hint)

    check_shape(layout.orders, layout.heads, layout.layer_ids)
    need(layout.fold in FOLDS, f"fold '{layout.fold}'", f"known: {', '.join(FOLDS)}")
    need(layout.compressed_size >= 1, "the vocabulary is empty", "give a vocabulary")
    for name, token in (("pad", layout.filler_id), ("EOS", layout.eos_id)):
        need(
            token is None or 0 <= token < layout.compressed_size,
            f"the {name} token id {token} is outside the vocabulary of {layout.compressed_size}",
            "give an id below the vocabulary's size with --pad-id or --eos-id",
        )
    for entry in layout.layers:
        _check_layer(layout, entry)


def _check_layer(layout: HashLayout, entry: LayerHash) -> None:
    def need(true: bool, message: str, hint: str) -> None:
        if not true:
            raise LayoutError(f"layer {entry.layer}: {message}", hint)

    need(
        len(entry.multipliers) == layout.max_order,
        f"{len(entry.multipliers)} multipliers for order {layout.max_order}",
        "one multiplier a token is needed",
    )
    need(
        len(entry.moduli) == len(entry.salts) == layout.columns,
        f"{len(entry.moduli)} moduli for {layout.columns} columns",
        "one modulus a head and order is needed",
    )
    for value in entry.multipliers + entry.salts:
        need(-INT64 <= value < INT64, f"{value} does not fit int64", "use a published scheme")
    for modulus in entry.moduli:
        need(
            2 <= modulus <= MAX_MODULUS,
            f"modulus {modulus} is not in 2..2^32",
            "choose between 2 and 2^32 rows a head",
        )
    if layout.fold == "powers":
        largest = layout.max_order * (layout.compressed_size - 1) * (max(entry.moduli) - 1)
        need(largest < INT64, "sums of token x weight overflow int64", "choose fewer rows a head")
        need(not any(entry.salts), "salts with fold 'powers'", "this fold has no salts")
    need(
        sum(entry.moduli) <= entry.rows < INT64 // 2**16,
        f"{entry.rows} rows cannot hold moduli that sum to {sum(entry.moduli)}",
        "the rows are the sum of the moduli, or more",
    )
