"""Rows that are opened once and looked up in any number of times."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import Artifact, Companions, known_ngrams
from engram_cli.commands.lookup.rows import (
    Corpus,
    SharedRows,
    TokenLookup,
    look_up,
    shared_rows,
    with_shared,
)
from engram_cli.commands.text_reader import TextReader
from engram_cli.errors import InputError
from engram_cli.hashing.layout import UNKNOWN_SCHEME, LayerHash
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.progress import SILENT, Progress
from engram_cli.rows.source import RowSource
from engram_cli.stats.names import Names

if TYPE_CHECKING:  # with the kernels of counting
    from engram_cli.stats.stats_io import Statistics

_LAYERS = 2  # whose known n-grams are kept, 100 MB each


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The look-ups of one text or two in a layer, and by order how many rows both use.

    `exact`: whether the sample holds every n-gram; None without statistics.
    """

    tokens: tuple[TokenLookup, ...]
    exact: bool | None
    against: tuple[TokenLookup, ...] = ()
    shared: tuple[SharedRows, ...] = ()


class LookupSession:
    """Looks texts up in the rows of an artifact, by its tokenizer and the statistics next to it.

    All methods may run in threads. `indexed`: keep the rows of all known n-grams, which pays from
    the second look-up on.
    """

    def __init__(
        self,
        found: Artifact,
        rows: RowSource,
        companions: Companions,
        tokenizer: Path | None = None,
        progress: Progress = SILENT,
        *,
        indexed: bool = False,
    ) -> None:
        """Raise InputError for rows that no token finds."""
        if rows.layout.scheme == UNKNOWN_SCHEME:
            raise InputError(
                f"{found.path} holds rows whose hash is not known",
                "engram inspect says what is known of them",
            )
        if not rows.layers:
            raise InputError(f"{rows.path} has no rows to look up", "see why with engram inspect")
        if rows.layout.lookup is None and not takes_raw_ids(rows.layout.scheme):
            raise InputError(
                f"{found.path} has no token map, so that no token finds its row",
                "give the model's tokenizer.json with --tokenizer",
            )
        self.artifact, self.rows, self._progress = found, rows, progress
        self._companions, self._indexed = companions, indexed
        self._reader = TextReader(found, rows.layout, companions, tokenizer, progress)
        self._names = Names(rows.layout, self._reader.vocab)
        self._named_by = self._reader.vocab
        self._corpora: OrderedDict[int, Corpus] = OrderedDict()
        self._lock = threading.Lock()

    @cached_property
    def statistics(self) -> Statistics | None:
        """The statistics of the layout, None where there are none. Raises as `Companions` does."""
        return self._companions.statistics_of(self.rows, self._progress)

    @property
    def names(self) -> Names:
        """The texts of tokens and n-grams."""
        if self._named_by is not self._reader.vocab:  # found together with the tokenizer
            self._named_by = self._reader.vocab
            self._names = Names(self.rows.layout, self._named_by)
        return self._names

    def layer(self, number: int | None = None) -> LayerHash:
        """Return a layer, the first for None. Raises InputError for one without rows."""
        entry = self.rows.layout.layer(self.rows.layers[0] if number is None else number)
        if entry.layer not in self.rows.layers:
            raise InputError(
                f"{self.artifact.path} has no rows of layer {entry.layer}",
                f"its layers are {', '.join(map(str, self.rows.layers))}",
            )
        return entry

    def encode(self, text: str | None, ids: tuple[int, ...] | None, what: str) -> NDArray[np.int64]:
        """Return the token ids int64[T] of a text, or those given. Raises InputError."""
        return self._reader.encode(text, ids, what)

    def corpus(self, entry: LayerHash) -> Corpus:
        """Return what was counted of a layer's rows. Raises ArtifactError."""
        with self._lock:
            found = self._corpora.pop(entry.layer, None)
            if found is None:
                hits_at, known = known_ngrams(self.rows, entry.layer, self.statistics)
                for each in known if self._indexed else ():
                    if each is not None:
                        each.index()
                found = Corpus(hits_at=hits_at, known=tuple(known))
            self._corpora[entry.layer] = found
            if len(self._corpora) > _LAYERS:
                self._corpora.popitem(last=False)
            return found

    def look_up(
        self, entry: LayerHash, ids: NDArray[np.int64], others: NDArray[np.int64] | None = None
    ) -> Texts:
        """Look token ids [T] up in a layer, and those of a second text to compare with.

        Raises TokenIdError, and what reading rows raises.
        """
        corpus = self.corpus(entry)
        first = look_up(self.rows, entry, ids, corpus, self.names)
        if others is None:
            return Texts(tokens=first.tokens, exact=corpus.exact)
        second = look_up(self.rows, entry, others, corpus, self.names)
        return Texts(
            tokens=with_shared(first, second),
            exact=corpus.exact,
            against=with_shared(second, first),
            shared=shared_rows(first, second),
        )
