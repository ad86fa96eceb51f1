"""probe: a next-token table, its corpus and held-out text in; what the table knows of it out."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import memory_of, vectors_of_table, write_tokens
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.probe import LEAST_POSITIONS, ProbeRequest
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import InputError, MismatchError
from engram_cli.progress import SILENT, Once, Progress
from engram_cli.remote.locate import locate
from engram_cli.sizes import processors
from engram_cli.table.inits.corpus.filled import corpus_digest
from engram_cli.table.inits.corpus.pairs import TokenPairs
from engram_cli.table.inits.corpus.tokens import TokenFile
from engram_cli.table.probe.combining import fit
from engram_cli.table.probe.counted import (
    Followers,
    count_followers,
    first_choices,
    unigram_probabilities,
    witten_bell,
)
from engram_cli.table.probe.reading import Answers, Questions, Reader, ask
from engram_cli.table.store import TableStore, open_table

_FITTED = 4  # every fourth position is for fitting, the others are scored


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRow:
    """A model's figures over the scored positions.

    `top1`: the share of them whose true token it puts first; `perplexity`: exp of the mean -log of
    its chance for the true token, None for a model that gives no chances.
    """

    model: str
    top1: float
    perplexity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What the table knows, compared with models counted exactly on the same corpus.

    `fitted` positions set the weights of `evidence`, `positions` others were scored. `known`: of
    each order, the share of positions whose n-gram is in the corpus. `of_exact`: the combined
    table's top-1 as a share of the exact back-off's. `rows`: the counted models, the orders of the
    table by themselves, all of them combined.
    """

    table: Path
    digest: str
    layer: int
    corpus_tokens: int
    heldout_tokens: int
    positions: int
    fitted: int
    known: dict[int, float]
    rows: tuple[ProbeRow, ...]
    weights: dict[str, float]
    of_exact: float


def probe(request: ProbeRequest, progress: Progress = SILENT) -> ProbeResult:
    """Predict the positions of a held-out text with the table and with counted models.

    Raises InputError for a table of another init, MismatchError when corpus, checkpoint or seed are
    not those that filled it, CorpusError, and as `open_table`.
    """
    request = replace(
        request,
        table=locate(request.table),
        vocab=locate(request.vocab),
        fill=located(request.fill),
    )
    table = open_table(request.table)
    made = _made_from(table)
    layer = table.layout.layers[0].layer if request.layer is None else request.layer
    table.layout.layer(layer)
    threads = request.threads or processors()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="engram-probe-")))
        corpus, held = _read(request, table, scratch, progress)
        joined = bool(made["join_documents"]) or "tokens_xxh64" in made  # of versions before
        if any(made.get(name) != value for name, value in corpus_digest(corpus, joined).items()):
            raise MismatchError(
                f"{request.table} was filled from {made['tokens']:,} tokens, this corpus has "
                f"{corpus.tokens:,} others",
                "give the corpus that filled it, read with the same options",
            )
        what = TokenPairs(
            layout=table.layout, file=corpus, follow=True, joined=bool(made["join_documents"])
        )
        questions = ask(table.layout, layer, held, request.positions, what.joined)
        if len(questions) < LEAST_POSITIONS:
            raise InputError(f"the held-out text has {len(questions)} positions", "give more of it")
        unigrams = what.follower_counts()
        followers = {}
        for order in table.layout.orders:
            progress.start(f"{order}-grams of the corpus", corpus.tokens, "tokens")
            followers[order] = count_followers(
                what,
                layer,
                order,
                questions.contexts[order],
                questions.truth,
                unigrams,
                scratch=scratch,
                memory=memory_of(request.fill) // 4,
                threads=threads,
            )
    vectors = vectors_of_table(request.fill, table.path, table.init, table.layout, made)
    shares = unigrams / max(int(unigrams.sum()), 1)
    answers = Reader(table, layer, vectors, shares).answer(questions, progress)
    return _judged(request, table, layer, corpus, held, questions, followers, unigrams, answers)


def _judged(
    request: ProbeRequest,
    table: TableStore,
    layer: int,
    corpus: TokenFile,
    held: TokenFile,
    questions: Questions,
    followers: dict[int, Followers],
    unigrams: NDArray[np.int64],
    answers: Answers,
) -> ProbeResult:
    scored = np.arange(len(questions)) % _FITTED != 0
    truth, floor = questions.truth, unigram_probabilities(unigrams)
    combined = fit(answers.part(~scored), truth[~scored], floor)
    orders = table.layout.orders
    rows = []

    def add(model: str, choice: NDArray[np.int64], chances: NDArray[np.float64] | None) -> float:
        top1 = float(np.mean((choice == truth)[scored]))
        perplexity = None
        if chances is not None:
            perplexity = float(np.exp(-np.log(chances[scored]).mean()))
        rows.append(ProbeRow(model=model, top1=top1, perplexity=perplexity))
        return top1

    add("unigram", np.full(len(truth), int(np.argmax(unigrams))), floor[truth])
    exact = 0.0
    for index, order in enumerate(orders):
        known = [followers[each] for each in orders[: index + 1]]
        name = f"exact {order}-grams" + (", backing off" if index or order > 1 else "")
        exact = add(name, first_choices(known, unigrams), witten_bell(known, truth, unigrams))
    for name, choice in answers.alone.items():
        add(f"table, {name}", choice, None)
    chances = combined.likelihood(answers, truth, floor)
    top1 = add("table, combined", combined.choose(answers), chances)
    names = [f"{n}-gram {what}" for n in orders for what in ("share", "root share", "log count")]
    names.append("log share of the corpus")
    names += [f"{name} x {orders[-1]}-grams known" for name in names]
    return ProbeResult(
        table=table.path,
        digest=table.digest,
        layer=layer,
        corpus_tokens=corpus.tokens,
        heldout_tokens=held.tokens,
        positions=int(scored.sum()),
        fitted=int((~scored).sum()),
        known={n: float(np.mean((followers[n].total > 0)[scored])) for n in orders},
        rows=tuple(rows),
        weights=dict(zip(names, map(float, combined.weights), strict=True)),
        of_exact=top1 / exact if exact else 0.0,
    )


def _made_from(table: TableStore) -> dict[str, Any]:
    if table.init != "next-token":
        raise InputError(
            f"{table.path} was filled with --init {table.init}",
            "--probe needs a table that was filled with --init next-token",
        )
    return dict(table.attributes["init"]["parameters"])


def _read(
    request: ProbeRequest, table: TableStore, scratch: Path, progress: Progress
) -> tuple[TokenFile, TokenFile]:
    """Return the corpus and the held-out text as tokens."""
    geometry = Geometry.from_layout(table.layout)
    progress = Once(progress)  # both are read in the same way, with the same tokenizer
    found = []
    for name, sources in (("corpus", request.fill.sources), ("heldout", request.heldout)):
        fill = replace(request.fill, sources=sources)
        folder = scratch / name
        files = find_sources(sources, fill.corpus)
        found.append(
            write_tokens(fill, files, geometry, table.layout, request.vocab, folder, progress)
        )
    return found[0], found[1]
