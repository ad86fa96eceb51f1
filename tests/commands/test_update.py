"""engram update: documents as files, in place or elsewhere, as a patch, or the whole corpus."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from table.updated import content
from typer.testing import CliRunner

from engram_cli import UpdateTableRequest, update_table, verify
from engram_cli.cli.app import app
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.init_corpus import FillRequest
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.update import command
from engram_cli.commands.update.command import run_update
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.patches.patch_file import read_patch
from engram_cli.progress import SILENT
from engram_cli.table.lock import build_lock
from engram_cli.table.store import open_table
from engram_cli.table.sums.update import TableUpdate
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab

TEXTS = [f"Only Alexander the Great could tame the horse {n} Bucephalus." for n in range(8)]


class World:
    """A folder with a vocabulary and texts, JSON lines of some documents each."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.table = folder / "engram-table.zarr"

    def texts(self, name: str, texts: list[str]) -> Path:
        """A file of documents."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    def build(self, out: Path, corpus: Path, **given: object) -> str:
        """Build a next-token table; its digest."""
        here = Workspace(self.folder)
        request = BuildTableRequest(
            geometry=Geometry(rows_per_head=(60, 70), heads=2, layers=(1, 4)),
            vocab=here.vocab,
            out=out,
            dim=6,
            init="next-token",
            fill=FillRequest(sources=(corpus,), workspace=here, tokenizer=self.tokenizer),
        )
        return build_table(replace(request, **given)).digest  # type: ignore[arg-type]

    def request(self, **given: object) -> UpdateTableRequest:
        """An update of the table."""
        how = {"table": self.table, "folder": self.folder, "tokenizer": self.tokenizer}
        return UpdateTableRequest(**how | given)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path) -> World:
    """A table of eight documents that keeps sums."""
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    made = World(tmp_path, tokenizer_file)
    made.build(made.table, made.texts("all", TEXTS), keep_sums=True)
    return made


def test_in_place_elsewhere_and_back(world: World) -> None:
    gone, new = world.texts("gone", TEXTS[5:]), world.texts("new", ["An apple fell far."])
    other = world.folder / "other.zarr"
    expected = world.build(other, world.texts("left", [*TEXTS[:5], "An apple fell far."]))
    before = content(world.table)
    dry = update_table(world.request(add=(new,), remove=(gone,), dry_run=True))
    assert not dry.written
    assert dry.touched_rows is not None
    out = world.folder / "out.zarr"
    result = update_table(world.request(add=(new,), remove=(gone,), out=out))
    assert content(world.table) == before
    assert (result.digest, result.documents) == (expected, 6)
    assert result.touched_rows == dry.touched_rows
    assert verify(VerifyRequest(path=out)).ok
    here = update_table(world.request(add=(new,), remove=(gone,)))
    assert here.digest == expected
    assert content(world.table) == content(out)
    update_table(world.request(add=(gone,), remove=(new,)))
    assert content(world.table) == before
    assert {each.name for each in world.folder.iterdir() if each.name.startswith(".")} == set()


def test_the_changed_rows_are_a_patch(world: World) -> None:
    new, patch = world.texts("new", ["An apple fell far."]), world.folder / "u.patch.safetensors"
    before = open_table(world.table)
    old = {
        layer: before.rows(layer, np.arange(before.layout.layer(layer).rows)) for layer in (1, 4)
    }
    result = update_table(world.request(add=(new,), patch=patch))
    made, after = read_patch(patch), open_table(world.table)
    assert result.patch == patch
    assert result.patch_rows == made.rows
    added = result.added
    assert added is not None
    assert made.description == f"engram update: added 1 document, {added.tokens} tokens"
    assert made.base == result.digest_before
    for layer, own in made.layers.items():
        rows = after.rows(layer, np.arange(after.layout.layer(layer).rows))
        changed = np.flatnonzero((rows != old[layer]).any(axis=1))
        assert own.ids.tolist() == changed.tolist()
        np.testing.assert_array_equal(own.rows, after.stored(layer, own.ids)[0])


def test_without_sums_all_rows_are_filled_again(world: World) -> None:
    plain = world.folder / "plain.zarr"
    world.build(plain, world.folder / "all.jsonl")
    gone, left = world.texts("gone", TEXTS[5:]), world.texts("left", TEXTS[:5])
    with pytest.raises(InputError, match="keeps no sums"):
        update_table(world.request(table=plain, remove=(gone,)))
    with pytest.raises(MismatchError, match="is not what filled"):
        update_table(
            world.request(table=plain, remove=(gone,), sources=(world.folder / "all.jsonl",))
        )
    expected = world.build(world.folder / "other.zarr", left)
    result = update_table(
        world.request(table=plain, remove=(gone,), sources=(left,), keep_sums=True)
    )
    assert result.digest == expected
    assert result.refilled
    assert (
        update_table(world.request(table=plain, add=(gone,))).digest
        == open_table(world.table).digest
    )


def test_what_cannot_be_is_said_and_changes_nothing(world: World) -> None:
    before = content(world.table)
    strange = world.texts("strange", ["Nobody ever wrote this."])
    with pytest.raises(InputError, match="no documents are given"):
        world.request()
    with pytest.raises(MismatchError, match="1 of 1 documents to remove are not among"):
        update_table(world.request(remove=(strange,)))
    with pytest.raises(OutputError, match="is what this command reads"):
        update_table(world.request(add=(strange,), out=world.table))
    with build_lock(world.table), pytest.raises(OutputError, match="is being built by"):
        update_table(world.request(add=(strange,)))
    with pytest.raises(InputError, match="no table at"):
        update_table(world.request(table=world.folder / "none.zarr", add=(strange,)))
    zeros = world.folder / "zeros.zarr"
    world.build(zeros, strange, init="zeros", fill=None)
    with pytest.raises(InputError, match="filled with --init zeros"):
        update_table(world.request(table=zeros, add=(strange,)))
    assert content(world.table) == before


def test_verify_compares_sums_with_rows_and_inspect_names_them(world: World) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["inspect", str(world.table)])
    assert "kept sums" in shown.output
    assert "kept sums" in verify(VerifyRequest(path=world.table, full=True)).checked
    file = world.table / "sums" / "4" / "c.0.0"
    words = np.fromfile(file, dtype="<i8")
    words[1::7] += 5000
    words.tofile(file)
    for full in (True, False):
        found = verify(VerifyRequest(path=world.table, full=full))
        assert not found.ok
        assert "rows are not what their sums make" in found.problems[0]


def test_the_command_prints_what_it_did(world: World) -> None:
    new = world.texts("new", ["An apple fell far."])
    arguments = ["update", str(world.table), "--add", str(new), "-w", str(world.folder)]
    shown = CliRunner().invoke(app, [*arguments, "--tokenizer", str(world.tokenizer)])
    assert shown.exit_code == 0, shown.output
    lines = {line.split("  ")[0]: line for line in shown.output.splitlines()}
    assert "1 document, " in lines["added"]
    assert "9 documents, " in lines["afterwards"]
    assert "the mean over the corpus moves" in shown.output
    assert open_table(world.table).digest[:20] in lines["digest"]


class Killed(Exception):
    """What ends an update in place of a kill."""


def die(*_: object, **__: object) -> None:
    """End the update here."""
    raise Killed


def killed(world: World, place: tuple[object, str] | None, **given: object) -> None:
    """Run an update that ends at a call of the function at `place`, or where it is printed."""
    with pytest.MonkeyPatch.context() as patch:
        if place is not None:
            patch.setattr(*place, die)
        with pytest.raises(Killed):
            run_update(world.request(**given), SILENT, die if place is None else lambda _: None)


def test_killed_when_the_table_is_complete_nothing_is_added_twice(world: World) -> None:
    new, other = world.texts("new", ["An apple fell far."]), world.texts("other", ["A pear fell."])
    before = open_table(world.table).digest
    once = world.build(world.folder / "once.zarr", world.texts("b", [*TEXTS, "An apple fell far."]),
                       keep_sums=True)  # fmt: skip
    record = world.table / "sums" / "update.json"
    for place in (None, (command, "remove_scratch")):
        killed(world, place, add=(new,))
        assert open_table(world.table).digest == once
        dry = update_table(world.request(add=(new,), dry_run=True))
        assert (dry.already, dry.written, record.exists()) == (True, False, True)
        again = update_table(world.request(add=(new,)))
        assert (again.already, again.completed, again.documents) == (True, True, 9)
        assert (again.digest_before, again.digest) == (before, once)
        assert content(world.table) == content(world.folder / "once.zarr")
        update_table(world.request(remove=(new,)))
    killed(world, None, add=(new,))
    elsewhere = update_table(world.request(add=(new,), out=world.folder / "out.zarr"))
    assert (elsewhere.already, elsewhere.documents) == (False, 10)
    assert not (world.folder / "out.zarr" / "sums" / "update.json").exists()
    assert not update_table(world.request(add=(other,))).already
    assert not record.exists()
    twice = [update_table(world.request(add=(new,))) for _ in range(2)]
    assert [each.documents for each in twice] == [11, 12]


# Sends itself a signal from when the table is complete, and ends as the command does.
_SCRIPT = """
import os, signal, sys
from engram_cli.table.sums.journal import UpdateJournal
clear, calls = UpdateJournal.clear, 0
def sending(self, **given):
    global calls
    calls += 1
    if calls > {calls}:
        os.kill(os.getpid(), signal.{name})
    clear(self, **given)
    if calls > {calls}:
        os.kill(os.getpid(), signal.{name})
UpdateJournal.clear = sending
from engram_cli.__main__ import main
sys.argv = ["engram", *{arguments!r}]
main()
"""


# Calls: when the update begins, when the table is complete, when the result is printed.
@pytest.mark.parametrize(("name", "calls"), [("SIGINT", 1), ("SIGKILL", 1), ("SIGKILL", 2)])
def test_signals_when_the_table_is_complete(world: World, name: str, calls: int) -> None:
    new = world.texts("new", ["An apple fell far."])
    arguments = ["update", str(world.table), "--add", str(new), "-w", str(world.folder)]
    arguments += ["--tokenizer", str(world.tokenizer)]
    code = _SCRIPT.format(name=name, calls=calls, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == (0 if name == "SIGINT" else -9), done.stderr
    assert "interrupted" not in done.stderr
    assert ("9 documents, " in done.stdout) == ((name, calls) != ("SIGKILL", 1))
    assert (world.table / "sums" / "update.json").exists() == (name == "SIGKILL")
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert ("the run before this one was killed late" in shown.output) == (name == "SIGKILL")
    assert ("9 documents, " in shown.output) == (name == "SIGKILL")
    assert ("10 documents, " in shown.output) == (name == "SIGINT")


def test_a_killed_update_knows_its_own_patch(world: World) -> None:
    new, patch = world.texts("new", ["An apple fell far."]), world.folder / "u.patch.safetensors"
    for place in ((TableUpdate, "apply"), (TableUpdate, "_change"), None):
        killed(world, place, add=(new,), patch=patch)
        made = patch.read_bytes()
        result = update_table(world.request(add=(new,), patch=patch))
        assert (result.patch, result.documents) == (patch, 9)
        assert patch.read_bytes() == made
        assert result.digest_before == read_patch(patch).base
        update_table(world.request(remove=(new,)))
        patch.unlink()
    killed(world, (TableUpdate, "apply"), add=(new,), patch=patch)
    with pytest.raises(OutputError, match=r"u\.patch\.safetensors already exists"):
        update_table(world.request(add=(world.texts("o", ["A pear fell."]),), patch=patch))
    made = patch.read_bytes()
    killed(world, None, add=(new,))
    with pytest.raises(OutputError, match=r"u\.patch\.safetensors already exists"):
        update_table(world.request(remove=(new,), patch=patch))
    assert patch.read_bytes() == made


def test_inspect_says_how_a_half_updated_table_is_completed(world: World) -> None:
    new = world.texts("new", ["An apple fell far."])
    killed(world, (TableUpdate, "_change"), add=(new,))
    found = inspect(InspectRequest(path=world.table))
    assert not found.complete
    assert dict(found.facts)["rows"] == "half-updated"
    assert "the same engram update" in dict(found.facts)["to go on"]
    shown = CliRunner().invoke(app, ["inspect", str(world.table)])
    assert "half-updated" in shown.output
    assert "half-built" not in shown.output
    assert "build-table" not in shown.output
