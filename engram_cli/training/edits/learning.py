"""Gradient steps on the chosen rows of a memory, until the model says the facts.

All facts together make one step. A token that the model predicts with a margin has no gradient any
more, so that rows change no further than the facts need. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_cli.errors import InputError
from engram_cli.progress import SILENT, Progress
from engram_cli.runtime.evaluation.scoring import device_of
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.row_gradients import sparse_tensor
from engram_cli.runtime.row_optimisers import RowwiseAdam
from engram_cli.training import defaults
from engram_cli.training.edits.rows import RowValues, edited_rows, values_at


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FactTokens:
    """A fact as token ids int64[n]; those from `first` on are the target."""

    ids: NDArray[np.int64]
    first: int

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return len(self.ids) - self.first


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Told:
    """What a model makes of facts: float32[F] mean loss in nats per target token, bool[F] whether
    it says the whole target when it decodes greedily, bool[F] whether it does with the margin."""

    losses: NDArray[np.float32]
    exact: NDArray[np.bool_]
    sure: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Learned:
    """The values of the rows by layer, and the number of steps that were taken."""

    edits: dict[int, RowValues]
    steps: int


def learn_facts(
    model: nn.Module,
    memory: Memory,
    facts: Sequence[FactTokens],
    rows: Mapping[int, NDArray[np.int64]],
    sizes: Mapping[int, float],
    *,
    steps: int,
    rate: float,
    margin: float,
    batch_tokens: int,
    progress: Progress = SILENT,
) -> Learned:
    """Return values of `rows`, by layer, with which the model says the facts, as far as it can.

    At most `steps` steps; a step moves a value of a layer by up to about `rate` times the layer's
    size in `sizes` (`row_sizes`). Stops when every target token has `margin` nats more than any
    other token. The model and the memory stay as they are. Raises InputError for losses that are
    not finite.
    """
    device = device_of(model)
    own = {layer: torch.from_numpy(rows[layer]).to(device) for layer in sorted(rows)}
    edits = {
        layer: RowValues(rows=at, values=nn.Parameter(values_at(memory, layer, at).to(device)))
        for layer, at in own.items()
        if len(at)
    }
    groups = [{"params": [each.values], "lr": rate * sizes[layer]} for layer, each in edits.items()]
    taken = 0
    if groups:
        optimiser = RowwiseAdam(groups, betas=defaults.BETAS)
        progress.start("steps", steps, "")
        with frozen(model), edited_rows(memory, edits):
            for _ in range(steps):
                if not take_gradients(model, facts, margin, batch_tokens):
                    break
                _step(optimiser, edits)
                taken += 1
                progress.advance(1)
    found = {
        layer: RowValues(rows=each.rows, values=each.values.detach())
        for layer, each in edits.items()
    }
    return Learned(edits=found, steps=taken)


def row_sizes(memory: Memory, read: Mapping[int, NDArray[np.int64]]) -> dict[int, float]:
    """Return the root mean square of the values of rows, by layer; 1 where all are zero.

    Give all rows that the facts read: those of rare n-grams alone may never have been trained, and
    hold values too small for a gate.
    """
    found = {}
    for layer, rows in read.items():
        values = values_at(memory, layer, torch.from_numpy(rows))
        found[layer] = values.square().mean().sqrt().item() or 1.0
    return found


def tell_facts(
    model: nn.Module, facts: Sequence[FactTokens], *, margin: float, batch_tokens: int
) -> Told:
    """Return what the model makes of the facts as it is.

    It says a target when it decodes greedily if each of its tokens is the likeliest one after the
    prompt and those before it: that needs one pass over the facts.
    """
    losses = np.zeros(len(facts), dtype=np.float32)
    exact, sure = np.zeros((2, len(facts)), dtype=np.bool_)
    with torch.no_grad():
        for batch in fact_batches(facts, batch_tokens):
            found = torch.stack(predicted_tokens(model, facts, batch)).cpu()
            parts = torch.split(found, [facts[fact].tokens for fact in batch], dim=1)
            for fact, (loss, lead) in zip(batch, parts, strict=True):
                losses[fact] = loss.mean().item()
                exact[fact] = bool((lead > 0).all())
                sure[fact] = bool((lead >= margin).all())
    return Told(losses=losses, exact=exact, sure=sure)


def take_gradients(
    model: nn.Module, facts: Sequence[FactTokens], margin: float, batch_tokens: int
) -> bool:
    """Add up the gradients of what is not known of the facts; return whether there was any.

    The gradients are those of the losses of the target tokens that are not `margin` nats ahead of
    all others. Raises InputError for losses that are not finite.
    """
    lacking = False
    for batch in fact_batches(facts, batch_tokens):
        with torch.enable_grad():
            losses, leads = predicted_tokens(model, facts, batch)
            weak = leads < margin
            if bool(weak.any()):
                lacking = True
                torch.autograd.backward((losses * weak).sum())
    return lacking


def predicted_tokens(
    model: nn.Module, facts: Sequence[FactTokens], batch: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Return float32[n] twice, for the target tokens of a batch of facts, one fact after another:
    the losses, and by how many nats each is ahead of the likeliest other token.

    Raises InputError for losses that are not finite.
    """
    longest = max(len(facts[fact].ids) for fact in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.int64)
    places = []  # of the target tokens, in the batch
    for line, fact in enumerate(batch):
        own = facts[fact]
        ids[line, : len(own.ids)] = torch.from_numpy(own.ids)
        places.append(line * longest + torch.arange(own.first, len(own.ids)))
    mask = torch.arange(longest) < torch.tensor([[len(facts[fact].ids)] for fact in batch])
    device = device_of(model)
    logits = model(
        input_ids=ids.to(device), attention_mask=mask.long().to(device), use_cache=False
    ).logits
    wanted = torch.cat(places)
    target = ids.flatten()[wanted].to(logits.device)[:, None]
    scores = F.log_softmax(logits.flatten(0, 1)[wanted.to(logits.device) - 1].float(), dim=-1)
    own_scores = scores.gather(1, target)[:, 0]
    best = scores.detach().scatter(1, target, -torch.inf).max(dim=1).values
    finite = torch.isfinite(own_scores).tolist()
    if not all(finite):
        lines = torch.div(wanted, longest, rounding_mode="floor").tolist()
        raise InputError(
            f"the model's loss on fact {batch[lines[finite.index(False)]] + 1} is not finite",
            "take a smaller --rate, or --dtype float32",
        )
    return -own_scores, own_scores.detach() - best


def fact_batches(facts: Sequence[FactTokens], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the numbers of all facts in batches of at most so many tokens, padding included."""
    batch: list[int] = []
    for fact in sorted(range(len(facts)), key=lambda each: (-len(facts[each].ids), each)):
        if batch and (len(batch) + 1) * len(facts[batch[0]].ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(fact)
    if batch:
        yield batch


def _step(optimiser: RowwiseAdam, edits: Mapping[int, RowValues]) -> None:
    """Step in the rows that have a gradient: those of facts that are learned stay as they are."""
    for each in edits.values():
        gradient = each.values.grad
        if gradient is None:
            continue
        moved = gradient.abs().amax(dim=1).nonzero()[:, 0]
        each.values.grad = sparse_tensor(moved, gradient[moved], gradient.shape, is_coalesced=True)
    optimiser.step()
    optimiser.zero_grad()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model in its evaluation mode, none of its weights with a gradient, and back."""
    training = model.training
    learn = [weight for weight in model.parameters() if weight.requires_grad]
    model.eval()
    try:
        for weight in learn:
            weight.requires_grad_(False)
        yield
    finally:
        model.train(training)
        for weight in learn:
            weight.requires_grad_(True)
