"""The requests that read a tokenizer or a corpus: compress-vocab, hash-stats, filled rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from engram_cli.commands.geometry import LAYOUT_NAMES, Geometry, PresetName
from engram_cli.commands.requests.options import (
    CORPUS,
    ENGINE,
    TOKENIZER_FILES,
    Force,
    Group,
    Here,
    Option,
    Request,
    Rule,
    Vocab,
    names,
    revision_of,
    unescape,
)
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.readers import READERS
from engram_cli.errors import InputError
from engram_cli.sizes import read_size

if TYPE_CHECKING:
    from engram_cli.corpus.base import CorpusOptions

FILL = "Rows from a corpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressVocabRequest(Request):
    """What to compress and what to ask.

    `source`: a tokenizer.json, a folder that holds one, or a compressed vocabulary (then nothing
    is written); None finds one. The questions `show` and `against` write nothing unless `out` says
    where. Where there are not `expect` compressed ids, nothing is written either.
    """

    source: Annotated[
        Path | None,
        Option(
            "tokenizer.json, a Hugging Face folder, or a compressed vocabulary to inspect: a path, "
            "org/name of the Hugging Face Hub, or an address (./tokenizer.json, else that of the "
            "checkpoint in this folder, else the installed DeepSeek tokenizer).",
            argument=True,
            reads="ranges",
            files=TOKENIZER_FILES,
        ),
    ] = None
    revision: Annotated[str | None, revision_of("source", "the tokenizer")] = None
    out: Annotated[
        Path | None,
        Option("Parquet file to write (engram-vocab.parquet).", short="-o", writes=True),
    ] = None
    show: Annotated[
        tuple[str, ...], Option("Print the group of tokens that this text belongs to.")
    ] = ()
    against: Annotated[
        Path | None,
        Option("Compare with another compressed vocabulary.", name="diff", reads="ranges"),
    ] = None
    expect: Annotated[
        int | None, Option("Exit with 1 unless there are this many compressed ids.")
    ] = None
    groups: Annotated[int, Option("Number of largest groups to print.", least=0)] = 8
    force: Force = False
    workspace: Here = dataclasses.field(default_factory=Workspace)

    @property
    def asks(self) -> bool:
        """Whether a question was asked, which by itself writes nothing."""
        return bool(self.show) or self.against is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFields(Request):
    """How the files of a corpus are read; see `corpus.base.CorpusOptions`.

    `tokenizer`: None looks for the one that the vocabulary was made with.
    """

    PANEL = CORPUS

    format: Annotated[
        str | None,
        Option(f"File format: {READERS.choices()} (detected for each file)."),
    ] = None
    field: Annotated[
        str | None,
        Option("Field that holds the text or token ids; use dots for nested fields (text)."),
    ] = None
    document_separator: Annotated[
        str | None,
        Option(
            r"Separator between documents in a text file, such as '\n\n'.",
            metavar="TEXT",
            parser=unescape,
        ),
    ] = None
    document_end_id: Annotated[
        int | None, Option("Token id between documents in nanogpt, llmc and olmo files.", least=0)
    ] = None
    ids_dtype: Annotated[
        str | None,
        Option(
            "Type of the ids in nanogpt and olmo files: uint16, uint32, int32 or int64 (detected)."
        ),
    ] = None
    suffixes: Annotated[
        tuple[str, ...] | None,
        Option(
            "Read only the files of a folder that have these suffixes: .txt,.md",
            metavar="SUFFIX,...",
            parser=names,
        ),
    ] = None
    errors: Annotated[
        str,
        Option(
            "What to do with bytes that are not UTF-8: strict (stop) or replace (read U+FFFD).",
            known=("strict", "replace"),
        ),
    ] = "strict"
    tokenizer: Annotated[
        Path | None,
        Option(
            "Tokenizer (that of the vocabulary or of the checkpoint).",
            reads="ranges",
            files=TOKENIZER_FILES,
        ),
    ] = None
    encoder: Annotated[str, Option("Tokenizer implementation: auto, tokenizers or fast.")] = "auto"

    @property
    def corpus(self) -> CorpusOptions:
        """How the files are read."""
        return self._corpus(self.document_end_id, None)

    def _corpus(self, end_id: int | None, label: str | None) -> CorpusOptions:
        from engram_cli.corpus.base import CorpusOptions

        return CorpusOptions(
            format=self.format,
            field=self.field,
            document_separator=self.document_separator,
            document_end_id=end_id,
            ids_dtype=self.ids_dtype,
            suffixes=self.suffixes,
            errors="replace" if self.errors == "replace" else "strict",
            label=label,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusRun(CorpusFields):
    """A pass over a corpus, on this machine or on a cluster."""

    PANEL = CORPUS

    join_documents: Annotated[bool, Option("Let n-grams cross document boundaries.")] = False
    engine: Annotated[
        str,
        Option(
            "Where to read the corpus: local, or ray (tasks on a Ray cluster).",
            panel=ENGINE,
            known=("local", "ray"),
        ),
    ] = "local"
    ray_address: Annotated[
        str | None,
        Option(
            "Ray cluster to use (one running on this machine, else a new one).",
            panel=ENGINE,
            metavar="ADDRESS",
        ),
    ] = None


_CLUSTER = Rule(
    lambda request: request.ray_address is not None and request.engine != "ray",
    "--ray-address needs --engine ray",
    "give --engine ray too",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashStatsRequest(CorpusRun):
    """What to count.

    `sources`: files, folders, globs, "-" for standard input. `vocab`, `out`: None for the fixed
    names in `workspace`. The geometry's EOS ends documents if `document_end_id` is None. A choice
    of `geometry` overrides that of `preset`. `exact`, `compare_uncompressed`, `group_by`,
    `locality`, `holdout`, `growth`: see `CollectorOptions`. `checkpoint_seconds`: the shortest time
    between two checkpoints of the run; 0 writes one at every chance.
    """

    sources: Annotated[
        tuple[str | Path, ...],
        Option(
            "Files, folders, globs, addresses or org/name of the Hugging Face Hub to read; - reads "
            "standard input. With --merge, statistics folders.",
            argument=True,
            reads="stream",
        ),
    ]
    revision: Annotated[str | None, revision_of("sources", "the data sets")] = None
    preset: PresetName = None
    geometry: Annotated[Geometry, Group(Geometry)] = dataclasses.field(default_factory=Geometry)
    sample_size: Annotated[
        int,
        Option(
            "N-grams to sample per order (256Ki).",
            metavar="SIZE",
            parser=read_size,
            least=16,
            most=2**23,
        ),
    ] = 2**18
    exact: Annotated[bool, Option("Count every distinct n-gram exactly, if memory allows.")] = False
    compare_uncompressed: Annotated[
        bool, Option("Also hash raw token ids, and compare the two.")
    ] = False
    group_by: Annotated[
        str | None,
        Option(
            "Show how n-grams overlap between groups of documents: file, folder, or a field.",
            metavar="WHAT",
        ),
    ] = None
    locality: Annotated[
        bool, Option("Measure how unevenly rows are used, and the hit rates of caches.")
    ] = False
    holdout: Annotated[
        float | None,
        Option(
            "Hold out this share of the corpus: look it up but do not count it, such as 0.1. "
            "Turns on --locality.",
            metavar="SHARE",
        ),
    ] = None
    growth: Annotated[
        bool, Option("Measure how the number of distinct n-grams grows with the corpus.")
    ] = True
    restart: Annotated[bool, Option("Ignore the saved checkpoint and start over.")] = False
    checkpoint_seconds: float = 30.0
    report: Annotated[
        Path | None,
        Option("Also write the results as one HTML page that opens offline: report.html"),
    ] = None
    threads: Annotated[
        int | None,
        Option(
            "Number of counting threads, 8 at most (one per core; with ray, one per task).",
            panel=ENGINE,
            least=1,
        ),
    ] = None
    partition_size: Annotated[
        int,
        Option(
            "Bytes per partition (256Mi). Caches and joined documents start over in "
            "each partition.",
            panel=ENGINE,
            metavar="BYTES",
            parser=read_size,
            least=2**10,
        ),
    ] = 2**28
    vocab: Vocab = None
    out: Annotated[
        Path | None, Option("Folder to write (engram-stats).", short="-o", writes=True)
    ] = None
    force: Force = False
    workspace: Here = dataclasses.field(default_factory=Workspace)

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            lambda request: not request.checkpoint_seconds >= 0.0,
            "{0.checkpoint_seconds} seconds",
            "give 0 or more",
        ),
        _CLUSTER,
    )

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the options of the layout if a preset is given."""
        return frozenset() if given["preset"] is None else LAYOUT_NAMES

    @property
    def corpus(self) -> CorpusOptions:
        """How the files are read."""
        from engram_cli.stats.statistics.sources import GROUPINGS

        end = self.geometry.eos_id if self.document_end_id is None else self.document_end_id
        return self._corpus(end, None if self.group_by in GROUPINGS else self.group_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class FillRequest(CorpusRun):
    """Says which corpus fills the rows of a table, and with which token vectors.

    `checkpoint`: a model's folder, None for random vectors; `embedding_tensor`: the matrix in it,
    None for the known names. `embedding_seed`: of the random vectors, or of the projections.
    `memory`: bytes, None for half of what is free; with ray, of a task, None for 2 GB.
    """

    PANEL = FILL

    sources: Annotated[
        tuple[str | Path, ...],
        Option(
            "Files, folders, globs, addresses or org/name of the Hugging Face Hub whose n-grams "
            "fill the rows. Can be repeated.",
            name="corpus",
            reads="stream",
        ),
    ] = ()
    checkpoint: Annotated[
        Path | None,
        Option(
            "Model (safetensors) whose token embeddings fill the rows: a folder, org/name of the "
            "Hugging Face Hub, or an address (random embeddings).",
            reads="ranges",
        ),
    ] = None
    revision: Annotated[str | None, revision_of("checkpoint", "the checkpoint")] = None
    embedding_tensor: Annotated[
        str | None, Option("Name of the embedding tensor in the checkpoint (found automatically).")
    ] = None
    embedding_seed: Annotated[
        int, Option("Seed of the random embeddings, or of the projections.", least=0)
    ] = 0
    memory: Annotated[
        int | None,
        Option(
            "Memory limit, such as 4GB (half of the free memory; with ray, 2GB per task).",
            metavar="SIZE",
            parser=read_size,
            least=2**26,
        ),
    ] = None
    workspace: Here = dataclasses.field(default_factory=Workspace)

    RULES = (
        _CLUSTER,
        Rule(
            lambda request: request.embedding_tensor is not None and request.checkpoint is None,
            "--embedding-tensor needs a checkpoint",
            "give --checkpoint",
        ),
        Rule(
            lambda request: not request.embedding_seed < 2**64,
            "embedding seed {0.embedding_seed}",
            "give 0 to 2^64 - 1",
        ),
    )

    def resolved(self, given: Mapping[str, Any]) -> FillRequest | None:
        """Return the request, or None if no corpus was given on the command line."""
        if self.checkpoint is not None and not self.sources:
            raise InputError(
                "--checkpoint without --corpus",
                "a checkpoint's embeddings are written into rows where a corpus says which",
            )
        return self if self.sources else None
