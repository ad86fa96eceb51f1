"""Finds what precedes the tokens of a call: its cache, the positions in it, and the decode state.

A call whose past is unknown is refused: hashed as the start of a text it would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime import caches
from engram_cli.runtime.forward_args import Call, places_in
from engram_cli.runtime.graph_capture import is_capturing_graph
from engram_cli.runtime.state import FixedState, State, new_state, state_of

_REFILL = "fill the cache with the memory attached, and crop it through the cache's methods"
_NO_PAST = (
    "pass the whole text, or the cache that its beginning was run with; position_ids of a text "
    "count from 0"
)


def cache_of(call: Call, name: str) -> Any:
    """Return a call's cache: an object, or a container of tensors with a state called `name`.

    Raises RuntimeAttachError for one that cannot carry a state, and where it is unclear which.
    """
    if call.caches:
        return _only(call.caches)
    assert call.ids is not None
    for value in call.containers.values():
        if state_of(value, name) is not None:
            return value
        if caches.is_legacy(value, len(call.ids)):
            raise RuntimeAttachError(
                f"the past is a {type(value).__name__}, which the memory has not seen",
                "pass a transformers Cache object such as DynamicCache, or use_cache=False",
            )
    return None


def past_of(
    cache: Any, name: str, batch: int, older: int, conv_receptive_fields: dict[int, int]
) -> tuple[State, int | Tensor]:
    """Return the state and length of a cache of `batch` sequences; a new state where it is empty.

    Raises RuntimeAttachError when the cache holds what the memory has not seen.
    """
    state = state_of(cache, name)
    length = _length(cache, state)
    if isinstance(state, FixedState) and state.batch == batch:
        if is_capturing_graph():  # the state's zeros stand for an empty cache
            return state, length
        if length == 0:
            state.reset()
            return state, length
        # transformers below 5.6 takes positions whose first keys are zeros for empty ones.
        length = state.length if length < state.length else length
    known = 0 if state is None or isinstance(length, Tensor) else state.length
    if isinstance(length, Tensor) or length == known == 0:
        return new_state(cache, older, conv_receptive_fields), length
    if state is None or length != known:
        raise RuntimeAttachError(
            f"the cache holds {length} tokens, of which the memory has seen {known}", _REFILL
        )
    if state.batch != batch:
        raise RuntimeAttachError(
            f"the cache holds {state.batch} sequences, input_ids has {batch}",
            "repeat or select sequences through the cache's methods",
        )
    return state, length


def check_start(call: Call, keep: Tensor | None) -> None:
    """Raise RuntimeAttachError where positions or the mask tell of a past, and no cache does."""
    if is_capturing_graph():
        return
    assert call.ids is not None
    batch, count = call.ids.shape
    mask = call.mask
    if isinstance(mask, Tensor) and not call.caches and mask.shape[-1] > count:
        raise RuntimeAttachError(
            f"the attention mask has {mask.shape[-1]} positions, input_ids {count}, and there is "
            "no cache of those before",
            _NO_PAST,
        )
    _check_places(call.places, (batch, count), keep)


def cache_at_layer(
    given: Mapping[str, Any], name: str, shape: Sequence[int], keep: Tensor | None, *, grad: bool
) -> Any:
    """Return the cache among the arguments of a layer, of a call [B, T] that was given none.

    Raises RuntimeAttachError when it holds more than this call's tokens, or there is none and
    positions begin later. `grad`: positions are left unread, which in training would be a wait.
    """
    found = caches.caches_in(given.values())
    if not found:
        if not grad and not is_capturing_graph():
            # Elsewhere than on the CPU reading them waits, so there only for a decode step.
            places = [p for p in places_in(given) if shape[1] == 1 or p.device.type == "cpu"]
            _check_places(places, shape, keep)
        return None
    cache = _only(found)
    length, state = caches.cache_length(cache), state_of(cache, name)
    seen = 0 if state is None or is_capturing_graph() else state.length
    if seen or (isinstance(length, int) and length > shape[1]):
        raise RuntimeAttachError(
            f"the layers were given a cache of {length or seen} tokens that the model was not",
            "pass the cache to the model as an argument",
        )
    return cache


def unseen_state(given: Sequence[str]) -> RuntimeAttachError:
    """Return the error for a state of plain tensors that the memory has not seen."""
    return RuntimeAttachError(
        f"the model was given a state ({', '.join(given)}) that the memory has not seen",
        "pass the very tensors that a call with the memory attached has returned, not copies",
    )


def _only(found: list[Any]) -> Any:
    """Return the one cache object among those found. Raises RuntimeAttachError."""
    counting = [cache for cache in found if hasattr(cache, "get_seq_length")] or found
    if any(caches.is_paged(cache) for cache in found):
        raise RuntimeAttachError(
            "continuous batching (generate_batch) packs several requests into one line, and its "
            "paged cache cannot carry the memory's decode state",
            "use model.generate with a padded batch, or detach(model) first",
        )
    if len(counting) > 1:
        kinds = ", ".join(type(cache).__name__ for cache in counting)
        raise RuntimeAttachError(
            f"the decoder was given {len(counting)} caches ({kinds})",
            "pass the decoder's own cache only, or use_cache=False",
        )
    return counting[0]


def _length(cache: Any, state: State | None) -> int | Tensor:
    """Return how many positions a cache holds; where it does not count them, the state's length."""
    if caches.carrier(cache) is cache:
        length = caches.cache_length(cache)
        if length is not None:
            return length
    if isinstance(state, FixedState) and is_capturing_graph() and state.seen is not None:
        return state.seen
    if state is not None:
        return state.length
    if is_capturing_graph() or caches.is_blank(cache):
        return 0
    raise RuntimeAttachError(
        f"the cache ({type(cache).__name__}) holds tokens that the memory has not seen", _REFILL
    )


def _check_places(places: list[Tensor], shape: Sequence[int], keep: Tensor | None) -> None:
    """Raise RuntimeAttachError where a line's first real token is at a position after its index.

    With padding before it the position may be lower: some positions count padding, some do not.
    """
    batch, count = shape
    for place in places:
        lines = place[0] if place.ndim == 3 else place
        if lines.ndim not in (1, 2) or lines.shape[-1] != count:
            continue
        lines = lines.expand(batch, count)
        index = torch.zeros(batch, 1, dtype=torch.int64, device=lines.device)
        if keep is not None:
            index = keep.to(lines.device).int().argmax(1, keepdim=True)
        start = int((lines.gather(1, index) - index).max())
        if start > 0:
            raise RuntimeAttachError(
                f"the tokens begin at position {start}, and there is no cache of those before",
                _NO_PAST,
            )


def ends_in_padding(keep: Tensor | None, state: State) -> bool | Tensor:
    """Return whether padding follows the tokens of a row, by bool[B, T] of what is no padding.

    The device is asked when the cache is continued; for a static cache now, since the steps that
    continue it may be captured as a graph. Of one position it says nothing.
    """
    if keep is None or keep.shape[1] < 2 or is_capturing_graph():
        return False
    found = (keep.any(dim=1) & ~keep[:, -1]).any()
    return bool(found) if isinstance(state, FixedState) else found


def check_end(state: State) -> None:
    """Raise RuntimeAttachError for a state whose tokens end in padding."""
    found = state.ends_in_padding
    if isinstance(found, Tensor):
        if is_capturing_graph():
            return
        found = state.ends_in_padding = bool(found)
    if found:
        raise RuntimeAttachError(
            "the cached tokens of a row end in padding, and what follows cannot look past it",
            "pad on the left (padding_side='left'), or run rows of other lengths by themselves",
        )
