"""Stage 7 of 7: a bundle in, a model with a memory out. Needs torch, NumPy and safetensors only.

`attach` hooks a live model, `memory` does the work of a forward call, `module` is the paper's
arithmetic, `state` what decoding remembers, `reference` the look-up in plain torch.
"""

from __future__ import annotations

from importlib.util import find_spec

from engram_cli.errors import DependencyError

if find_spec("torch") is None:
    raise DependencyError(
        "attaching to a model needs PyTorch", "python -m pip install 'engram-tables[torch]'"
    )

from engram_cli.runtime.attach import attach, detach

__all__ = ["attach", "detach"]
