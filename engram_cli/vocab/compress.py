"""Compressed vocabularies: a tokenizer in, a map of token ids to compressed ids out.

`compress_vocab` builds a `CompressedVocab`; `vocab.parquet` writes and reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_cli.errors import TokenIdError, VocabularyError
from engram_cli.vocab.lookup import HOLE, VocabMap
from engram_cli.vocab.normalize import REPLACEMENT, normalizer, token_key
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer

# A map has an entry for each id up to the largest. Published vocabularies have a few holes; one id
# of 60 M would take gigabytes.
_ROOM, _SPARSE = 2**20, 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompressedVocab(VocabMap):
    """A map of token ids to compressed ids, and the texts it was made from.

    `lookup`: int32[V], the compressed id of each token id; -1 at an id that no token has.
    `texts`, `tokens`, `keys`: V strings each (decoded alone, as spelt, as normalised).
    """

    texts: Sequence[str] = field(repr=False)
    tokens: Sequence[str] = field(repr=False)
    keys: Sequence[str] = field(repr=False)
    special_ids: frozenset[int] = field(repr=False)
    tokenizer_digest: str
    source: str

    def __post_init__(self) -> None:
        VocabMap.__post_init__(self)
        if not len(self.texts) == len(self.tokens) == len(self.keys) == len(self.lookup):
            raise VocabularyError(
                "the columns of the vocabulary differ in length", "build it again"
            )

    @property
    def token_count(self) -> int:
        """Return how many ids a token has: V without the holes."""
        return int(np.count_nonzero(self.lookup >= 0))

    @property
    def reduction(self) -> float:
        """Return the share of the ids that compression saved, 0..1."""
        return 1.0 - self.size / self.token_count

    @property
    def partial_count(self) -> int:
        """Return how many tokens are parts of a character (their text holds U+FFFD)."""
        return sum(REPLACEMENT in text for text in self.texts)

    @property
    def canonical_count(self) -> int:
        """Return how many tokens already are their own key."""
        pairs = zip(self.texts, self.keys, self.lookup, strict=True)
        return sum(hit >= 0 and text == key for text, key, hit in pairs)

    def compress(self, ids: ArrayLike) -> NDArray[np.int64]:
        """Return compressed ids of token ids, int64 of the same shape; ids below 0 pass unchanged.

        Raises TokenIdError for an id beyond the vocabulary or in a hole of it.
        """
        array = np.asarray(ids)
        flat = array.reshape(-1).astype(np.int64)
        known = flat >= 0
        if flat.size and int(flat.max()) >= self.vocab_size:
            raise TokenIdError(
                f"token id {int(flat.max())} is beyond the vocabulary of {self.vocab_size}",
                "was the text tokenised with another tokenizer?",
            )
        flat[known] = self.lookup[flat[known]]
        if np.any(flat[known] == HOLE):
            where = int(np.flatnonzero(known)[np.argmax(flat[known] == HOLE)])
            raise TokenIdError(
                f"token id {int(array.reshape(-1)[where])} is one that no token has",
                "was the text tokenised with another tokenizer?",
            )
        return flat.reshape(array.shape)

    def members(self, compressed_id: int) -> list[int]:
        """Return the token ids that share a compressed id, ascending."""
        return [int(i) for i in np.flatnonzero(self.lookup == compressed_id)]

    def group_sizes(self) -> NDArray[np.int64]:
        """Return int64[size]: how many tokens each compressed id has."""
        return np.bincount(self.lookup[self.lookup >= 0], minlength=self.size)


def compress_vocab(source: str | Path | TokenizerFile) -> CompressedVocab:
    """Compress the vocabulary of a tokenizer.json or of the Hugging Face folder that holds one.

    Tokens are visited by ascending id; the first with a new key opens the next compressed id (spec
    section 1). Raises VocabularyError when the tokenizer cannot be used.
    """
    tokenizer = source if isinstance(source, TokenizerFile) else load_tokenizer(source)
    normalize = normalizer()
    spellings = tokenizer.spellings()
    ids = list(spellings)
    size = ids[-1] + 1
    if size > _ROOM + _SPARSE * len(ids):
        raise VocabularyError(
            f"{tokenizer.path} has {len(ids):,} tokens and one with the id {ids[-1]:,}",
            f"number the tokens without such holes: below {_ROOM + _SPARSE * len(ids):,}",
        )
    lookup = np.full(size, HOLE, dtype=np.int32)
    texts, tokens, keys = [""] * size, [""] * size, [""] * size
    opened: dict[str, int] = {}
    for token_id, text in zip(ids, tokenizer.decode_each(ids), strict=True):
        token = spellings[token_id]
        if REPLACEMENT in text:
            token = tokenizer.token(token_id)
        key = token_key(text, token, normalize)
        lookup[token_id] = opened.setdefault(key, len(opened))
        texts[token_id], tokens[token_id], keys[token_id] = text, token, key
    return CompressedVocab(
        lookup=lookup,
        size=len(opened),
        texts=texts,
        tokens=tokens,
        keys=keys,
        special_ids=tokenizer.special_ids,
        pad_id=tokenizer.pad_id,
        tokenizer_digest=tokenizer.digest,
        source=str(tokenizer.path.absolute()),
    )
