"""Finds caches among the arguments of a call, by what they can do and never by an argument's name.

A cache is an object with the methods of one (`get_seq_length`, `reorder_cache`, `update`, `reset`),
or a container of tensors that a model returned and is given back: the state of RWKV, tuples of keys
and values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from torch import Tensor, nn

from engram_cli.runtime.graph_capture import is_capturing_graph

STATES = "_engram_states"  # the attribute of a cache that holds the states of memories
_METHODS = ("get_seq_length", "reorder_cache", "update", "reset")
_OTHERS = (Tensor, nn.Module, Mapping, Set, tuple, list, str, bytes, int, float, type)


def is_cache(value: Any) -> bool:
    """Return whether `value` is an object that has the methods of a cache."""
    if value is None or isinstance(value, _OTHERS):
        return False
    if hasattr(value, "get_seq_length"):
        return True
    # The configs of transformers have `update`, and `to_dict` besides.
    return any(hasattr(value, name) for name in _METHODS) and not hasattr(value, "to_dict")


def caches_in(values: Iterable[Any]) -> list[Any]:
    """Return the distinct cache objects among `values`."""
    found: list[Any] = []
    for value in values:
        if is_cache(value) and not any(value is other for other in found):
            found.append(value)
    return found


def is_paged(cache: Any) -> bool:
    """Return whether a cache hands out blocks to requests that are packed into one line."""
    return hasattr(cache, "free_blocks") or hasattr(cache, "block_tables")


def carrier(cache: Any) -> Any:
    """Return what a state can be kept on: the cache object, or a container's first tensor."""
    return first_tensor(cache) if isinstance(cache, (tuple, list, Mapping)) else cache


def first_tensor(container: Any) -> Tensor | None:
    """Return the first tensor of a (nested) container of tensors, None where it holds others."""
    value = container
    while isinstance(value, (tuple, list, Mapping)):
        values = list(value.values()) if isinstance(value, Mapping) else list(value)
        if not values:
            return None
        value = values[0]
    return value if isinstance(value, Tensor) and value is not container else None


def is_legacy(value: Any, batch: int) -> bool:
    """Return whether a container is a past of old models: for each layer tensors [batch, ...]."""
    if not isinstance(value, (tuple, list)) or not value:
        return False
    return all(
        isinstance(layer, (tuple, list))
        and len(layer) > 1
        and all(isinstance(part, Tensor) and part.shape[:1] == (batch,) for part in layer)
        for layer in value
    )


def cache_length(cache: Any) -> int | Tensor | None:
    """Return how many positions a cache object holds, 0 without one; in a graph a tensor.

    None where the cache does not count them: those of state-space models have none to count.
    """
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        return None
    try:
        length: int | Tensor = cache.get_seq_length()
    except ValueError:  # transformers: "current Cache seem to only contain LinearAttention layers"
        return None
    if is_capturing_graph():
        return length
    return int(length) or _longest(cache)


def _longest(cache: Any) -> int:
    """Return the most positions that a layer holds: the first may be one that counts none."""
    layers = len(cache) if hasattr(cache, "__len__") else 0
    found = [0]
    for layer in range(1, layers):
        try:
            found.append(int(cache.get_seq_length(layer)))
        except (ValueError, TypeError, IndexError, KeyError, AttributeError):
            continue
    return max(found)


def is_blank(cache: Any) -> bool:
    """Return whether a cache that counts no positions is still empty: all its tensors are zero."""
    return not any(bool(held.any()) for held in _tensors(cache, 4))


def _tensors(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth:
        if isinstance(value, Mapping):
            inner: Iterable[Any] = value.values()
        elif isinstance(value, (tuple, list)):
            inner = value
        else:
            held = getattr(value, "__dict__", {})
            inner = [part for name, part in held.items() if name != STATES]
        for part in inner:
            yield from _tensors(part, depth - 1)


def values_of(output: Any) -> list[Any]:
    """Return what a module returned, without reading names that transformers deprecates."""
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, (tuple, list)):
        return list(output)
    return [] if isinstance(output, Tensor) else list(getattr(output, "__dict__", {}).values())


def handed_back(output: Any, given: Mapping[str, Any]) -> list[Any]:
    """Return the containers of tensors in `output` that were `given`, by name or by tensor."""
    handed = [first_tensor(value) for value in given.values()]
    named = dict(output.items()) if isinstance(output, Mapping) else {}
    found = [named[name] for name in given if first_tensor(named.get(name)) is not None]
    same = [v for v in values_of(output) if any(first_tensor(v) is held for held in handed)]
    return [*found, *same]


def handed_out(output: Any, names: Sequence[str]) -> list[Any]:
    """Return the containers of tensors in `output` that have the name of a forward parameter."""
    named = output.items() if isinstance(output, Mapping) else ()
    return [value for name, value in named if name in names and first_tensor(value) is not None]
