"""Sparse gradients of rows: add up duplicates, clip norms, and let torch's own clipping work.

torch has no norm of a sparse tensor, which clip_grad_norm_, accelerate and the Trainer ask for. A
subclass of it has one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from engram_cli.runtime import ops
from engram_cli.runtime.row_gradients import sparse_tensor


def coalesced(gradient: Tensor) -> Tensor:
    """Return a sparse gradient [rows, dim] with each row once, ascending, added up in float32.

    The same bits every time; it waits for the device, which must say how many rows there are.
    """
    if gradient.is_coalesced():
        return gradient
    values = gradient._values()
    rows, sums = ops.sum_rows(values, gradient._indices()[0], gradient.shape[0])
    return sparse_tensor(rows, sums.to(values.dtype), gradient.shape, is_coalesced=True)


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale all gradients of `model` so that their common norm is at most `max_norm`; the norm.

    What torch.nn.utils.clip_grad_norm_ does, which takes no sparse gradients; these are coalesced.
    """
    values = []
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = coalesced(parameter.grad)
        own = parameter.grad
        values.append(own._values() if own.is_sparse else own)
    if not values:
        return torch.zeros(())
    norms = [torch.linalg.vector_norm(value, dtype=torch.float32) for value in values]
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([norm.to(norms[0].device) for norm in norms])
    )
    factor = (max_norm / (total + 1e-6)).clamp_max(1.0)
    for value in values:
        value.mul_(factor.to(value.device))
    return total


class SparseGradient(Tensor):
    """A sparse gradient with a norm, that of its rows added up; otherwise a sparse tensor."""

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if args and isinstance(args[0], cls):
                if function is torch.linalg.vector_norm:
                    return function(coalesced(args[0])._values(), *args[1:], **kwargs or {})
                if function is Tensor.mul_ and getattr(args[1], "ndim", 0) == 0:
                    args[0]._values().mul_(args[1])
                    return args[0]
            return function(*args, **kwargs or {})


def with_norm(gradient: Tensor) -> Tensor:
    """Return the same sparse gradient, as torch can clip it."""
    if type(gradient) is SparseGradient:
        return gradient
    found: Tensor = Tensor._make_subclass(SparseGradient, gradient)
    return found


class Watched:
    """Sees to it that a parameter's sparse gradients have a norm when they have been added up."""

    def __init__(self) -> None:
        self._parameter: weakref.ref[nn.Parameter] | None = None

    def watch(self, parameter: nn.Parameter) -> None:
        """Watch this one; a model that is copied or moved may hold another than before."""
        if self._parameter is not None and self._parameter() is parameter:
            return
        if parameter.requires_grad and not torch.compiler.is_compiling():
            self._parameter = weakref.ref(parameter)
            parameter.register_post_accumulate_grad_hook(_give_norm)  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: object) -> Watched:
        return Watched()

    def __reduce__(self) -> tuple[type[Watched], tuple[()]]:
        return Watched, ()


def _give_norm(parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = with_norm(parameter.grad)
