"""A geometry as a user gives it (all of it optional), resolved to a HashLayout."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from engram_cli.commands.requests.options import LAYOUT, Option, integers
from engram_cli.errors import InputError
from engram_cli.hashing.schemes import SCHEMES
from engram_cli.registry import enumerated
from engram_cli.sizes import read_size

if TYPE_CHECKING:
    from engram_cli.hashing.layout import HashLayout

DEFAULT_SCHEME = "engram-v1"


def read_sizes(text: str) -> tuple[int, ...]:
    """Parse comma-separated sizes: 646400 or 16M,16M,8M."""
    return tuple(read_size(part) for part in text.split(","))


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """The choices that make a layout; None leaves one to the scheme."""

    PANEL = LAYOUT

    scheme: Annotated[
        str | None,
        Option(f"Hashing scheme: {SCHEMES.choices()} (engram-v1)."),
    ] = None
    orders: Annotated[
        tuple[int, ...] | None,
        Option("N-gram lengths (2,3, or the scheme's).", metavar="N,...", parser=integers),
    ] = None
    heads: Annotated[int | None, Option("Number of hash heads per order (8, or the scheme's).")] = (
        None
    )
    rows_per_head: Annotated[
        tuple[int, ...] | None,
        Option(
            "Minimum rows per head, one size or one per order: 16M (646400, or the scheme's).",
            metavar="SIZE,...",
            parser=read_sizes,
        ),
    ] = None
    layers: Annotated[
        tuple[int, ...] | None,
        Option(
            "Layers that get a table (1,15, or layers that suit the checkpoint in the folder).",
            metavar="LAYER,...",
            parser=integers,
        ),
    ] = None
    pad_id: Annotated[
        int | None,
        Option("Token id that fills positions before the start (the tokenizer's pad token)."),
    ] = None
    seed: Annotated[int | None, Option("Seed of the hash multipliers (0).")] = None
    vocab_size: Annotated[
        int | None, Option("Number of token ids, for schemes that hash raw ids (the vocabulary's).")
    ] = None
    eos_id: Annotated[
        int | None, Option("EOS token id, for schemes whose n-grams stop at it (the checkpoint's).")
    ] = None

    @property
    def given(self) -> dict[str, Any]:
        """The choices that were made, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_layout(cls, layout: HashLayout) -> Geometry:
        """Return all choices that `layout` was made with.

        Raises InputError where they are not on record, as in layouts of another program's files.
        """
        from engram_cli.hashing.schemes import takes_raw_ids

        asked = layout.parameters
        sizes = asked.get("rows_per_head")
        listed: list[Any] = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
        others = [asked[name] for name in ("pad_id", "seed") if asked.get(name) is not None]
        if not listed or not all(map(_is_number, [*listed, *others])):
            raise InputError(
                "the artifact does not record the geometry that its layout was made from",
                "give the geometry: --scheme, --orders, --heads, --rows-per-head, --layers",
            )
        raw = takes_raw_ids(layout.scheme)
        return cls(
            scheme=layout.scheme,
            orders=layout.orders,
            heads=layout.heads,
            rows_per_head=tuple(listed),
            layers=layout.layer_ids,
            pad_id=asked.get("pad_id"),
            seed=asked.get("seed"),
            vocab_size=layout.vocab_size if raw else None,
            eos_id=layout.eos_id,
        )

    def over(self, layout: HashLayout) -> Geometry:
        """Return these choices, and those of `layout` where none was made.

        Another scheme than the layout's takes nothing over: its parameters mean other things.
        """
        if self.scheme not in (None, layout.scheme):
            return self
        base = Geometry.from_layout(layout)
        if self.orders is not None and len(set(base.rows_per_head or ())) == 1:
            base = replace(base, rows_per_head=(base.rows_per_head or ())[:1])
        return replace(base, **self.given)

    def resolve(self, vocab_path: Path) -> HashLayout:
        """Return the layout; reads the vocabulary at `vocab_path` if the scheme needs one.

        Raises InputError for a choice that the scheme does not know, LayoutError for one it cannot
        make.
        """
        from engram_cli.hashing.schemes import hash_layout, takes_raw_ids

        choices = self.given
        scheme = choices.pop("scheme", DEFAULT_SCHEME)
        if takes_raw_ids(scheme):
            if "rows_per_head" in choices:
                choices["rows_per_head"] = _single(scheme, choices["rows_per_head"])
            if "vocab_size" not in choices and vocab_path.is_file():
                choices["vocab_size"] = _read(vocab_path).vocab_size
            return hash_layout(scheme, **choices)
        if not vocab_path.is_file():
            raise InputError(
                f"no compressed vocabulary at {vocab_path}", "run: engram compress-vocab"
            )
        return hash_layout(scheme, _read(vocab_path), **choices)


LAYOUT_NAMES = frozenset(field.name for field in fields(Geometry))


def _read(path: Path) -> Any:
    from engram_cli.vocab.parquet import read_map

    return read_map(path)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _single(scheme: str, sizes: tuple[int, ...]) -> int:
    if len(sizes) != 1:
        raise InputError(
            f"{scheme} takes one --rows-per-head, {len(sizes)} were given", "give one size"
        )
    return sizes[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A geometry, the width of a row, and where both are published."""

    geometry: Geometry
    dim: int
    source: str


# Sizes are the base of a head's prime. engram-27b is read as engram-v1 hashing; its size is taken
# for each head, which gives the published 5.7 B parameters. The paper counts layers from one: its
# layers 2 and 15 are decoder layers 1 and 14, as in DeepSeek-V4.1-Flash.
PRESETS = {
    "engram-v1-demo": Preset(
        geometry=Geometry(
            scheme="engram-v1",
            orders=(2, 3),
            heads=8,
            rows_per_head=(646_400,),
            layers=(1, 15),
            pad_id=2,
            seed=0,
        ),
        dim=64,
        source="the paper's demo",
    ),
    "deepseek-v4.1": Preset(
        geometry=Geometry(
            scheme="deepseek-v4.1",
            orders=(2, 3, 4),
            heads=8,
            rows_per_head=(16_000_000,),
            layers=(1, 14),
            pad_id=2,
            seed=0,
        ),
        dim=256,
        source="the configuration of DeepSeek-V4.1-Flash",
    ),
    "qwen-ple": Preset(
        geometry=Geometry(
            scheme="qwen-ple",
            orders=(2, 3),
            heads=8,
            rows_per_head=(20_000_000,),
            layers=(2,),  # ple_layer_ids count from one: decoder layer 1
            seed=1234,
            vocab_size=248_320,
            eos_id=248_044,
        ),
        dim=160,
        source="the configuration of Qwen4-Exp",
    ),
    "engram-27b": Preset(
        geometry=Geometry(
            scheme="engram-v1",
            orders=(2, 3),
            heads=8,
            rows_per_head=(2_262_400,),
            layers=(1, 14),
            pad_id=2,
            seed=0,
        ),
        dim=80,
        source="the paper, arXiv 2601.07372, Engram-27B",
    ),
}

PresetName = Annotated[
    str | None,
    Option(
        f"Start from a published geometry: {enumerated(PRESETS, 'or')}. Other options override it.",
        panel=LAYOUT,
    ),
]


def find_preset(name: str) -> Preset:
    """Return the preset called `name`. Raises InputError, which lists the known names."""
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'", f"known: {', '.join(PRESETS)}")
    return PRESETS[name]


def with_preset(name: str | None, geometry: Geometry) -> Geometry:
    """Return `geometry` with the choices of the preset where none was made."""
    if name is None:
        return geometry
    base = find_preset(name).geometry
    if geometry.scheme not in (None, base.scheme):
        raise InputError(
            f"scheme {geometry.scheme} with preset {name}, which is {base.scheme}",
            "leave one of them out",
        )
    return replace(base, **geometry.given)
