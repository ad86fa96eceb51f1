"""What is printed can be written in any encoding, and acts on no terminal."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from commands.made import make
from rich.text import Text

from engram_cli.cli.app import run
from engram_cli.cli.plain import plain, plain_json
from engram_cli.cli.render import PlainConsole
from engram_cli.vocab.compress import CompressedVocab

ACTING = "\x1b]0;x\x07 \x9b31m \u202e \u2066 \x7f \udcff \u2028"
COMMANDS = {
    "inspect": ["inspect", "engram-table.zarr"],
    "inspect --json": ["inspect", "engram-table.zarr", "--json"],
    "lookup": ["lookup", "engram-table.zarr", "苹果 café"],
    "lookup --json": ["lookup", "engram-table.zarr", "苹果 café", "--json"],
    "plan": ["plan"],
    "verify": ["verify", "engram-stats"],
    "compress-vocab": ["compress-vocab", "tokenizer.json", "--force"],
    "hash-stats": ["hash-stats", "labelled.jsonl", "--group-by", "from", "--out", "s", "--force"],
    "hash-stats --json": [
        "hash-stats",
        "labelled.jsonl",
        "--group-by",
        "from",
        "--out",
        "s",
        "--json",
    ],
    "help": ["hash-stats", "--help"],
}
LABELS = ("a\x1b[31mred", "b\u202eevil", "c\x9b2J", "苹果")


@pytest.fixture(scope="module")
def workspace(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Path:
    """What the commands leave, and a corpus whose labels would steer a terminal."""
    folder = make(tmp_path_factory.mktemp("plain") / "work", tokenizer_file, small_vocab).folder
    lines = [json.dumps({"text": "an apple fell " * 9, "from": label}) + "\n" for label in LABELS]
    (folder / "labelled.jsonl").write_text("".join(lines))
    return folder


def ran(
    arguments: list[str], encoding: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr of a command with streams of an encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2)]
    monkeypatch.chdir(folder)
    shutil.rmtree("s", ignore_errors=True)
    monkeypatch.setattr(sys, "argv", ["engram", *arguments])
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with pytest.raises(SystemExit) as left:
        run()
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    return int(left.value.code or 0), out, err


@pytest.mark.parametrize(
    ("command", "encoding"),
    [
        *((command, "ascii") for command in COMMANDS),
        *((command, "cp1252") for command in ("inspect", "lookup", "lookup --json")),
        *((command, "utf-8") for command in ("hash-stats --json", "lookup")),
    ],
)
def test_every_encoding_takes_what_is_printed(
    command: str, encoding: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = ran(COMMANDS[command], encoding, workspace, monkeypatch)
    assert code == 0, err
    text = out.decode(encoding)
    assert text.strip()
    for stream in (text, err.decode(encoding)):
        assert plain(stream) == stream
    if command.endswith("--json"):
        found = json.loads(text)
        if "sources" in found.get("sections", {}):
            assert sorted(found["sections"]["sources"]["names"]) == sorted(LABELS)


@pytest.mark.parametrize("name", [f"no\x1b[2Jthing{ACTING}", "caf\u00e9-苹果"])
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_errors_are_one_line_that_steers_nothing(
    name: str, encoding: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["verify", name], ["verify", f"--{name}"]):
        code, _, err = ran(arguments, encoding, workspace, monkeypatch)
        line = err.decode(encoding)
        assert code == 2
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        assert plain(line) == line


def test_what_acts_is_shown_and_json_keeps_it() -> None:
    assert (
        plain(f"a\tb\n{ACTING}c")
        == "a\tb\n" + "".join(each if each in " ]0;x31m" else "\ufffd" for each in ACTING) + "c"
    )
    text = plain_json({ACTING: [ACTING]})
    assert plain(text) == text
    assert json.loads(text) == {ACTING: [ACTING]}


def test_a_console_styles_but_passes_no_style_on() -> None:
    out = io.StringIO()
    console = PlainConsole(file=out, force_terminal=True, width=80, markup=False, emoji=False)
    console.print(Text(f"x{ACTING}", style="bold"))
    assert out.getvalue().startswith("\x1b[1mx")
    assert out.getvalue().count("\x1b") == 2  # on and off, of rich
    assert "\u202e" not in out.getvalue()


def test_no_markup_of_a_text_is_obeyed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = ran(["verify", "[bold]x[/bold] :smile:"], "utf-8", workspace, monkeypatch)
    assert code == 2
    assert "[bold]x[/bold] :smile:" in err.decode()


@pytest.mark.parametrize("option", ["stats", "vocab", "report"])
def test_a_nul_in_engram_toml_is_one_line(
    option: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = workspace / "engram.toml"
    config.write_text(f'[inspect]\n{option} = "a\\u0000b"\n')
    code, _, err = ran(["inspect", "engram-stats"], "utf-8", workspace, monkeypatch)
    config.unlink()
    assert code == 2
    assert err.decode() == f"error: engram.toml: '{option}' holds a NUL character - fix the line\n"
