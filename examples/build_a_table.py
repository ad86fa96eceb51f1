"""A text becomes a compressed vocabulary, statistics, and a table that is filled from it.

python examples/build_a_table.py tokenizer.json corpus/ out/
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engram_cli import (
    BuildTableRequest,
    FillRequest,
    Geometry,
    HashStatsRequest,
    LookupRequest,
    Workspace,
    build_table,
    compress_vocab,
    hash_stats,
    lookup,
    write_vocab,
)


def main(tokenizer: Path, corpus: Path, out: Path, rows_per_head: int) -> None:
    """Write vocabulary, statistics and table into `out`, and look a few words up."""
    out.mkdir(parents=True, exist_ok=True)
    here = Workspace(out)

    vocab = compress_vocab(tokenizer)
    write_vocab(vocab, here.vocab)
    print(f"{vocab.vocab_size:,} tokens are {vocab.size:,} compressed ids")

    geometry = Geometry(rows_per_head=(rows_per_head,), layers=(1,))
    counted = hash_stats(
        HashStatsRequest(sources=(corpus,), tokenizer=tokenizer, geometry=geometry, workspace=here)
    )
    for order in counted.orders:
        print(f"{order.distinct:,.0f} distinct {order.order}-grams in {counted.tokens:,} tokens")

    fill = FillRequest(sources=(corpus,), tokenizer=tokenizer, workspace=here)
    built = build_table(
        BuildTableRequest(
            stats=here.stats, vocab=here.vocab, out=here.table, init="next-token", fill=fill, dim=16
        )
    )
    print(f"{built.plan.rows:,} rows in {here.table}, {built.digest}")

    asked = LookupRequest(path=here.table, text="the last words", tokenizer=tokenizer, folder=out)
    for token in lookup(asked).tokens:
        print(repr(token.text), [head.table_row for head in token.orders[0].heads])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows-per-head", type=int, default=20_000)
    main(**vars(parser.parse_args()))
