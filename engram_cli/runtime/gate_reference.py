"""The gate and its short convolution in plain PyTorch: what all modules do after their projections.

Takes hidden states, each stream's key and the shared value. Returns what the memory adds to the
hidden states, or the sum, and the convolution's inputs, which decoding remembers. Everything is
computed in float32 (float64 stays) and rounded once. Only the convolution's inputs are rounded
earlier, because decoding keeps them in the model's dtype. The kernels in `kernels.gate` and
`kernels.conv` are tested against these functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from engram_cli.errors import RuntimeAttachError

MIN_DOT = 1e-6  # below it the root's slope is cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class GateWeights:
    """The norms' weights `query`, `key` [S, d] of S streams, and the convolution's, if it has one.

    `norm` [S, d] is the weight of the norm before the convolution, `taps` [S x d, 1, K] its own,
    the last tap on the present. `centred`: norm weights are stored less one. `norm_eps` is the
    epsilon of `norm`, `eps` that of the others; `dilation` the distance of taps, in tokens.
    """

    query: Tensor
    key: Tensor
    eps: float
    centred: bool = False
    norm: Tensor | None = None
    taps: Tensor | None = None
    norm_eps: float = 0.0
    dilation: int = 1

    @property
    def streams(self) -> int:
        """S, how many copies of the hidden state there are."""
        return self.query.shape[0]

    @property
    def width(self) -> int:
        """d, the size of a stream."""
        return self.query.shape[1]

    @property
    def reach(self) -> int:
        """How many earlier positions the convolution reads."""
        return 0 if self.taps is None else (self.taps.shape[-1] - 1) * self.dilation


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What limits a call: padding, and for the convolution what went before.

    `keep` bool[B, T]: False at padding, which gets zero and feeds nothing. `history` [B, reach,
    S x d], the convolution's inputs before the first position, zeros when None. `age` int64[B, T]:
    how many earlier positions belong to the same document, None where a line is one document.
    """

    keep: Tensor | None = None
    history: Tensor | None = None
    age: Tensor | None = None


NO_PAST = Past()


def gate(
    weights: GateWeights,
    hidden: Tensor,
    projected: Tensor,
    past: Past = NO_PAST,
    *,
    dtype: torch.dtype,
    residual: bool = False,
    tail: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return what to add to `hidden` [B, T, S, d], in `dtype`, and the convolution's last inputs.

    `projected` [B, T, S x d + d]: the keys of the streams, then the value. With `residual` the sum
    with `hidden` comes back instead, rounded once. The inputs [B, t, S x d] of the last `tail`
    positions (all when None) are state: no gradient goes through them or `past.history`. Source:
    docs/reference/modules.md. Raises RuntimeAttachError.
    """
    check(weights, hidden, projected, past)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    opened, value = opened_by(weights, hidden, projected, past.keep)
    gated = opened * value
    inputs = None
    if weights.taps is not None and weights.norm is not None:
        norm = weight_of(weights.norm, wide, weights.centred)
        normed = (mean_square_normed(gated, weights.norm_eps) * norm).to(projected.dtype).flatten(2)
        if past.keep is not None:
            normed = normed.masked_fill(~past.keep[:, :, None], 0)
        taps = weights.taps.squeeze(1).t().to(wide)
        convolved = dilated_conv(normed.to(wide), taps, weights.dilation, past)
        gated = gated + F.silu(convolved).view(gated.shape)
        kept = normed.shape[1] if tail is None else min(tail, normed.shape[1])
        inputs = normed[:, normed.shape[1] - kept :].detach()
        if kept < normed.shape[1]:
            inputs = inputs.clone()  # a view would hold all of them
    if past.keep is not None:
        gated = gated.masked_fill(~past.keep[:, :, None, None], 0)
    return ((hidden + gated) if residual else gated).to(dtype), inputs


def twice_differentiable(
    gradient: Tensor,
    tensors: Sequence[Tensor | None],
    weights: GateWeights,
    past: Past,
    *,
    dtype: torch.dtype,
    residual: bool,
) -> list[Tensor | None]:
    """Return the gradients of `tensors` for that of `gate`'s output, with a graph of their own.

    `tensors` are hidden, projected, query, key, norm and taps; those without a gradient give None.
    For the backward of faster implementations, whose own result has no derivative.
    """
    # Aliases, because the gradient of one computed from another would be counted twice.
    given = [None if x is None else x.view_as(x) for x in tensors]
    hidden, projected, query, key, norm, taps = given
    assert hidden is not None
    assert projected is not None
    assert query is not None
    assert key is not None
    own = replace(weights, query=query, key=key, norm=norm, taps=taps)
    out, _ = gate(own, hidden, projected, past, dtype=dtype, residual=residual, tail=0)
    wanted = [x for x in given if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(out, wanted, gradient, create_graph=True, allow_unused=True))
    return [None if x is None or not x.requires_grad else next(found) for x in given]


def opened_by(
    weights: GateWeights, hidden: Tensor, projected: Tensor, keep: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the gates [B, T, S, 1] in 0..1 and the value [B, T, 1, d], float32 or wider."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    projected, keys = projected.to(wide), weights.query.numel()
    value = projected[..., None, keys:]
    if keep is not None:
        hidden = hidden.masked_fill(~keep[:, :, None, None], 0)
    query = mean_square_normed(hidden.to(wide), weights.eps)
    query = query * weight_of(weights.query, wide, weights.centred)
    key = mean_square_normed(projected[..., :keys].reshape(query.shape), weights.eps)
    key = key * weight_of(weights.key, wide, weights.centred)
    dot = (query * key).sum(dim=-1, keepdim=True) / math.sqrt(weights.width)
    return open_gate(dot), value


def open_gate(dot: Tensor) -> Tensor:
    """Return the gate in 0..1 of a scaled dot product: the sigmoid of its signed root."""
    return (dot.abs().clamp_min(MIN_DOT).sqrt() * dot.sign()).sigmoid()


def mean_square_normed(x: Tensor, eps: float) -> Tensor:
    """`x` [..., d] over the root of its mean square."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def weight_of(weight: Tensor, dtype: torch.dtype, centred: bool) -> Tensor:
    """Return a norm's weight as it is multiplied with."""
    return weight.to(dtype) + 1 if centred else weight.to(dtype)


def dilated_conv(inputs: Tensor, taps: Tensor, dilation: int, past: Past) -> Tensor:
    """Return [B, T, D]: the depthwise causal convolution of `inputs` [B, T, D] with `taps` [K, D].

    The same sum in the same order however the stream was cut; a tap reads zero where it lies in an
    earlier document.
    """
    last, count = len(taps) - 1, inputs.shape[1]
    if past.history is None:
        before = inputs.new_zeros(inputs.shape[0], last * dilation, inputs.shape[2])
    else:
        before = past.history.detach().to(inputs.device, inputs.dtype)
    stream = torch.cat((before, inputs), dim=1)
    total = torch.zeros_like(inputs)
    for tap, factor in enumerate(taps):
        source = stream[:, tap * dilation : tap * dilation + count]
        if past.age is not None:
            seen = past.age >= (last - tap) * dilation
            source = source.masked_fill(~seen[:, :, None], 0)
        total = torch.addcmul(total, source, factor)
    return total


def _fits(weights: GateWeights, hidden: Tensor, projected: Tensor, past: Past) -> bool:
    """Return whether the shapes of a call without padding fit; a decode step asks each time."""
    streams, width = weights.query.shape
    batch, count = hidden.shape[:2]
    wide = streams * width
    fits = hidden.shape == (batch, count, streams, width) and weights.key.shape == (streams, width)
    fits = fits and projected.shape == (batch, count, wide + width)
    if weights.norm is not None and weights.taps is not None:
        fits = fits and weights.norm.shape == (streams, width)
        fits = fits and weights.taps.shape == (wide, 1, weights.taps.shape[-1])
    if past.history is not None:
        fits = fits and past.history.shape == (batch, weights.reach, wide)
    return fits and past.keep is None and past.age is None


def check(weights: GateWeights, hidden: Tensor, projected: Tensor, past: Past) -> None:
    """Raise RuntimeAttachError unless the shapes of a call fit its weights."""
    streams, width = weights.query.shape
    batch, count = hidden.shape[:2]
    if _fits(weights, hidden, projected, past):
        return
    wanted = {
        "hidden states": (hidden, (batch, count, streams, width)),
        "projections": (projected, (batch, count, streams * width + width)),
        "key norm's weight": (weights.key, (streams, width)),
        "norm's weight": (weights.norm, (streams, width)),
        "keep": (past.keep, (batch, count)),
        "age": (past.age, (batch, count)),
        "history": (past.history, (batch, weights.reach, streams * width)),
    }
    if weights.taps is not None:
        wanted["taps"] = (weights.taps, (streams * width, 1, weights.taps.shape[-1]))
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise RuntimeAttachError(
                f"the gate's {name} are {tuple(tensor.shape)}, not {shape}",
                "attach a bundle that was made for this model",
            )
