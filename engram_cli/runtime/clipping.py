"""Sparse gradients that torch's own clipping takes: clip_grad_norm_, accelerate, the Trainer.

torch has no norm of a sparse tensor. A subclass of it has one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


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
                    from engram_cli.runtime.sparse_gradients import coalesced

                    return function(coalesced(args[0])._values(), *args[1:], **kwargs or {})
                if function is Tensor.mul_ and getattr(args[1], "ndim", 0) == 0:
                    args[0]._values().mul_(args[1])
                    return args[0]
            return function(*args, **kwargs or {})


def with_norm(gradient: Tensor) -> Tensor:
    """The same sparse gradient, as torch can clip it."""
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
