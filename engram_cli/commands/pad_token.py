"""The pad token of a layout by name, and a warning where text holds it too."""

from __future__ import annotations

from pathlib import Path

from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.vocab.groups import readable
from engram_cli.vocab.parquet import StoredToken, read_about, read_token


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
    """The token to read, with its id."""
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
