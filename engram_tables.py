"""The scripts `engram` and `engram-tables`, and `python -m engram_tables`.

The package `engram-cli` on PyPI, a different program, also installs a module `engram_cli` and a
script `engram`. Installed into one environment, the later one replaces files of the earlier one.
This module belongs to engram-tables alone, so it can say so.
"""

from __future__ import annotations

import os
import sys
from importlib import util

_PACKAGE, _OURS, _THEIRS = "engram_cli", "engram-tables", "engram-cli"
_HINT = f"uninstall both, then install {_OURS} in an environment without {_THEIRS}"


def main() -> None:
    """Run the command line and exit with its code, unless another package replaced it."""
    found = clash()
    if found is not None:
        message, broken = found
        level = "error" if broken else "warning"
        sys.stderr.write(f"{level}: {message} - {_HINT}\n")
        if broken:
            sys.exit(2)
    from engram_cli.__main__ import main as run

    run()


def clash() -> tuple[str, bool] | None:
    """Return what another package did to `engram_cli`, and whether that broke it; None if nothing.

    Lists one folder. Files are compared only if that folder holds the other package.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    spec = util.find_spec(_PACKAGE)
    origin = "" if spec is None else spec.origin or ""
    if os.path.realpath(origin) != os.path.realpath(os.path.join(here, _PACKAGE, "__init__.py")):
        place = os.path.dirname(origin)
        found = f"is {place}, which belongs to another package" if place else "cannot be found"
        return f"the module {_PACKAGE} {found}", True
    if not any(_is_theirs(name) for name in os.listdir(here)):
        return None
    replaced = _replaced()
    if replaced:
        return f"the package {_THEIRS} replaced {replaced[0]} of {_OURS}", True
    return f"the package {_THEIRS} is installed too, and has the same module and script", False


def _is_theirs(name: str) -> bool:
    return name.startswith(f"{_PACKAGE}-") and name.endswith((".dist-info", ".egg-info"))


def _replaced() -> list[str]:
    """Return the files of engram-tables that have not the size they were installed with."""
    from importlib import metadata  # takes longer to load than all of this

    try:
        files = metadata.distribution(_OURS).files or []
    except metadata.PackageNotFoundError:  # run from a checkout
        return []
    return [
        str(file)
        for file in files
        if file.parts[0] == _PACKAGE
        and file.size is not None
        and _size(str(file.locate())) != file.size
    ]


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


if __name__ == "__main__":
    main()
