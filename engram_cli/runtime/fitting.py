"""Fits the gates of a new memory to a text in a few steps, so that its rows help at once.

Only the dense weights of the memory's last layer learn. Two things make about fifty small steps
enough, where plain Adam needs hundreds of large ones.

- Rows of a table are far from white: a few directions hold nearly all of their energy. The
  projections learn in coordinates in which the looked-up vectors are white, W = R P with
  P = (S + damping)^-1/2 and S the second moment of the vectors. S needs look-ups alone.
- Their steps are sized by the hidden states that they are added to.
The same text and seed give the same weights on the same machine.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.formats.module_spec import SPREAD, Role
from engram_cli.runtime.carried import memory_of
from engram_cli.runtime.evaluation.scoring import device_of
from engram_cli.runtime.forward_args import read_call
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.modules.base import MemoryModule, dense_state
from engram_cli.runtime.step import Step

STEPS = 48
BATCH_TOKENS = 1024
CONTEXT = 512
HELD_WINDOWS = 8  # that the loss is measured on; one window in as many is kept for it
MOST_TOKENS = 2**24  # that are read of a text; windows are drawn from them
MOST_LOGITS = 2**26  # at a time: 256 MiB in float32
RATE = 0.003  # of Adam, in white coordinates and units of the hidden states
NORM_RATE = 0.005  # of norms
STARTS = (0.2, 0.4, 0.8)  # sizes of the first values tried, in units of the hidden states
RIDGE = 1e-3  # of the mean eigenvalue
DAMPING = 0.03  # of the mean eigenvalue
BETAS = (0.8, 0.95)
WARM_UP = 4  # steps

Window = NDArray[np.int64]
_Ranked = tuple[float, int, Window]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What `fit` did: losses in nats per token on windows that it did not learn from.

    `layer` is the layer of the table, `decoder_layer` its place. `kept` is False where the loss did
    not fall: then the weights are as they were.
    """

    layer: int
    decoder_layer: int
    before: float
    after: float
    steps: int
    tokens: int
    kept: bool

    def __str__(self) -> str:
        change = f"{self.before:.3f} -> {self.after:.3f} nats per token"
        return (
            f"fitted decoder layer {self.decoder_layer}: {change}, after {self.tokens:,} tokens"
            + ("" if self.kept else "; the loss did not fall, so it starts silent")
        )


def fit(
    model: nn.Module,
    documents: Iterable[ArrayLike],
    *,
    name: str | None = None,
    steps: int = STEPS,
    batch_tokens: int = BATCH_TOKENS,
    context: int = CONTEXT,
    seed: int = 0,
    advance: Callable[[int], None] = lambda _: None,
) -> FitResult:
    """Fit the dense weights of the last layer of a memory of `model` to a text.

    `documents`: token ids, int[T] each, of which windows of `context` tokens are drawn; one
    window in eight is not learnt from, but measured on. A text that the rows were not filled from
    is best: in one that they were, they know every next token. `steps` steps of `batch_tokens`
    tokens; `advance` is called with the tokens of each. Memory does not grow with the text. The
    backbone's weights, gradients and modes stay as they are. Raises InputError for a text that is
    too short, TokenIdError, RuntimeAttachError.
    """
    memory = memory_of(model, name)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise RuntimeAttachError("the model is offloaded", "load it whole to fit a memory")
    per_step = per_step_tokens(context, batch_tokens) // context
    train, held = _draw(documents, context, steps * per_step, seed)
    layer = max(memory.spec.layers, key=memory.spec.index)
    with _frozen(model, memory):
        fitting = _Fitting(model, memory, layer, steps)
        start = {key: value.clone() for key, value in dense_state(fitting.module).items()}
        try:
            before = fitting.measure(held)
            fitting.start(train)
            for step in range(steps):
                picks = [(step * per_step + i) % len(train) for i in range(per_step)]
                fitting.step(np.stack([train[pick] for pick in picks]))
                advance(per_step * context)
            after = fitting.measure(held)
            kept = after < before
        except BaseException:
            fitting.module.load_state_dict(start, strict=False)
            raise
        if not kept:
            fitting.module.load_state_dict(start, strict=False)
    return FitResult(
        layer=layer,
        decoder_layer=memory.spec.index(layer),
        before=before,
        after=after if kept else before,
        steps=steps,
        tokens=steps * per_step * context,
        kept=kept,
    )


def per_step_tokens(context: int, batch_tokens: int = BATCH_TOKENS) -> int:
    """Return the tokens of one step: whole windows, one at least."""
    return max(batch_tokens // context, 1) * context


def _draw(
    documents: Iterable[ArrayLike], context: int, count: int, seed: int
) -> tuple[list[Window], NDArray[np.int64]]:
    """Return windows to learn from, int64[context], and windows to measure on, int64[B, context].

    Documents take turns: none gives its second window before each gave one, in a random order. One
    window in eight is for measuring. Documents are joined where they are shorter than a window.
    """
    generator = np.random.default_rng(seed)
    wanted = (count, HELD_WINDOWS)
    kept: tuple[list[_Ranked], list[_Ranked]] = ([], [])  # heaps, the last in turn first
    rest: Window = np.empty(0, dtype=np.int64)
    number = read = 0
    for document in documents:
        ids = np.concatenate((rest, np.asarray(document, dtype=np.int64).reshape(-1)))
        whole = len(ids) // context * context
        windows = ids[:whole].reshape(-1, context)
        for turn, place in enumerate(generator.permutation(len(windows))):
            part = int(number % HELD_WINDOWS == HELD_WINDOWS - 1)
            ranked = (-turn - float(generator.random()), number, windows[place].copy())
            push = heapq.heappush if len(kept[part]) < wanted[part] else heapq.heappushpop
            push(kept[part], ranked)
            number += 1
        rest = ids[whole:]
        read += whole
        if read >= MOST_TOKENS:
            break
    if not kept[0] or not kept[1]:
        raise InputError(
            f"the text has {number} windows of {context} tokens, and {HELD_WINDOWS} are needed",
            f"give a text of {HELD_WINDOWS * context:,} tokens or more",
        )
    train, held = ([window for _, _, window in sorted(heap, reverse=True)] for heap in kept)
    return train, np.stack(held)


@contextmanager
def _frozen(model: nn.Module, memory: Memory) -> Iterator[None]:
    """Switch learning off and the memory on; afterwards modes and gradients are as they were."""
    modes = [(module, module.training) for module in model.modules()]
    learns = [(each, each.requires_grad, each.grad) for each in model.parameters()]
    active = memory.active
    try:
        model.eval()
        model.requires_grad_(False)
        memory.active = True
        yield
    finally:
        memory.active = active
        for parameter, was, gradient in learns:
            parameter.requires_grad_(was)
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode


class _Fitting:
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
        scales = (values.clamp_min(0) + DAMPING * mean).rsqrt()
        self._basis = ((axes * scales) @ axes.T).float().to(place)
        self._units = self._step_units(windows[0], math.sqrt(mean))
        if targets is not None:
            ridge = moment + RIDGE * mean * torch.eye(embed, dtype=torch.float64)
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
                size = RATE * hidden
            elif role is Role.KEY:  # its norm takes the size away: any unit that fits will do
                size = RATE * max(SPREAD * row_size, 1e-12)
            else:
                size = NORM_RATE
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
        unit = float(self._units[name][part].flatten()[0]) / RATE
        whole = (weights.T / math.sqrt(mean_square)).float().to(self._exact[name].device) * unit
        sample = np.stack(windows[:2])
        best, lowest = 0.0, self.measure(sample)
        for scale in STARTS:
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
        warm = min(1.0, self._done / WARM_UP)
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
            mean.lerp_(gradient, 1 - BETAS[0])
            square.lerp_(gradient.square(), 1 - BETAS[1])
            corrected = mean / (1 - BETAS[0] ** self._done)
            root = (square / (1 - BETAS[1] ** self._done)).sqrt_()
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
        count = max(MOST_LOGITS // (windows.shape[1] * vocabulary), 1)
        for begin in range(0, len(windows), count):
            yield windows[begin : begin + count]

    def _losses(self, windows: NDArray[np.int64]) -> Tensor:
        """Return the losses in nats, float32[B x (context - 1)]."""
        ids = torch.from_numpy(windows).to(self._device)
        logits = self._model(input_ids=ids, use_cache=False).logits[:, :-1]
        targets = ids[:, 1:].flatten().to(logits.device)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
