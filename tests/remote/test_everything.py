"""Every command reads every artifact behind an address, and finds what it finds on the disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Engram
from commands.made import Made, make
from remote.server import Behaviour, serving
from test_files import contents

from engram_cli.stats.stats_io import read_stats
from engram_cli.vocab.compress import CompressedVocab

pytest_plugins = ["cli.conftest"]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    return make(tmp_path_factory.mktemp("served"), tokenizer_file, small_vocab)


@pytest.fixture
def served(made: Made) -> Iterator[Behaviour]:
    with serving(made.folder) as behaviour:
        yield behaviour


def document(engram: Engram, *arguments: object) -> Any:
    """Return what a command prints as JSON."""
    done = engram(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def alike(far: Any, near: Any, served: Behaviour) -> None:
    """Compare two results: addresses as paths, without times and what was read."""
    text = json.dumps(far).replace(served.address, str(served.folder))
    far = json.loads(text)
    for each in (far, near):
        for name in ("seconds", "read", "files", "stored_bytes", "facts", "tokens_per_second"):
            each.pop(name, None)
    assert far == near


@pytest.mark.parametrize("name", ["engram-stats", "engram-vocab.parquet", "ckpt/engram"])
@pytest.mark.parametrize("command", ["inspect", "verify", "lookup"])
def test_artifacts(engram: Engram, made: Made, served: Behaviour, command: str, name: str) -> None:
    """What lies next to an artifact is looked for on this machine alone, so it is named here."""
    words = ("An apple", "--tokenizer", "{}/tokenizer.json") if command == "lookup" else ()
    options = [*words, "--rows" if command == "inspect" else "--quiet"]
    if not name.endswith("parquet"):
        options += ["--vocab", "{}/engram-vocab.parquet", "--stats", "{}/engram-stats"]
    elif command == "lookup":
        options += ["--rows-per-head", "50"]
    near, far = (
        document(engram, command, *(each.format(base) for each in ("{}/" + name, *options)))
        for base in (made.folder, served.address)
    )
    alike(far, near, served)
    assert served.sent > 1000


def test_a_vocabulary_of_an_address(engram: Engram, made: Made, served: Behaviour) -> None:
    far = document(engram, "compress-vocab", f"{served.address}/tokenizer.json", "--out", "v")
    near = document(engram, "compress-vocab", made.folder / "tokenizer.json", "--out", "w")
    assert far["vocab_digest"] == near["vocab_digest"]
    assert far["source"] == f"{served.address}/tokenizer.json"
    asked = document(
        engram, "compress-vocab", f"{served.address}/engram-vocab.parquet", "--show", " apple",
        "--diff", f"{served.address}/engram-vocab.parquet",
    )  # fmt: skip
    assert asked["difference"]["moved"] == 0
    assert asked["shown"][0][1]["key"] == "apple"


def test_a_corpus_a_vocabulary_and_a_tokenizer(
    engram: Engram, made: Made, served: Behaviour
) -> None:
    options = ("--rows-per-head", 300, "--layers", "1,2", "--heads", 4)
    far = document(
        engram, "hash-stats", f"{served.address}/corpus.txt", *options, "--no-growth",
        "--vocab", f"{served.address}/engram-vocab.parquet",
        "--tokenizer", f"{served.address}/tokenizer.json",
    )  # fmt: skip
    counted = read_stats(made.stats)
    assert far["fingerprint"] == counted.layout.fingerprint
    assert (far["tokens"], far["documents"]) == (counted.tokens, counted.documents)


def test_a_corpus_with_a_signature(engram: Engram, made: Made, served: Behaviour) -> None:
    lines = [json.dumps({"text": text}) for text in ("An apple fell", "An apple", "a tree")]
    (made.folder / "corpus.jsonl").write_text("\n".join(lines))
    far = document(
        engram, "hash-stats", f"{served.address}/corpus.jsonl?signature=a.b%2Fc", "--no-growth",
        "--vocab", made.vocab, "--tokenizer", made.folder / "tokenizer.json",
        "--rows-per-head", 300,
    )  # fmt: skip
    assert far["documents"] == 3
    assert {path for _, path, _ in served.asked} == {"/corpus.jsonl?signature=a.b%2Fc"}


def test_what_follows_from_statistics(engram: Engram, made: Made, served: Behaviour) -> None:
    where = (f"{served.address}/", f"{made.folder}/")
    plans, tables, pages = [], [], []
    for index, base in enumerate(where):
        stats, vocab = f"{base}engram-stats", f"{base}engram-vocab.parquet"
        plans.append(document(engram, "plan", "--stats", stats, "--vocab", vocab))
        out = f"t{index}.zarr"
        options = ("--stats", stats, "--vocab", vocab, "--dim", 6, "--dtype", "float32")
        tables.append(document(engram, "build-table", *options, "--out", out)["digest"])
        assert engram("report", stats, "--out", f"r{index}.html").code == 0
        pages.append((engram.folder / f"r{index}.html").stat().st_size)
    alike(plans[0], plans[1], served)
    assert tables[0] == tables[1]
    assert abs(pages[0] - pages[1]) < 100


def test_a_plan_and_merged_statistics(engram: Engram, made: Made, served: Behaviour) -> None:
    plan = made.folder / "plan.json"
    assert engram("plan", "--stats", made.stats, "--out", plan, "--force").code == 0
    built = engram("build-table", "--plan", f"{served.address}/plan.json", "--vocab",
                   f"{served.address}/engram-vocab.parquet", "--dry-run")  # fmt: skip
    assert built.code == 0, built.err
    # The same part, by its path and by its address.
    for index, parts in enumerate(([served.address, str(made.folder)], [str(made.folder)] * 2)):
        names = [f"{part}/engram-stats" for part in parts]
        done = engram("hash-stats", "--merge", *names, "--out", f"m{index}", "--vocab", made.vocab)
        assert done.code == (2 if index else 0), done.err
    assert "given twice" in done.error_line
    assert document(engram, "verify", "m0")["ok"]


def test_a_checkpoint_and_a_table(engram: Engram, made: Made, served: Behaviour) -> None:
    """Without --out, the bundle of a checkpoint that is elsewhere goes into the working folder."""
    far = document(
        engram, "attach", f"{served.address}/ckpt", "--table", f"{served.address}/engram-table.zarr"
    )
    assert far["out"] == "engram"
    assert engram("attach", made.folder / "ckpt", "--table", made.table, "--out", "near").code == 0
    ours, theirs = contents(engram.folder / "engram"), contents(engram.folder / "near")
    assert ours == theirs
    table = f"{served.address}/engram-table.zarr"
    done = engram("attach", f"{served.address}/ckpt", "--table", table, "--reference", "--out", "r")
    assert done.code == 2
    assert "cannot refer to it" in done.error_line


def test_golden_vectors_of_another(engram: Engram, made: Made, served: Behaviour) -> None:
    golden = made.folder / "golden.json"
    assert engram("golden", made.table, "--out", golden, "--force").code == 0
    far = document(
        engram, "golden", f"{served.address}/engram-table.zarr", "--check",
        f"{served.address}/golden.json",
    )  # fmt: skip
    assert far["check"]["equal"]


def test_a_bundle_that_refers_to_a_path(engram: Engram, made: Made, served: Behaviour) -> None:
    bundle = made.folder / "referring"
    done = engram(
        "attach", made.folder / "ckpt", "--table", made.table, "--reference", "--out", bundle
    )
    assert done.code == 0, done.err
    done = engram("inspect", f"{served.address}/referring")
    assert done.code == 2
    assert "refers to rows by a path" in done.error_line
