"""Makes a Typer command from a request: its options, and their defaults from engram.toml.

A choice is made, in this order, by a flag; by what a flag names (a preset, a plan, an artifact); by
engram.toml; by the request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from inspect import Parameter, Signature, cleandoc, signature
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

import typer

from engram_cli.cli.terminal import Terminal, reported
from engram_cli.commands.geometry import LAYOUT_NAMES
from engram_cli.commands.requests.options import (
    WORKSPACE,
    Declared,
    build,
    declared,
    locate_options,
)
from engram_cli.commands.workspace import Workspace, read_config
from engram_cli.errors import InputError
from engram_cli.files import address_of

Run = Callable[..., None]


def command(request: type) -> Callable[[Run], Run]:
    """Return a decorator that makes a Typer command of `run(request, terminal, **options)`.

    Options of the command line that are no field of the request are parameters of `run` after the
    first two.
    """

    def decorate(run: Run) -> Run:
        own = list(signature(run, eval_str=True).parameters.values())[2:]
        own = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own]
        options = {each.name: each for each in declared(request)}
        here = options.pop("workspace", None)

        def invoked(context: typer.Context, **given: Any) -> None:
            names = [each.name for each in _TERMINAL]
            terminal = Terminal(**{name: given.pop(name) for name in names})
            with reported(terminal):
                for name, value in given.items():
                    for each in value if isinstance(value, list) else (value,):
                        if isinstance(each, Path) and not _may_be_remote(options.get(name)):
                            refuse_address(each, name.replace("_", "-"))
                marks = {name: each.option for name, each in options.items()}
                given |= locate_options(marks, given)  # each value names its source once
                extra = {each.name: given.pop(each.name, context) for each in own}
                made = _request(request, options, context, given)
                terminal.chose(made)
                run(made, terminal, **extra)

        parameters = [Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)]
        parameters += [_parameter(each) for each in options.values()]
        parameters += [each for each in own if each.annotation is not typer.Context]
        parameters += _TERMINAL if here is None else (*_TERMINAL, _WORKSPACE)
        invoked.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        invoked.__annotations__ = {each.name: each.annotation for each in parameters}
        invoked.request = request  # type: ignore[attr-defined]  # so that options can be listed
        invoked.__name__, invoked.__doc__ = run.__name__, _escaped(_joined(run.__doc__ or ""))
        return invoked

    return decorate


def _request(
    request: Any, options: dict[str, Declared], context: typer.Context, given: dict[str, Any]
) -> Any:
    """Return the request: what engram.toml may not decide left out, paths of the workspace in."""
    for name in request.overruled(given):
        if in_config(context, name):
            given[name] = None
    for name, each in options.items():
        mark, value = each.option, given[name]
        if mark.must_exist is not None and value is not None and not value.exists():
            what, hint = mark.must_exist
            raise InputError(f"{what} not found: {value}", hint)
        if mark.place is not None and value is None:
            given[name] = getattr(Workspace(given["workspace"]), mark.place)
    return build(request, given)


def _parameter(each: Declared) -> Parameter:
    """Return an option as Typer reads it."""
    mark, kind = each.option, each.type
    default = None if mark.place or mark.parser else each.default
    settings: dict[str, Any] = {
        "help": _escaped(mark.help), "metavar": mark.metavar, "rich_help_panel": each.panel
    }  # fmt: skip
    if mark.parser is not None:
        kind, settings["parser"] = Any, _typed(mark.parser)
    elif get_origin(kind) is tuple:
        kind, default = list[str], default or None
    elif get_origin(kind) is Literal:
        kind = str
    else:
        settings |= {"min": mark.least, "max": mark.most}
    if default is MISSING:
        default, settings["show_default"] = Parameter.empty, False
    elif default is None and "(" not in mark.help:
        settings["show_default"] = "none"
    if mark.argument:
        settings.setdefault("show_default", default is not None)
        info = typer.Argument(**settings)
    else:
        info = typer.Option(*_flags(each, default), **settings)
    return _setting(each.name, Annotated[kind, info], default)


def _flags(each: Declared, default: Any) -> list[str]:
    flag = each.name.replace("_", "-")
    both = f"/--no-{flag}" if default is True or each.type == (bool | None) else ""
    return [f"--{flag}{both}", *([each.option.short] if each.option.short else [])]


def _escaped(text: str) -> str:
    """Return a help text in which rich finds no markup; loading rich for it takes 15 ms."""
    return re.sub(r"\[(?=[a-z#/@])", r"\\[", text)


def _joined(text: str) -> str:
    """Return a docstring with each paragraph in one line: Typer keeps the breaks of all but one."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", cleandoc(text))


def _typed(parser: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return the parser, its ValueError as a usage error."""

    def parse(text: str) -> Any:
        try:
            return parser(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def _may_be_remote(each: Declared | None) -> bool:
    return each is not None and (each.option.reads is not None or each.option.writes)


def refuse_address(path: Path | str, name: str) -> None:
    """Raise InputError if `path`, the value of the option `name`, is an address."""
    address = address_of(path)
    if address is not None:
        raise InputError(
            f"{name} {address} is an address, and a path on this machine is needed",
            "give a path, and upload what is written there with the tools of your store",
        )


def load_config(context: typer.Context, folder: Path) -> Path:
    """Take the folder's engram.toml as the defaults of this command's options; flags win.

    Runs before the other options are read. Keys are option names with - or _.
    """
    with reported():
        path = Workspace(folder).config
        parameters = {
            option.lstrip("-").replace("-", "_"): str(parameter.name)
            for parameter in context.command.params
            for option in parameter.opts
        }
        commands = set(getattr(getattr(context.parent, "command", None), "commands", ()))
        defaults: dict[str, Any] = {}
        for table, choices in read_config(path).items():
            if table not in {"layout", context.info_name, *commands}:
                raise InputError(f"{path}: unknown table [{table}]", "give [layout] or a command")
            if table not in ("layout", context.info_name):
                continue
            known = LAYOUT_NAMES if table == "layout" else parameters
            for key, value in choices.items():
                name = key.replace("-", "_")
                if name not in known:
                    raise InputError(f"{path}: [{table}] has no option '{key}'", _named(known))
                option = _as_option(value)
                if isinstance(option, str) and "\0" in option:
                    raise InputError(f"{path}: '{key}' holds a NUL character", "fix the line")
                if name in parameters:
                    defaults[parameters[name]] = option
    context.default_map = defaults
    return folder


def in_config(context: Any, parameter: str) -> bool:
    """Return whether the value of a parameter came from engram.toml."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "DEFAULT_MAP"


def _as_option(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(str(entry) for entry in value)
    return value if isinstance(value, bool) else str(value)


def _named(names: Iterable[str]) -> str:
    return f"it has {', '.join(sorted(name.replace('_', '-') for name in names if len(name) > 1))}"


def _setting(name: str, annotation: Any, default: Any) -> Parameter:
    """Return an option that is not a field of a request."""
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


_JSON = typer.Option("--json", help="Print one JSON document to stdout and nothing else.")
_QUIET = typer.Option("--quiet", "-q", help="Print only results and errors.")
_VERBOSE = typer.Option(
    "--verbose", "-v", help="Print also the options in effect and the time of each step."
)
_DEBUG = typer.Option("--debug", help="Print the traceback of an error.")
_FOLDER = typer.Option(
    *("--workspace", "-w"),
    help=_escaped(WORKSPACE.help),
    is_eager=True,
    callback=load_config,
    file_okay=False,
)
_TERMINAL = (
    _setting("as_json", Annotated[bool, _JSON], False),
    _setting("quiet", Annotated[bool, _QUIET], False),
    _setting("verbose", Annotated[bool, _VERBOSE], False),
    _setting("debug", Annotated[bool, _DEBUG], False),
)
_WORKSPACE = _setting("workspace", Annotated[Path, _FOLDER], Path())
