"""Errors for programs, tracebacks, what -v says, and progress in a log."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cli.conftest import Engram

from engram_cli.cli import terminal
from engram_cli.cli.app import run
from engram_cli.cli.terminal import Terminal

Capture = pytest.CaptureFixture[str]


def error_of(text: str) -> dict[str, str]:
    """The one JSON object on stderr."""
    (line,) = text.splitlines()
    error = json.loads(line)["error"]
    assert isinstance(error, dict)
    return error


def test_an_error_is_json_on_stderr(engram: Engram) -> None:
    done = engram("compress-vocab", "nowhere.json", "--json")
    assert (done.code, done.out) == (2, "")
    error = error_of(done.err)
    assert list(error) == ["class", "message", "hint"]
    assert error["class"] == "VocabularyError"
    assert "nowhere.json" in error["message"]
    assert error["hint"]


def test_the_traceback_is_in_the_json_with_debug(engram: Engram) -> None:
    error = error_of(engram("compress-vocab", "nowhere.json", "--json", "--debug").err)
    assert error["traceback"].startswith("Traceback (most recent call last):")


def test_debug_prints_the_traceback_and_the_same_line(engram: Engram) -> None:
    plain = engram("compress-vocab", "nowhere.json")
    done = engram("compress-vocab", "nowhere.json", "--debug")
    lines = done.err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == plain.err.splitlines()[-1]
    assert done.code == plain.code


@pytest.mark.parametrize(
    ("arguments", "kind", "match"),
    [
        (["build-table", "--dim", "abc"], "UsageError", "--dim"),
        (["verify"], "UsageError", "Missing argument"),
        (["compress-vocab", "--workspace", "bad"], "InputError", "unknown table [x]"),
    ],
)
def test_errors_before_a_command_starts_are_json_too(
    arguments: list[str],
    kind: str,
    match: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "engram.toml").write_text("[x]\ny = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["engram", *arguments, "--json"])
    with pytest.raises(SystemExit) as left:
        run()
    error = error_of(capsys.readouterr().err)
    assert left.value.code == 2
    assert error["class"] == kind
    assert match in error["message"]


def test_a_bug_is_json_too(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    from engram_cli.commands import compress_vocab

    def broken(*_: object, **__: object) -> None:
        raise KeyError("broken")

    monkeypatch.setattr(compress_vocab, "run_compress_vocab", broken)
    monkeypatch.setattr(sys, "argv", ["engram", "compress-vocab", "--json"])
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 2
    assert error_of(capsys.readouterr().err)["class"] == "KeyError"


@pytest.mark.parametrize(("signal", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_has_the_exit_code_of_its_signal(
    signal: str, code: int, tmp_path: Path
) -> None:
    script = f"""
import os, signal, sys
from engram_cli.commands import compress_vocab
from engram_cli.__main__ import main

def run(*_):
    os.kill(os.getpid(), signal.{signal})
    signal.pause()

signal.signal(signal.SIGINT, signal.default_int_handler)
compress_vocab.run_compress_vocab = run
sys.argv = ["engram", "compress-vocab", "--json"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    assert error_of(done.stderr) == {
        "class": "Interrupted",
        "message": "interrupted",
        "hint": "run the same command again",
    }


def test_verbose_prints_the_options_in_effect(engram: Engram, tokenizer_file: Path) -> None:
    (engram.folder / "engram.toml").write_text("[compress-vocab]\ngroups = 3\n")
    done = engram("compress-vocab", tokenizer_file, "-v")
    assert done.code == 0
    assert "groups = 3" in done.err.splitlines()
    assert engram("compress-vocab", tokenizer_file, "--force").out == done.out


def test_a_log_gets_a_line_of_progress_every_half_minute(capsys: Capture) -> None:
    now = 0.0
    shown = Terminal()
    shown.clock = lambda: now  # type: ignore[method-assign]
    shown._said = now
    shown.start("counting", 4_000_000, "bytes")
    for _ in range(61):
        now += 1.0
        shown.advance(50_000)
    shown.start("merging", None, "")
    now += terminal.LINE_SECONDS
    shown.advance(0)
    shown.close()
    assert capsys.readouterr().err.splitlines() == [
        "counting: 1.5 MB of 4.0 MB, 38 %, after 30 s",
        "counting: 3.0 MB of 4.0 MB, 75 %, after 60 s",
        "merging: after 30 s",
    ]


@pytest.mark.parametrize("options", [{"quiet": True}, {"as_json": True}])
def test_quiet_has_no_lines_of_progress(options: dict[str, bool], capsys: Capture) -> None:
    shown = Terminal(**options)
    shown.clock = lambda: 1e9  # type: ignore[method-assign]
    shown.start("counting", 10, "bytes")
    shown.advance(5)
    assert capsys.readouterr().err == ""
