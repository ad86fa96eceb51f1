"""Hub ids for a tokenizer, a checkpoint, a bundle or a corpus: --revision, the cache, offline."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli.conftest import Engram
from commands.broken_off import Heard
from commands.made import GEOMETRY, Made, make
from huggingface_hub import constants
from remote.hub import SHA, Hub, cached, hub
from small_tokenizers import PROSE
from test_files import contents
from tiny_models import llama
from transformers import PreTrainedTokenizerFast

from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.corpus import storage
from engram_cli.vocab.compress import CompressedVocab

pytest_plugins = ["cli.conftest"]
__all__ = ["hub"]  # a fixture


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    made = make(tmp_path_factory.mktemp("made"), tokenizer_file, small_vocab)
    model = made.folder / "model"
    llama(small_vocab.vocab_size).save_pretrained(model)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file)).save_pretrained(model)
    return made


@pytest.fixture
def engram(hub: Hub, engram: Engram) -> Engram:
    """The command line, which sees the Hub; its repository is empty."""
    shutil.rmtree(hub.folder)
    hub.folder.mkdir()
    return engram


def document(engram: Engram, *arguments: object) -> Any:
    done = engram(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def revisions(hub: Hub) -> set[str]:
    asked = [path.partition("?")[0] for path, _, _ in hub.asked if "/revision/" in path]
    return {path.rpartition("/revision/")[2] for path in asked}


def test_a_tokenizer_and_where_a_vocabulary_is_from(
    engram: Engram, hub: Hub, made: Made, tokenizer_file: Path
) -> None:
    shutil.copy(tokenizer_file, hub.folder / "tokenizer.json")
    done = document(engram, "compress-vocab", "org/name", "--revision", "v2")
    assert done["source"] == "hf://org/name@v2/tokenizer.json"
    assert done["written"] == "engram-vocab.parquet"
    assert revisions(hub) == {"v2"}
    # A text is then counted without --tokenizer: the vocabulary says where its own is from.
    shutil.copy(made.folder / "corpus.txt", "corpus.txt")
    found = document(engram, "hash-stats", "corpus.txt", "--rows-per-head", 300, "--no-growth")
    assert found["tokenizer"] == "hf://org/name@v2/tokenizer.json"


def test_revisions_of_what_has_none(engram: Engram, hub: Hub, made: Made) -> None:
    for given, message in (
        (made.vocab, f"{made.vocab} is no repository of the Hugging Face Hub"),
        ("https://host/v.parquet", "is no repository"),
        ("org/name@v1", "org/name@v1 has a revision, and --revision v2 is another"),
    ):
        done = engram("inspect", given, "--revision", "v2")
        assert done.code == 2
        assert message in done.error_line
    assert engram("inspect", "org/name@v3").code == 2  # an empty repository
    assert revisions(hub) == {"v3"}


def test_a_data_set(engram: Engram, hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same figures from the Hub, from its cache, and by its full address."""
    (hub.folder / "data").mkdir()
    for index, text in enumerate(PROSE):
        (hub.folder / "data" / f"{index}.jsonl").write_text(json.dumps({"text": text}) + "\n")
    (hub.folder / "README.md").write_text("# a card\n")
    options = ("--vocab", made.vocab, "--tokenizer", made.folder / "tokenizer.json",
               "--rows-per-head", 300)  # fmt: skip
    digests = []

    def count(*sources: object) -> Any:
        out = f"s{len(digests)}"
        found = document(engram, "hash-stats", *sources, *options, "--out", out)
        digests.append(json.loads(Path(out, "stats.json").read_bytes())["digest"])
        storage._hub_root.cache_clear()
        return found

    found = count("org/name")
    assert found["files"] == found["documents"] == len(PROSE)
    assert count("hf://datasets/org/name/data/*.jsonl")["files"] == len(PROSE)
    assert revisions(hub) == {"main"}
    hub.asked.clear()
    done = engram("hash-stats", "org/name", "--revision", "v2", *options, "--out", "v2")
    assert done.code == 0, done.err
    assert revisions(hub) == {"v2"}
    asked = len(hub.asked)
    names = [f"data/{index}.jsonl" for index in range(len(PROSE))]
    for name in names:
        (hub.folder / name.rpartition("/")[2]).write_bytes((hub.folder / name).read_bytes())
    folder = cached(hub, kind="datasets")
    (folder / "data").mkdir(parents=True)
    for name in names:
        shutil.copy(hub.folder / name, folder / name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count("org/name")
    assert len(set(digests)) == 1
    assert len(hub.asked) == asked
    done = engram("hash-stats", "org/another", *options)
    assert done.code == 2
    assert done.error_line.startswith("error: org/another is no path here, and hf://datasets/org/")
    assert "download once, with a network: hf download org/another --repo-type dataset" in done.err
    assert "corpus not found: texts/a.txt" in engram("hash-stats", "texts/a.txt", *options).err


def test_attach(engram: Engram, hub: Hub, made: Made) -> None:
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(made.folder / "ckpt" / name, hub.folder / name)
    done = document(engram, "attach", "org/name", "--table", made.table)
    assert done["out"] == "engram"
    assert contents(Path("engram")) == contents(made.bundle)


def test_a_model_is_copied_to_the_cache(
    engram: Engram, hub: Hub, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made.folder / "model", hub.folder, dirs_exist_ok=True)
    (hub.folder / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (hub.folder / "original").mkdir()
    (hub.folder / "original" / "a.safetensors").write_bytes(b"x" * 1000)
    done = document(engram, "attach", hub.folder, "--table", made.table, "--out", "engram")
    near = document(engram, "trace", hub.folder, "An apple fell", "--bundle", "engram")
    far = document(engram, "trace", "org/name", "An apple fell", "--bundle", "engram")
    assert (far["ids"], far["layers"]) == (near["ids"], near["layers"])
    assert done["files"]
    kept = {path.name for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_symlink()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= kept
    assert not {"pytorch_model.bin", "a.safetensors"} & kept
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    corpus = made.folder / "corpus.txt"
    losses = [
        document(engram, "evaluate", model, corpus, "--bundle", "engram", "--max-tokens", 60)[
            "bare"
        ]
        for model in ("org/name", hub.folder)
    ]
    assert losses[0] == losses[1]
    assert hub.asked == []
    assert SHA in {path.name for path in Path(constants.HF_HUB_CACHE).rglob(SHA)}


def test_columns_of_a_data_set_that_are_not_needed_stay_there(
    engram: Engram, hub: Hub, made: Made
) -> None:
    blobs = [random.Random(row).randbytes(2**17) for row in range(40)]  # 5 MB
    table = pa.table({"blob": pa.array(blobs, pa.binary()), "text": [PROSE[0]] * 40})
    pq.write_table(table, hub.folder / "data.parquet", row_group_size=10)
    found = document(
        engram, "hash-stats", "org/name", "--vocab", made.vocab, "--rows-per-head", 300,
        "--tokenizer", made.folder / "tokenizer.json",
    )  # fmt: skip
    assert found["documents"] == 40
    asked = [each.removeprefix("bytes=").split("-") for _, each, _ in hub.asked if each]
    assert sum(int(end) + 1 - int(begin) for begin, end in asked) < 2**20


def test_a_data_set_is_resumed(engram: Engram, hub: Hub, made: Made) -> None:
    """As a local corpus: from where the run was, with the same bytes in the end."""
    for index, text in enumerate(PROSE):
        (hub.folder / f"{index}.jsonl").write_text((json.dumps({"text": text}) + "\n") * 50)
    request = HashStatsRequest(
        sources=("org/name",),
        vocab=made.vocab,
        geometry=GEOMETRY,
        tokenizer=made.folder / "tokenizer.json",
        partition_size=2**10,
        checkpoint_seconds=0.0,
    )
    with pytest.raises(KeyboardInterrupt):
        hash_stats(request, Heard(stop_after=9000))
    heard = Heard()
    assert hash_stats(request, heard).resumed_tokens > 0, heard.notes
    whole = json.loads(Path("engram-stats", "stats.json").read_bytes())
    hash_stats(replace(request, out=Path("whole")))
    assert whole == json.loads(Path("whole", "stats.json").read_bytes())
