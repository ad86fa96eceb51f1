"""Whether a graph is being made of what runs: then no value of a tensor can be read.

One place for it, since two things make graphs: `torch.compile`, and a CUDA graph under capture.
"""

from __future__ import annotations

import torch


def is_recorded() -> bool:
    """Whether torch.compile traces this call, or a CUDA graph captures it."""
    if torch.compiler.is_compiling():
        return True
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()
