"""Reads the corpus for --init token-mean and next-token: its tokens and their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engram_cli.commands.corpus_tokenizer import tokenizer_of_corpus
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.corpus import CorpusFields, FillRequest
from engram_cli.corpus.checks import needs_tokenizer, remarks
from engram_cli.corpus.encode import EncoderDiffers
from engram_cli.corpus.partitions import PARTITION_BYTES, Plan, plan_partitions
from engram_cli.corpus.sources import Sources
from engram_cli.corpus.stamps import check_companions, stamps_of
from engram_cli.engines import corpus_tokens
from engram_cli.engines.base import Engine, Reading, request_fingerprint
from engram_cli.engines.filling import TASK_BYTES
from engram_cli.engines.local import LocalEngine
from engram_cli.errors import CorpusError, InputError, MismatchError, UndecodableError
from engram_cli.formats.embeddings import Side, find_embeddings
from engram_cli.hashing.layout import HashLayout
from engram_cli.numbers import bytes_text
from engram_cli.progress import Progress
from engram_cli.sizes import available_memory, processors
from engram_cli.table.inits.corpus.embeddings import Embeddings, MatrixEmbeddings, RandomEmbeddings
from engram_cli.table.inits.corpus.pairs import check_fold
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter
from engram_cli.table.inits.normal import DEFAULT_STD
from engram_cli.vocab.tokenizer import TokenizerFile

_DEFAULT_MEMORY = 2 * 2**30  # where the system does not say what is free
_BYTES_A_TOKEN = 3  # of text; for what is said before the corpus was read


@dataclass(frozen=True, slots=True, kw_only=True)
class FillPlan:
    """Says what filling takes. `tokens` is a guess from file sizes until the files are read.

    `passes`: None where a cluster, not asked yet, decides. `memory_bytes`: of a cluster, of a task.
    `scratch_bytes`: on the disk at most, until the table is there.
    """

    tokens: int
    guessed: bool
    passes: int | None
    memory_bytes: int
    scratch_bytes: int

    @property
    def some_passes(self) -> str:
        """The number of passes, in words."""
        if self.passes is None:
            return "passes"
        return "1 pass" if self.passes == 1 else f"{self.passes} passes"

    def __str__(self) -> str:
        about = "about " if self.guessed else ""
        return (
            f"filling from {about}{self.tokens:,} tokens in {self.some_passes} within "
            f"{bytes_text(self.memory_bytes)} of memory; at most "
            f"{bytes_text(self.scratch_bytes)} on the disk until the end"
        )


def find_vectors(
    request: FillRequest, init: str, layout: HashLayout, std: float | None
) -> Embeddings:
    """Return the vectors of the tokens. Raises InputError, ArtifactError."""
    check_fold(layout)
    if request.checkpoint is None:
        return RandomEmbeddings(
            tokens=layout.vocab_size,
            seed=request.embedding_seed,
            std=DEFAULT_STD if std is None else std,
        )
    if std is not None:
        raise InputError(
            "--std does not apply with --checkpoint",
            "leave out --std; embeddings have their own scale",
        )
    side: Side = "output" if init == "next-token" else "input"
    tensor = find_embeddings(request.checkpoint, side, request.embedding_tensor)
    return MatrixEmbeddings(
        tokens=min(tensor.tokens, layout.vocab_size),
        hidden=tensor.hidden,
        read=tensor.read,
        name=tensor.name,
        digest=tensor.checksum(),
        seed=request.embedding_seed,
    )


def vectors_of_table(
    fill: FillRequest, path: Path, init: str, layout: HashLayout, made: Mapping[str, Any]
) -> Embeddings:
    """Return the vectors that are in the rows of the table at `path`, by the parameters `made` of
    its init. Raises InputError, and MismatchError for a foreign checkpoint."""
    wanted = made["embeddings"]
    if wanted["kind"] == "random":
        return RandomEmbeddings(
            tokens=layout.vocab_size, seed=int(wanted["seed"]), std=float(wanted["std"])
        )
    if fill.checkpoint is None:
        raise InputError(
            f"{path} was filled with the embeddings {wanted['tensor']} of a checkpoint",
            "give that checkpoint with --checkpoint",
        )
    named = replace(
        fill, embedding_tensor=str(wanted["tensor"]), embedding_seed=int(wanted["seed"])
    )
    vectors = find_vectors(named, init, layout, None)
    if vectors.parameters != wanted:
        raise MismatchError(
            f"{path} was filled with the embeddings of another checkpoint, not {fill.checkpoint}",
            "give the checkpoint that it was filled with",
        )
    return vectors


def memory_of(request: FillRequest) -> int:
    """Return the bytes of memory that filling may take, or a task of it on a cluster."""
    if request.memory is not None:
        return request.memory
    if request.engine != "local":
        return TASK_BYTES
    free = available_memory()
    return _DEFAULT_MEMORY if free is None else free // 2


def guess_tokens(sources: Sources) -> TokenFile:
    """Return a stand-in for the token file, its size guessed from the size of the corpus."""
    size = sources.size or 0
    return TokenFile(path=Path(), tokens=size // _BYTES_A_TOKEN, documents=0, largest=-1, digest="")


def write_tokens(
    request: FillRequest,
    sources: Sources,
    geometry: Geometry,
    layout: HashLayout,
    vocab: Path,
    folder: Path,
    progress: Progress,
    engine: Engine | None = None,
) -> TokenFile:
    """Return the tokens of the corpus in a scratch file in `folder`, written if missing.

    `engine`: what reads, None for this machine. Files are always read in partitions.
    Raises CorpusError and TokenIdError naming the file and the place, MismatchError, InputError,
    OutputError.
    """
    tokenizer = None
    if needs_tokenizer(sources.files, request.corpus):
        tokenizer = tokenizer_of_corpus(
            vocab, geometry, request.workspace, request.tokenizer, progress
        )
    return encode_corpus(request, sources, tokenizer, layout, folder, progress, engine)


def encode_corpus(
    request: CorpusFields,
    sources: Sources,
    tokenizer: TokenizerFile | None,
    layout: HashLayout,
    folder: Path,
    progress: Progress,
    engine: Engine | None = None,
) -> TokenFile:
    """Return the tokens of the corpus as `write_tokens` does, by a tokenizer that is known.

    `tokenizer`: None where no file holds text.
    """
    for remark in remarks(sources.files, request.corpus):
        progress.note(remark)
    decisive = {
        "vocabulary": layout.vocab_digest,
        "vocab_size": layout.vocab_size,
        "tokenizer": None if tokenizer is None else tokenizer.digest,
        "partition_size": PARTITION_BYTES,
    }
    plan = plan_partitions(sources.files, request.corpus, PARTITION_BYTES)
    reading = Reading(
        layout=layout, options=request.corpus, tokenizer=tokenizer, encoder=request.encoder
    )
    engine = engine or LocalEngine(processors())
    stamps = stamps_of(sources.files, request.corpus)
    request_digest = request_fingerprint(sources.files, request.corpus, decisive, stamps)
    writer = TokenWriter(folder, request_digest, engine.threads)
    if writer.finished is None:
        try:
            _write(engine, reading, plan, writer, progress)
        except EncoderDiffers as error:
            if sources.size is None:  # what came through a pipe is gone
                raise
            writer.restart()
            progress.note(f"{error.message}: reading again from the start with tokenizers")
            again = replace(reading, encoder="tokenizers")
            _write(engine, again, plan, writer, progress, insisted=True)
        check_companions(sources.files, request.corpus, stamps)
    else:
        progress.note(f"reusing {writer.tokens:,} tokens of this corpus from an earlier run")
    found = writer.finished
    if found is None or not found.tokens:
        raise CorpusError(
            f"the corpus holds no tokens ({sources.files[0].name})", "give a corpus that has text"
        )
    return found


def _write(
    engine: Engine,
    reading: Reading,
    plan: Plan,
    writer: TokenWriter,
    progress: Progress,
    *,
    insisted: bool = False,
) -> None:
    if writer.tokens:
        progress.note(f"resuming: {writer.tokens:,} tokens are there from an interrupted run")
    progress.start("tokens of the corpus", plan.size, "bytes")
    if writer.size:
        progress.advance(writer.size)
    try:
        corpus_tokens.write_tokens(engine, reading, plan, writer, progress, insisted=insisted)
    except UndecodableError:
        if writer.tokens and writer.resumable:
            progress.note(
                f"{writer.tokens:,} tokens are kept: the same command with --errors replace "
                "resumes there"
            )
        raise
