"""Each request takes a path as text too, and holds what it would hold of a Path."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import MISSING, fields
from pathlib import Path, PurePosixPath
from typing import Any, get_type_hints

import pytest

import engram_cli
from engram_cli.commands import requests
from engram_cli.commands.requests import options
from engram_cli.commands.requests.options import Request
from engram_cli.commands.requests.patch import ApplyPatchRequest
from engram_cli.commands.requests.reading import InspectRequest
from engram_cli.commands.workspace import Workspace


def classes() -> list[Any]:
    """Return every class of the public API and of the requests that is given to a command."""
    modules = [
        importlib.import_module(f"{requests.__name__}.{module.name}")
        for module in pkgutil.iter_modules(requests.__path__)
    ]
    found = {one for module in modules for one in vars(module).values() if isinstance(one, type)}
    ours = {one for one in found if issubclass(one, Request) and one is not Request}
    public = {getattr(engram_cli, name) for name in engram_cli.__all__ if name.endswith("Request")}
    return sorted(ours | public, key=lambda one: one.__qualname__)


def filled(cls: Any, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a request of these values past all rules; its other fields are at their defaults."""
    monkeypatch.setattr(options, "_check", lambda *_: None)
    monkeypatch.setattr(cls, "RULES", ())
    request = object.__new__(cls)
    for field in fields(cls):
        default = None if field.default is MISSING else field.default
        object.__setattr__(request, field.name, values.get(field.name, default))
    Request.__post_init__(request)
    return request


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
def test_text_is_taken_for_each_path(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given, wanted = {}, {}
    for name, hint in get_type_hints(cls).items():
        said = str(hint).replace("pathlib.", "").replace("_local.", "")
        if "tuple[str | Path" in said:
            given[name], wanted[name] = ["hf://a/b", Path("c")], ("hf://a/b", Path("c"))
        elif "tuple[Path" in said:
            given[name], wanted[name] = ["a/b", Path("c")], (Path("a/b"), Path("c"))
        elif "Workspace" in said:
            given[name], wanted[name] = "a/b", Workspace(Path("a/b"))
        elif "Path" in said:
            assert "<class 'Path'>" in said or "Path | None" in said
            given[name], wanted[name] = "a/b", Path("a/b")
    request = filled(cls, given, monkeypatch)
    assert {name: getattr(request, name) for name in wanted} == wanted
    again = filled(cls, wanted, monkeypatch)
    assert {name: getattr(again, name) for name in wanted} == wanted


def test_requests_with_paths_were_found() -> None:
    names = {cls.__name__ for cls in classes()}
    assert {"InspectRequest", "MergeStatsRequest", "HashStatsRequest", "DiffRequest"} <= names
    assert len(names) > 20
    assert all(issubclass(cls, Request) for cls in classes())


def test_one_text_is_one_path_and_a_path_stays_what_it_is() -> None:
    assert ApplyPatchRequest(path="t.zarr", patches="a.patch").patches == ("a.patch",)  # type: ignore[arg-type]

    class Elsewhere(type(Path())):  # type: ignore[misc]
        """As a path behind an address is: of a class of its own."""

    path = Elsewhere("x.zarr")
    assert InspectRequest(path=path).path is path
    assert PurePosixPath(InspectRequest(path="x.zarr").path) == PurePosixPath("x.zarr")  # type: ignore[arg-type]
