"""Finds the code blocks of a page and runs them, as a reader would who follows it.

Blocks of one page run in order, in one folder and one Python namespace. A comment in the line above
a block changes how it is tested; readers do not see it. Parts are separated by "; ":

    <!-- test: skip, needs a GPU -->     it does not run, for the reason that is given
    <!-- test: figures vary -->          digits and bars of the output are not compared
    <!-- test: other output, REASON -->  it runs, and its output is not compared
    <!-- test: exit 1 -->                the exit code of its last command

A comment that begins with a line "test: first", or "test: first python", holds commands, or Python,
that make what the reader of the page has already. They run where the comment stands.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from typer.testing import CliRunner

from engram_cli.cli.app import app

ROOT = Path(__file__).parents[2]
RUN = ("python", "sh", "console")
SHOWN = ("", "toml", "json", "text", "mermaid", "yaml")  # languages of blocks that nothing runs
FIRST = ("first", "first python")
_MARK = re.compile(r"<!--\s*test:\s*(.*?)\s*-->\s*$", re.S)
_PARTS = re.compile(r"; (?=skip,|figures vary|other output,|exit )")
_SHELL = set("|&;<>$`*?(){}'\"\\~")


@dataclass(frozen=True)
class Block:
    """A fenced or indented block of code; `line` is that of its first line, from 1."""

    page: Path
    line: int
    language: str
    text: str
    marks: tuple[str, ...]

    @property
    def skipped(self) -> str | None:
        """Why it does not run; None if it runs."""
        return self._after("skip,")

    @property
    def compared(self) -> bool:
        """Whether the output that it shows is compared with its own."""
        return self._after("other output,") is None

    @property
    def code(self) -> int:
        """The exit code of its last command."""
        return int(self._after("exit ") or 0)

    def _after(self, start: str) -> str | None:
        found = [mark.removeprefix(start).strip() for mark in self.marks if mark.startswith(start)]
        return found[0] if found else None


def blocks_of(page: Path) -> list[Block]:
    """Return every block of code of a page, in its order."""
    found, marks = list[Block](), tuple[str, ...]()
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            mark = _MARK.search(token.content)
            marks = tuple(part.strip() for part in _PARTS.split(mark[1])) if mark else ()
            head, _, text = marks[0].partition("\n") if marks else ("", "", "")
            if head in FIRST:
                found.append(Block(page, (token.map or [0])[0] + 1, head, text, ()))
                marks = ()
        elif token.type in ("fence", "code_block"):
            language = token.info.strip() if token.type == "fence" else ""
            line = (token.map or [0])[0] + 1
            found.append(Block(page, line, language, token.content, marks))
            marks = ()
        else:
            marks = ()
    return found


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page in `folder`, the working directory. Raises AssertionError."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.language not in (*RUN, *FIRST) or block.skipped:
            continue
        try:
            if block.language.endswith("python"):
                source = "\n" * block.line + block.text  # so that tracebacks name the page's line
                exec(compile(source, str(page), "exec"), namespace)
            else:
                _run_commands(block, folder)
        except BaseException as error:
            error.add_note(f"in the block at {page.relative_to(ROOT)}:{block.line}")
            raise


def commands_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a block of shell, and the lines of output that follow it."""
    lines = block.text.splitlines()
    if block.language != "console":
        lines = [f"$ {line}" for line in _joined(lines) if line.strip()]
    command, output = "", list[str]()
    for line in _joined(lines):
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:], []
        else:
            assert command, f"output before a command: {line}"
            output.append(line)
    yield command, output


def _joined(lines: list[str]) -> list[str]:
    r"""Return the lines with those that end with \ joined to the next."""
    return re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()


def _run_commands(block: Block, folder: Path) -> None:
    commands = list(commands_of(block))
    for number, (command, shown) in enumerate(commands):
        code, output = _run(command, folder)
        expected = block.code if number == len(commands) - 1 else 0
        assert code == expected, f"{command}: exit code {code}\n{output}"
        if shown and block.compared:
            _compare(command, shown, output, "figures vary" in block.marks)


def _run(command: str, folder: Path) -> tuple[int, str]:
    """Return the exit code of a command, and both its streams as a terminal shows them.

    `engram` runs in this process, which has loaded what it needs; bash runs everything else.
    """
    words = shlex.split(command, comments=True)
    plain = command.partition(" # ")[0] if "#" in command else command
    if words[:1] == ["engram"] and not _SHELL & set(re.sub(r"'[^']*'|\"[^\"$`]*\"", "", plain)):
        result = CliRunner().invoke(app, words[1:])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output
    tools = folder.parent / "tools"
    tools.mkdir(exist_ok=True)
    for name, arguments in (("engram", "-m engram_cli"), ("python", "")):
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (tools / name).chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def _compare(command: str, shown: list[str], output: str, figures_vary: bool) -> None:
    """Compare output with what a page shows; `...` stands for anything, as a line for any lines."""
    expected, found = (_plain(text, figures_vary) for text in ("\n".join(shown), output))
    lines = (re.escape(line).replace(r"\.\.\.", ".*?") for line in expected.splitlines())
    pattern = "".join("(?:.*\n)*?" if line == ".*?" else f"{line}\n" for line in lines)
    assert re.fullmatch(pattern, found), (
        f"{command}\n--- the page shows\n{expected}\n--- it printed\n{found}"
    )


def _plain(text: str, figures_vary: bool) -> str:
    """Return a text without the widths of tables, and if they vary without figures."""
    if figures_vary:
        text = re.sub(r"\d[\d,.]*", "0", text)
        text = re.sub(r"[▁▂▃▄▅▆▇█]+", "█", text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "".join(re.sub(r"[─━]+", "─", line) + "\n" for line in lines if line)
