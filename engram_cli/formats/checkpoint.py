"""Engram layers that a model's checkpoint has of its own, by the names in its config and weights.

Names and configs are untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

OWN_LAYERS = ("engram_layer_ids", "ple_layer_ids")  # keys of configs with Engram layers
# A part of one decoder layer, as published models name it.
_OWN = re.compile(r"(?:^|\.)\d+\.(?:\w+\.)*(?:engram|ple)(?:\.|$)")
# A memory that a model carried when it was saved with its weights.
_SAVED = re.compile(r"(?:^|\.)engram(?:_\w+)?\.layers\.\d+\.")


def named_in_config(config: Any) -> str | None:
    """Return what a config says of Engram layers, also in a config inside it, or None."""
    if not isinstance(config, Mapping):
        return None
    inner = (value for key, value in config.items() if str(key).endswith("config"))
    for each in (config, *(value for value in inner if isinstance(value, Mapping))):
        for name in OWN_LAYERS:
            if isinstance(each.get(name), (list, tuple)) and each[name]:
                return f"{name} {', '.join(map(str, each[name]))}"
    return None


def named_in_layers(names: Iterable[str]) -> str | None:
    """Return the first name of a tensor or module in an Engram layer."""
    return next((name for name in names if _OWN.search(name)), None)


def named_as_saved(names: Iterable[str]) -> str | None:
    """Return the first name of a tensor of a memory that was attached when its model was saved."""
    return next((name for name in names if _SAVED.search(name)), None)
