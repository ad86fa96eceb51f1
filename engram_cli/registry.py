"""Names to implementations: a plain table of "module:attribute" strings, imported on first use.

A new scheme, reader, dtype, init or format is one file and one line in the `Registry` of its stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from engram_cli.errors import InputError

T = TypeVar("T")


class LazyModule:
    """A module that is imported when something of it is first used: kernels load Numba, 0.7 s."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


class Registry(Generic[T]):
    """A read-only mapping of names to objects that are imported when first asked for."""

    def __init__(
        self, kind: str, entries: dict[str, str], unlisted: dict[str, str] | None = None
    ) -> None:
        """Make a registry; `unlisted` names can be loaded, but are not among the choices."""
        self.kind = kind
        self._entries = {**entries, **(unlisted or {})}
        self._unlisted = frozenset(unlisted or ())

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._entries if name not in self._unlisted)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def choices(self) -> str:
        """Return the names as a help text lists them: "a, b or c"."""
        return enumerated(self, "or")

    def register(self, name: str, entry: str) -> None:
        """Add `name` as "module:attribute". Raises InputError where the name is taken."""
        if name in self._entries:
            raise InputError(f"there is a {self.kind} '{name}' already", "choose another name")
        self._entries[name] = entry

    def load(self, name: str) -> T:
        """Return the object called `name`. Raises InputError, which lists the known names."""
        try:
            module, _, attribute = self._entries[name].partition(":")
        except KeyError:
            raise InputError(f"unknown {self.kind} '{name}'", f"known: {', '.join(self)}") from None
        return cast(T, getattr(import_module(module), attribute))


def enumerated(names: Iterable[str], word: str = "and") -> str:
    """Return names as a sentence lists them: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last
