"""Outputs at addresses: whole or not at all, the marker last, and nothing replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.conftest import Engram
from commands.made import Made, make
from remote.test_s3 import address, bucket
from test_files import contents

from engram_cli.errors import OutputError
from engram_cli.remote import publish
from engram_cli.remote.publish import MARK, Destination
from engram_cli.vocab.compress import CompressedVocab

pytest_plugins = ["cli.conftest"]
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
__all__ = ["address", "bucket"]  # fixtures


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    return make(tmp_path_factory.mktemp("made"), tokenizer_file, small_vocab)


@pytest.fixture
def memory() -> Iterator[Any]:
    """The store that fsspec keeps in memory, with the order in which objects came as `order`."""
    import fsspec

    system: Any = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def objects(memory: Any, under: str) -> dict[str, bytes]:
    return {
        name.removeprefix(f"/{under}/"): found.getvalue()
        for name, found in memory.store.items()
        if name.startswith(f"/{under}/")
    }


def files(folder: Path) -> dict[str, bytes]:
    return {name: raw for name, raw in contents(folder).items() if raw is not None}


def document(engram: Engram, *arguments: object) -> Any:
    done = engram(*arguments, "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


COMMANDS: dict[str, tuple[tuple[str, ...], str]] = {
    "table": (
        ("build-table", "--vocab", "{vocab}", "--stats", "{stats}", "--dim", "6", "--out"),
        "zarr.json",
    ),
    "converted": (("convert", "{table}", "--dtype", "int8", "--out"), "zarr.json"),
    "bundle": (
        ("attach", "{folder}/ckpt", "--table", "{table}", "--out"),
        "engram.json",
    ),
    "statistics": (
        ("hash-stats", "{folder}/corpus.txt", "--vocab", "{vocab}", "--rows-per-head", "300",
         "--tokenizer", "{folder}/tokenizer.json", "--out"),
        "stats.json",
    ),
    "merged": (
        ("hash-stats", "--merge", "{stats}", "{other}", "--vocab", "{vocab}", "--out"),
        "stats.json",
    ),
    "vocabulary": (("compress-vocab", "{folder}/tokenizer.json", "--out"), ""),
}  # fmt: skip


def words(made: Made, name: str, engram: Engram) -> list[str]:
    if name == "merged" and not Path("other").exists():
        text = Path("other.txt")
        text.write_text("An apple fell from another tree.\n")
        done = engram("hash-stats", text, "--vocab", made.vocab, "--rows-per-head", 300, "--layers",
                      "1,2", "--heads", 4, "--tokenizer", made.folder / "tokenizer.json",
                      "--out", "other")  # fmt: skip
        assert done.code == 0, done.err
    given = {**vars(made), "other": "other"}
    return [each.format(**given) for each in COMMANDS[name][0]]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_lies_there_is_what_would_lie_here(
    engram: Engram, made: Made, memory: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    command, last = words(made, name, engram), COMMANDS[name][1]
    before = sorted(path.name for path in Path().iterdir())
    order = []
    put = type(memory).put_file

    def noted(self: Any, source: str, target: str, **how: Any) -> None:
        order.append((target, how.get("mode")))
        put(self, source, target, **how)

    monkeypatch.setattr(type(memory), "put_file", noted)
    far = document(engram, *command, f"memory://bucket/{name}")
    assert sorted(path.name for path in Path().iterdir()) == before  # no stage is left
    assert order[-1] == (f"/bucket/{name}{'/' * bool(last)}{last}", "create")
    assert [mode for _, mode in order[:-1]] == [None] * (len(order) - 1)
    assert f"memory://bucket/{name}" in json.dumps(far)
    document(engram, *command, "near")
    if last:
        assert objects(memory, f"bucket/{name}") == files(Path("near"))
        assert document(engram, "verify", f"memory://bucket/{name}")["ok"]
    else:
        assert memory.cat(f"/bucket/{name}") == Path("near").read_bytes()
    # Nothing is replaced, with --force either.
    for more in ((), ("--force",)):
        done = engram(*command, f"memory://bucket/{name}", *more)
        assert done.code == 2
        assert "nothing is replaced at an address" in done.error_line


def test_an_upload_that_breaks_off_does_not_load(
    engram: Engram, made: Made, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = words(made, "table", engram)
    with monkeypatch.context() as patch:
        put = type(memory).put_file

        def fails(self: Any, source: str, target: str, **how: Any) -> None:
            if target.endswith("/zarr.json") and how:
                raise ConnectionError("the line is cut")
            put(self, source, target, **how)

        patch.setattr(type(memory), "put_file", fails)
        done = engram(*command, "memory://bucket/t")
    assert done.code == 2
    assert "cannot write memory://bucket/t: the line is cut" in done.error_line
    assert "the finished table is in .engram-uploads/" in done.err.replace("\n", "")
    left = objects(memory, "bucket/t")
    assert MARK in left
    assert "zarr.json" not in left
    assert engram("inspect", "memory://bucket/t").code == 2
    # The same command finishes it.
    assert document(engram, *command, "memory://bucket/t")["written"]
    assert MARK not in objects(memory, "bucket/t")
    assert engram("inspect", "memory://bucket/t").code == 0
    assert not Path(".engram-uploads").exists()


def test_a_run_that_fails_leaves_nothing(engram: Engram, made: Made, memory: Any) -> None:
    done = engram("hash-stats", made.folder / "none.txt", "--vocab", made.vocab, "--out",
                  "memory://bucket/s")  # fmt: skip
    assert done.code == 2
    assert "none.txt" in done.error_line
    assert objects(memory, "bucket/s") == {}
    assert list(Path().iterdir()) == []
    planned = document(engram, *words(made, "table", engram), "memory://bucket/t", "--dry-run")
    assert not planned["written"]
    assert objects(memory, "bucket/t") == {}


def test_a_second_memory_is_refused_at_an_address_too(
    engram: Engram, made: Made, memory: Any
) -> None:
    checkpoint = Path("ckpt")
    shutil.copytree(made.folder / "ckpt", checkpoint)
    config = json.loads((checkpoint / "config.json").read_bytes())
    (checkpoint / "config.json").write_text(json.dumps({**config, "engram_layer_ids": [1]}))
    done = engram("attach", checkpoint, "--table", made.table, "--out", "memory://bucket/b")
    assert done.code == 2
    assert "has Engram layers of its own" in done.error_line
    assert objects(memory, "bucket/b") == {}


def test_what_another_run_left(engram: Engram, made: Made, memory: Any) -> None:
    """Killed runs leave their mark and objects: those of others are not mixed with ours."""
    Destination("memory://bucket/t", "bundle").begin()
    done = engram(*words(made, "table", engram), "memory://bucket/t")
    assert "holds another upload that was interrupted" in done.error_line
    memory.rm("/bucket", recursive=True)
    Destination("memory://bucket/t", "table").begin()
    memory.pipe("/bucket/t/1/c.77.0", b"of a table with smaller chunks")
    done = engram(*words(made, "table", engram), "memory://bucket/t")
    assert "holds 1/c.77.0, which this run did not write" in done.error_line
    assert "zarr.json" not in objects(memory, "bucket/t")


def test_somebody_else_was_faster(made: Made, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Destination("memory://bucket/t", "table")
    target.begin()
    monkeypatch.setattr(target, "_compare", lambda sizes: None)  # they came after it
    memory.pipe("/bucket/t/zarr.json", b"theirs")
    with pytest.raises(OutputError, match="appeared while it was being written"):
        target.put_folder(made.table, ["zarr.json", "1/zarr.json"], "zarr.json")
    assert memory.cat("/bucket/t/zarr.json") == b"theirs"


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("https://host/t.zarr", "a web server is only read"),
        ("hf://org/name/t.zarr", "the Hub is written by its own tools"),
        ("nonsense://t", "Protocol not known"),
    ],
)
def test_what_is_not_written(engram: Engram, made: Made, to: str, message: str) -> None:
    done = engram("convert", made.table, "--dtype", "int8", "--out", to)
    assert done.code == 2
    assert message in done.error_line
    done = engram("convert", made.table, "--to", "gguf", "--out", to)
    assert "gguf is written to a path" in done.error_line
    assert list(Path().iterdir()) == []


def test_s3(engram: Engram, made: Made, bucket: Any) -> None:
    """Sizes, contents, and that nothing but the artifact is there."""
    document(engram, *words(made, "table", engram), "s3://tables/new/t.zarr")
    document(engram, *words(made, "table", engram), "near")
    found = {
        each.key.removeprefix("new/t.zarr/"): each.get()["Body"].read()
        for each in bucket.objects.filter(Prefix="new/t.zarr/")
    }
    assert found == files(Path("near"))
    done = engram(*words(made, "table", engram), "s3://tables/new/t.zarr")
    assert "already exists" in done.error_line
    done = engram(*words(made, "table", engram), "s3://no-such-bucket/t.zarr")
    assert done.code == 2
    assert "cannot write s3://no-such-bucket/t.zarr" in done.error_line
    assert publish.MARK not in found
