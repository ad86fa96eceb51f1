"""Options that are paths on this machine: an address such as s3://bucket/key is refused in all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from engram_cli.errors import InputError
from engram_cli.files import address_of


class LocalPaths(TyperCommand):
    """A command whose paths, wherever they come from, are looked at before it runs."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Leaves with one line for an address where a path is expected."""
        from engram_cli.cli.terminal import reported

        with reported():
            for parameter in self.params:
                for path in _paths(ctx.params.get(parameter.name)):
                    refuse_address(path, _name(parameter))
        return super().invoke(ctx)


def refuse_address(path: Path | str, name: str) -> None:
    """Raises InputError where `path`, the value of the option `name`, is an address."""
    address = address_of(path)
    if address is not None:
        raise InputError(
            f"{name} {address} is an address, and a path on this machine is needed",
            "only a corpus is read from addresses: download what is read, upload what is written",
        )


def _paths(value: Any) -> Iterator[Path]:
    values = value if isinstance(value, (list, tuple)) else (value,)
    return (each for each in values if isinstance(each, Path))


def _name(parameter: Any) -> str:
    """How a user gives the parameter: the option's long name, or the argument's."""
    long = [option for option in parameter.opts if option.startswith("--")]
    return str(long[0] if long else str(parameter.name).upper())
