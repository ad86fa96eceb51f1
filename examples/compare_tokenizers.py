"""How many rows do two tokenizers need for the same text?

    python examples/compare_tokenizers.py corpus/ first/tokenizer.json second/tokenizer.json

A tokenizer with longer tokens makes fewer n-grams of a text, and more distinct ones. What decides
the size of a table is how many look-ups meet a row that another n-gram uses too.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from engram_cli import (
    Geometry,
    HashStatsRequest,
    Workspace,
    compress_vocab,
    hash_stats,
    write_vocab,
)


def main(corpus: Path, tokenizers: list[Path], rows_per_head: int) -> None:
    """Count the corpus with each tokenizer and print what a head of the table would see."""
    size = sum(file.stat().st_size for file in corpus.rglob("*") if file.is_file())
    for tokenizer in tokenizers:
        with tempfile.TemporaryDirectory() as folder:
            here = Workspace(Path(folder))
            vocab = compress_vocab(tokenizer)
            write_vocab(vocab, here.vocab)
            geometry = Geometry(rows_per_head=(rows_per_head,), layers=(1,))
            found = hash_stats(
                HashStatsRequest(
                    sources=(corpus,), tokenizer=tokenizer, geometry=geometry, workspace=here
                )
            )
        print(f"{tokenizer}: {vocab.vocab_size:,} tokens, {vocab.reduction:.1%} fewer compressed")
        print(f"  {found.tokens:,} tokens, {size / found.tokens:.2f} bytes each")
        for order in found.orders:
            columns = [each for each in found.columns if each.order == order.order]
            shared = sum(each.shared_occurrences for each in columns) / len(columns)
            print(
                f"  {order.order}-grams: {order.distinct:,.0f} distinct, "
                f"{shared:.1%} of look-ups meet a shared row"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("tokenizers", type=Path, nargs="+")
    parser.add_argument("--rows-per-head", type=int, default=100_000)
    main(**vars(parser.parse_args()))
