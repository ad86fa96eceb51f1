"""Turns compressed ids and n-grams into texts that people can read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.groups import Member, readable
from engram_cli.vocab.lookup import HOLE
from engram_cli.vocab.normalize import REPLACEMENT


class Names:
    """Texts for compressed ids; "#17" without a vocabulary."""

    def __init__(self, layout: HashLayout, vocab: CompressedVocab | None = None) -> None:
        """`vocab` is ignored if it is not the layout's."""
        self._vocab, self._raw = None, layout.vocab_digest is None
        self._firsts: NDArray[np.int64] | None = None
        self._sizes = np.empty(0, dtype=np.int64)
        if vocab is not None:
            fits = len(vocab.lookup) == layout.vocab_size
            same = fits if self._raw else vocab.digest == layout.vocab_digest
            self._vocab = vocab if same else None

    def ngram(self, tokens: NDArray[np.int32]) -> str:
        """Return the text of an n-gram int32[n], oldest token first, separated by spaces."""
        return " ".join(self.token(int(token)) for token in tokens)

    def token(self, token: int) -> str:
        """Return the text of a compressed id: its group's key or only token; spaces visible."""
        vocab = self._vocab
        if vocab is None:
            return f"#{token}"
        if self._raw:
            if vocab.lookup[token] == HOLE:
                return f"#{token}"
            alone = Member(token_id=token, text=vocab.texts[token], token=vocab.tokens[token])
            return alone.readable
        if self._firsts is None:
            self._firsts, self._sizes = _first_members(vocab.lookup, vocab.size)
        first = int(self._firsts[token])
        if self._sizes[token] == 1 or REPLACEMENT in vocab.keys[first]:
            one = Member(token_id=first, text=vocab.texts[first], token=vocab.tokens[first])
            return one.readable
        return readable(vocab.keys[first])

    def texts(self, tokens: NDArray[np.int32]) -> dict[int, str] | None:
        """Return the text of each compressed id in an array; None without a vocabulary."""
        if self._vocab is None:
            return None
        return {token: self.token(token) for token in np.unique(tokens).tolist()}

    def raw_token(self, token_id: int) -> str:
        """Return the text of a raw token id; spaces visible."""
        vocab = self._vocab
        if vocab is None or token_id >= len(vocab.lookup) or vocab.lookup[token_id] == HOLE:
            return f"#{token_id}"
        text, token = vocab.texts[token_id], vocab.tokens[token_id]
        return Member(token_id=token_id, text=text, token=token).readable


def _first_members(
    lookup: NDArray[np.int32], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return int64[size]: the lowest token id of each group, and how many tokens it has."""
    ids = np.flatnonzero(lookup != HOLE)
    firsts = np.zeros(size, dtype=np.int64)
    firsts[lookup[ids[::-1]]] = ids[::-1]  # of several, the last one written stays
    return firsts, np.bincount(lookup[ids], minlength=size)
