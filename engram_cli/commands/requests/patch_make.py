"""The request of `engram patch make`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engram_cli.commands.requests.corpus import CorpusFields
from engram_cli.commands.requests.evaluation import DTYPES, MODEL, Device
from engram_cli.commands.requests.options import (
    Checkpoint,
    Force,
    Here,
    Option,
    Rule,
    Verify,
    revision_of,
)
from engram_cli.commands.workspace import Workspace
from engram_cli.sizes import read_size
from engram_cli.training import defaults

ALL = "all"
_ROWS, _STEPS = "Rows to change", "Gradient steps"


def read_rows(text: str) -> int | str:
    """Parse how many rows a token may change: a number, or all."""
    if text == ALL:
        return ALL
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise ValueError(f"'{text}' is not {ALL} or a number of 1 or more")
    return int(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMakeRequest(CorpusFields):
    """Which facts to teach which model, by which rows, and on what to measure the damage.

    `bundle`: None for `<checkpoint>/engram`. `stats`: None for the hits in the bundle, else the
    statistics next to it. `rows_per_token`: "all" changes every row of the facts' n-grams.
    `max_traffic`: look-ups per million tokens, None for no limit.
    """

    RULES = (
        Rule(
            lambda request: not 0 < request.rate < float("inf"),
            "--rate {0.rate:g}",
            "give a number above 0",
        ),
        Rule(
            lambda request: request.max_traffic is not None and not request.max_traffic >= 0,
            "--max-traffic {0.max_traffic:g}",
            "give look-ups per million tokens, 0 or more",
        ),
    )

    checkpoint: Checkpoint
    edits: Annotated[
        Path,
        Option(
            "Facts to teach: JSON lines with prompt and target. The target follows the prompt as "
            "it is, so it begins with its space.",
            reads="ranges",
        ),
    ]
    out: Annotated[Path, Option("Patch to write.", short="-o")] = Path("engram.patch.safetensors")
    revision: Annotated[str | None, revision_of("checkpoint", "the checkpoint")] = None
    bundle: Annotated[
        Path | None, Option("Bundle whose rows are changed (CHECKPOINT/engram).", reads="copy")
    ] = None
    verify: Verify = False
    stats: Annotated[
        Path | None,
        Option(
            "Statistics of a corpus: how often it reads each row (the hits in the bundle, or "
            "statistics next to it).",
            reads="ranges",
        ),
    ] = None
    held_out: Annotated[
        tuple[str | Path, ...],
        Option(
            "Other text, to measure on it how far the patch moves the model. Can be repeated.",
            reads="stream",
        ),
    ] = ()
    max_tokens: Annotated[
        int | None,
        Option(
            "Stop after so many tokens of the held-out text.",
            metavar="SIZE",
            parser=read_size,
            least=2,
        ),
    ] = None
    rows_per_token: Annotated[
        int | str,
        Option(
            "Rows to change for each token of a target: those that move it most for each look-up "
            "of the corpus; or all.",
            panel=_ROWS,
            metavar="N",
            parser=read_rows,
        ),
    ] = defaults.EDIT_ROWS
    max_traffic: Annotated[
        float | None,
        Option(
            "Change no row that the corpus reads more often, in look-ups per million tokens.",
            panel=_ROWS,
            metavar="N",
        ),
    ] = None
    steps: Annotated[
        int, Option("Steps at most; fewer if all facts are learned.", panel=_STEPS, least=1)
    ] = defaults.EDIT_STEPS
    rate: Annotated[
        float,
        Option("How far a step moves a value: times the size of the rows' values.", panel=_STEPS),
    ] = defaults.EDIT_RATE
    device: Device = None
    dtype: Annotated[
        str,
        Option(
            "Dtype of the weights. Rounding in bfloat16 moves predictions more than a patch does.",
            panel=MODEL,
            known=DTYPES,
        ),
    ] = "float32"
    ngrams: Annotated[
        int, Option("Number of n-grams of the corpus to list that read changed rows.", least=0)
    ] = 10
    description: Annotated[
        str | None, Option("What the patch is for (the name of the edits file).")
    ] = None
    force: Force = False
    workspace: Here = dataclasses.field(default_factory=Workspace)

    @property
    def rows_of_a_token(self) -> int | None:
        """How many rows a token of a target may change, None for all."""
        return self.rows_per_token if isinstance(self.rows_per_token, int) else None
