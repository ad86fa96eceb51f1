"""The gates of a model's memory over a text, and what the memory changes in its predictions."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.load_model import check_checkpoint
from engram_cli.commands.trace import LayerTrace, model_with_memory, trace_ids
from engram_cli.errors import MismatchError
from engram_cli.formats.bundle import BUNDLE_NAME, read_bundle
from engram_cli.hashing.layout import short
from engram_cli.rows.source import RowSource


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The figures of T tokens: of each layer, and the losses [T] in nats with and without memory.

    The loss of a token is that of predicting it from those before it: None for the first token.
    `untrained`: the layers whose memory added nothing to any token.
    """

    ids: tuple[int, ...]
    layers: tuple[LayerTrace, ...]
    untrained: tuple[int, ...]
    with_memory: tuple[float | None, ...]
    without_memory: tuple[float | None, ...]


class TracedModel:
    """A model that carries a memory. It runs for one thread at a time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._lock = threading.Lock()

    @classmethod
    def load(cls, checkpoint: Path, bundle: Path | None, rows: RowSource) -> TracedModel:
        """Load the model of a checkpoint with a bundle, by default the one in it.

        Raises MismatchError where its memory is hashed otherwise than the `rows` that are explored,
        and as `model_with_memory`.
        """
        check_checkpoint(checkpoint)
        bundle = bundle or checkpoint / BUNDLE_NAME
        own, theirs = read_bundle(bundle).spec.layout.fingerprint, rows.layout.fingerprint
        if own != theirs:
            raise MismatchError(
                f"the memory of {checkpoint} has layout {short(own)}, {rows.path} has "
                f"{short(theirs)}",
                "explore the model's own memory: leave the path out",
            )
        return cls(model_with_memory(checkpoint, bundle))

    def gates(self, ids: Sequence[int]) -> Gates:
        """Run the model over token ids with its memory and without. Raises InputError for none."""
        import torch

        from engram_cli.runtime.evaluation.scoring import device_of, token_losses
        from engram_cli.runtime.evaluation.variants import BARE, MEMORY, as_variant

        with self._lock:
            layers, untrained = trace_ids(self._model, ids)
            losses: dict[str, tuple[float | None, ...]] = {BARE: (None,), MEMORY: (None,)}
            if len(ids) > 1:
                own = torch.tensor([list(ids)], device=device_of(self._model))
                for name in losses:
                    with as_variant(self._model, name):
                        found = token_losses(self._model, own)[0].tolist()
                    losses[name] = (None, *(round(loss, 4) for loss in found))
        return Gates(
            ids=tuple(ids),
            layers=layers,
            untrained=untrained,
            with_memory=losses[MEMORY],
            without_memory=losses[BARE],
        )
