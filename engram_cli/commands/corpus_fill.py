"""The corpus behind --init token-mean and next-token: sources in, tokens and embeddings out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from engram_cli.commands.corpus_tokenizer import tokenizer_of_corpus
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.encode import EncoderDiffers, make_encoder
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.corpus.stream import TokenStream, needs_tokenizer, remarks
from engram_cli.engines.resuming import request_fingerprint
from engram_cli.errors import CorpusError, InputError
from engram_cli.formats.embedding_tensor import Side, find_embeddings
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.stats.memory import available_memory
from engram_cli.table.inits.corpus.embeddings import (
    Embeddings,
    MatrixEmbeddings,
    RandomEmbeddings,
)
from engram_cli.table.inits.corpus.tokens import TokenFile, TokenWriter
from engram_cli.table.inits.normal import DEFAULT_STD

if TYPE_CHECKING:
    from engram_cli.vocab.tokenizer import TokenizerFile

CORPUS_INITS = ("token-mean", "next-token")
_DEFAULT_MEMORY = 2 * 2**30  # where the system does not say what is free
_BYTES_A_TOKEN = 3  # of text; for what is said before the corpus was read


@dataclass(frozen=True, slots=True, kw_only=True)
class FillRequest:
    """The corpus that fills the rows, and whose vectors it writes there.

    `sources`, `corpus`, `tokenizer`, `encoder`, `join_documents`: as in `HashStatsRequest`.
    `checkpoint`: a model's folder, None for random vectors; `embedding_tensor`: the matrix in it,
    None for the known names. `embedding_seed`: of the random vectors, or of the projections.
    `memory`: bytes, None for half of what is free.
    """

    sources: tuple[str | Path, ...]
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    workspace: Workspace = field(default_factory=Workspace)
    tokenizer: Path | None = None
    encoder: str = "auto"
    join_documents: bool = False
    checkpoint: Path | None = None
    embedding_tensor: str | None = None
    embedding_seed: int = 0
    memory: int | None = None

    def __post_init__(self) -> None:
        if self.embedding_tensor is not None and self.checkpoint is None:
            raise InputError("an embedding tensor, and no checkpoint", "give --checkpoint")
        if not 0 <= self.embedding_seed < 2**64:
            raise InputError(f"embedding seed {self.embedding_seed}", "give 0 to 2^64 - 1")

    @property
    def memory_bytes(self) -> int:
        """What may be taken."""
        if self.memory is not None:
            return self.memory
        free = available_memory()
        return _DEFAULT_MEMORY if free is None else free // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FillPlan:
    """What filling takes. `tokens` is a guess from the files' sizes where they were not read yet.

    `scratch_bytes`: on the disk at most, until the table is there.
    """

    tokens: int
    guessed: bool
    passes: int
    memory_bytes: int
    scratch_bytes: int

    def __str__(self) -> str:
        about = "about " if self.guessed else ""
        return (
            f"filling from {about}{self.tokens:,} tokens in {self.passes} "
            f"pass{'' if self.passes == 1 else 'es'} within {self.memory_bytes / 1e9:,.1f} GB of "
            f"memory; at most {self.scratch_bytes / 1e9:,.1f} GB on the disk until the end"
        )


def find_vectors(
    request: FillRequest, init: str, layout: HashLayout, std: float | None
) -> Embeddings:
    """The vectors of the tokens. Raises InputError, ArtifactError."""
    if request.checkpoint is None:
        return RandomEmbeddings(
            tokens=layout.vocab_size,
            seed=request.embedding_seed,
            std=DEFAULT_STD if std is None else std,
        )
    if std is not None:
        raise InputError("std with a checkpoint", "its embeddings have their own scale")
    side: Side = "output" if init == "next-token" else "input"
    tensor = find_embeddings(request.checkpoint, side, request.embedding_tensor)
    return MatrixEmbeddings(
        tokens=min(tensor.tokens, layout.vocab_size),
        hidden=tensor.hidden,
        read=tensor.read,
        name=tensor.name,
        digest=tensor.digest(),
        seed=request.embedding_seed,
    )


def guess_tokens(request: FillRequest) -> TokenFile:
    """A file of about as many tokens as the corpus has, which is not there."""
    size = find_sources(request.sources, request.corpus).size or 0
    return TokenFile(path=Path(), tokens=size // _BYTES_A_TOKEN, documents=0, largest=-1, digest="")


def write_tokens(
    request: FillRequest,
    geometry: Geometry,
    layout: HashLayout,
    vocab: Path,
    folder: Path,
    progress: Progress,
) -> TokenFile:
    """The corpus as tokens, in a scratch file in `folder`: the one that is there, or a new one.

    Raises CorpusError and TokenIdError naming the file and the place, MismatchError, InputError,
    OutputError.
    """
    sources = find_sources(request.sources, request.corpus)
    text = needs_tokenizer(sources.files, request.corpus)
    tokenizer = None
    if text:
        tokenizer = tokenizer_of_corpus(
            vocab, geometry, request.workspace, request.tokenizer, progress
        )
    for remark in remarks(sources.files, request.corpus):
        progress.note(remark)
    decisive = {
        "vocabulary": layout.vocab_digest,
        "vocab_size": layout.vocab_size,
        "tokenizer": None if tokenizer is None else tokenizer.digest,
    }
    writer = TokenWriter(folder, request_fingerprint(sources.files, request.corpus, decisive))
    if writer.finished is None:
        try:
            _write(request, sources, tokenizer, layout, writer, None, progress)
        except EncoderDiffers as error:
            if sources.size is None:  # what came through a pipe is gone
                raise
            writer.restart()
            progress.note(f"{error.message}: reading again from the start with tokenizers")
            _write(request, sources, tokenizer, layout, writer, "tokenizers", progress)
    else:
        progress.note(f"{writer.tokens:,} tokens of this corpus are there from a run before")
    found = writer.finished
    if found is None or not found.tokens:
        raise CorpusError(f"{sources.files[0].name} and the rest hold no token", "give texts")
    return found


def _write(
    request: FillRequest,
    sources: Sources,
    tokenizer: TokenizerFile | None,
    layout: HashLayout,
    writer: TokenWriter,
    encoder_name: str | None,
    progress: Progress,
) -> None:
    if writer.tokens:
        progress.note(f"{writer.tokens:,} tokens are there from a run that was broken off")
        encoder_name = encoder_name or writer.encoder
    progress.start("tokens of the corpus", sources.size, "bytes")
    if writer.size:
        progress.advance(writer.size)
    encoder = None
    if tokenizer is not None:
        name = encoder_name or request.encoder
        encoder = make_encoder(tokenizer, name, progress, size=sources.size)
    stream = TokenStream(sources.files, request.corpus, encoder, writer.mark)
    try:
        writer.write(stream.blocks(), layout, encoder_name, progress)
    finally:
        if encoder is not None:
            encoder.close()
