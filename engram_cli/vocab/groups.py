"""Questions to a compressed vocabulary: its largest groups, the group of a text, what moved."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.lookup import HOLE
from engram_cli.vocab.normalize import REPLACEMENT, normalizer

_NAMED = {" ": "␣", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Mn", "Mc", "Me", "Zl", "Zp", "Zs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A token of a group: its id, its text decoded alone and its spelling in the vocabulary."""

    token_id: int
    text: str
    token: str

    @property
    def readable(self) -> str:
        """Return the text with spaces and control characters visible; a part of a character as
        spelt."""
        return readable(self.token if REPLACEMENT in self.text else self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The tokens that share a compressed id, by ascending token id."""

    compressed_id: int
    key: str
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VocabDiff:
    """How two maps differ over the ids both have.

    `moved`: ids with another compressed id. `regrouped`: ids whose company is another one, however
    the groups are numbered; each with its text and its two groups' keys. `tokenizers` are the
    digests of the two files they were made from: equal ids of other tokens differ unseen.
    """

    tokenizers: tuple[str, str]
    sizes: tuple[int, int]
    vocab_sizes: tuple[int, int]
    moved: int
    regrouped: tuple[tuple[int, str, str, str], ...]

    @property
    def equal(self) -> bool:
        """Return whether both maps are the same map."""
        return self.moved == 0 and self.vocab_sizes[0] == self.vocab_sizes[1]


def readable(text: str) -> str:
    """Return `text` with every character visible: spaces as ␣, invisible ones escaped.

    A combining mark stays as it is behind a character that carries it.
    """
    if text.isascii() and text.isprintable():  # most tokens of most texts
        return text.replace(" ", _NAMED[" "])
    shown = ""
    for before, character in zip(" " + text, text, strict=False):
        carried = unicodedata.combining(character) or unicodedata.category(character) == "Mc"
        shown += character if carried and before.isalpha() else _visible(character)
    return shown


def group(vocab: CompressedVocab, compressed_id: int) -> Group:
    """Return the group with this compressed id."""
    ids = vocab.members(compressed_id)
    return Group(
        compressed_id=compressed_id,
        key=vocab.keys[ids[0]],
        members=tuple(Member(token_id=i, text=vocab.texts[i], token=vocab.tokens[i]) for i in ids),
    )


def largest_groups(vocab: CompressedVocab, count: int) -> list[Group]:
    """Return the `count` groups with the most tokens, the largest first, ties by compressed id."""
    order = np.argsort(-vocab.group_sizes(), kind="stable")[:count]
    return [group(vocab, int(compressed_id)) for compressed_id in order]


def group_of_text(vocab: CompressedVocab, text: str) -> Group | None:
    """Return the group a text falls into: by a token's text, else by its spelling, else by its
    key."""
    wanted = normalizer()(text) or text
    for column, value in ((vocab.texts, text), (vocab.tokens, text), (vocab.keys, wanted)):
        try:
            found = next(
                i for i, entry in enumerate(column) if entry == value and vocab.lookup[i] >= 0
            )
        except StopIteration:
            continue
        return group(vocab, int(vocab.lookup[found]))
    return None


def diff(ours: CompressedVocab, theirs: CompressedVocab) -> VocabDiff:
    """Return what differs between two maps. Equal sizes are not equal maps."""
    count = min(ours.vocab_size, theirs.vocab_size)
    a, b = ours.lookup[:count], theirs.lookup[:count]
    regrouped = np.flatnonzero(~_same_company(a, b)).tolist()
    return VocabDiff(
        tokenizers=(ours.tokenizer_digest, theirs.tokenizer_digest),
        sizes=(ours.size, theirs.size),
        vocab_sizes=(ours.vocab_size, theirs.vocab_size),
        moved=int(np.count_nonzero(a != b)),
        regrouped=tuple((i, ours.texts[i], ours.keys[i], theirs.keys[i]) for i in regrouped),
    )


def _same_company(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.bool_]:
    """For each id whether its group holds the same ids in both maps, however it is numbered."""
    _, group_a, size_a = np.unique(a, return_inverse=True, return_counts=True)
    _, group_b, size_b = np.unique(b, return_inverse=True, return_counts=True)
    pairs = group_a.astype(np.int64) * len(size_b) + group_b
    _, pair, both = np.unique(pairs, return_inverse=True, return_counts=True)
    holes_agree = (a == HOLE) == (b == HOLE)
    same = (both[pair] == size_a[group_a]) & (both[pair] == size_b[group_b]) & holes_agree
    return np.asarray(same, dtype=np.bool_)


def _visible(character: str) -> str:
    if character in _NAMED:
        return _NAMED[character]
    if unicodedata.category(character) not in _UNSEEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{{{code:x}}}"
