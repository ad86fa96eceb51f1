"""Find a model's decoder layers, and the modules that its token ids pass on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from engram_cli.errors import RuntimeAttachError

# Towers next to the language model have layers too.
_OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech", "encoder", "mtp")
_HINT = "name them: attach(model, bundle, layers=model.path.to.layers)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """The decoder `layers` in order, and `path`, the modules from the model down to their owner.

    `hidden_size` is None where the model's config does not say it.
    """

    layers: list[nn.Module]
    path: list[nn.Module]
    hidden_size: int | None

    @property
    def owner(self) -> nn.Module:
        """The innermost base model: its forward runs the layers."""
        return self.path[-1]


def find_decoder(model: nn.Module, layers: Sequence[nn.Module] | None = None) -> Decoder:
    """Return the decoder of a transformers model, or the one whose `layers` are given.

    Without `layers` it is the ModuleList as long as the text config's number of layers, outside
    vision and audio towers. Raises RuntimeAttachError when there is none, or more than one.
    """
    config = text_config(model)
    if getattr(config, "altup_num_inputs", 1) != 1:
        raise RuntimeAttachError(
            f"the layers of {type(model).__name__} carry {config.altup_num_inputs} predictions of "
            "each hidden state (AltUp), which no memory module reads",
            "attach to a model without AltUp",
        )
    if layers is not None:
        found = list(layers)
        prefix = _common_owner(model, found)
    else:
        prefix, found = _search(model, config)
    path = [model]
    for part in prefix.split(".") if prefix else ():
        path.append(path[-1].get_submodule(part))
    return Decoder(
        layers=found,
        path=[module for module in path if not isinstance(module, (nn.ModuleList, nn.Sequential))],
        hidden_size=getattr(config, "hidden_size", None),
    )


def text_config(model: nn.Module) -> Any:
    """Return the config of the language model inside `model`, None where there is none."""
    config = getattr(model, "config", None)
    inner = getattr(config, "get_text_config", None)
    return inner() if callable(inner) else getattr(config, "text_config", config)


def _search(model: nn.Module, config: Any) -> tuple[str, list[nn.Module]]:
    count, is_part = _layer_count(model, config)
    if not isinstance(count, int):
        raise RuntimeAttachError(
            f"{type(model).__name__} has no config with num_hidden_layers, "
            "so its decoder layers cannot be found",
            _HINT,
        )
    candidates = _lists(model, count)
    other = getattr(config, "num_layers", None)
    if not candidates and isinstance(other, int):
        # LongCat-Flash has two attention layers in each decoder layer, and counts them.
        candidates = _lists(model, other)
    own = {name: found for name, found in candidates.items() if not _in_other_tower(name)}
    own = own if is_part else own or candidates
    outer = {
        name: found
        for name, found in own.items()
        if not any(name.startswith(f"{other}.") for other in own)
    }
    if len(outer) != 1:
        what = f"{len(outer)} lists ({', '.join(outer)})" if outer else "no list"
        raise RuntimeAttachError(
            f"{type(model).__name__} has {what} of {count} decoder layers", _HINT
        )
    name, found = next(iter(outer.items()))
    return name.rpartition(".")[0], list(found)


def _lists(model: nn.Module, count: int) -> dict[str, nn.ModuleList]:
    """Return the lists of `count` modules by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }


def _layer_count(model: nn.Module, config: Any) -> tuple[Any, bool]:
    """Return how many decoder layers the config has, and whether it is an encoder-decoder's.

    In that of an encoder-decoder the plain name counts the encoder's layers.
    """
    is_part = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    names = ("decoder_layers", "num_decoder_layers") if is_part else ()
    counts = [getattr(config, name, None) for name in (*names, "num_hidden_layers")]
    return next((count for count in counts if isinstance(count, int)), None), is_part


def _in_other_tower(name: str) -> bool:
    return any(tower in part for part in name.split(".") for tower in _OTHER_TOWERS)


def _common_owner(model: nn.Module, layers: list[nn.Module]) -> str:
    """Return the name of the deepest module that holds all `layers`."""
    names = {id(module): name for name, module in model.named_modules()}
    if not layers or any(id(layer) not in names for layer in layers):
        raise RuntimeAttachError(
            "the layers given are not modules of the model", "give modules of this very model"
        )
    paths = [names[id(layer)].split(".")[:-1] for layer in layers]
    shared = paths[0]
    for path in paths[1:]:
        same = [a == b for a, b in zip(shared, path, strict=False)]
        shared = shared[: same.index(False) if False in same else len(same)]
    return ".".join(shared)
