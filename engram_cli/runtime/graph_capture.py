"""Tells whether a graph is being made of the running code, which must then read no tensor's value.

Two tools make graphs, so they are asked in one place: `torch.compile`, and the capture of a CUDA
graph.
"""

from __future__ import annotations

import torch


def is_capturing_graph() -> bool:
    """Whether torch.compile traces this call, or a CUDA graph captures it."""
    if torch.compiler.is_compiling():
        return True
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()
