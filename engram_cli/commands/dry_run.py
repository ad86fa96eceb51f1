"""A dry run where the output is already there: it computes, and says what the run would meet."""

from __future__ import annotations

from collections.abc import Callable

from engram_cli.errors import OutputError


def refusal(check: Callable[[], None], dry_run: bool) -> str | None:
    """What `check` has against the output, None where it is free.

    Raises the OutputError itself unless this is a dry run, which writes nothing.
    """
    try:
        check()
    except OutputError as error:
        if not dry_run:
            raise
        return f"{error.message}; {error.hint}"
    return None
