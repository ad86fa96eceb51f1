"""The working directory: where each command finds what the one before it left."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.errors import InputError, OutputError

CONFIG_NAME = "engram.toml"
WORK = "work"  # the workspace inside the folder of a training run


@dataclass(frozen=True, slots=True)
class Workspace:
    """The artifacts of a folder, by their fixed names."""

    folder: Path = Path()

    @property
    def vocab(self) -> Path:
        """What compress-vocab writes."""
        return self.folder / "engram-vocab.parquet"

    @property
    def stats(self) -> Path:
        """What hash-stats writes."""
        return self.folder / "engram-stats"

    @property
    def table(self) -> Path:
        """What build-table writes."""
        return self.folder / "engram-table.zarr"

    @property
    def report(self) -> Path:
        """What report writes."""
        return self.folder / "report.html"

    @property
    def config(self) -> Path:
        """The persistent choices: a table [layout], and a table for each command."""
        return self.folder / CONFIG_NAME


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Read the tables of an engram.toml, {} if there is none. Raises InputError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}", "fix or remove it") from None
    try:
        tables = tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{path} is nested without end", "fix or remove it") from None
    except ValueError as error:  # TOMLDecodeError, and numbers and dates that are none
        raise InputError(f"{path}: {error}", "fix the line or remove the file") from None
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise InputError(
                f"{path}: '{name}' is outside a table",
                "put it under [layout] or under a command, such as [hash-stats]",
            )
    return tables


def refusal(check: Callable[[], None], dry_run: bool) -> str | None:
    """Return what `check` has against the output; None if it may be written.

    Raises the OutputError itself, unless this is a dry run, which writes nothing.
    """
    try:
        check()
    except OutputError as error:
        if not dry_run:
            raise
        return f"{error.message}; {error.hint}"
    return None
