"""The weights of engram-v1's module beside its rows: names, shapes and first values.

docs/reference/modules.md has the names. First values make the module the identity:
where the rows say something the value projection is zero, where all rows are zero the value
projection is random and the rows themselves are what is zero. Either way the first training step
has a gradient. The convolution starts at zero, as in the paper.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.02  # the standard deviation of random projections, as language models commonly start


def dense_shapes(
    hidden_size: int, embed_dim: int, streams: int, conv_kernel: int
) -> dict[str, tuple[int, ...]]:
    """The shape of each weight; `embed_dim` is columns x row dim, `streams` the copies of h."""
    shapes: dict[str, tuple[int, ...]] = {
        "value_proj.weight": (hidden_size, embed_dim),
        "value_proj.bias": (hidden_size,),
        "short_conv.conv.weight": (streams * hidden_size, 1, conv_kernel),
    }
    for stream in range(streams):
        shapes[f"key_projs.{stream}.weight"] = (hidden_size, embed_dim)
        shapes[f"key_projs.{stream}.bias"] = (hidden_size,)
        for norm in ("norm1", "norm2", "short_conv.norms"):
            shapes[f"{norm}.{stream}.weight"] = (hidden_size,)
    return dict(sorted(shapes.items()))


def first_values(
    shapes: dict[str, tuple[int, ...]], *, layer: int, seed: int, zero_rows: bool
) -> dict[str, NDArray[np.float32]]:
    """float32 weights that make the module the identity; the same seed gives the same bytes."""
    generator = np.random.default_rng([seed, layer])
    values = {}
    for name, shape in shapes.items():
        random = name.startswith("key_projs") or (zero_rows and name.startswith("value_proj"))
        if random and name.endswith("weight"):
            value = generator.standard_normal(shape, dtype=np.float32) * np.float32(SPREAD)
        elif "norm" in name:
            value = np.ones(shape, dtype=np.float32)
        else:
            value = np.zeros(shape, dtype=np.float32)
        values[name] = value
    return values
