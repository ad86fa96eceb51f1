"""The requests that read artifacts: inspect, lookup, verify, golden, report, trace; the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from engram_cli.commands.geometry import LAYOUT_NAMES, Geometry, PresetName
from engram_cli.commands.requests.evaluation import AUTO, Device, ModelDtype, ModelPlacement
from engram_cli.commands.requests.options import (
    TOKENIZER_FILES,
    WORKSPACE,
    Checkpoint,
    Force,
    Group,
    ModelTokenizer,
    Option,
    Request,
    Rule,
    Threads,
    Verify,
    Vocab,
    integers,
    revision_of,
)
from engram_cli.commands.requests.probe import ProbeOptions, ProbeRequest
from engram_cli.commands.requests.shards import ShardOptions
from engram_cli.commands.workspace import Workspace
from engram_cli.formats.shard_shape import ShardShape

LEAST_SHARE, MOST_SHARE = 1e-6, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectRequest(Request):
    """What to inspect.

    `stats`, `vocab`: None for those that lie next to it and belong to it. `hottest`: rows listed of
    each order. `rows`: read the rows too, or only what describes them; None reads those of
    engram's own artifacts on this machine. `full`: read every row; else a sample of large layers,
    and figures have standard errors. `tokenizer`: that of another program's checkpoint, None
    for the one in its folder. `probe`: ask the table what it knows of a text. `report`: a page to
    draw of it all.
    """

    path: Annotated[
        Path,
        Option(
            "Table, bundle, vocabulary, statistics or checkpoint with tables to inspect: a path, "
            "org/name of the Hugging Face Hub, or an address (hf://, https://, s3://, gs://).",
            argument=True,
            reads="ranges",
        ),
    ]
    revision: Annotated[str | None, revision_of("path", "the artifact")] = None
    stats: Annotated[
        Path | None,
        Option("Statistics with hits and n-grams (those next to the artifact).", reads="ranges"),
    ] = None
    vocab: Vocab = None
    hottest: Annotated[
        int, Option("Number of hottest rows to list per order.", least=0, most=10)
    ] = 5
    rows: Annotated[
        bool | None,
        Option(
            "Read the rows, or only their metadata (rows are read unless they are another "
            "program's checkpoint, or behind an address)."
        ),
    ] = None
    full: Annotated[
        bool,
        Option(
            "Read every row instead of a sample. Of layers with more than 2,097,152 rows, only the "
            "figures of duplicate rows are estimates then."
        ),
    ] = False
    tokenizer: Annotated[
        Path | None,
        Option(
            "Tokenizer of another program's checkpoint (that in its folder), or of a probed text.",
            reads="ranges",
            files=TOKENIZER_FILES,
        ),
    ] = None
    report: Annotated[
        Path | None, Option("Also write the results as one HTML page that opens offline: page.html")
    ] = None
    probe: Annotated[ProbeRequest | None, Group(ProbeOptions)] = None
    shape: Annotated[ShardShape | None, Group(ShardOptions)] = None
    threads: Threads = None
    force: Force = False
    folder: Annotated[Path, WORKSPACE] = Path()


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupRequest(Request):
    """What to look up where.

    Either `text` or `ids`; with `against` or `against_ids` a second text to compare with the first.
    `layer` None is the first of the layout. `vectors`: where float32 [T, C*dim] go. `geometry` is
    for a vocabulary, which has none of its own. The first `limit` tokens of each text are listed.
    """

    path: Annotated[
        Path,
        Option(
            "Table, bundle, statistics, vocabulary or checkpoint with tables to use: a path, "
            "org/name of the Hugging Face Hub, or an address.",
            argument=True,
            reads="ranges",
        ),
    ]
    revision: Annotated[str | None, revision_of("path", "the artifact")] = None
    text: Annotated[str | None, Option("Text to look up.", argument=True)] = None
    ids: Annotated[
        tuple[int, ...] | None,
        Option("Token ids to look up instead of a text.", metavar="ID,...", parser=integers),
    ] = None
    against: Annotated[
        str | None, Option("Second text: show which rows both texts use.", metavar="TEXT")
    ] = None
    against_ids: Annotated[
        tuple[int, ...] | None,
        Option("Second text as token ids.", metavar="ID,...", parser=integers),
    ] = None
    layer: Annotated[int | None, Option("Layer to look up (the first).")] = None
    limit: Annotated[int, Option("Maximum number of tokens to show per text.", least=1)] = 64
    vectors: Annotated[
        Path | None,
        Option("Write the vectors as a NumPy file, float32 [tokens, heads x width]: out.npy"),
    ] = None
    stats: Annotated[
        Path | None,
        Option("Statistics with the n-gram sample (those next to the artifact).", reads="ranges"),
    ] = None
    tokenizer: Annotated[
        Path | None,
        Option(
            "Tokenizer of the text (found automatically).",
            reads="ranges",
            files=TOKENIZER_FILES,
        ),
    ] = None
    vocab: Vocab = None
    geometry: Annotated[Geometry, Group(Geometry)] = field(default_factory=Geometry)
    shape: Annotated[ShardShape | None, Group(ShardOptions)] = None
    force: Force = False
    folder: Annotated[Path, WORKSPACE] = Path()

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the options of the layout, unless the artifact is a vocabulary and has none."""
        from engram_cli.commands.artifact import VOCABULARY, find_artifact

        bare = find_artifact(given["path"]).kind == VOCABULARY
        return frozenset() if bare else LAYOUT_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest(Request):
    """What to verify.

    `stats` and `vocab` are compared with the artifact; without them those that lie next to it and
    belong to it. `tokenizer`: what a vocabulary was made from, or another program's checkpoint.
    `full`: read every row; else a sample that finds a fault in `fault_share` of the rows.
    """

    RULES = (
        Rule(
            lambda request: not LEAST_SHARE <= request.fault_share <= MOST_SHARE,
            "--fault-share {0.fault_share:g}",
            f"give a share of the rows, from {LEAST_SHARE:g} to {MOST_SHARE:g}",
        ),
    )

    path: Annotated[
        Path,
        Option(
            "Table, bundle, patch, vocabulary, statistics or checkpoint with tables to check: a "
            "path, org/name of the Hugging Face Hub, or an address.",
            argument=True,
            reads="ranges",
        ),
    ]
    revision: Annotated[str | None, revision_of("path", "the artifact")] = None
    stats: Annotated[
        Path | None,
        Option(
            "Statistics that the counts must match (those next to the artifact).", reads="ranges"
        ),
    ] = None
    vocab: Vocab = None
    tokenizer: Annotated[
        Path | None,
        Option(
            "Tokenizer of a vocabulary, or of a checkpoint with tables (found automatically).",
            reads="ranges",
            files=TOKENIZER_FILES,
        ),
    ] = None
    full: Annotated[
        bool, Option("Read every row and compare all blocks; by default a sample is read.")
    ] = False
    fault_share: Annotated[
        float,
        Option("Share of faulty rows that the sample finds, in 99.9 % of cases.", metavar="SHARE"),
    ] = 0.001
    shape: Annotated[ShardShape | None, Group(ShardOptions)] = None
    threads: Threads = None
    folder: Annotated[Path, WORKSPACE] = Path()


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenRequest(Request):
    """Of what to write golden vectors, or what to check with them.

    Either `out` or `check`. `path` None: a preset or a geometry alone. `geometry` is for a
    vocabulary, which has none of its own, or for no path; it overrides that of `preset`.
    """

    RULES = (
        Rule(
            lambda request: (request.out is None) == (request.check is None),
            "golden needs either --out or --check",
            "write vectors with --out golden.json, or compare yours with --check theirs.json",
        ),
        Rule(
            lambda request: (
                request.path is None and request.preset is None and not request.geometry.given
            ),
            "nothing to make vectors of",
            "give a table, bundle, vocabulary or checkpoint, or --preset deepseek-v4.1",
        ),
    )

    path: Annotated[
        Path | None,
        Option(
            "Table, bundle, vocabulary or checkpoint with tables to use: a path, org/name of the "
            "Hugging Face Hub, or an address.",
            argument=True,
            reads="ranges",
        ),
    ] = None
    revision: Annotated[str | None, revision_of("path", "the artifact")] = None
    out: Annotated[Path | None, Option("File to write: golden.json", short="-o")] = None
    check: Annotated[
        Path | None,
        Option(
            "Compare the vectors of another program with ours, and name the fault: theirs.json",
            metavar="THEIRS",
            reads="ranges",
        ),
    ] = None
    tokenizer: Annotated[
        Path | None,
        Option(
            "Tokenizer of the token ids (found automatically).",
            reads="ranges",
            files=TOKENIZER_FILES,
        ),
    ] = None
    preset: PresetName = None
    geometry: Annotated[Geometry, Group(Geometry)] = field(default_factory=Geometry)
    shape: Annotated[ShardShape | None, Group(ShardOptions)] = None
    force: Force = False
    folder: Annotated[Path, WORKSPACE] = Path()

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the options of the layout, where the artifact or a preset decides them."""
        from engram_cli.commands.artifact import VOCABULARY, find_artifact

        if given["preset"] is not None:
            return LAYOUT_NAMES
        bare = given["path"] is None or find_artifact(given["path"]).kind == VOCABULARY
        return frozenset() if bare else LAYOUT_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest(Request):
    """Which statistics folder to draw, and where the page goes."""

    stats: Annotated[
        Path,
        Option(
            "Statistics folder to read (engram-stats).",
            argument=True,
            place="stats",
            reads="ranges",
        ),
    ]
    revision: Annotated[str | None, revision_of("stats", "the statistics")] = None
    out: Annotated[Path, Option("Page to write (report.html).", short="-o", place="report")] = (
        Workspace().report
    )
    force: Force = False
    folder: Annotated[Path | None, WORKSPACE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest(Request):
    """What to run over which text. `bundle` None is `<checkpoint>/engram`.

    `tokenizer` None is the checkpoint's; `report` is an HTML page to write, None for none.
    """

    checkpoint: Checkpoint
    text: Annotated[str, Option("Text to run the model on.", argument=True)]
    revision: Annotated[str | None, revision_of("checkpoint", "the checkpoint")] = None
    bundle: Annotated[Path | None, Option("Bundle to use (CHECKPOINT/engram).", reads="copy")] = (
        None
    )
    verify: Verify = False
    tokenizer: ModelTokenizer = None
    device: Device = None
    dtype: ModelDtype = AUTO
    placement: ModelPlacement = "hbm"
    report: Annotated[Path | None, Option("HTML page to write.", metavar="PAGE")] = None
    force: Force = False
    folder: Annotated[Path | None, WORKSPACE] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoRequest(Request):
    """Where the demo works: a new folder, or one of an earlier demo, which is replaced."""

    folder: Annotated[
        Path,
        Option(
            "Folder for the demo's files. A folder of an earlier demo is replaced.", argument=True
        ),
    ] = Path("engram-demo")
    train: Annotated[bool, Option("Train the memory for ten steps (needs transformers).")] = True
