"""The texts of train: each tokenised once into a file of ids that every later step reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from engram_cli.commands.checkpoint import ModelShape
from engram_cli.commands.init_corpus import encode_corpus
from engram_cli.commands.requests.corpus import CorpusFields
from engram_cli.commands.train.overlap import Overlap, find_overlap
from engram_cli.corpus.checks import needs_tokenizer
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stamps import continues, stamps_of
from engram_cli.engines.base import request_fingerprint
from engram_cli.errors import CorpusError, EngramError, OutputError
from engram_cli.files import canonical_json, inner_file, read_json
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import remove_work
from engram_cli.progress import Progress
from engram_cli.table.journal import SCRATCH
from engram_cli.typed_json import as_json, read_json_as
from engram_cli.vocab.tokenizer import TokenizerFile, choose_end


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedText:
    """A text as a packed file: `tokens` without the separators, `request` what it was made from."""

    path: Path
    tokens: int
    documents: int
    request: str | None


def end_of_documents(
    layout: HashLayout, model: ModelShape, tokenizer: TokenizerFile | None
) -> int | None:
    """Return the token that separates documents: the layout's or the model's EOS, or one so called.

    None where there is no such token, or where the layout does not know it.
    """
    named = None if tokenizer is None else choose_end(tokenizer)
    for token in (layout.eos_id, model.eos_id, named):
        if token is not None and token < layout.vocab_size:
            known = layout.lookup is None or layout.lookup[token] >= 0
            if known:
                return token
    return None


def check_overlap(train: PackedText, held_out: PackedText, end: int | None) -> Overlap | None:
    """Return which held-out documents are trained on, None where nothing separates documents.

    Found once. Raises CorpusError where most are; the held-out text may then be replaced.
    """
    if end is None:
        return None
    note = held_out.path.with_name("overlap.json")
    try:
        found = read_json_as(Overlap, read_json(note, "what both texts share"), str(note))
    except (EngramError, ValueError):
        found = find_overlap(train.path, held_out.path, end, held_out.documents)
        with inner_file(note) as part:
            part.write_bytes(canonical_json(as_json(found)))
    try:
        found.check()
    except CorpusError:
        for path in (note, held_out.path.with_suffix(".json"), held_out.path):
            path.unlink(missing_ok=True)
        raise
    return found


def pack_text(
    request: CorpusFields,
    names: Sequence[str | Path],
    layout: HashLayout,
    tokenizer: TokenizerFile,
    end: int | None,
    out: Path,
    progress: Progress,
) -> PackedText:
    """Write the packed file `out` of a text, or take the one of an earlier run.

    Raises CorpusError, TokenIdError; OutputError where `out` was made from another text.
    """
    sources = find_sources(names, request.corpus)
    decisive = {"tokenizer": tokenizer.digest, "vocabulary": layout.vocab_digest, "end": end}
    stamps = stamps_of(sources.files, request.corpus)
    wanted = request_fingerprint(sources.files, request.corpus, decisive, stamps)
    found = _earlier(out)
    if found is not None:
        if not _same(wanted, found.request):
            raise OutputError(
                f"{out} was made from another text, or the text has changed since",
                "start another run: name another folder with --out",
            )
        return found
    scratch = out.with_name(f"{out.stem}-tokens")
    text = needs_tokenizer(sources.files, request.corpus)
    encoder = tokenizer if text else None
    try:
        file = encode_corpus(request, sources, encoder, layout, scratch, progress)
    except CorpusError:  # the text must change before it can be read
        remove_work(scratch, SCRATCH)
        raise
    with inner_file(out) as part:
        from engram_cli.training.windows import pack  # needs torch, which `train` has looked for

        pack(file.map(), part, end)
    packed = PackedText(path=out, tokens=file.tokens, documents=file.documents, request=wanted)
    with inner_file(out.with_suffix(".json")) as part:
        part.write_bytes(canonical_json(asdict(packed) | {"path": out.name}))
    remove_work(scratch, SCRATCH)
    return packed


def _same(wanted: str | None, made: str | None) -> bool:
    if wanted is None or made is None:  # through a pipe, which cannot be read again
        return wanted == made
    return continues(wanted, made)


def _earlier(out: Path) -> PackedText | None:
    try:
        said = read_json(out.with_suffix(".json"), "a packed text")
        tokens, count, request = said["tokens"], said["documents"], said["request"]
        whole = type(tokens) is int and type(count) is int and isinstance(request, str | None)
        if not whole or out.stat().st_size < 4 * tokens:
            return None
    except (EngramError, KeyError, OSError):
        return None
    return PackedText(path=out, tokens=tokens, documents=count, request=request)
