"""Whether an operator's kernel may be launched without torch's dispatcher, which takes its time.

An operator written in Python costs 0.1 to 0.3 ms of the host a call, several times its launch. Only
torch.compile, tracers, fake tensors and functorch need to see the operator itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def is_transformed() -> bool:
    """Whether derivatives are taken that only plain torch operations have.

    Forward mode, and the transforms of torch.func: an operator or a kernel would drop a tangent
    without a word.
    """
    if torch.compiler.is_compiling():
        return False
    forward: bool = forward_ad._current_level >= 0
    return forward or torch._C._are_functorch_transforms_active()


def is_plain_call(*tensors: Tensor | None) -> bool:
    """Whether nothing but autograd looks on at a call with these tensors."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    return all(tensor is None or type(tensor) in _PLAIN for tensor in tensors)
