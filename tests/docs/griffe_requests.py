"""Documents the fields of requests by the help of their options, for mkdocstrings.

A field is `Annotated[type, Option(help)]`: the page shows the type, and the help as its docstring.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from griffe import Attribute, Class, Docstring, Expr, ExprSubscript, Extension, ObjectNode

from engram_cli.commands.requests.options import Request, declared


class DocumentRequests(Extension):
    """Gives each field of a request a docstring and a short annotation."""

    def on_class_members(
        self, *, node: ObjectNode | Any, cls: Class, agent: Any, **kwargs: Any
    ) -> None:
        """Change the fields of `cls` if it is a request."""
        if not cls.path.startswith("engram_cli.") or cls.parent is None or not cls.parent.is_module:
            return
        if not any("Request" in str(b) or "Corpus" in str(b) for b in cls.bases):
            return
        made = getattr(import_module(cls.parent.path), cls.name, None)
        if not isinstance(made, type) or not issubclass(made, Request):
            return
        options = {each.name: each for each in declared(made)}
        for name, member in cls.members.items():
            if not isinstance(member, Attribute):
                continue
            plain = _without_marks(member.annotation)
            option = options.get(name)
            if plain is not None:
                member.annotation = plain
            elif option is not None:  # its type has a name, such as DryRun
                member.annotation = getattr(option.type, "__name__", str(option.type))
            if option is not None and member.docstring is None:
                member.docstring = Docstring(option.option.help, parent=member)


def _without_marks(annotation: Any) -> Expr | str | None:
    """Return T of `Annotated[T, ...]`; None for any other annotation."""
    if not isinstance(annotation, ExprSubscript) or str(annotation.left) != "Annotated":
        return None
    parts = list(getattr(annotation.slice, "elements", []))
    return parts[0] if parts else None
