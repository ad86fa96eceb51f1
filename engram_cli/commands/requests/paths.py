"""What makes paths of text: the fields of a request that hold paths may be given as str."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from engram_cli.commands.workspace import Workspace


@cache
def path_fields(cls: Any) -> tuple[tuple[str, Callable[[Any], Any]], ...]:
    """Return the fields of `cls` for paths or a workspace, and what makes their values of text.

    Where a path or an address may stand, text stays text.
    """
    found: list[tuple[str, Callable[[Any], Any]]] = []
    for name, hint in get_type_hints(cls).items():
        kinds = _members(hint)
        if str in kinds:
            continue
        for kind in kinds:
            if kind is Path:
                found.append((name, _path))
            elif kind is Workspace:
                found.append((name, _workspace))
            elif get_origin(kind) is tuple and Path in _members(get_args(kind)[0]):
                found.append((name, _paths if get_args(kind)[0] is Path else _several))
    return tuple(found)


def _members(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if isinstance(kind, UnionType) else (kind,)


def _path(given: Path | str) -> Path:
    return given if isinstance(given, Path) else Path(given)  # a path behind an address stays one


def _workspace(given: Workspace | Path | str) -> Workspace:
    return given if isinstance(given, Workspace) else Workspace(_path(given))


def _several(given: Any) -> tuple[str | Path, ...]:
    """Return one path or one text as several of them."""
    return (given,) if isinstance(given, str | Path) else tuple(given)


def _paths(given: Any) -> tuple[Path, ...]:
    return tuple(_path(each) for each in _several(given))
