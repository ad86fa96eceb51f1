"""attach --fit: a few steps on a text, so that the rows of a bundle that was just written help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engram_cli.commands.checkpoint import ModelShape
from engram_cli.commands.evaluate.held_out import HeldOut
from engram_cli.commands.load_model import load_model
from engram_cli.commands.requests.tables import AttachRequest
from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.checks import needs_tokenizer, remarks
from engram_cli.corpus.encode import make_encoder
from engram_cli.corpus.sources import find_sources
from engram_cli.progress import Progress
from engram_cli.runtime import FitResult, attach, detach, fit, memories
from engram_cli.runtime.fitting import BATCH_TOKENS, CONTEXT, STEPS, per_step_tokens
from engram_cli.runtime.modules.base import dense_state
from engram_cli.vocab.tokenizer import find_tokenizer, load_tokenizer

Dense = Mapping[int, Mapping[str, NDArray[np.float32]]]


class GateFitter:
    """The text that the gates of a bundle are fitted to, found and checked before any work.

    Raises CorpusError, and DependencyError without torch and transformers.
    """

    def __init__(self, request: AttachRequest, shape: ModelShape, progress: Progress) -> None:
        assert request.fit is not None
        self._request, self._shape, self._progress = request, shape, progress
        self._options = CorpusOptions()
        self._sources = find_sources((request.fit,), self._options)
        for remark in remarks(self._sources.files, self._options):
            progress.note(remark)

    def fit(self, bundle: Path) -> tuple[FitResult, Dense]:
        """Return how a bundle was fitted, and the dense weights of its layers, float32.

        The checkpoint's model is run; nothing is written. Raises InputError for a text that is too
        short, and what reading a corpus raises.
        """
        model = self._load()
        memory = attach(model, bundle, rows_trainable=False, force=self._request.force)
        context = min(CONTEXT, self._shape.positions or CONTEXT)
        tokens = STEPS * per_step_tokens(context, BATCH_TOKENS)
        self._progress.start("fit the gates", tokens, "tokens")
        found = fit(
            model,
            self._documents(),
            steps=STEPS,
            batch_tokens=BATCH_TOKENS,
            context=context,
            seed=self._request.seed,
            advance=self._progress.advance,
        )
        dense = {
            layer: {
                name: weight.detach().float().cpu().numpy()
                for name, weight in dense_state(memory.layers[str(layer)]).items()
            }
            for layer in memory.spec.layers
        }
        if not found.kept:
            self._progress.note(
                f"the loss did not fall ({found.before:.3f} nats per token): the memory starts "
                "silent"
            )
        return found, dense

    def _load(self) -> Any:
        """Return the model without a memory, in a dtype that this machine is fast in."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        fast = device == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        model = load_model(self._request.checkpoint, dtype="auto" if fast else torch.float32)
        model.to(device)
        if memories(model):  # loaded with the checkpoint
            detach(model)
        return model

    def _documents(self) -> Iterator[NDArray[np.integer]]:
        """Yield the token ids of the text, a piece at a time."""
        encoder, tokenizer, request = None, None, self._request
        if needs_tokenizer(self._sources.files, self._options):
            place = request.tokenizer or request.checkpoint
            tokenizer = load_tokenizer(find_tokenizer(place), self._progress)
            encoder = make_encoder(tokenizer, "auto", self._progress, size=self._sources.size)
        text = HeldOut(
            files=self._sources.files, options=self._options, encoder=encoder, tokenizer=tokenizer
        )
        return (piece.ids for piece in text.pieces())
