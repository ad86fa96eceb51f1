"""The dense weights of one layer while they are fitted to a text.

Two things make about fifty small steps enough, where plain Adam needs hundreds of large ones.

- Rows of a table are far from white: a few directions hold nearly all of their energy. The
  projections learn in coordinates in which the looked-up vectors are white, W = R P with
  P = (S + damping)^-1/2 and S the second moment of the vectors. S needs look-ups alone.
- Their steps are sized by the hidden states that they are added to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.formats.module_spec import SPREAD, Role
from engram_cli.runtime.evaluation.scoring import device_of
from engram_cli.runtime.forward_args import read_call
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import MemoryModule
from engram_cli.runtime.step import Step

_MOST_LOGITS = 2**26  # at a time: 256 MiB in float32
_RATE = 0.003  # of Adam, in white coordinates and units of the hidden states
_NORM_RATE = 0.005  # of norms
_STARTS = (0.2, 0.4, 0.8)  # sizes of the first values tried, in units of the hidden states
_RIDGE = 1e-3  # of the mean eigenvalue
_DAMPING = 0.03  # of the mean eigenvalue
_BETAS = (0.8, 0.95)
_WARM_UP = 4  # steps
Window = NDArray[np.int64]


class LayerFit:
    """The weights of one layer as they learn, and the model that they are part of."""

    def __init__(self, model: Any, memory: Memory, layer: int, steps: int) -> None:
        self._model, self._memory, self._layer, self._steps = model, memory, layer, steps
        module: Any = memory.layers[str(layer)]
        self.module: MemoryModule = module
        self._device = device_of(model)
        weights = dict(module.named_parameters())
        names = memory.spec.dense_shapes
        if not all(type(weights.get(name)) is nn.Parameter for name in names):
            raise RuntimeAttachError(
                f"the module of layer {layer} has an adapter, or was quantised",
                "fit a memory before that",
            )
        self._weights: dict[str, Tensor] = {name: weights[name] for name in names}
        # Steps are smaller than bfloat16 resolves.
        self._exact = {name: weight.detach().float() for name, weight in self._weights.items()}
        self._means = {name: torch.zeros_like(weight) for name, weight in self._exact.items()}
        self._squares = {name: torch.zeros_like(weight) for name, weight in self._exact.items()}
        self._units: dict[str, Tensor] = {}
        self._basis = torch.empty(0)
        self._done = 0

    def start(self, windows: Sequence[Window]) -> None:
        """Take the moments of what the layer looks up, and of the states that it adds to.

        Values that are zero start at a regression on the output embedding of the next token.
        """
        embed, place = self._memory.spec.embed_dim, self.module.anchor.device
        targets = self._targets()
        moment = torch.zeros(embed, embed, dtype=torch.float64)
        cross = torch.zeros(embed, 0 if targets is None else targets.shape[1], dtype=torch.float64)
        count = 0
        for window in windows:
            vectors = self._look_up(window).cpu()
            moment += vectors.double().T @ vectors.double()
            count += len(vectors)
            if targets is not None:
                following = targets[torch.from_numpy(window[1:])]
                cross += (vectors[:-1].T @ following).double()
        moment /= count
        values, axes = torch.linalg.eigh(moment)
        mean = float(values.mean())
        if not math.isfinite(mean) or mean <= 0:
            raise RuntimeAttachError(
                f"the rows of layer {self._layer} say nothing here: there is nothing to fit",
                "fill the table from a corpus (engram build-table --init next-token)",
            )
        scales = (values.clamp_min(0) + _DAMPING * mean).rsqrt()
        self._basis = ((axes * scales) @ axes.T).float().to(place)
        self._units = self._step_units(windows[0], math.sqrt(mean))
        if targets is not None:
            ridge = moment + _RIDGE * mean * torch.eye(embed, dtype=torch.float64)
            self._regress(torch.linalg.solve(ridge, cross / count), moment, windows)

    def _look_up(self, window: Window) -> Tensor:
        """Return the vectors [T, embed] that the layer looks up in a window, float32."""
        ids = torch.from_numpy(window)[None].to(self._device)
        with torch.no_grad():
            step = self._memory._begin(read_call(0, ("input_ids",), (ids,), {}))
            assert isinstance(step, Step)  # no decode step, which follows earlier tokens
            found = self.module.vectors(step.module_input(self._memory.places[self._layer]))
        return found[0].float()

    def _targets(self) -> Tensor | None:
        """Return the output embeddings [V, d], centred and white; None where they do not fit."""
        getter = getattr(self._model, "get_output_embeddings", None)
        weight = getattr(getter() if callable(getter) else None, "weight", None)
        if not isinstance(weight, Tensor) or weight.shape[-1] != self._memory.spec.hidden_size:
            return None
        own = weight.detach().float().cpu()
        own = own - own.mean(dim=0)
        values, axes = torch.linalg.eigh((own.T @ own).double() / len(own))
        scales = 1 / (values + 0.01 * values.mean())
        white: Tensor = own @ ((axes * scales) @ axes.T).float()
        return white

    def _step_units(self, window: Window, row_size: float) -> dict[str, Tensor]:
        """Return what a step of 1 is worth in each weight: in units of the states, or of keys."""
        hidden = self._hidden_size(window)
        spec = self._memory.spec
        sizes: dict[str, list[Tensor]] = {}
        roles = {part.name: part.role for part in spec.dense_parts if part.role is not Role.BIAS}
        for part in spec.dense_parts:
            role = part.role
            if role is Role.BIAS:
                role = roles[f"{part.name.rpartition('.')[0]}.weight"]
            if role in (Role.VALUE, Role.CONV):
                size = _RATE * hidden
            elif role is Role.KEY:  # its norm takes the size away: any unit that fits will do
                size = _RATE * max(SPREAD * row_size, 1e-12)
            else:
                size = _NORM_RATE
            shape = (part.shape[0], *(1 for _ in part.shape[1:]))
            sizes.setdefault(part.name, []).append(torch.full(shape, size))
        place = self.module.anchor.device
        return {name: torch.cat(parts).to(place) for name, parts in sizes.items()}

    def _hidden_size(self, window: Window) -> float:
        """Return the median size of a value in the hidden states that the layer adds to."""
        found: list[float] = []

        def watch(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(float(args[0].float().square().mean(dim=-1).sqrt().median()))

        handle = self.module.register_forward_pre_hook(watch)
        try:
            with torch.no_grad():
                self._losses(window[None])
        finally:
            handle.remove()
        if not found or not math.isfinite(found[0]) or found[0] <= 0:
            raise RuntimeAttachError(
                "the hidden states are zero or not finite", "load the model in another dtype"
            )
        return found[0]

    def _regress(self, weights: Tensor, moment: Tensor, windows: Sequence[Window]) -> None:
        """Start the values at a multiple of a regression [embed, d], if one lowers the loss."""
        rows = self._value_rows()
        if rows is None or bool(self._exact[rows[0]][rows[1]].any()):
            return
        name, part = rows
        mean_square = float((weights * (moment @ weights)).sum() / weights.shape[1])
        if not mean_square > 0:
            return
        unit = float(self._units[name][part].flatten()[0]) / _RATE
        whole = (weights.T / math.sqrt(mean_square)).float().to(self._exact[name].device) * unit
        sample = np.stack(windows[:2])
        best, lowest = 0.0, self.measure(sample)
        for scale in _STARTS:
            self._exact[name][part] = whole * scale
            self._write()
            loss = self.measure(sample)
            if loss < lowest:
                best, lowest = scale, loss
        self._exact[name][part] = whole * best
        self._write()

    def _value_rows(self) -> tuple[str, slice] | None:
        """Return the weight with the value projection, and its rows in it."""
        begins: dict[str, int] = {}
        for part in self._memory.spec.dense_parts:
            begin = begins.get(part.name, 0)
            begins[part.name] = begin + part.shape[0]
            if part.role is Role.VALUE:
                return part.name, slice(begin, begins[part.name])
        return None

    def step(self, windows: NDArray[np.int64]) -> None:
        """Learn from windows int64[B, context]: one step of Adam, white in the projections."""
        for weight in self._weights.values():
            weight.requires_grad_(True)
            weight.grad = None
        with torch.enable_grad():
            for piece in self._pieces(windows):
                mean = self._losses(piece).sum() / (windows.size - len(windows))
                mean.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        self._done += 1
        warm = min(1.0, self._done / _WARM_UP)
        rate = warm * (1 - (self._done - 1) / self._steps)
        embed = self._memory.spec.embed_dim
        for name, weight in self._weights.items():
            gradient = weight.grad
            weight.requires_grad_(False)
            if gradient is None:
                continue
            is_projection = weight.ndim == 2 and weight.shape[1] == embed
            gradient = gradient.float()
            if is_projection:
                gradient = gradient @ self._basis
            mean, square = self._means[name], self._squares[name]
            mean.lerp_(gradient, 1 - _BETAS[0])
            square.lerp_(gradient.square(), 1 - _BETAS[1])
            corrected = mean / (1 - _BETAS[0] ** self._done)
            root = (square / (1 - _BETAS[1] ** self._done)).sqrt_()
            change = corrected / root.clamp_min(1e-30)
            if is_projection:
                change = change @ self._basis
            self._exact[name] -= rate * self._units[name] * change
            weight.grad = None
        self._write()

    def _write(self) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(self._exact[name])

    def measure(self, windows: NDArray[np.int64]) -> float:
        """Return the mean loss of windows int64[B, context], in nats per token."""
        with torch.no_grad():
            total = sum(float(self._losses(piece).sum()) for piece in self._pieces(windows))
        return total / (windows.size - len(windows))

    def _pieces(self, windows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Yield windows, as many at a time as keep the logits small."""
        head = getattr(getattr(self._model, "config", None), "vocab_size", None)
        vocabulary = head if isinstance(head, int) else self._memory.spec.layout.vocab_size
        count = max(_MOST_LOGITS // (windows.shape[1] * vocabulary), 1)
        for begin in range(0, len(windows), count):
            yield windows[begin : begin + count]

    def _losses(self, windows: NDArray[np.int64]) -> Tensor:
        """Return the losses in nats, float32[B x (context - 1)]."""
        ids = torch.from_numpy(windows).to(self._device)
        logits = self._model(input_ids=ids, use_cache=False).logits[:, :-1]
        targets = ids[:, 1:].flatten().to(logits.device)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
