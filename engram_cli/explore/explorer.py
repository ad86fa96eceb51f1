"""What the page asks: texts, n-grams, rows, searches and gates, as plain data.

Rows and their statistics come from the functions behind `engram lookup`, gates from those behind
`engram trace`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engram_cli.commands.artifact import VOCABULARY, Companions, find_artifact
from engram_cli.commands.lookup.rows import (
    OrderLookup,
    RowLookup,
    SharedRows,
    TokenLookup,
    look_up_ngrams,
    look_up_row,
)
from engram_cli.commands.lookup.session import LookupSession
from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.commands.requests.options import copied, located
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError
from engram_cli.explore.gates import Gates, TracedModel
from engram_cli.explore.search import Match, find_ngrams
from engram_cli.progress import SILENT, Progress
from engram_cli.version import __version__

BUNDLE = "bundle"  # the name of the format
MOST_CHARACTERS = 2000  # of a text
MOST_TOKENS = 200  # of a text that are looked up; the rest is counted
MOST_MATCHES = 200
_ON_ROW = 100  # n-grams of a row


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is explored. `rows`: by layer. Without statistics the last three are None.

    `characters`, `tokens`: limits of a text.
    """

    version: str
    path: Path
    kind: str
    scheme: str
    fingerprint: str
    layers: tuple[int, ...]
    rows: tuple[int, ...]
    orders: tuple[int, ...]
    heads: int
    dim: int | None
    dtype: str | None
    hits: bool
    model: Path | None
    characters: int
    tokens: int
    stats: Path | None = None
    corpus_tokens: int | None = None
    corpus_documents: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsView:
    """The first tokens of one text or two; `_total` are the tokens of the whole texts."""

    layer: int
    tokens_total: int
    tokens: tuple[TokenLookup, ...]
    against_total: int = 0
    against: tuple[TokenLookup, ...] = ()
    shared: tuple[SharedRows, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramView:
    """An n-gram, and what is known of the shorter ones that end it, the longest first."""

    layer: int
    ngram: OrderLookup
    shorter: tuple[OrderLookup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchView:
    """The known n-grams that match: how many, and the first of them.

    `exact`: whether the statistics know every n-gram of the corpus.
    """

    layer: int
    exact: bool
    total: int
    matches: tuple[Match, ...]


class Explorer:
    """Answers the questions of the page. All methods may run in threads."""

    def __init__(
        self, session: LookupSession, model: TracedModel | None = None, place: Path | None = None
    ) -> None:
        """`place`: the checkpoint of `model`."""
        self._session, self._model, self._place = session, model, place

    def warm(self) -> None:
        """Load what the first question needs. Raises as the questions do."""
        self._session.corpus(self._session.layer())
        self._session.encode("a", None, "a text")

    def about(self) -> About:
        """Say what is explored."""
        rows, statistics = self._session.rows, self._session.statistics
        layout = rows.layout
        return About(
            version=__version__,
            path=self._session.artifact.path,
            kind=self._session.artifact.kind,
            scheme=layout.scheme,
            fingerprint=layout.fingerprint,
            layers=rows.layers,
            rows=tuple(layout.layer(layer).rows for layer in rows.layers),
            orders=layout.orders,
            heads=layout.heads,
            dim=rows.dim,
            dtype=rows.dtype,
            hits=rows.has_hits or statistics is not None,
            model=self._place,
            characters=MOST_CHARACTERS,
            tokens=MOST_TOKENS,
            stats=None if statistics is None else statistics.path,
            corpus_tokens=None if statistics is None else statistics.tokens,
            corpus_documents=None if statistics is None else statistics.documents,
        )

    def texts(self, text: str, against: str | None, layer: int | None) -> TextsView:
        """Look up a text, and a second one to compare with. Raises InputError."""
        entry = self._session.layer(layer)
        ids = self._session.encode(_bounded(text), None, "the look-up")
        others = None
        if against is not None:
            others = self._session.encode(_bounded(against), None, "the second text")
        found = self._session.look_up(
            entry, ids[:MOST_TOKENS], None if others is None else others[:MOST_TOKENS]
        )
        return TextsView(
            layer=entry.layer,
            tokens_total=len(ids),
            tokens=found.tokens,
            against_total=0 if others is None else len(others),
            against=found.against,
            shared=found.shared,
        )

    def ngram(self, tokens: Sequence[int], layer: int | None) -> NgramView:
        """Look up the n-gram of some compressed ids. Raises InputError."""
        session, entry = self._session, self._session.layer(layer)
        layout = session.rows.layout
        if len(tokens) not in layout.orders:
            raise InputError(
                f"{len(tokens)} tokens are no n-gram of this layout",
                f"give {' or '.join(map(str, layout.orders))} compressed ids",
            )
        if not all(0 <= token < layout.compressed_size for token in tokens):
            raise InputError(
                f"{', '.join(map(str, tokens))}: not all are compressed ids",
                f"give numbers from 0 to {layout.compressed_size - 1}",
            )
        corpus = session.corpus(entry)
        found = [
            look_up_ngrams(
                session.rows,
                entry,
                np.array([tokens[len(tokens) - order :]], dtype=np.int32),
                corpus,
                session.names,
            )[0]
            for order in sorted(layout.orders, reverse=True)
            if order <= len(tokens)
        ]
        return NgramView(layer=entry.layer, ngram=found[0], shorter=tuple(found[1:]))

    def row(self, order: int, head: int, row: int, layer: int | None) -> RowLookup:
        """Look up a row of a head. Raises InputError."""
        session, entry = self._session, self._session.layer(layer)
        layout = session.rows.layout
        if order not in layout.orders or not 0 <= head < layout.heads:
            raise InputError(
                f"there is no head {head} of order {order}",
                f"orders are {', '.join(map(str, layout.orders))}, heads 0 to {layout.heads - 1}",
            )
        column = layout.orders.index(order) * layout.heads + head
        corpus = session.corpus(entry)
        return look_up_row(session.rows, entry, column, row, corpus, session.names, _ON_ROW)

    def search(self, query: str, order: int | None, limit: int, layer: int | None) -> SearchView:
        """Find known n-grams by their words, the most frequent of all for "". Raises InputError."""
        session, entry = self._session, self._session.layer(layer)
        if session.statistics is None:
            raise InputError(
                "there are no statistics to search n-grams in",
                "count a corpus with engram hash-stats, and give the folder with --stats",
            )
        layout, query = session.rows.layout, query.strip()
        if order is not None and order not in layout.orders:
            raise InputError(
                f"there are no {order}-grams", f"orders are {', '.join(map(str, layout.orders))}"
            )
        wordings = self._wordings(_bounded(query))
        known = [each for each in session.corpus(entry).known if each is not None]
        if order is not None:
            known = [each for each in known if each.sample.order == order]
        total, matches = find_ngrams(
            known, query, wordings, session.names, layout.compressed_size, limit
        )
        exact = all(each.sample.exact for each in known)
        return SearchView(layer=entry.layer, exact=exact, total=total, matches=matches)

    def _wordings(self, query: str) -> list[tuple[int, ...]]:
        """Return the compressed ids of a query: as it stands, and behind a space.

        None without a tokenizer: the words are searched all the same.
        """
        lookup, found = self._session.rows.layout.lookup, []
        for wording in (query, f" {query}") if query else ():
            try:
                ids = self._session.encode(wording, None, "the search")
            except InputError:
                return []
            found.append(tuple((ids if lookup is None else lookup[ids]).tolist()))
        return found

    def gates(self, text: str) -> Gates:
        """Trace a text through the model. Raises InputError without one."""
        if self._model is None:
            raise InputError("there is no model", "start engram explore with --model CKPT")
        ids = self._session.encode(_bounded(text), None, "the text")
        return self._model.gates(ids[:MOST_TOKENS].tolist())


def _bounded(text: str) -> str:
    """Return a text that is short enough. Raises InputError."""
    if len(text) > MOST_CHARACTERS:
        raise InputError(
            f"the text has {len(text):,} characters", f"give at most {MOST_CHARACTERS:,}"
        )
    return text


def open_explorer(request: ExploreRequest, progress: Progress = SILENT) -> Explorer:
    """Open what a request names.

    Raises InputError for a path that cannot be explored, MismatchError for a model with another
    memory, and as `LookupSession` and `TracedModel`.
    """
    request = copied(located(request), progress)
    found = find_artifact(_path(request))
    if found.kind == VOCABULARY:
        raise InputError(
            f"{found.path} is a vocabulary, which has no rows",
            "give a table, a bundle, statistics or a checkpoint with tables",
        )
    companions = Companions(
        artifact=found.path, folder=request.folder, stats=request.stats, vocab=request.vocab
    )
    rows = found.open(tokenizer=request.tokenizer)
    session = LookupSession(found, rows, companions, request.tokenizer, progress, indexed=True)
    model = None
    if request.model is not None:
        own = found.path if found.kind == BUNDLE else None
        model = TracedModel.load(request.model, own, rows)
    return Explorer(session, model, request.model)


def _path(request: ExploreRequest) -> Path:
    if request.path is not None:
        return request.path
    if request.model is not None:
        return request.model
    here = Workspace(request.folder)
    for place in (here.table, here.stats):
        if place.exists():
            return place
    raise InputError(
        f"{request.folder.absolute()} holds no {here.table.name} and no {here.stats.name}",
        "give a table, a bundle, statistics or a checkpoint with tables",
    )
