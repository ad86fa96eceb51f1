"""The terminal: results on stdout, notes and progress on stderr, errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from engram_cli import interrupts
from engram_cli.cli.plain import one_line, plain_json
from engram_cli.errors import EngramError, OutputError
from engram_cli.files import address_of

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

WIDTH = 100


class Terminal:
    """Prints a command's results, notes and progress; implements `Progress` for the commands."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet or as_json
        self._bars: Bars | None = None
        self._task: TaskID | None = None

    def show(self, *parts: RenderableType) -> None:
        """Print parts of a result for people, on stdout. Raises OutputError where it is full."""
        with _written():
            self._show(*parts)

    def _show(self, *parts: RenderableType) -> None:
        """Print parts of a result on stdout."""
        console = _console(sys.stdout)
        if sys.stdout.isatty():
            for part in parts:
                console.print(part)
            return
        with console.capture() as captured:
            for part in parts:
                console.print(part)
        lines = captured.get().splitlines()
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))

    def result(self, value: Any, *parts: RenderableType, next_command: str | None = None) -> None:
        """Print a result: the dataclass as JSON, or the parts as text and the next command."""
        self.close()
        if self.as_json:
            with _written():
                sys.stdout.write(f"{plain_json(asdict(value))}\n")
            return
        self.show(*parts)
        if next_command is not None and not self.quiet:
            self.note(f"next: {next_command}")

    def note(self, text: str) -> None:
        """Print a note on stderr."""
        if not self.quiet:
            console = self._bars.console if self._bars is not None else _console(sys.stderr)
            in_a_file = not sys.stderr.isatty()  # there, one line stays one line
            console.print(text, style="dim", markup=False, highlight=False, soft_wrap=in_a_file)

    def start(self, what: str, total: int | None, unit: str) -> None:
        """Start a progress bar, on a terminal only."""
        if self.quiet or not sys.stderr.isatty():
            return
        from engram_cli.cli.render import make_bars

        if self._bars is None:
            self._bars = make_bars(_console(sys.stderr))
            self._bars.start()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(what, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        """Advance the progress bar."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, amount)

    def close(self) -> None:
        """Remove the progress bar."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._task = None


@contextmanager
def _written() -> Iterator[None]:
    """Write to stdout, and at once: what fails at the end of the program has no line of its own."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError):
            sys.stdout.close()  # what it still holds would fail again
        sys.stdout = open_nowhere()
        raise OutputError(
            f"cannot write to standard output: {error.strerror}",
            "what the command made is whole; send its output elsewhere",
        ) from None


def open_nowhere() -> Any:
    """Return a stream that discards what is written to it."""
    return open(os.devnull, "w", encoding="utf-8")


@contextmanager
def reported(terminal: Terminal | None = None) -> Iterator[None]:
    """Turn expected errors into one line on stderr and an exit code, without a traceback."""
    try:
        yield
    except EngramError as error:
        _leave(terminal, error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        interrupts.leaving(said=False)
        try:
            _leave(terminal, "interrupted", "run the same command again", interrupts.CODE)
        finally:
            interrupts.leaving(said=True)
    except MemoryError as error:
        _leave(terminal, f"out of memory: {error}", "use a smaller geometry or machine memory", 2)
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(2) from None
    finally:
        if terminal is not None:
            terminal.close()


def _leave(terminal: Terminal | None, message: str, hint: str, code: int) -> None:
    from rich.text import Text

    if terminal is not None:
        terminal.close()
    line = Text()
    line.append("error: ", style="bold red")
    line.append(" ".join(message.split()))
    line.append(f" - {' '.join(hint.split())}", style="dim")
    _console(sys.stderr).print(line, soft_wrap=True)
    raise typer.Exit(code)


def _console(stream: Any) -> Console:
    from engram_cli.cli.render import PlainConsole

    console = PlainConsole(file=stream, highlight=False, markup=False, emoji=False)
    if not stream.isatty() or console.width > WIDTH:
        console.width = WIDTH
    return console


def follow(command: str, workspace: Path, **given: Path | None) -> str:
    """Return the next command for the same workspace, with the paths `given` as options."""
    for option, path in given.items():
        command += "" if path is None else f" --{option} {shown_path(path)}"
    return command if workspace == Path() else f"{command} --workspace {workspace}"


def shown_path(path: Path | str) -> str:
    """Return a path as text, relative to the working directory if inside it."""
    address = address_of(path)
    if address is not None:
        return one_line(address)
    path = Path(path)
    try:
        return one_line(str(path.resolve().relative_to(Path.cwd())))
    except (ValueError, OSError):
        return one_line(str(path))
