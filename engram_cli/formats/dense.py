"""First values of the weights beside a module's rows.

By default they make the module the identity: where the rows say something the value projection is
zero, where all rows are zero it is random and the rows themselves are what is zero. Either way the
first training step has a gradient. The convolution starts at zero, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engram_cli.formats.module_spec import Part, Role

SPREAD = 0.02  # the standard deviation of random projections, as language models commonly start
EVEN = 0.01  # the key norm's weight under "even": gates within 0.45 to 0.55, never without gradient
INIT_VALUES = ("auto", "zero", "random")
INIT_GATES = ("random", "even")


def first_values(
    parts: Sequence[Part],
    *,
    layer: int,
    seed: int,
    zero_rows: bool,
    value: str = "auto",
    gate: str = "random",
) -> dict[str, NDArray[np.float32]]:
    """float32 weights by name; the same seed gives the same bytes.

    `value`: "zero", "random", or "auto", which is random exactly where all rows are zero. `gate`:
    "random" normalised keys, or "even", which scales them down so that all gates begin near 1/2.
    Raises ValueError for another choice.
    """
    if value not in INIT_VALUES or gate not in INIT_GATES:
        raise ValueError(f"value {value!r}, gate {gate!r}")
    generator = np.random.default_rng([seed, layer])
    random_roles = {Role.KEY}
    if value == "random" or (value == "auto" and zero_rows):
        random_roles.add(Role.VALUE)
    pieces: dict[str, list[NDArray[np.float32]]] = {}
    for part in sorted(
        parts, key=lambda part: part.name
    ):  # stable: parts of a weight stay in order
        if part.role in random_roles:
            piece = generator.standard_normal(part.shape, dtype=np.float32) * np.float32(SPREAD)
        else:
            piece = np.full(part.shape, _constant(part, gate), dtype=np.float32)
        pieces.setdefault(part.name, []).append(piece)
    return {name: np.concatenate(found) for name, found in pieces.items()}


def _constant(part: Part, gate: str) -> float:
    if part.role not in (Role.NORM, Role.KEY_NORM):
        return 0.0
    scale = EVEN if gate == "even" and part.role is Role.KEY_NORM else 1.0
    return scale - 1.0 if part.centred else scale
