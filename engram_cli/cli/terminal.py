"""The terminal: results on stdout, notes and progress on stderr, errors in one line."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from engram_cli import interrupts
from engram_cli.cli.plain import one_line, plain, plain_json
from engram_cli.errors import EngramError, OutputError
from engram_cli.files import address_of
from engram_cli.numbers import seconds_text
from engram_cli.version import __version__

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

WIDTH = 100
LINE_SECONDS = 30.0  # between lines of progress where stderr is not a terminal


class Terminal:
    """Prints a command's results, notes and progress; implements `Progress` for the commands.

    `verbose`: print also what was chosen, and how long each piece of work took. `debug`: print the
    traceback of an error.
    """

    clock = staticmethod(time.monotonic)

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        debug: bool = False,
    ) -> None:
        self.as_json, self.debug = as_json, debug
        self.quiet = quiet or as_json
        self.verbose = verbose and not self.quiet
        self._work: _Work | None = None
        self._said = self.clock()  # when the last line of progress was printed
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
        """Start a progress bar on a terminal, lines of progress elsewhere."""
        if self.quiet:
            return
        self._end_work()
        self._work = _Work(what, total, unit, self.clock())
        if not sys.stderr.isatty():
            self._say_progress()
            return
        from engram_cli.cli.render import make_bars

        if self._bars is None:
            self._bars = make_bars(_console(sys.stderr))
            self._bars.start()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(what, total=total, unit=unit)

    def advance(self, amount: int) -> None:
        """Advance the progress bar, or print a line if the last one is half a minute old."""
        if self._work is not None:
            self._work.done += amount
            if self._bars is None:
                self._say_progress()
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task, amount)

    def chose(self, request: Any) -> None:
        """Print the program's version and a request's options, if `verbose`."""
        if self.verbose:
            self.note(f"engram {__version__}, Python {sys.version.split()[0]} on {sys.platform}")
            for field in fields(request):
                self.note(f"{field.name} = {one_line(str(getattr(request, field.name)))}")

    def _say_progress(self) -> None:
        now = self.clock()
        if self._work is not None and now - self._said >= LINE_SECONDS:
            self._said = now
            self.note(self._work.line(now))

    def _end_work(self) -> None:
        if self.verbose and self._work is not None:
            self.note(f"{self._work.what}: took {seconds_text(self.clock() - self._work.begun)}")
        self._work = None

    def close(self) -> None:
        """Remove the progress bar."""
        self._end_work()
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._task = None


@dataclass(slots=True)
class _Work:
    """A piece of work under way: what `Progress.start` was told, and how much is done."""

    what: str
    total: int | None
    unit: str
    begun: float
    done: int = 0

    def line(self, now: float) -> str:
        """Return one line: counting: 1.2 GB of 4.8 GB, 25 %, after 60 s."""
        from engram_cli.cli.render import done_of, percent

        parts = []
        if self.unit and (self.done or self.total):
            parts = [done_of(self.done, self.total or None, self.unit)]
        if self.total:
            parts.append(percent(self.done / self.total, 0))
        parts.append(f"after {now - self.begun:.0f} s")
        return f"{self.what}: {', '.join(parts)}"


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
        kind = type(error).__name__
        _leave(terminal, kind, error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        interrupts.leaving(said=False)
        try:
            code = interrupts.code()
            _leave(terminal, "Interrupted", interrupts.MESSAGE, interrupts.HINT, code)
        finally:
            interrupts.leaving(said=True)
    except MemoryError as error:
        hint = "use a smaller geometry or machine memory"
        _leave(terminal, "MemoryError", f"out of memory: {error}", hint, 2)
    except BrokenPipeError:
        sys.stderr.close()
        raise typer.Exit(2) from None
    finally:
        if terminal is not None:
            terminal.close()


def _leave(terminal: Terminal | None, kind: str, message: str, hint: str, code: int) -> None:
    """Print an error, with its traceback if that was asked for, and leave with the exit code."""
    if terminal is not None:
        terminal.close()
    trace = traceback.format_exc() if terminal is not None and terminal.debug else None
    as_json = json_wanted() if terminal is None else terminal.as_json
    print_error(kind, message, hint, trace=trace, as_json=as_json)
    raise typer.Exit(code)


def json_wanted() -> bool:
    """Return whether the command line asks for JSON, where its options are not parsed yet."""
    return "--json" in sys.argv[1:]


def print_error(
    kind: str, message: str, hint: str, *, trace: str | None = None, as_json: bool | None = None
) -> None:
    """Print an error on stderr: one line, or with --json one JSON object on a line.

    `kind`: the name of its class. `trace`: its traceback. `as_json` None: as the command line asks.
    """
    message, hint = " ".join(message.split()), " ".join(hint.split())
    if json_wanted() if as_json is None else as_json:
        error = {"class": kind, "message": message, "hint": hint}
        error |= {} if trace is None else {"traceback": trace}
        sys.stderr.write(json.dumps({"error": error}) + "\n")
        return
    if trace is not None:
        sys.stderr.write("".join(f"{plain(line)}\n" for line in trace.splitlines()))
    if not sys.stderr.isatty():
        sys.stderr.write(plain(f"error: {message} - {hint}") + "\n")
        return
    from rich.text import Text

    line = Text.assemble(("error: ", "bold red"), message, (f" - {hint}", "dim"))
    _console(sys.stderr).print(line, soft_wrap=True)


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
