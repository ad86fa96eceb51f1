"""Geometries with a name: those of published models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engram_cli.commands.geometry import Geometry
from engram_cli.errors import InputError


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


def find_preset(name: str) -> Preset:
    """The preset called `name`. Raises InputError, which lists the known names."""
    if name not in PRESETS:
        raise InputError(f"unknown preset '{name}'", f"known: {', '.join(PRESETS)}")
    return PRESETS[name]


def with_preset(name: str | None, geometry: Geometry) -> Geometry:
    """The choices of `geometry`, and those of the preset where none was made."""
    if name is None:
        return geometry
    base = find_preset(name).geometry
    if geometry.scheme not in (None, base.scheme):
        raise InputError(
            f"scheme {geometry.scheme} with preset {name}, which is {base.scheme}",
            "leave one of them out",
        )
    return replace(base, **geometry.given)
