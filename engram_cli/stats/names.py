"""Turns compressed ids and n-grams into texts that people can read."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_cli.hashing.layout import HashLayout
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.groups import Member, group, readable
from engram_cli.vocab.lookup import HOLE
from engram_cli.vocab.normalize import REPLACEMENT


class Names:
    """Texts for compressed ids; "#17" without a vocabulary."""

    def __init__(self, layout: HashLayout, vocab: CompressedVocab | None = None) -> None:
        """`vocab` is ignored if it is not the layout's."""
        self._vocab, self._raw = None, layout.vocab_digest is None
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
        found = group(vocab, token)
        if len(found.members) == 1 or REPLACEMENT in found.key:
            return found.members[0].readable
        return readable(found.key)

    def raw_token(self, token_id: int) -> str:
        """Return the text of a raw token id; spaces visible."""
        vocab = self._vocab
        if vocab is None or token_id >= len(vocab.lookup) or vocab.lookup[token_id] == HOLE:
            return f"#{token_id}"
        text, token = vocab.texts[token_id], vocab.tokens[token_id]
        return Member(token_id=token_id, text=text, token=token).readable
