"""The `engram` command: its subcommands, its help and its exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from engram_cli import interrupts
from engram_cli.cli import (
    comparing,
    corpus,
    doctor,
    evaluation,
    exploring,
    golden,
    patching,
    reading,
    tables,
    training,
    updating,
)
from engram_cli.cli.command import in_config
from engram_cli.cli.plain import spell_what_streams_cannot
from engram_cli.cli.terminal import json_wanted, open_nowhere, print_error
from engram_cli.commands.workspace import CONFIG_NAME
from engram_cli.version import __version__

_INTERRUPTED = 130  # what Typer makes of a KeyboardInterrupt that no command has caught

app = typer.Typer(
    rich_markup_mode="rich",
    name="engram",
    help="Build, inspect and attach Engram tables: hashed n-gram memory for language models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for run_command in (
    *(corpus.compress_vocab, corpus.hash_stats, reading.report),
    *(tables.build_table, tables.convert, tables.attach, training.train, evaluation.evaluate),
    *(reading.trace, tables.plan, reading.inspect, reading.lookup, reading.verify),
    *(updating.update, comparing.diff, exploring.explore),
    *(golden.golden, doctor.doctor, reading.demo),
):
    app.command(run_command.__name__.replace("_", "-"))(run_command)
app.add_typer(patching.patch_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"engram {__version__}\n")
        raise typer.Exit


@app.callback()
def engram(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Build, inspect and attach Engram tables: hashed n-gram memory for language models.

    Try `engram demo` first. Then, in one folder: compress-vocab, hash-stats corpus.txt,
    build-table, attach ckpt/. Each command finds what the previous one wrote.
    """


def run() -> None:
    """Run the command line and exit with its code; SIGTERM is handled like Ctrl-C."""
    interrupts.during()
    if sys.stdout is None:  # closed by who started the program, as some daemons do
        sys.stdout = open_nowhere()
    if sys.stderr is None:
        sys.stderr = open_nowhere()
    spell_what_streams_cannot()
    try:
        code = app(standalone_mode=False)
        if code == _INTERRUPTED and not interrupts.said():
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        interrupts.leaving(said=False)
        print_error("Interrupted", interrupts.MESSAGE, interrupts.HINT)
        interrupts.leaving(said=True)
        sys.exit(interrupts.code())
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error: a bug in engram
            if not json_wanted():
                raise
            print_error(type(error).__name__, str(error), "this is a bug in engram: report it")
            sys.exit(2)
        sys.exit(_usage(error))
    interrupts.leaving(said=True)
    sys.exit(code or 0)


def _usage(error: Any) -> int:
    """Print what is wrong with an option or argument, in one line."""
    if type(error).__name__ == "NoArgsIsHelpError":  # no error: print the help
        error.show()
        return 2
    context = getattr(error, "ctx", None)
    command = _named_command(sys.argv[1:]) if context is None else context.command_path
    message = " ".join(str(error.format_message()).split())
    parameter = getattr(error, "param", None)
    if context is not None and parameter is not None and in_config(context, parameter.name):
        message = f"{CONFIG_NAME}: {message}"
    print_error("UsageError", message.rstrip("."), f"see: {command} --help")
    return 2


def _named_command(words: Sequence[str]) -> str:
    """Return the command that a command line names, of an error that does not say its own."""
    path, known = "engram", _names(app)
    for word in words:
        if word in known:
            path, known = f"{path} {word}", known[word]
    return path


def _names(group: typer.Typer) -> dict[str, dict[str, Any]]:
    """Return the names of the commands of a group, each with those of its own."""
    found: dict[str, dict[str, Any]] = {str(own.name): {} for own in group.registered_commands}
    for own in group.registered_groups:
        if own.typer_instance is not None:
            found[str(own.typer_instance.info.name)] = _names(own.typer_instance)
    return found
