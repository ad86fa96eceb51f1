"""Sparse gradients of rows: add up duplicates, clip norms, and let torch's own clipping work.

torch has no norm of a sparse tensor, which clip_grad_norm_, accelerate and the Trainer ask for. A
subclass of it has one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
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
    Gradients that FSDP2 or `placement="shard"` distributes over processes count as a whole: then
    every process calls it.
    """
    gradients = []
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = with_norm(coalesced(parameter.grad), type(parameter.grad))
        gradients.append(parameter.grad)
    if not gradients:
        return torch.zeros(())
    norms = [_norm(gradient) for gradient in gradients]
    total: Tensor = torch.linalg.vector_norm(
        torch.stack([norm.to(norms[0].device) for norm in norms])
    )
    factor = (max_norm / (total + 1e-6)).clamp_max(1.0)
    for gradient in gradients:
        values = gradient._values() if gradient.is_sparse else gradient
        values.mul_(factor.to(values.device))
    return total


def _norm(gradient: Tensor) -> Tensor:
    """Return the norm of a gradient, of all processes' parts where it is distributed."""
    whole = type(gradient) is ShardedGradient or not gradient.is_sparse
    values = gradient if whole else gradient._values()
    norm: Any = torch.linalg.vector_norm(values, dtype=torch.float32)
    found: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return found


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
                    return cls._norm_of(coalesced(args[0])._values(), *args[1:], **kwargs or {})
                if function is Tensor.mul_ and getattr(args[1], "ndim", 0) == 0:
                    args[0]._values().mul_(args[1])
                    return args[0]
            return function(*args, **kwargs or {})

    @classmethod
    def _norm_of(cls, values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the norm of the values that coalesced rows have."""
        norm: Tensor = torch.linalg.vector_norm(values, *args, **kwargs)
        return norm


class ShardedGradient(SparseGradient):
    """The gradient of the rows that a process owns; its norm is that of all processes' rows.

    Every process of the default group must ask for it.
    """

    @classmethod
    def _norm_of(cls, values: Tensor, ord: float = 2.0, **kwargs: Any) -> Tensor:
        if not ord > 0:
            raise ValueError(f"norm {ord} of rows over processes: give a number above 0, or inf")
        own = super()._norm_of(values.new_zeros(1) if not len(values) else values, ord, **kwargs)
        total = own.float()
        if ord == float("inf"):
            dist.all_reduce(total, op=dist.ReduceOp.MAX)
            return total.to(own.dtype)
        total = total**ord
        dist.all_reduce(total)
        return (total ** (1 / ord)).to(own.dtype)


def with_norm(gradient: Tensor, kind: type[Tensor] = SparseGradient) -> Tensor:
    """Return the same sparse gradient, as torch can clip it: a SparseGradient, or that `kind`."""
    if type(gradient) is kind or not issubclass(kind, SparseGradient):
        return gradient
    found: Tensor = Tensor._make_subclass(kind, gradient)
    return found


class Watched:
    """Sees to it that a parameter's sparse gradients have a norm when they have been added up.

    `kind`: what they become.
    """

    def __init__(self, kind: type[SparseGradient] = SparseGradient) -> None:
        self.kind = kind
        self._parameter: weakref.ref[nn.Parameter] | None = None

    def watch(self, parameter: nn.Parameter) -> None:
        """Watch this one; a model that is copied or moved may hold another than before."""
        if self._parameter is not None and self._parameter() is parameter:
            return
        if parameter.requires_grad and not torch.compiler.is_compiling():
            self._parameter = weakref.ref(parameter)
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(_give_norm, self.kind)
            )

    def __deepcopy__(self, memo: object) -> Watched:
        return Watched(self.kind)

    def __reduce__(self) -> tuple[type[Watched], tuple[type[SparseGradient]]]:
        return Watched, (self.kind,)


def _give_norm(kind: type[SparseGradient], parameter: Tensor) -> None:
    if parameter.grad is not None and parameter.grad.is_sparse:
        parameter.grad = with_norm(parameter.grad, kind)
