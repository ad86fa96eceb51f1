"""An address where only a path is taken: one clear line in every command, no folder `s3:`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from all_commands import callbacks, clicked
from cli.conftest import Engram

from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.requests.options import declared
from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import CorpusError, EngramError
from engram_cli.files import address_of
from engram_cli.formats.bundle import read_bundle
from engram_cli.outputs import new_file, new_folder
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.parquet import VOCABULARY, read_vocab

COMMANDS: Any = clicked()


def path_parameters() -> Iterator[tuple[str, str, bool]]:
    """Every parameter of every command that is a path: command, how it is typed, an argument?"""
    for command, callback in callbacks().items():
        hints = get_type_hints(callback)
        for parameter in COMMANDS[command].params:
            if "Path" in str(hints.get(parameter.name)):
                is_argument = parameter.param_type_name == "argument"
                typed = parameter.name if is_argument else max(parameter.opts, key=len)
                yield command, str(typed), is_argument


OPTIONS = {
    (command, each.name if each.option.argument else f"--{each.name}"): each.option
    for command, callback in callbacks().items()
    for each in declared(callback.request)
}
REMOTE = {name for name, option in OPTIONS.items() if option.reads or option.writes}
PARAMETERS = [each for each in path_parameters() if each[:2] not in REMOTE]


def test_there_are_as_many_as_there_were() -> None:
    assert len(PARAMETERS) + len(REMOTE) >= 70
    assert {name for name, _, _ in path_parameters()} == set(COMMANDS)


def test_what_is_not_behind_an_address_is_written_or_a_folder() -> None:
    """All that is read is read from anywhere; only outputs, working folders and what is changed in
    place are here."""
    typed = {name.lstrip("-") for command, name, _ in PARAMETERS if command != "update"}
    assert typed == {"workspace", "report", "vectors", "out", "into", "folder", "path", "patch"}
    commands = {command for command, name, _ in PARAMETERS if name == "--out"}
    patching = {"patch apply", "patch make", "patch stack"}
    assert commands == {"golden", "plan", "report", "train", "update"} | patching
    # Rows are replaced in the files of this machine.
    changed = {command for command, name, _ in PARAMETERS if name == "path"}
    assert changed == {"patch apply", "patch list", "patch undo"}


@pytest.mark.parametrize("address", ["s3://bucket/key", "hf://datasets/a/b", "hf:a/b"])
@pytest.mark.parametrize(("command", "typed", "is_argument"), PARAMETERS)
def test_every_path_of_every_command(
    engram: Engram, command: str, typed: str, is_argument: bool, address: str
) -> None:
    arguments = []
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "argument" and parameter.required:
            arguments.append(address if parameter.name == typed else "here")
        elif parameter.required:
            arguments += [max(parameter.opts, key=len), "here"]
    if is_argument and address not in arguments:
        arguments.append(address)
    if not is_argument:
        arguments += [typed, address]
    done = engram(*command.split(), *arguments)
    assert done.code == 2
    assert f"{typed.lstrip('-')} {address} is an address" in done.error_line
    assert list(engram.folder.iterdir()) == []


def test_settings_are_looked_at_too(engram: Engram) -> None:
    (engram.folder / "engram.toml").write_text('[attach]\ninto = "s3://bucket/t"\n')
    done = engram("attach", "ckpt")
    assert done.code == 2
    assert "into s3://bucket/t is an address" in done.error_line
    (engram.folder / "engram.toml").write_text('[plan]\nout = "hf://a/b"\n')
    assert "out hf://a/b is an address" in engram("plan").error_line
    assert [path.name for path in engram.folder.iterdir()] == ["engram.toml"]


@pytest.mark.parametrize(
    ("path", "address"),
    [
        ("s3://bucket/key", "s3://bucket/key"),
        (Path("s3://bucket/key"), "s3://bucket/key"),
        (Path("hf://datasets/a/b"), "hf://datasets/a/b"),
        ("hf:a/b", "hf:a/b"),
        (Path("file:///tmp/x"), "file:///tmp/x"),
        ("memory://x", "memory://x"),
        ("HTTPS://host/x", "HTTPS://host/x"),
        ("corpus.txt", None),
        ("/s3:/x", None),
        ("C:/texts", None),
        ("run:3/out", None),
        ("a/s3://b", None),
    ],
)
def test_what_is_an_address(path: Path | str, address: str | None) -> None:
    assert address_of(path) == address


def test_python_functions_refuse_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = "s3://bucket/key"
    for read in (read_bundle, read_stats, open_table, compress_vocab, read_vocab):
        for given in (address, Path(address)):
            with pytest.raises(EngramError, match="s3://bucket/key is an address"):
                read(given)
    for write in (new_file, new_folder):
        with (
            pytest.raises(EngramError, match="s3://bucket/key is an address"),
            write(Path(address), VOCABULARY),
        ):
            pass
    with pytest.raises(EngramError, match="https://host/key cannot be written"):
        build_table(BuildTableRequest(out=Path("https://host/key")))
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_keeps_its_slashes() -> None:
    with pytest.raises(CorpusError, match="nowhere://bucket/key"):
        find_sources([Path("nowhere://bucket/key")], CorpusOptions())
