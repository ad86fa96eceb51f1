"""How a field of a request becomes an option of the command line and of engram.toml.

A field is `Annotated` with an `Option`, or with a `Group` of further options. The command line
reads both from here, and so do the checks of `Request`; nothing else lists the options.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, fields, replace
from functools import cache
from importlib import import_module
from inspect import get_annotations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_type_hints

from engram_cli.commands.requests.paths import path_fields
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.copies import local_copy
from engram_cli.remote.locate import corpus_address, locate
from engram_cli.sizes import read_size, size_text

R = TypeVar("R", bound="Request")

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "0": "\0", "f": "\f"}
DTYPE_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")
LAYOUT, CORPUS, ENGINE = "Layout", "Corpus", "Engine"


@dataclass(frozen=True, slots=True)
class Option:
    """An option, or with `argument` a positional argument, of the command line.

    `name`: None for the field's. `panel`: None for the `PANEL` of its class. `parser`: makes the
    value from text; raises ValueError. `least`, `most`: limits of the value. `known`: the values
    that it may have, or "module:attribute" of a registry of them.
    `place`: the attribute of `Workspace` that the command line takes where nothing is given.
    `must_exist`: what a given path is, and the command that makes it. `reads`: how the value is
    read where it is a repository of the Hugging Face Hub or an address, see `READS`; None for a
    path that must be on this machine. `writes`: the kind of output that may be written to an
    address, None for none. `revises`: the option whose repository a --revision is of. `files`: what
    is read of a repository, where that is known.
    """

    help: str
    _: KW_ONLY
    argument: bool = False
    name: str | None = None
    short: str | None = None
    panel: str | None = None
    metavar: str | None = None
    parser: Callable[[str], Any] | None = None
    least: int | None = None
    most: int | None = None
    known: tuple[str, ...] | str | None = None
    place: str | None = None
    must_exist: tuple[str, str] | None = None
    reads: Literal["ranges", "copy", "stream"] | None = None
    writes: bool = False
    revises: str | None = None
    files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A field whose value is made from the options of another class.

    If that class has `resolved(given)`, its result is the value; `given` are all options by name.
    `helps`: what the help of some of them says here, by name.
    """

    options: type
    helps: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """An option with its name and panel, and the type and default of its field.

    `default`: MISSING if the option is required, None if the field makes its default itself.
    """

    name: str
    panel: str | None
    option: Option
    type: Any
    default: Any


@dataclass(frozen=True, slots=True)
class Rule:
    """A combination of options that cannot be; `{0.name}` in a text is a field of the request."""

    broken: Callable[[Any], bool]
    message: str
    hint: str


class Request:
    """Base of every request: checks the options one by one, then the `RULES`.

    A `dtype` may have one of the `DTYPE_ALIASES`; the request holds the full name. A field of a
    path, of several paths or of a workspace may be given as str; the request holds a Path.
    """

    __slots__ = ()
    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __post_init__(self) -> None:
        request: Any = type(self)
        for name, make in path_fields(request):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, make(given))
        for field, _, mark in _marked(request):
            value = getattr(self, field.name)
            if isinstance(mark, Option) and value is not None:
                if field.name == "dtype" and value in DTYPE_ALIASES:
                    value = DTYPE_ALIASES[value]
                    object.__setattr__(self, field.name, value)
                _check(mark.name or field.name, mark, value)
        for rule in self.RULES:
            if rule.broken(self):
                raise InputError(rule.message.format(self), rule.hint.format(self))

    @classmethod
    def overruled(cls, given: Mapping[str, Any]) -> frozenset[str]:
        """Return the options that engram.toml does not decide, because a flag names their source.

        `given`: all options by name. The default is none.
        """
        return frozenset()


@cache
def _marked(cls: Any) -> tuple[tuple[Any, Any, Option | Group], ...]:
    """Return each field that has a mark, with its type and the mark; inherited fields come last."""
    hints = get_type_hints(cls, include_extras=True)
    own = get_annotations(cls)
    return tuple(
        (field, hints[field.name].__origin__, mark)
        for field in sorted(fields(cls), key=lambda field: field.name not in own)
        for mark in getattr(hints[field.name], "__metadata__", ())
        if isinstance(mark, Option | Group)
    )


def _check(name: str, option: Option, value: Any) -> None:
    flag = f"--{name.replace('_', '-')}"
    shown = size_text if option.parser is read_size else str
    if option.least is not None and value < option.least:
        raise InputError(f"{flag} {value}", f"give {shown(option.least)} or more")
    if option.most is not None and value > option.most:
        raise InputError(f"{flag} {value}", f"give {shown(option.most)} or less")
    known = option.known
    if isinstance(known, str):
        module, _, attribute = known.partition(":")
        known = tuple(getattr(import_module(module), attribute))
    if known is not None and value not in known:
        raise InputError(f"unknown {flag[2:]} '{value}'", f"known: {', '.join(known)}")


def declared(request: type) -> Iterator[Declared]:
    """Yield the options of a request in the order of its fields, those of groups in between.

    An option that several groups have is described by the first.
    """
    seen: set[str] = set()
    for each in _all_declared(request):
        if each.name not in seen:
            seen.add(each.name)
            yield each


def _all_declared(request: type) -> Iterator[Declared]:
    for field, kind, mark in _marked(request):
        if isinstance(mark, Group):
            for each in _all_declared(mark.options):
                text = (mark.helps or {}).get(each.name, each.option.help)
                yield replace(each, option=replace(each.option, help=text))
            continue
        home = next(base for base in request.__mro__ if field.name in get_annotations(base))
        yield Declared(
            name=mark.name or field.name,
            panel=mark.panel or vars(home).get("PANEL"),
            option=mark,
            type=kind,
            default=field.default if field.default_factory is MISSING else None,
        )


def build(request: type, given: Mapping[str, Any]) -> Any:
    """Return the request made from the values of options; None leaves a field at its default."""
    values = {}
    for field, kind, mark in _marked(request):
        if isinstance(mark, Group):
            value = build(mark.options, given)
            if hasattr(value, "resolved"):
                value = value.resolved(given)
        else:
            value = given.get(mark.name or field.name)
            if isinstance(value, list):
                value = tuple(value)
            elif kind is Workspace:
                value = Workspace(given["workspace"])
        if value is not None:
            values[field.name] = value
    return request(**values)


def located(request: R) -> R:
    """Return the request, and those in it, with Hub ids and addresses as paths that read them.

    Its revision is in them then. Raises as `locate`.
    """
    own: Any = request
    kind: Any = type(own)
    names, marks, given, moved = {}, {}, {}, {}
    for field, _, mark in _marked(kind):
        value = getattr(own, field.name)
        if isinstance(mark, Option):
            name = mark.name or field.name
            names[name], marks[name], given[name] = field.name, mark, value
        elif isinstance(value, Request):
            moved[field.name] = located(value)
    moved |= {names[name]: value for name, value in locate_options(marks, given).items()}
    changed: R = replace(own, **moved) if moved else request
    return changed


def copied(request: R, progress: Progress = SILENT) -> R:
    """Return a located request with copies on this machine of what packages read as folders.

    Raises as `local_copy`.
    """
    own: Any = request
    kind: Any = type(own)
    found = {}
    for field, _, mark in _marked(kind):
        value = getattr(own, field.name)
        if isinstance(mark, Option) and mark.reads == "copy" and value is not None:
            found[field.name] = local_copy(value, progress)
    changed: R = replace(own, **found)
    return changed


def locate_options(marks: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of options that name a repository or an address, as they are read.

    By name; a revision is in them, and is None then. Raises as `locate`, and InputError for a
    revision of what is no repository.
    """
    found: dict[str, Any] = {}
    revision, revised = None, None
    for name, mark in marks.items():
        if mark.revises is not None and given.get(name) is not None:
            revision, revised, found[name] = given[name], mark.revises, None
    for name, mark in marks.items():
        value, own = given.get(name), revision if name == revised else None
        if value is None or mark.reads is None:
            continue
        if mark.reads != "stream":
            if isinstance(value, list | tuple):
                found[name] = tuple(locate(Path(each), own, mark.files) for each in value)
            else:
                found[name] = locate(value, own, mark.files)
        elif own is not None:
            found[name] = tuple(corpus_address(each, own) for each in value)
    return found


def integers(text: str) -> tuple[int, ...]:
    """Parse comma-separated integers: 2,3."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"'{text}' is not a list such as 2,3") from None


def row_range(text: str) -> tuple[int, int]:
    """Parse a range of rows, the first one and the one behind the last: 0:1000."""
    try:
        first, stop = (int(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"'{text}' is not a range such as 0:1000") from None
    if not 0 <= first < stop:
        raise ValueError(f"'{text}' is no ascending range such as 0:1000")
    return first, stop


def names(text: str) -> tuple[str, ...]:
    """Parse comma-separated names: .txt,.md."""
    return tuple(text.split(","))


def unescape(text: str) -> str:
    r"""Replace the escapes \n, \t, \\ and \x1e, which a shell passes as written."""

    def meaning(escape: re.Match[str]) -> str:
        name = escape[1]
        return chr(int(name[1:], 16)) if len(name) == 3 else _ESCAPES.get(name, escape[0])

    return re.sub(r"\\(x[0-9A-Fa-f]{2}|.)", meaning, text)


def revision_of(name: str, shown: str) -> Option:
    """Return the option --revision, of the repository that the option `name` gives."""
    text = f"Branch, tag or commit of {shown} on the Hugging Face Hub (main)."
    return Option(text, metavar="REVISION", revises=name)


# Options of several commands, so that they have the same help everywhere.
WORKSPACE = Option("Folder that holds the artifacts and engram.toml.", name="workspace", short="-w")
Here = Annotated[Workspace, WORKSPACE]
Force = Annotated[bool, Option("Replace an output that engram wrote before.")]
DryRun = Annotated[bool, Option("Print the sizes in bytes and write nothing.")]
Verify = Annotated[
    bool,
    Option("Read the whole bundle first and compare it with its digests."),
]
Threads = Annotated[int | None, Option("Number of threads (one per core).", least=1)]
Checkpoint = Annotated[
    Path,
    Option(
        "Hugging Face checkpoint: a folder, org/name of the Hub, or an address.",
        argument=True,
        reads="copy",
    ),
]
ModelTokenizer = Annotated[
    Path | None,
    Option(
        "The model's tokenizer (CHECKPOINT/tokenizer.json).", reads="ranges", files=TOKENIZER_FILES
    ),
]
Vocab = Annotated[
    Path | None, Option("Compressed vocabulary (the one in the workspace).", reads="ranges")
]
ChunkSize = Annotated[
    int | None,
    Option(
        "Bytes per chunk file: 16MiB (about 128MiB).", metavar="SIZE", parser=read_size, least=1
    ),
]
InnerChunkSize = Annotated[
    int | None,
    Option(
        "Bytes per inner chunk (Zarr sharding), so that other Zarr readers fetch a row without its "
        "whole chunk file: 64KiB (no inner chunks).",
        metavar="SIZE",
        parser=read_size,
        least=1,
    ),
]
ONE_CHUNK_SIZE = Rule(
    lambda request: request.chunk_rows is not None and request.chunk_size is not None,
    "both --chunk-rows and --chunk-size",
    "give one of them",
)
ChunkRows = Annotated[int | None, Option("Rows per chunk file (about 128 MiB).", least=1)]
Scale = Annotated[
    float | None, Option("Scale of every layer, for dtype fp8 (computed from the rows).")
]
