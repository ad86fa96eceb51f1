"""The reference describes every command, option and public name."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path

import pytest
from all_commands import clicked
from docs.command_reference import FOLDER, commands, file_of, pages, parameters

import engram_cli
from engram_cli import runtime

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "reference" / "api.md"
NAMES = [name for name in engram_cli.__all__ if name != "__version__"]
FUNCTIONS = [name for name in NAMES if inspect.isfunction(getattr(engram_cli, name))]


def test_the_pages_of_the_commands_are_those_that_the_commands_give() -> None:
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert there == pages(), "run: python tests/docs/command_reference.py"


@pytest.mark.parametrize("name", commands())
def test_every_option_of_a_command_is_described(name: str) -> None:
    page = (FOLDER / file_of(name)).read_text(encoding="utf-8")
    taken = {each.name: each for each in clicked()[name].params}
    described = {flag for each in parameters(commands()[name]) for flag in each.names}
    for each in taken.values():
        options = [flag for flag in each.opts if flag.startswith("-")] + each.secondary_opts
        if each.name == "help":
            continue
        assert set(options or [each.name]) <= described
        for flag in options or [each.name.upper()]:
            assert re.search(rf"^- .*`{re.escape(flag)}\b.*<br>\S", page, re.M), flag
    assert all(len(each.text.split()) > 2 for each in parameters(commands()[name]))


def test_the_api_page_names_everything_public_once() -> None:
    named = re.findall(r"^::: engram_cli\.(\S+)$", API.read_text(encoding="utf-8"), re.M)
    shown_there = [name for name in runtime.__all__ if name not in NAMES]
    assert sorted(named) == sorted([*NAMES, *(f"runtime.{name}" for name in shown_there)])


def test_what_type_checkers_read_is_what_is_imported() -> None:
    tree = ast.parse(Path(engram_cli.__file__).read_text(encoding="utf-8"))
    block = next(each for each in tree.body if isinstance(each, ast.If))
    imports = [each for each in block.body if isinstance(each, ast.ImportFrom)]
    typed = {alias.name: each.module for each in imports for alias in each.names}
    assert typed == engram_cli._HOMES
    assert sorted(typed) == sorted(NAMES)
    for name, home in typed.items():
        assert getattr(engram_cli, name) is getattr(import_module(str(home)), name)


def test_every_request_is_public() -> None:
    folder = ROOT / "engram_cli" / "commands"
    modules = [*folder.glob("*.py"), *(folder / "requests").glob("*.py")]
    names = {
        each.name
        for path in modules
        for each in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(each, ast.ClassDef) and re.search(r"[a-z]Request$", each.name)
    }
    assert len(names) > 10
    assert names <= set(NAMES)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_a_command_takes_and_returns_public_classes(name: str) -> None:
    signature = inspect.signature(getattr(engram_cli, name))
    taken = [each.annotation for each in signature.parameters.values()]
    if not any(str(each).endswith("Request") for each in taken):
        return
    assert taken[1:] == ["Progress"] * (len(taken) - 1)
    for each in (taken[0], *signature.return_annotation.split(" | ")):
        assert is_dataclass(getattr(engram_cli, each))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_public_is_untyped(name: str) -> None:
    value = getattr(engram_cli, name)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        named = [each for each in signature.parameters.values() if each.kind != each.VAR_KEYWORD]
        types = [each.annotation for each in named]
        types.append(signature.return_annotation)
        assert inspect.Signature.empty not in types
    else:
        types = list(inspect.get_annotations(value).values())
    assert "Any" not in types
