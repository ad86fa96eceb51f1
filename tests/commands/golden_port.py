"""A port of the hash to plain Python, with one switch for each fault that ports have had."""

from __future__ import annotations

from typing import Any

import numpy as np

Json = dict[str, Any]


def port_case(
    layout: Json, lookup: list[int], case: Json, layer: int, faults: frozenset[str]
) -> list[list[int] | None]:
    """Return the rows [T][C] of a case of golden.json, None at padding; `layout` is the file's."""
    own = next(each for each in layout["layers"] if each["layer"] == layer)
    other = next((each for each in layout["layers"] if each["layer"] != layer), own)
    ids = case["ids"]
    dead = case.get("dead", [False] * len(ids))
    padding = case.get("padding", [False] * len(ids))
    x = ids if "raw ids" in faults else [lookup[token] for token in ids]
    multipliers = list(map(int, (other if "other layer" in faults else own)["multipliers"]))
    moduli = (other if "other moduli" in faults else own)["moduli"]
    heads = layout["heads"]
    if "moduli per order" in faults:
        moduli = moduli[:heads] * len(layout["orders"])
    rows: list[list[int] | None] = []
    for at in range(len(ids)):
        if padding[at]:
            rows.append(None)
            continue
        line, start = [], 0
        for column, modulus in enumerate(moduli):
            order = layout["orders"][column // heads]
            tokens = window(x, at, order, layout, dead, padding, faults)
            mix = fold(tokens, multipliers, layout["fold"], modulus, faults)
            row = (mix ^ int(own["salts"][column])) % modulus
            if "order offsets" in faults and column % heads == 0:
                start = 0
            line.append(row if "head rows" in faults else start + row)
            start += modulus
        rows.append(line)
    return rows


def window(
    x: list[int],
    at: int,
    order: int,
    layout: Json,
    dead: list[bool],
    padding: list[bool],
    faults: frozenset[str],
) -> list[int]:
    """Return the tokens of the n-gram at a position, the newest first."""
    filler = 0 if "pad 0" in faults else layout["filler_id"]
    eos = None if "no EOS" in faults else layout["eos_id"]
    if "pad ends" in faults:
        eos = layout["filler_id"]
    found, blocked, back = [], False, 1 if "further back" in faults else 0
    for lag in range(order + back):
        place = at - lag
        blocked = blocked or place < 0
        if not blocked:
            blocked |= lag > 0 and eos is not None and x[place] == eos
            blocked |= padding[place] and "padding" not in faults
            blocked |= dead[place] and not {"dead", "dead alone"} & faults
        alone = place >= 0 and dead[place] and "dead alone" in faults
        found.append(filler if blocked or alone else x[place])
    return found[back:]


def fold(
    tokens: list[int], multipliers: list[int], how: str, modulus: int, faults: frozenset[str]
) -> int:
    """Return the number that becomes a row, in int64 that wraps."""
    order = len(tokens)
    if how == "powers":
        weight, total = 1, 0
        weights = []
        for multiplier in multipliers[:order]:
            weight = weight * multiplier % modulus
            weights.append(weight)
        if "oldest first" in faults:
            weights.reverse()
        for token, own in zip(tokens, weights, strict=True):
            total += token * own
        return total
    own = multipliers[-order:] if "last" in faults else multipliers[:order]
    if (how == "oldest-first") != ("oldest first" in faults):
        own = own[::-1]
    mix = 0
    for place, (token, multiplier) in enumerate(zip(tokens, own, strict=True)):
        if "shorter" not in faults or place < order - 1:
            mix ^= token * multiplier % (2**32 if "32 bits" in faults else 2**64)
    return int(np.array(mix % 2**64, dtype=np.uint64).view(np.int64))
