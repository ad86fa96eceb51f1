"""The package engram-peft, or the parts of it that its other dependencies do not keep from loading.

The package asks for Python 3.12 and for trl; its config, model and saving need neither.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import typing
from types import ModuleType
from typing import Any

import pytest


def load(*names: str) -> list[Any]:
    """Its modules by name; skips the test where they cannot be imported."""
    spec = importlib.util.find_spec("engram_peft")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("engram-peft is not installed")
    if not hasattr(typing, "override"):
        extensions = pytest.importorskip("typing_extensions")
        typing.override = extensions.override  # type: ignore[attr-defined]
    if "engram_peft" not in sys.modules:
        package = ModuleType("engram_peft")  # without what its __init__ imports
        package.__path__ = list(spec.submodule_search_locations)
        package.__spec__ = spec
        sys.modules["engram_peft"] = package
    return [pytest.importorskip(f"engram_peft.{name}", exc_type=ImportError) for name in names]
