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
        if vocab is not None:
            fits = len(vocab.lookup) == layout.vocab_size
            same = fits if self._raw else vocab.digest == layout.vocab_digest
            self._vocab = vocab if same else None
        self._found: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
        self._folded: list[str] | None = None
        self._texts: dict[int, str] = {}  # at most one for each compressed id

    def ngram(self, tokens: NDArray[np.int32]) -> str:
        """Return the text of an n-gram int32[n], oldest token first, separated by spaces."""
        return " ".join(self.token(int(token)) for token in tokens)

    def token(self, token: int) -> str:
        """Return the text of a compressed id: its group's key or only token; spaces visible."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self._token(token)
        return text

    def _token(self, token: int) -> str:
        vocab = self._vocab
        if vocab is None:
            return f"#{token}"
        if self._raw:
            if vocab.lookup[token] == HOLE:
                return f"#{token}"
            alone = Member(token_id=token, text=vocab.texts[token], token=vocab.tokens[token])
            return alone.readable
        firsts, sizes = self._groups(vocab)
        first = int(firsts[token])
        if sizes[token] == 1 or REPLACEMENT in vocab.keys[first]:
            return Member(
                token_id=first, text=vocab.texts[first], token=vocab.tokens[first]
            ).readable
        return readable(vocab.keys[first])

    def texts(self, tokens: NDArray[np.int32]) -> dict[int, str] | None:
        """Return the text of each compressed id in an array; None without a vocabulary."""
        if self._vocab is None:
            return None
        return {token: self.token(token) for token in np.unique(tokens).tolist()}

    def tokens_with(self, word: str, size: int) -> NDArray[np.bool_]:
        """Return bool[size]: the compressed ids whose text contains `word`, which is casefolded.

        A space is a plain one; without a vocabulary, the text of the id 17 is "#17".
        """
        vocab = self._vocab
        if vocab is None:
            found = np.zeros(size, dtype=np.bool_)
            if word[1:].isdecimal() and word == f"#{int(word[1:])}" and int(word[1:]) < size:
                found[int(word[1:])] = True
            return found
        if self._folded is None:
            texts, firsts = vocab.keys, range(size)
            if self._raw:
                texts = vocab.texts
            else:
                firsts = self._groups(vocab)[0].tolist()
            self._folded = [texts[first].casefold() for first in firsts]
        return np.array([word in text for text in self._folded], dtype=np.bool_)

    def _groups(self, vocab: CompressedVocab) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return int64[size] twice: the first token of each compressed id, how many there are."""
        if self._found is None:
            inside = np.flatnonzero(vocab.lookup != HOLE)
            _, first, sizes = np.unique(vocab.lookup[inside], return_index=True, return_counts=True)
            self._found = inside[first], sizes
        return self._found

    def raw_token(self, token_id: int) -> str:
        """Return the text of a raw token id; spaces visible."""
        vocab = self._vocab
        if vocab is None or token_id >= len(vocab.lookup) or vocab.lookup[token_id] == HOLE:
            return f"#{token_id}"
        text, token = vocab.texts[token_id], vocab.tokens[token_id]
        return Member(token_id=token_id, text=text, token=token).readable
