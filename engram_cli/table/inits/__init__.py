"""What a table holds at first: an init a file, and one line here for each."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from engram_cli.errors import InputError
from engram_cli.registry import Registry
from engram_cli.table.inits.base import Init

INITS: Registry[Callable[..., Init]] = Registry(
    "init",
    {
        "zeros": "engram_cli.table.inits.zeros:Zeros",
        "normal": "engram_cli.table.inits.normal:Normal",
        "token-mean": "engram_cli.table.inits.corpus.filled:TokenMean",
        "next-token": "engram_cli.table.inits.corpus.filled:NextToken",
    },
)


def make_init(name: str, **parameters: Any) -> Init:
    """The init called `name`; parameters that are None are left to it. Raises InputError."""
    build = INITS.load(name)
    given = {key: value for key, value in parameters.items() if value is not None}
    parameters_of = inspect.signature(build).parameters
    known = list(parameters_of)
    missing = [n for n, p in parameters_of.items() if p.default is p.empty and n not in given]
    if missing:
        raise InputError(f"init '{name}' needs {', '.join(missing)}", "give a corpus")
    for key in given:
        if key not in known:
            raise InputError(
                f"init '{name}' has no {key}",
                f"it takes {', '.join(known)}" if known else "leave it out",
            )
    return build(**given)
