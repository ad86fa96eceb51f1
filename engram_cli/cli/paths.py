"""Options that are local paths: an address such as s3://bucket/key is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from engram_cli.errors import InputError
from engram_cli.files import address_of


def local_paths(command: Callable[..., None]) -> Callable[..., None]:
    """The command, its paths looked at before it runs, wherever they were given.

    It leaves with one line for an address where a path is expected.
    """
    from engram_cli.cli.terminal import reported

    @wraps(command)
    def checked(**given: Any) -> None:
        with reported():
            for name, value in given.items():
                for each in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(each, Path):
                        refuse_address(each, name.strip("_").replace("_", "-"))
        command(**given)

    return checked


def refuse_address(path: Path | str, name: str) -> None:
    """Raise InputError if `path`, the value of the option `name`, is an address."""
    address = address_of(path)
    if address is not None:
        raise InputError(
            f"{name} {address} is an address, and a path on this machine is needed",
            "only a corpus is read from addresses: download what is read, upload what is written",
        )
