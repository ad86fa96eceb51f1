"""The checks of kernels that CI runs in Triton's interpreter, to be run on a GPU as well."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parents[1] / "runtime" / "kernels"


def checks(name: str) -> dict[str, Any]:
    """The tests and fixtures of a file such as "check_lookup", by name."""
    spec = importlib.util.spec_from_file_location(name, _FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {k: v for k, v in vars(module).items() if k.startswith(("test_", "_kernels"))}
