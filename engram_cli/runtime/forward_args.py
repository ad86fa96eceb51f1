"""Reads the arguments of a forward call: token ids, attention mask, positions and cache.

Decoder layers never get token ids. Hooks on the modules from the model down to the owner of the
layers record the arguments for the length of a call. Arguments of inner modules take precedence,
because some callers run these directly. Modules outside of the one that gave the ids are ignored.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.runtime.caches import first_tensor, is_cache
from engram_cli.runtime.graph_capture import is_capturing_graph

# Of most arguments the type says that there is no cache in them; a decode step asks each time.
_NO_CACHES = frozenset({type(None), bool, int, float, str, Tensor, nn.Parameter})
_DECODERS = "decoder_"  # how an encoder-decoder's forward names what is its decoder's


@dataclass(slots=True)
class Call:
    """The arguments of a forward call that matter here; `depth` is the module's in its path.

    `caches`: the cache objects among all arguments; `containers`: those made of tensors, by name,
    which may be a state; `places`: integer tensors that may say at which positions the ids are;
    `rows`: what a collator looked up beforehand.
    """

    depth: int
    ids: Tensor | None = None
    embeds: Tensor | None = None
    mask: Any = None
    caches: list[Any] = field(default_factory=list)
    containers: dict[str, Any] = field(default_factory=dict)
    places: list[Tensor] = field(default_factory=list)
    positions: Any = None
    cu_seqlens: Any = None
    rows: Tensor | None = None


def parameter_names(module: nn.Module) -> list[str]:
    """Return the names of a module's forward parameters, in the order of positional arguments."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def places_in(arguments: Mapping[str, Any]) -> list[Tensor]:
    """Return the integer tensors whose names say that they are positions."""
    return [
        value
        for name, value in arguments.items()
        if "position" in name and isinstance(value, Tensor) and not value.is_floating_point()
    ]


def read_call(depth: int, names: Sequence[str], args: Sequence[Any], kwargs: Any) -> Call:
    """Read the arguments of a call of the module at `depth`.

    Of an encoder-decoder's call only the decoder's arguments are read (`decoder_input_ids`).
    """
    given = bind(names, args, kwargs)
    own = given
    if f"{_DECODERS}input_ids" in names or f"{_DECODERS}input_ids" in given:
        own = {n.removeprefix(_DECODERS): v for n, v in given.items() if n.startswith(_DECODERS)}
    ids = own.get("input_ids")
    if ids is None and own is given and names and "input_ids" not in names:
        first = given.get(names[0])
        if isinstance(first, Tensor) and not first.is_floating_point():
            ids = first
    caches: list[Any] = []
    containers: dict[str, Any] = {}
    for name, value in given.items():
        if type(value) in _NO_CACHES:
            continue
        if is_cache(value):
            if not any(value is other for other in caches):
                caches.append(value)
        elif first_tensor(value) is not None:
            containers[name] = value
    boundaries = [v for n, v in own.items() if n.startswith("cu_seq") and n[-2:] != "_k"]
    return Call(
        depth=depth,
        ids=ids if isinstance(ids, Tensor) else None,
        embeds=own.get("inputs_embeds"),
        mask=own.get("attention_mask"),
        caches=caches,
        containers=containers,
        places=places_in(own),
        positions=own.get("position_ids"),
        cu_seqlens=next((value for value in boundaries if value is not None), None),
    )


def merge_calls(calls: Sequence[Call]) -> Call:
    """Merge nested calls; the innermost value wins, and a 2-D mask wins over other masks.

    Modules outside of the one whose ids are used are left out: what they were given may be another
    sequence's, as an encoder's mask. Raises RuntimeAttachError when there are no token ids, or not
    those of the embeddings given.
    """
    with_ids = [place for place, call in enumerate(calls) if call.ids is not None]
    if not with_ids:
        raise RuntimeAttachError(
            "the model was called without input_ids, and the memory needs token ids",
            "pass input_ids, or detach(model) before calling with inputs_embeds only",
        )
    merged = Call(calls[-1].depth, embeds=calls[-1].embeds)
    inner = calls[with_ids[-1] :]
    for call in inner:
        merged.ids = merged.ids if call.ids is None else call.ids
        merged.caches = call.caches or merged.caches
        merged.places = call.places or merged.places
        merged.containers |= call.containers
        merged.positions = merged.positions if call.positions is None else call.positions
        merged.cu_seqlens = merged.cu_seqlens if call.cu_seqlens is None else call.cu_seqlens
    merged.rows = next((call.rows for call in reversed(calls) if call.rows is not None), None)
    masks = [call.mask for call in reversed(inner) if call.mask is not None]
    plain = [mask for mask in masks if isinstance(mask, Tensor) and mask.ndim == 2]
    merged.mask = next(iter(plain or masks), None)
    assert merged.ids is not None
    if merged.ids.ndim != 2:
        merged.ids = merged.ids.reshape(-1, merged.ids.shape[-1])
    if merged.embeds is not None and merged.embeds.shape[:2] != merged.ids.shape:
        raise RuntimeAttachError(
            f"inputs_embeds has {tuple(merged.embeds.shape[:2])} positions, "
            f"input_ids {tuple(merged.ids.shape)}",
            "prompts of embeddings have no token ids: the memory cannot be used with them",
        )
    return merged


def document_ages(call: Call, past: int | Tensor, ids: Tensor) -> Tensor:
    """Return int64[B, T]: how many earlier positions of ids [B, T] are of the same document.

    From the cumulative lengths of one packed line, else from position_ids, which count from 0 in
    each document, else the line is one document. Raises RuntimeAttachError when neither fits.
    """
    places = (torch.arange(ids.shape[1], device=ids.device) + past).expand(ids.shape)
    if isinstance(call.cu_seqlens, Tensor):
        starts = call.cu_seqlens.to(ids.device, torch.int64)
        if len(ids) != 1 or past or starts.ndim != 1 or len(starts) < 2:
            raise RuntimeAttachError(
                f"cumulative lengths of shape {tuple(starts.shape)} for {len(ids)} lines "
                f"after {past} tokens",
                "pack documents into one line, without a cache, or pass position_ids",
            )
        return places - starts[torch.bucketize(places, starts, right=True) - 1]
    positions = call.positions
    if not isinstance(positions, Tensor):
        return places
    positions = positions[0] if positions.ndim == 3 else positions
    if positions.ndim != 2 or positions.shape[1] != ids.shape[1]:
        raise RuntimeAttachError(
            f"position_ids of shape {tuple(positions.shape)} for input_ids {tuple(ids.shape)}",
            "a packed bundle reads from them where documents begin: pass them as [B, T]",
        )
    return positions.to(torch.int64).expand(ids.shape)


def real_positions(mask: Any, past: int | Tensor, count: int) -> Tensor | None:
    """Return bool[B, T]: which of the T positions after `past` are no padding; None when all are.

    `mask` is what a model takes: [B, past + T], [B, T], [B, 1, T, keys], or such by kind of layer.
    Raises RuntimeAttachError for one that does not say it.
    """
    if isinstance(mask, Mapping):
        kinds = [mask.get("full_attention"), *mask.values()]
        mask = next((kind for kind in kinds if kind is not None), None)
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise RuntimeAttachError(
            f"padding cannot be read from an attention mask of type {type(mask).__name__}",
            "pass a 2-D attention_mask, or none where there is no padding",
        )
    if isinstance(past, Tensor):
        return _real_in_a_graph(mask, past, count)
    if mask.ndim == 4:
        keep = _diagonal(mask, past, count)
    else:
        begin = past if mask.shape[1] >= past + count else mask.shape[1] - count
        if begin not in (past, 0):
            raise RuntimeAttachError(
                f"the attention mask has {mask.shape[1]} positions, {past} + {count} were expected",
                "pass the mask of the past and the new positions together",
            )
        keep = mask[:, begin : begin + count]
    if keep.device.type == "cpu" and not is_capturing_graph() and bool(keep.all()):
        return None
    return keep if keep.dtype == torch.bool else keep != 0


def _real_in_a_graph(mask: Tensor, past: Tensor, count: int) -> Tensor:
    """Do the same where `past` is a tensor: positions are gathered, no shape depends on it."""
    places = torch.arange(count, device=mask.device) + past.to(mask.device)
    if mask.ndim == 2:
        keep: Tensor = mask != 0
        return keep if mask.shape[1] == count else keep.index_select(1, places)
    own = mask[:, 0].gather(2, places[None, :, None].expand(mask.shape[0], -1, 1))[..., 0]
    return own if own.dtype == torch.bool else own >= 0


def _diagonal(mask: Tensor, past: int, count: int) -> Tensor:
    """Return whether each position may attend to itself; padding may not."""
    begin = min(past, mask.shape[3] - count)
    if begin < 0 or mask.shape[2] != count:
        raise RuntimeAttachError(
            f"an attention mask of shape {tuple(mask.shape)} for {count} positions",
            "pass a 2-D attention_mask",
        )
    own = mask[:, 0, :, begin : begin + count].diagonal(dim1=-2, dim2=-1)
    return own if own.dtype == torch.bool else own >= 0
