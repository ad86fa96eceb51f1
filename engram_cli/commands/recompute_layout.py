"""Recomputes a layout from the choices stored with it, and compares the two."""

from __future__ import annotations

from engram_cli.commands.geometry import Geometry
from engram_cli.errors import EngramError, InputError
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.hashing.schemes import SCHEMES, hash_layout, takes_raw_ids
from engram_cli.vocab.lookup import VocabMap


def recomputed(layout: HashLayout) -> HashLayout | str:
    """Return the layout that its scheme makes of the stored choices and vocabulary map.

    A line of why not, where the scheme is not known here or the choices are not on record, as in
    layouts that were read from another program's files.
    """
    if layout.scheme not in SCHEMES:
        return f"scheme '{layout.scheme}' cannot make layouts in this version"
    try:
        choices = Geometry.from_layout(layout).given
    except InputError:
        return "the artifact does not record the choices of its scheme"
    scheme = choices.pop("scheme")
    if takes_raw_ids(scheme):
        choices["rows_per_head"] = choices["rows_per_head"][0]
        return _made(scheme, None, choices)
    if layout.lookup is None:
        return "its vocabulary map was not found"
    return _made(scheme, VocabMap(lookup=layout.lookup, size=layout.compressed_size), choices)


def layout_problem(stored: HashLayout, again: HashLayout) -> str | None:
    """Return how a stored layout differs from the recomputed one; None if they are equal."""
    if stored.fingerprint == again.fingerprint:
        return None
    found = [
        name
        for name in ("orders", "heads", "fold", "filler_id", "eos_id", "compressed_size")
        if getattr(stored, name) != getattr(again, name)
    ]
    for own, other in zip(stored.layers, again.layers, strict=False):
        found += [
            f"{name} of layer {own.layer}"
            for name in ("layer", "multipliers", "moduli", "salts", "rows")
            if getattr(own, name) != getattr(other, name)
        ]
    return (
        f"the layout is not what {stored.scheme} makes of its choices: other "
        f"{', '.join(found) or 'vocabulary'} ({short(stored.fingerprint)}, not "
        f"{short(again.fingerprint)})"
    )


def _made(scheme: str, vocab: VocabMap | None, choices: dict[str, object]) -> HashLayout | str:
    try:
        return hash_layout(scheme, vocab, **choices)
    except EngramError as error:
        return f"{scheme} makes no layout of its stored choices: {error.message}"
