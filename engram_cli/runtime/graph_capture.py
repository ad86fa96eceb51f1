"""Tells who watches the running code: a graph capture, a tracer, or only autograd.

Graphs are made by `torch.compile` and by the capture of a CUDA graph; code that becomes a graph
must read no tensor's value. Tracers, fake tensors and functorch must see torch operators.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def is_capturing_graph() -> bool:
    """Return whether torch.compile traces this call, or a CUDA graph captures it."""
    if torch.compiler.is_compiling():
        return True
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()


def is_transformed() -> bool:
    """Return whether derivatives are taken that only plain torch operations have.

    These are forward mode and the transforms of torch.func: an operator or a kernel would drop a
    tangent without an error.
    """
    if torch.compiler.is_compiling():
        return False
    forward: bool = forward_ad._current_level >= 0
    return forward or torch._C._are_functorch_transforms_active()


def is_plain_call(*tensors: Tensor | None) -> bool:
    """Return whether nothing but autograd watches a call with these tensors.

    Such a call may run an operator's function instead of the operator: torch's dispatcher takes
    0.1 to 0.3 ms of the host for an operator that is written in Python.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)
