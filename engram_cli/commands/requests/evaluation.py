"""The request of evaluate: a model, its memory and adapter, and the held-out text."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engram_cli.commands.requests.corpus import CorpusFields
from engram_cli.commands.requests.options import (
    Checkpoint,
    Force,
    Here,
    Option,
    Rule,
    Verify,
    revision_of,
)
from engram_cli.commands.requests.patch import AnyBase
from engram_cli.commands.workspace import Workspace
from engram_cli.sizes import read_size

MODEL = "Model"
DTYPES = ("auto", "float32", "bfloat16", "float16")
AUTO, NO_BOS = "auto", "none"


def read_bos(text: str) -> str:
    """Parse what stands before each document: auto, none, or a token id."""
    if text not in (AUTO, NO_BOS) and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"'{text}' is not auto, none or a token id")
    return text


# How a model runs, in evaluate and trace.
Device = Annotated[
    str | None, Option("Device to run on, such as cpu or cuda:1 (a GPU if any).", panel=MODEL)
]
ModelDtype = Annotated[
    str,
    Option(
        "Dtype of the weights: auto (bfloat16 on a GPU, else float32), float32, bfloat16 or "
        "float16.",
        panel=MODEL,
        known=DTYPES,
    ),
]
ModelPlacement = Annotated[
    str,
    Option("Where rows lie: hbm, host, disk, or budgets: hbm=20GB,host=64GB.", panel=MODEL),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateRequest(CorpusFields):
    """What to evaluate on which text.

    `bundle`: None for `<checkpoint>/engram` if it is there. `stats`: None for the hits in the
    bundle, else the statistics next to it. `context_length`, `stride`, `batch_tokens`: None for
    what suits the model. `report`: an HTML page to write, None for none.
    """

    RULES = (
        Rule(
            lambda request: request.any_base and not request.patch,
            "--any-base without --patch",
            "it takes patches that were made for another artifact",
        ),
    )

    checkpoint: Checkpoint
    sources: Annotated[
        tuple[str | Path, ...],
        Option(
            "Held-out text that neither model nor memory was trained on: files, folders, globs, "
            "addresses or org/name of the Hub; - reads standard input.",
            argument=True,
            reads="stream",
        ),
    ]
    revision: Annotated[str | None, revision_of("checkpoint", "the checkpoint")] = None
    bundle: Annotated[
        Path | None, Option("Bundle to evaluate (CHECKPOINT/engram, if it is there).", reads="copy")
    ] = None
    verify: Verify = False
    patch: Annotated[
        tuple[Path, ...],
        Option(
            "Patch or overlay to put on the memory, without changing the bundle: the model is "
            "evaluated with and without. Can be repeated; on a row of several patches, the last "
            "one counts.",
            reads="ranges",
        ),
    ] = ()
    any_base: AnyBase = False
    lora: Annotated[
        Path | None,
        Option("LoRA adapter to evaluate too: a folder that PEFT saved.", reads="copy"),
    ] = None
    stats: Annotated[
        Path | None,
        Option(
            "Statistics of the memory's corpus: which n-grams it holds (the hits in the bundle, or "
            "statistics next to it).",
            reads="ranges",
        ),
    ] = None
    context_length: Annotated[
        int | None,
        Option(
            "Tokens that the model reads at once (2,048, or fewer if the model takes fewer).",
            panel=MODEL,
            least=2,
        ),
    ] = None
    stride: Annotated[
        int | None,
        Option(
            "Tokens from one window of a long document to the next (half the context).",
            panel=MODEL,
            least=1,
        ),
    ] = None
    bos: Annotated[
        str,
        Option(
            "Token before each document: auto (the one that the tokenizer adds to texts), none, "
            "or a token id.",
            panel=MODEL,
            parser=read_bos,
            metavar="TOKEN",
        ),
    ] = AUTO
    batch_tokens: Annotated[
        int | None,
        Option(
            "Tokens per batch, padding included (what 512 MiB of logits allow; 4 GiB on a GPU).",
            panel=MODEL,
            metavar="SIZE",
            parser=read_size,
            least=1,
        ),
    ] = None
    device: Device = None
    dtype: ModelDtype = AUTO
    placement: ModelPlacement = "hbm"
    max_tokens: Annotated[
        int | None,
        Option("Stop after so many tokens.", metavar="SIZE", parser=read_size, least=2),
    ] = None
    max_documents: Annotated[
        int | None,
        Option("Stop after so many documents.", metavar="SIZE", parser=read_size, least=1),
    ] = None
    report: Annotated[
        Path | None,
        Option("Also write the results as one HTML page that opens offline: evaluation.html"),
    ] = None
    force: Force = False
    workspace: Here = dataclasses.field(default_factory=Workspace)
