"""The modules that a bundle can name: their settings, their weights, and how these start.

docs/reference/modules.md has the arithmetic. A weight is made of parts, each with a role that says
how it starts; most have one, DeepSeek's fused projection has two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

ENGRAM_V1, DEEPSEEK_V41, QWEN_PLE = "engram-v1", "deepseek-v4.1", "qwen-ple"
ENGRAM_PEFT, LONGCAT = "engram-peft", "longcat"
FRESH_KINDS = (ENGRAM_V1, DEEPSEEK_V41, QWEN_PLE)  # that a new memory may have
_OWN_EPS = (ENGRAM_V1, ENGRAM_PEFT, LONGCAT)  # those that bring the eps of their norms, or no norm
_NO_CONV = (DEEPSEEK_V41, LONGCAT)
DEFAULT_MODULE = ENGRAM_V1
MAX_STREAMS, MAX_KERNEL = 64, 64
SPREAD = 0.02  # the standard deviation of random projections, as language models commonly start
EVEN = 0.01  # the key norm's weight under "even": gates within 0.45 to 0.55, never without gradient
INIT_VALUES = ("auto", "zero", "random")
INIT_GATES = ("random", "even")


class Role(Enum):
    """What a part of a weight does."""

    KEY = "key"
    VALUE = "value"
    BIAS = "bias"
    CONV = "conv"
    NORM = "norm"
    KEY_NORM = "key norm"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a weight: `centred` norms are stored less one."""

    name: str
    role: Role
    shape: tuple[int, ...]
    centred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSpec:
    """A module's kind and settings. `streams` are the copies of the hidden state a layer carries,
    or those that engram-peft's module makes of it.

    `conv_kernel` counts the convolution's taps, 0 where there is none. `norm_eps` is the model's,
    None where the module brings its own. Raises ValueError for settings the kind has not.
    """

    kind: str = DEFAULT_MODULE
    streams: int = 1
    conv_kernel: int = 4
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in MODULE_KINDS:
            raise ValueError(f"module {self.kind!r} is none of {', '.join(MODULE_KINDS)}")
        if not (1 <= self.streams <= MAX_STREAMS and 0 <= self.conv_kernel <= MAX_KERNEL):
            raise ValueError(f"{self.streams} streams, a kernel of {self.conv_kernel}")
        if (self.conv_kernel > 0) != (self.kind not in _NO_CONV):
            raise ValueError(f"conv_kernel {self.conv_kernel} of {self.kind}")
        if (self.norm_eps is None) != (self.kind in _OWN_EPS):
            raise ValueError(f"norm_eps {self.norm_eps} of {self.kind}")
        if self.norm_eps is not None and not 0 <= self.norm_eps < 1:
            raise ValueError(f"norm_eps {self.norm_eps}")

    @property
    def carried_streams(self) -> int:
        """The copies of the hidden state that a layer of the model carries."""
        return 1 if self.kind == ENGRAM_PEFT else self.streams

    def parts(self, hidden_size: int, embed_dim: int) -> list[Part]:
        """Return the parts of a layer's dense weights; `embed_dim` is columns x row dim."""
        return list(MODULE_KINDS[self.kind](self, hidden_size, embed_dim))

    def shapes(self, hidden_size: int, embed_dim: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each dense weight of a layer, in the order of their names."""
        found: dict[str, tuple[int, ...]] = {}
        for part in self.parts(hidden_size, embed_dim):
            stacked = found.get(part.name, (0,))[0] + part.shape[0]
            found[part.name] = (stacked, *part.shape[1:])
        return dict(sorted(found.items()))


def module_spec(kind: str, *, streams: int = 1, norm_eps: float = 1e-6) -> ModuleSpec:
    """Return the spec of a published module for a model whose norms have `norm_eps`."""
    return ModuleSpec(
        kind=kind,
        streams=streams,
        conv_kernel=0 if kind in _NO_CONV else 4,
        norm_eps=None if kind in _OWN_EPS else norm_eps,
    )


def _engram_v1(spec: ModuleSpec, d: int, embed: int) -> Iterator[Part]:
    yield Part("value_proj.weight", Role.VALUE, (d, embed))
    yield Part("value_proj.bias", Role.BIAS, (d,))
    yield Part("short_conv.conv.weight", Role.CONV, (spec.streams * d, 1, spec.conv_kernel))
    for stream in range(spec.streams):
        yield Part(f"key_projs.{stream}.weight", Role.KEY, (d, embed))
        yield Part(f"key_projs.{stream}.bias", Role.BIAS, (d,))
        yield Part(f"norm1.{stream}.weight", Role.KEY_NORM, (d,))
        yield Part(f"norm2.{stream}.weight", Role.NORM, (d,))
        yield Part(f"short_conv.norms.{stream}.weight", Role.NORM, (d,))


def _deepseek_v41(spec: ModuleSpec, d: int, embed: int) -> Iterator[Part]:
    yield Part("wkv.weight", Role.KEY, (spec.streams * d, embed))
    yield Part("wkv.weight", Role.VALUE, (d, embed))
    yield Part("k_weight", Role.KEY_NORM, (spec.streams, d))
    yield Part("q_weight", Role.NORM, (spec.streams, d))


def _qwen_ple(spec: ModuleSpec, d: int, embed: int) -> Iterator[Part]:
    width = spec.streams * d
    yield Part("key_proj.weight", Role.KEY, (width, embed))
    yield Part("value_proj.weight", Role.VALUE, (d, embed))
    yield Part("norm_key.weight", Role.KEY_NORM, (width,), centred=True)
    yield Part("norm_query.weight", Role.NORM, (width,), centred=True)
    yield Part("norm_conv.weight", Role.NORM, (width,), centred=True)
    yield Part("conv1d.weight", Role.CONV, (width, 1, spec.conv_kernel))


def _engram_peft(spec: ModuleSpec, d: int, embed: int) -> Iterator[Part]:
    yield Part("gating.w_v.weight", Role.VALUE, (d, embed))
    yield Part("short_conv.conv.weight", Role.CONV, (spec.streams * d, 1, spec.conv_kernel))
    for stream in range(spec.streams):
        yield Part(f"gating.w_k.{stream}.weight", Role.KEY, (d, embed))
        yield Part(f"gating.norm_k.{stream}.weight", Role.KEY_NORM, (d,))
        yield Part(f"gating.norm_h.{stream}.weight", Role.NORM, (d,))
        yield Part(f"short_conv.norms.{stream}.weight", Role.NORM, (d,))


def _longcat(spec: ModuleSpec, d: int, embed: int) -> Iterator[Part]:
    yield Part("post_proj.weight", Role.VALUE, (d, embed))


MODULE_KINDS: dict[str, Callable[[ModuleSpec, int, int], Iterator[Part]]] = {
    ENGRAM_V1: _engram_v1,
    DEEPSEEK_V41: _deepseek_v41,
    QWEN_PLE: _qwen_ple,
    ENGRAM_PEFT: _engram_peft,
    LONGCAT: _longcat,
}


def first_values(
    parts: Sequence[Part],
    *,
    layer: int,
    seed: int,
    zero_rows: bool,
    value: str = "auto",
    gate: str = "random",
) -> dict[str, NDArray[np.float32]]:
    """Return float32 weights by name; the same seed gives the same bytes.

    By default they make the module the identity: where the rows say something the value projection
    is zero, where all rows are zero it is random. Either way the first training step has a
    gradient. The convolution starts at zero, as in the paper.

    `value`: "zero", "random", or "auto", which is random exactly where all rows are zero. `gate`:
    "random" normalised keys, or "even", which scales them down so that all gates begin near 1/2.
    Raises ValueError for another choice.
    """
    if value not in INIT_VALUES or gate not in INIT_GATES:
        raise ValueError(f"value {value!r}, gate {gate!r}")
    generator = np.random.default_rng([seed, layer])
    random_roles = {Role.KEY}
    if value == "random" or (value == "auto" and zero_rows):
        random_roles.add(Role.VALUE)
    pieces: dict[str, list[NDArray[np.float32]]] = {}
    for part in sorted(
        parts, key=lambda part: part.name
    ):  # stable: parts of a weight stay in order
        if part.role in random_roles:
            piece = generator.standard_normal(part.shape, dtype=np.float32) * np.float32(SPREAD)
        else:
            piece = np.full(part.shape, _constant(part, gate), dtype=np.float32)
        pieces.setdefault(part.name, []).append(piece)
    return {name: np.concatenate(found) for name, found in pieces.items()}


def _constant(part: Part, gate: str) -> float:
    if part.role not in (Role.NORM, Role.KEY_NORM):
        return 0.0
    scale = EVEN if gate == "even" and part.role is Role.KEY_NORM else 1.0
    return scale - 1.0 if part.centred else scale
