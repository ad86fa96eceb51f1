"""A checkpoint with a memory and texts, for the tests of evaluate."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attaching import Listener
from commands.made import Made
from tiny_models import llama, wake

from engram_cli.commands.evaluate.command import evaluate
from engram_cli.commands.evaluate.result import EvaluateResult
from engram_cli.commands.requests.evaluation import EvaluateRequest
from engram_cli.runtime import attach, save_engram
from engram_cli.vocab.compress import CompressedVocab

TEXTS = (
    "Only Alexander the Great could tame the horse Bucephalus, and only the Great could fall.",
    "An apple fell from the café; 苹果 🍎 <b>apple</b> was closed.",
    "def apple(tree):\n    return tree.fruit + 2\n" * 3,
    "x",
    "An apple, an Apple and AN APPLE fell from the tree",
)
CONTEXT, STRIDE = 32, 20


@dataclass(frozen=True)
class Evaluated:
    """A checkpoint with a memory that matters, the fresh bundle, and the texts in a file."""

    checkpoint: Path
    fresh: Path
    stats: Path
    texts: Path

    def run(self, *, listener: Listener | None = None, **options: Any) -> EvaluateResult:
        given: dict[str, Any] = {
            "checkpoint": self.checkpoint,
            "sources": (self.texts,),
            "context_length": CONTEXT,
            "stride": STRIDE,
        }
        return evaluate(EvaluateRequest(**given | options), listener or Listener())


def make_evaluated(folder: Path, made_once: Made, small_vocab: CompressedVocab) -> Evaluated:
    """Make the checkpoint and the texts in an empty folder."""
    checkpoint = folder / "ckpt"
    checkpoint.mkdir()
    shutil.copy(made_once.folder / "tokenizer.json", checkpoint)
    model = llama(small_vocab.vocab_size)
    model.save_pretrained(checkpoint)
    wake(attach(model, made_once.bundle))
    save_engram(model, checkpoint / "engram")
    texts = folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return Evaluated(checkpoint, made_once.bundle, made_once.stats, texts)
