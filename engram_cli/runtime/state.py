"""Decode state: what the memory must remember of a sequence, kept on its cache object.

An n-gram needs the last N-1 tokens and the convolution its last inputs. Both belong to the
sequence, so they live on the cache object that holds its keys and values, and follow whatever is
done to it: reordering for beam search, repeating, selecting, cropping, resetting, copying. A few
more positions than needed are kept, so that assisted decoding can crop what it rejects.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Container
from typing import Any

import torch
from torch import Tensor

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.caches import STATES, cache_length, carrier
from engram_cli.runtime.graph_capture import is_capturing_graph
from engram_cli.runtime.recent import KEEP, Recent

_FOLLOWED = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices", "crop", "reset")


class DecodeState:
    """What one attachment remembers of the sequences of one cache.

    `length` positions were seen. `tokens` int64[B, t, 2]: compressed ids and `visible`; `conv` has
    the convolution's inputs per layer, except for `skipped` layers, which did not run each time.
    `ends_in_padding`: a row's last positions are padding, with tokens before them; a tensor bool
    where the device was not asked yet.
    """

    def __init__(self, older: int, conv_receptive_fields: dict[int, int]) -> None:
        self.length = 0
        self.tokens = Recent(older)
        self.conv = {layer: Recent(reach) for layer, reach in conv_receptive_fields.items()}
        self.skipped: set[int] = set()
        self.ends_in_padding: bool | Tensor = False

    def fork(self) -> DecodeState:
        """Return a copy to extend where the model returns new tensors and the old stay valid."""
        twin = DecodeState(self.tokens.need, {i: recent.need for i, recent in self.conv.items()})
        twin.length, twin.skipped = self.length, set(self.skipped)
        twin.ends_in_padding = self.ends_in_padding
        for own, other in zip(twin._all(), self._all(), strict=True):
            own.pieces = list(other.pieces)
        return twin

    @property
    def batch(self) -> int | None:
        """B, None before the first token."""
        return self.tokens.batch

    def recent_tokens(self) -> Tensor | None:
        """Return int64[B, older, 2]: the last ids and `visible`, None before the first token."""
        return self.tokens.last() if self.length else None

    def conv_history(self, layer: int) -> Tensor | None:
        """Return [B, reach, D]: what a layer's convolution read last, None before the first token.

        Raises RuntimeAttachError for a layer that was skipped.
        """
        self.check_not_skipped(layer)
        recent = self.conv.get(layer)
        return recent.last() if recent is not None and recent.pieces else None

    def check_not_skipped(self, layer: int) -> None:
        """Raise RuntimeAttachError for a layer that was skipped."""
        if self.skipped:
            _check_not_skipped(self, layer)

    def extend(self, tokens: Tensor, seen: Tensor, conv: dict[int, Tensor]) -> None:
        """Remember T more positions: [B, T] tokens and `visible`, [B, T, D] per layer that ran."""
        self.length += tokens.shape[1]
        self.tokens.append(torch.stack((tokens, seen), dim=-1))
        for layer, recent in self.conv.items():
            if layer in conv:
                recent.append(conv[layer])
            else:
                self.skipped.add(layer)
                recent.pieces = []

    def advance(self, count: int, ran: Container[int]) -> None:
        """`extend`, where steps wrote to the room of `tokens` and of the layers that `ran`."""
        self.length += count
        self.tokens.advance(count)
        for layer, recent in self.conv.items():
            if layer in ran:
                recent.advance(count)
            else:
                self.skipped.add(layer)
                recent.pieces = []

    def reset(self) -> None:
        """Forget everything: the next token is the first of a sequence."""
        self.length = 0
        self.skipped.clear()
        self.ends_in_padding = False
        for recent in self._all():
            recent.pieces = []

    def crop(self, length: int) -> None:
        """Take back to `length` positions. Raises RuntimeAttachError when they are forgotten."""
        if length == 0:
            self.reset()
            return
        count = self.length - length
        for recent in self._recents():
            if len(recent) - count < min(recent.need, length):
                raise RuntimeAttachError(
                    f"the cache was cropped by {count} tokens, the memory can take back {KEEP}",
                    "start again with an empty cache, or crop in smaller steps",
                )
        for recent in self._recents():
            recent.drop(count)
        self.length = length

    def change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to the tensors [B, ...] of all positions: select or repeat sequences."""
        for recent in self._recents():
            recent.change(change)

    def _recents(self) -> list[Recent]:
        """Return those that have all positions."""
        whole = [recent for layer, recent in self.conv.items() if layer not in self.skipped]
        return [self.tokens, *whole]

    def _all(self) -> list[Recent]:
        return [self.tokens, *self.conv.values()]


class FixedState:
    """`DecodeState` for static caches: tensors at fixed addresses, changed in place.

    A compiled decode step reads and writes them inside its graph: nothing in Python changes from
    step to step, so nothing is compiled again. Zeros mean "before the start", so an empty state
    needs no branch. Nothing beyond the needed positions is kept: static caches are not cropped.

    `tokens` int64[B, older, 2]: compressed ids and `visible`; `conv` [B, reach, D] per layer;
    `seen` int64[1], how many positions were seen.
    """

    def __init__(self, older: int, conv_receptive_fields: dict[int, int]) -> None:
        self.older, self.conv_receptive_fields = older, conv_receptive_fields
        self.seen: Tensor | None = None
        self.tokens: Tensor | None = None
        self.conv: dict[int, Tensor] = {}
        self.skipped: set[int] = set()
        self.ends_in_padding: bool | Tensor = False

    @property
    def length(self) -> int:
        """How many positions were seen; reads it from the device."""
        return 0 if self.seen is None else int(self.seen)

    @property
    def batch(self) -> int | None:
        """B, None before the first token."""
        return None if self.tokens is None else self.tokens.shape[0]

    def recent_tokens(self) -> Tensor | None:
        """Return int64[B, older, 2], None before the first token."""
        return self.tokens

    def conv_history(self, layer: int) -> Tensor | None:
        """Return [B, reach, D], as `DecodeState.conv_history`."""
        _check_not_skipped(self, layer)
        return self.conv.get(layer)

    def extend(self, tokens: Tensor, seen: Tensor, conv: dict[int, Tensor]) -> None:
        """Remember T more positions, as `DecodeState.extend`."""
        if self.seen is None or self.tokens is None:
            batch = tokens.shape[0]
            self.seen = torch.zeros(1, dtype=torch.int64, device=tokens.device)
            self.tokens = tokens.new_zeros(batch, self.older, 2)
            self.conv = {
                layer: inputs.detach().new_zeros(
                    batch, self.conv_receptive_fields[layer], inputs.shape[2]
                )
                for layer, inputs in conv.items()
            }
            if tokens.is_cuda and not is_capturing_graph():
                for held in (self.seen, self.tokens, *self.conv.values()):
                    torch._dynamo.mark_static_address(held)  # CUDA graphs may change them in place
        self.seen += tokens.shape[1]
        _shift_in(self.tokens, torch.stack((tokens, seen), dim=-1))
        for layer in self.conv_receptive_fields:
            if layer in conv and layer in self.conv:
                _shift_in(self.conv[layer], conv[layer].detach())
            else:
                self.skipped.add(layer)

    def reset(self) -> None:
        """Forget everything: the next token is the first of a sequence."""
        self.skipped.clear()
        self.ends_in_padding = False
        if self.seen is not None and self.tokens is not None:
            for held in (self.seen, self.tokens, *self.conv.values()):
                held.zero_()

    def crop(self, length: int) -> None:
        """Take back to `length` positions: only to none. Raises RuntimeAttachError."""
        if length == self.length:
            return
        if length:
            raise RuntimeAttachError(
                "a static cache was cropped, and the memory keeps no older positions of it",
                "use a DynamicCache where tokens are taken back",
            )
        self.reset()

    def change(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply `change` to the tensors [B, ...]; the address stays where the batch size does."""
        if self.tokens is None:
            return
        self.tokens = _kept(self.tokens, change(self.tokens))
        self.conv = {layer: _kept(held, change(held)) for layer, held in self.conv.items()}


def _check_not_skipped(state: State, layer: int) -> None:
    """Raise RuntimeAttachError for a layer that runs after it was skipped, as in an early exit."""
    if layer in state.skipped:
        raise RuntimeAttachError(
            f"layer {layer} did not run for all of the {state.length} tokens in this cache, and "
            "its memory's convolution needs what it would have read of them",
            "start with an empty cache where layers are skipped for some tokens only",
        )


def _shift_in(held: Tensor, piece: Tensor) -> None:
    """Write the last positions of `held` [B, n, ...] followed by `piece` [B, T, ...] in place."""
    size, count = held.shape[1], piece.shape[1]
    if count >= size:
        held.copy_(piece[:, count - size :])
    else:
        held.copy_(torch.cat((held[:, count:], piece.to(held.dtype)), dim=1))


def _kept(held: Tensor, changed: Tensor) -> Tensor:
    return held.copy_(changed) if held.shape == changed.shape else changed


State = DecodeState | FixedState


def new_state(cache: Any, older: int, conv_receptive_fields: dict[int, int]) -> State:
    """Return a state for a new cache; its addresses are fixed where the cache's tensors' are."""
    is_fixed = getattr(cache, "is_compileable", False)
    return (FixedState if is_fixed else DecodeState)(older, conv_receptive_fields)


def _no_cache() -> None:
    """Replaces a weak reference to a cache that no longer exists."""


class CacheMethodProxy:
    """Replaces a method of a cache object: calls the method, then does the same to the states.

    The cache is referenced weakly, so that dropping it frees its memory at once. A deep copy of the
    cache, or a pickled one that is loaded, gets a proxy of its own.
    """

    def __init__(self, cache: Any, name: str) -> None:
        self.cache, self.name = _no_cache if cache is None else weakref.ref(cache), name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        cache = self.cache()
        if cache is None:
            raise RuntimeAttachError(
                f"{self.name} of a shallow copy of a cache that is gone",
                "copy caches with copy.deepcopy",
            )
        result = getattr(type(cache), self.name)(cache, *args, **kwargs)
        value = args[0] if args else next(iter(kwargs.values()), None)
        for state in getattr(cache, STATES).values():
            self._follow(state, cache, value)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheMethodProxy:
        cache = self.cache()
        return CacheMethodProxy(memo.get(id(cache), cache), self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return CacheMethodProxy, (self.cache(), self.name)

    def _follow(self, state: State, cache: Any, value: Any) -> None:
        if self.name == "reset":
            state.reset()
        elif self.name == "crop":
            length = cache_length(cache)
            if length is None:  # the number to remove, or in older releases the length to keep
                length = value if value > 0 else state.length + value
            state.crop(min(state.length, int(length)))
        elif self.name == "batch_repeat_interleave":
            state.change(lambda held: held.repeat_interleave(value, dim=0))
        else:
            state.change(lambda held: held[torch.as_tensor(value, device=held.device)])


def state_of(cache: Any, name: str) -> State | None:
    """Return the state that an attachment left on a cache object, or on a container's tensors."""
    states: dict[str, State] | None = getattr(carrier(cache), STATES, None)
    return None if states is None else states.get(name)


def is_followed(cache: Any) -> bool:
    """Return whether the states on a cache object follow it, and no other that it is a copy of."""
    present = next((own for own in map(vars(cache).get, _FOLLOWED) if own is not None), None)
    return isinstance(present, CacheMethodProxy) and present.cache() is cache


def keep_on(cache: Any, name: str, state: State) -> None:
    """Leave a state on a cache object, and have it follow what is done to the cache.

    On a container of tensors it lies on the first of them, for as long as that lives.
    """
    held = carrier(cache)
    states = getattr(held, STATES, None)
    if is_capturing_graph() and states is not None and states.get(name) is state:
        return
    if states is None:
        states = {}
        try:
            setattr(held, STATES, states)
        except (AttributeError, TypeError):
            raise RuntimeAttachError(
                f"a cache of type {type(cache).__name__} takes no attributes, so it cannot carry "
                "the memory's decode state",
                "use a cache class without __slots__, or use_cache=False",
            ) from None
    states[name] = state
    if held is not cache:
        return
    for method in _FOLLOWED:
        present = vars(cache).get(method)
        mine = isinstance(present, CacheMethodProxy) and present.cache() is cache
        if not mine and hasattr(type(cache), method):
            setattr(cache, method, CacheMethodProxy(cache, method))
