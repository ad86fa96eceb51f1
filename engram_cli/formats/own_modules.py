"""The gates and projections that a checkpoint has next to its rows, as the weights of our modules.

`NAMES` says which tensor of a format is which weight (docs/guides/attach.md has it as a table).
Nothing is read before it is asked for. A checkpoint has all weights of a layer or, where it holds
rows only, none; one that has some of them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.gguf_dialects import GgufRows
from engram_cli.formats.model_folder import (
    DAMAGED,
    CheckpointRows,
    FoundTensor,
    count_in,
    open_folder,
)
from engram_cli.formats.module_spec import (
    DEEPSEEK_V41,
    ENGRAM_PEFT,
    ENGRAM_V1,
    LONGCAT,
    MAX_STREAMS,
    QWEN_PLE,
    ModuleSpec,
)
from engram_cli.formats.own_weights import (
    Floats,
    less_one,
    read_gguf_tensor,
    read_tensor,
    side_by_side,
)
from engram_cli.hashing.schemes import first_layer
from engram_cli.rows.source import RowSource

# Weights of a module, and what a format calls them: {} is the number of a stream.
_SAME_V1 = (
    "value_proj.weight", "value_proj.bias", "key_projs.{}.weight", "key_projs.{}.bias",
    "norm1.{}.weight", "norm2.{}.weight", "short_conv.norms.{}.weight", "short_conv.conv.weight",
)  # fmt: skip
_SAME_PEFT = (
    "gating.w_v.weight", "gating.w_k.{}.weight", "gating.norm_k.{}.weight",
    "gating.norm_h.{}.weight", "short_conv.norms.{}.weight", "short_conv.conv.weight",
)  # fmt: skip
_SAME_PLE = (
    "key_proj.weight", "value_proj.weight", "norm_key.weight", "norm_query.weight",
    "norm_conv.weight", "conv1d.weight",
)  # fmt: skip
_SAME_V41 = ("wkv.weight", "q_weight", "k_weight")
NAMES: dict[str, tuple[str, dict[str, str]]] = {
    "deepseek-v4.1": (DEEPSEEK_V41, {name: f"engram.{name}" for name in _SAME_V41}),
    "qwen-ple": (QWEN_PLE, {name: f"ple.{name}" for name in _SAME_PLE}),
    "demo": (ENGRAM_V1, {name: name for name in _SAME_V1}),
    "engram-peft": (ENGRAM_PEFT, {name: name for name in _SAME_PEFT}),
    # Side by side: "post_projs.{}.weight", one for each column.
    "longcat": (LONGCAT, {"post_proj.weight": "post_proj.weight"}),
    "gguf": (
        DEEPSEEK_V41,
        {
            "wkv.weight": "engram_wkv.weight",
            "q_weight": "engram_q.weight",
            "k_weight": "engram_k.weight",
        },
    ),
    "gguf, qwen4exp": (
        QWEN_PLE,
        {
            "key_proj.weight": "ple_key.weight",
            "value_proj.weight": "ple_value.weight",
            "norm_key.weight": "ple_norm_key.weight",
            "norm_query.weight": "ple_norm_query.weight",
            "norm_conv.weight": "ple_norm_conv.weight",
            "conv1d.weight": "ple_conv1d.weight",
        },
    ),
}
_EPS = ("rms_norm_eps", "norm_eps", "layer_norm_epsilon")
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer")
DEFAULT_EPS = 1e-6
_SCALES = (".weight_scale_inv", ".scale")  # what scales of a weight are called, less ".weight"
_LAYER = r"((?:model\.)?(?:language_model\.)?layers\.\d{1,5}\.)"
_PREFIXES = {
    "deepseek-v4.1": _LAYER,
    "qwen-ple": _LAYER,
    "demo": r"((?:[^.]{1,64}\.){0,16})",
    "engram-peft": r"(\d{1,5}\.)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A dense weight of a checkpoint: its shape as our module has it, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Floats]


Weights = Mapping[str, Weight]  # by what the format calls them, without the layer


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnModule:
    """The module of a checkpoint, and the sizes of the model that it is of.

    `num_layers` None where nothing says it. `layers`: by the scheme's id, the weights by the names
    that our module has for them.
    """

    spec: ModuleSpec
    hidden_size: int
    num_layers: int | None
    model_type: str | None
    layers: Mapping[int, Mapping[str, Weight]]

    def dense(self, layer: int) -> dict[str, Floats]:
        """Read the weights of a layer, float32. Raises ArtifactError."""
        return {
            name: weight.read().reshape(weight.shape) for name, weight in self.layers[layer].items()
        }


def own_module(source: RowSource, norm_eps: float = DEFAULT_EPS) -> OwnModule | None:
    """Return the module of a checkpoint; None where it holds rows only.

    `norm_eps`: that of the model's norms, where the checkpoint does not say it.
    Raises InputError for one that lacks some of its weights or has sizes that no module has,
    ArtifactError for a config or file that cannot be true.
    """
    reader = _READERS.get(source.format)
    if reader is None:
        return None
    key, weights, config = reader(source)
    if not any(weights.values()):
        return None
    kind, names = NAMES[key]
    folded = key == "gguf, qwen4exp"
    config = {_EPS[0]: norm_eps, **config} if not any(config.get(n) for n in _EPS) else config
    return _module(source, kind, names, weights, config, folded=folded)


Found = tuple[str, dict[int, dict[str, Weight]], Mapping[str, Any]]


def _module(
    source: RowSource,
    kind: str,
    names: Mapping[str, str],
    weights: Mapping[int, Weights],
    config: Mapping[str, Any],
    *,
    folded: bool,
) -> OwnModule:
    """Name the weights of all layers, their sizes told by their shapes."""
    first = weights[source.layers[0]]
    hidden, streams, taps = _sizes(source, kind, names, first)
    spec = ModuleSpec(
        kind=kind,
        streams=streams,
        conv_kernel=taps,
        norm_eps=_eps(config) if kind in (DEEPSEEK_V41, QWEN_PLE) else None,
    )
    shapes = spec.shapes(hidden, source.layout.columns * (source.dim or 0))
    _require_dilation(source, config)
    layers = {
        layer: {
            name: _weight(source, layer, weights[layer], theirs, shapes[name], folded)
            for name, theirs in _named(names, streams)
        }
        for layer in source.layers
    }
    keys = ("num_layers", *_LAYERS) if kind == LONGCAT else _LAYERS
    count = next((count_in(config, key) for key in keys if key in config), None)
    # An adapter's config names the adapter, not the model.
    model_type = None if kind == ENGRAM_PEFT else config.get("model_type")
    return OwnModule(
        spec=spec,
        hidden_size=hidden,
        num_layers=count,
        model_type=model_type if isinstance(model_type, str) else None,
        layers=layers,
    )


def _named(names: Mapping[str, str], streams: int) -> Iterator[tuple[str, str]]:
    """Yield (our name, theirs) of the weights of a layer with so many streams."""
    for ours, theirs in names.items():
        for stream in range(streams if "{}" in ours else 1):
            yield ours.format(stream), theirs.format(stream)


def _sizes(
    source: RowSource, kind: str, names: Mapping[str, str], weights: Weights
) -> tuple[int, int, int]:
    """Return the hidden size, streams and taps of the convolution, as the shapes of weights say."""
    if kind == LONGCAT:
        hidden, streams, taps = _shape(source, weights, names["post_proj.weight"])[0], 1, 0
    elif kind == DEEPSEEK_V41:
        shape = _shape(source, weights, names["q_weight"])
        hidden, streams, taps = shape[1], shape[0], 0
    else:
        value = {ENGRAM_V1: "value_proj.weight", ENGRAM_PEFT: "gating.w_v.weight"}.get(kind)
        hidden = _shape(source, weights, names[value or "value_proj.weight"])[0]
        conv = "conv1d.weight" if kind == QWEN_PLE else "short_conv.conv.weight"
        shape = _shape(source, weights, names[conv])
        streams, taps = shape[0] // max(hidden, 1), shape[-1]
    if hidden < 1 or not 1 <= streams <= MAX_STREAMS:
        raise ArtifactError(f"{source.path}: weights of {streams} streams of {hidden}", DAMAGED)
    return hidden, streams, taps


def _shape(source: RowSource, weights: Weights, name: str) -> tuple[int, ...]:
    if name not in weights or len(weights[name].shape) < 2:
        raise _lacks(source, source.layers[0], name)
    return weights[name].shape


def _weight(
    source: RowSource,
    layer: int,
    weights: Weights,
    name: str,
    shape: tuple[int, ...],
    folded: bool,
) -> Weight:
    """Return a weight in the shape that our module has, without the one that GGUF adds to norms."""
    found = weights.get(name)
    if found is None:
        raise _lacks(source, layer, name)
    squeezed = tuple(n for n in shape if n != 1)
    if found.shape != shape and tuple(n for n in found.shape if n != 1) != squeezed:
        raise ArtifactError(
            f"{source.path}: {name} of layer {layer} is {found.shape}, not {shape}", DAMAGED
        )
    centred = folded and "norm" in name
    return Weight(shape=shape, read=partial(less_one, found.read) if centred else found.read)


def _lacks(source: RowSource, layer: int, name: str) -> InputError:
    return InputError(
        f"{source.path} has a part of its module: layer {layer} lacks {name}",
        "take the checkpoint again, or use its rows alone: engram attach --table",
    )


def _eps(config: Mapping[str, Any]) -> float:
    value = next((config[key] for key in _EPS if config.get(key) is not None), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ArtifactError(f"the config has a norm eps of {value!r}", "check it")
    return float(value)


def _require_dilation(source: RowSource, config: Mapping[str, Any]) -> None:
    """Raise InputError for a convolution that steps by anything but the longest n-gram."""
    given = config.get("conv_dilation")
    if given not in (None, source.layout.max_order):
        raise InputError(
            f"{source.path} has a convolution with dilation {given!r}",
            f"the modules here step by the longest n-gram, {source.layout.max_order}",
        )


def _folder_weights(source: RowSource) -> Found:
    """Return the weights of a folder of safetensors files, by layer and what they are."""
    assert isinstance(source, CheckpointRows)
    _, names = NAMES[source.format]
    ends = "|".join(re.escape(n).replace(r"\{\}", r"\d{1,3}") for n in names.values())
    scales = "|".join(re.escape(end) for end in _SCALES)
    pattern = re.compile(rf"{_PREFIXES[source.format]}({ends}|engram\.wkv(?:{scales}))")
    path = source.folder.path
    folder = open_folder(path, source.folder.config, lambda n: pattern.fullmatch(n) is not None)
    begin = first_layer(source.layout.scheme)
    found: dict[int, dict[str, FoundTensor]] = {}
    for name, tensor in folder.tensors.items():
        match = pattern.fullmatch(name)
        assert match is not None
        numbers = re.findall(r"(?<![^.])\d{1,5}(?=\.)", match[1])
        layer = int(numbers[-1]) + begin if numbers else source.layers[0]
        found.setdefault(layer, {})[match[2]] = tensor
    return (
        source.format,
        {layer: _stored(source, found.get(layer, {})) for layer in source.layers},
        source.folder.config,
    )


def _stored(source: RowSource, tensors: Mapping[str, FoundTensor]) -> dict[str, Weight]:
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(_SCALES):
            continue
        base = name.removesuffix(".weight")
        scales = next((tensors[base + end] for end in _SCALES if base + end in tensors), None)
        weights[name] = Weight(shape=tensor.shape, read=partial(read_tensor, name, tensor, scales))
    return weights


def _longcat_weights(source: RowSource) -> Found:
    """Return the projections of all columns, side by side, of the one layer."""
    assert isinstance(source, CheckpointRows)
    numbered = {
        int(match[1]): tensor
        for name, tensor in source.folder.tensors.items()
        if (match := re.search(r"post_projs\.(\d{1,4})\.weight$", name)) is not None
    }
    config, columns = source.folder.config, source.layout.columns
    if not numbered:
        return "longcat", {layer: {} for layer in source.layers}, config
    lost = sorted(set(range(columns)) - set(numbered))
    if lost:
        raise _lacks(source, 0, f"post_projs.{lost[0]}.weight")
    found = [numbered[column] for column in range(columns)]
    shapes = {tensor.shape for tensor in found}
    shape = shapes.pop()
    if shapes or len(shape) != 2:
        raise ArtifactError(f"{source.path}: projections of several shapes", DAMAGED)
    whole = Weight(shape=(shape[0], columns * shape[1]), read=partial(side_by_side, found))
    return "longcat", {layer: {"post_proj.weight": whole} for layer in source.layers}, config


def _gguf_weights(source: RowSource) -> Found:
    """Return the weights of a GGUF file, by layer and what they are."""
    assert isinstance(source, GgufRows)
    key = "gguf, qwen4exp" if source.dialect == "qwen4exp" else "gguf"
    names, begin = set(NAMES[key][1].values()), first_layer(source.layout.scheme)
    found: dict[int, dict[str, Weight]] = {layer: {} for layer in source.layers}
    for name, tensor in source.file.tensors.items():
        match = re.fullmatch(r"blk\.(\d{1,5})\.(.+)", name)
        if match is not None and match[2] in names and int(match[1]) + begin in found:
            read = partial(read_gguf_tensor, tensor)
            found[int(match[1]) + begin][match[2]] = Weight(shape=tensor.shape, read=read)
    return key, found, _gguf_config(source)


def _gguf_config(source: GgufRows) -> dict[str, Any]:
    """Return the sizes of the model by the names that configs have for them."""
    ends = {
        "num_hidden_layers": ".block_count",
        "rms_norm_eps": ".attention.layer_norm_rms_epsilon",
        "model_type": "general.architecture",
    }
    keys = source.file.keys
    found = {ours: next((v for k, v in keys.items() if k.endswith(e)), None) for ours, e in
             ends.items()}  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


_READERS: dict[str, Callable[[RowSource], Found]] = {
    **dict.fromkeys(_PREFIXES, _folder_weights),
    "gguf": _gguf_weights,
    "longcat": _longcat_weights,
}
