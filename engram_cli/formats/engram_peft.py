"""An adapter of the package engram-peft: float rows, and the gate and conv of each layer.

`config.json` says how it hashes, in a scheme of its own (`hashing.schemes.engram_peft`), and
`engram_adapters.safetensors` holds the offsets of the heads. Neither the token map nor the
multipliers are stored: they follow from the tokenizer, whose base vocabulary alone is compressed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError
from engram_cli.formats.base import Format
from engram_cli.formats.config_checks import there
from engram_cli.formats.demo import (
    OFFSETS,
    WEIGHT,
    moduli_checks,
    shapes_check,
    stored_layout,
    stored_moduli,
    unhashed_facts,
)
from engram_cli.formats.model_folder import (
    Check,
    CheckpointRows,
    FoundTensor,
    ModelFolder,
    bare_map,
    compared,
    config_of,
    count_in,
    counts_in,
    open_folder,
)
from engram_cli.hashing.layout import (
    BASE_VOCABULARY,
    UNKNOWN_SCHEME,
    UNKNOWN_VOCABULARY,
    HashLayout,
)
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.source import ROWS
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.lookup import VocabMap, base_lookup, lookup_digest
from engram_cli.vocab.tokenizer import load_tokenizer

ADAPTER = "engram_adapters.safetensors"
_NAME = re.compile(
    r"(\d{1,5})\.(multi_head_embedding\.(?:embedding\.weight|offsets)"
    r"|gating\.(?:w_v|(?:w_k|norm_h|norm_k)\.\d{1,3})\.weight"
    r"|short_conv\.(?:conv|norms\.\d{1,3})\.weight)"
)


_KEYS = (
    "engram_vocab_size_per_ngram",
    "ngram_sizes",
    "n_head_per_ngram",
    "embedding_dim",
    "target_layers",
    "hc_mult",
    "conv_kernel_size",
    "compressed_vocab_size",
    "pad_id",
    "seed",
)


def _recognise(path: Path) -> Path | None:
    config = config_of(path) if path.is_dir() else None
    is_adapter = config is not None and config.get("model_type") == "engram"
    return path if is_adapter and config is not None and "ngram_sizes" in config else None


def _open(path: Path, tokenizer: Path | None = None) -> CheckpointRows:
    config = config_of(path)
    if config is None or not (path / ADAPTER).is_file():
        raise InputError(
            f"{path} has no {ADAPTER}",
            "save the adapter with safe_serialization: a pickled one is not read",
        )
    folder = open_folder(path / ADAPTER, config, lambda name: _NAME.fullmatch(name) is not None)
    found = _by_layer(folder)
    stored = {
        layer: stored_moduli(folder, own)
        for layer, own in found.items()
        if WEIGHT in own and OFFSETS in own
    }
    if not stored:
        raise InputError(f"{path / ADAPTER} holds no rows", "give a whole adapter")
    layout, checks = _layout(path, config, stored, tokenizer)
    kinds = {
        (folder.tensors[found[n][WEIGHT]].dtype, folder.tensors[found[n][WEIGHT]].shape[1])
        for n in stored
    }
    if len(kinds) > 1:
        raise InputError(f"the layers of {path} differ in dtype or width", "check the file")
    dtype, dim = kinds.pop()
    for layer in stored:
        tensors = {what: folder.tensors[name] for what, name in found[layer].items()}
        checks.append(_module_check(f"layer {layer}", tensors, config))
    return CheckpointRows(
        format="engram-peft",
        path=path,
        layout=layout,
        layers=tuple(layer for layer in layout.layer_ids if layer in stored),
        dim=dim,
        dtype=dtype,
        parts={(layer, ROWS): folder.array([found[layer][WEIGHT]]) for layer in stored},
        dialect=f"{config.get('engine', 'deepseek')}"[:64],
        folder=folder,
        checks=(
            there([key for key in _KEYS if key not in config], "config keys"),
            *folder.file_checks(),
            *checks,
        ),
        modules=found,
        names={layer: tuple(own.values()) for layer, own in found.items()},
    )


def _by_layer(folder: ModelFolder) -> dict[int, dict[str, str]]:
    """Return the names of each layer's tensors, ascending, by what they are."""
    found: dict[int, dict[str, str]] = {}
    for name in folder.tensors:
        match = _NAME.fullmatch(name)
        assert match is not None
        found.setdefault(int(match[1]), {})[match[2]] = name
    return dict(sorted(found.items()))


def _layout(
    path: Path,
    config: Mapping[str, Any],
    stored: Mapping[int, Sequence[int]],
    tokenizer: Path | None,
) -> tuple[HashLayout, list[Check]]:
    """Return the layout with the stored moduli, and how they compare with the config's."""
    layers = tuple(sorted(set(counts_in(config, "target_layers"))))
    checks = [compared("layers", tuple(stored), layers)]
    if config.get("engine", "deepseek") != "deepseek" or config.get("table_spec") is not None:
        engine = f"{config.get('engine')}, {config.get('table_spec')}"[:64]
        check = Check(name="hash", result="undecided", found=engine, expected="engine deepseek")
        return replace(stored_layout(stored, None)[0], scheme=UNKNOWN_SCHEME), [*checks, check]
    compressed = bool(config.get("enable_tokenizer_compression", True))
    base, whole = _vocabulary(path, config, tokenizer, compressed)
    known = None if base is None else base.size
    checks.append(compared("compressed size", config.get("compressed_vocab_size"), known))
    vocab = bare_map(count_in(config, "compressed_vocab_size")) if base is None else base
    heads, pad = count_in(config, "n_head_per_ngram"), count_in(config, "pad_id")
    sizes = counts_in(config, "engram_vocab_size_per_ngram")
    computed = hash_layout(
        "engram-peft",
        vocab,
        orders=counts_in(config, "ngram_sizes"),
        heads=heads,
        rows_per_head=[size // max(heads, 1) for size in sizes],
        layers=layers,
        pad_id=int(np.argmax(vocab.lookup >= 0)),  # the pad token may lie beyond the base
        seed=count_in({"seed": 0, **config}, "seed"),
    )
    entries = []
    for entry in computed.layers:
        own = tuple(stored.get(entry.layer, ()))
        if own:
            checks += moduli_checks(f"layer {entry.layer}", own, entry.moduli)
            entry = replace(entry, moduli=own, rows=sum(own))
        entries.append(entry)
    layout = replace(computed, layers=tuple(entries))
    drawn = ", ".join(map(str, entries[0].multipliers))
    checks.append(
        Check(name="multipliers", result="undecided", found="not in the files", expected=drawn)
    )
    checks.append(_pad_check(pad, whole))
    asked = {"pad_id": pad, "seed": computed.parameters["seed"]}
    if whole is None:
        unknown = replace(layout, lookup=None, vocab_digest=UNKNOWN_VOCABULARY, parameters=asked)
        return unknown, checks
    return (
        replace(
            layout,
            lookup=whole,
            vocab_digest=lookup_digest(whole),
            compressed_size=int(whole.max()) + 1,
            filler_id=int(whole[pad]),
            parameters={BASE_VOCABULARY: len(base.lookup) if compressed and base else 0, **asked},
        ),
        checks,
    )


def _pad_check(pad: int, whole: NDArray[np.int32] | None) -> Check:
    """Say which token fills positions. Raises InputError for one that the tokenizer lacks."""
    if whole is None:
        expected = "a token of the tokenizer"
        return Check(name="pad token", result="undecided", found=f"{pad}", expected=expected)
    if not pad < len(whole) or whole[pad] < 0:
        raise InputError(f"pad_id {pad} is no token of the tokenizer", "give its own tokenizer")
    return Check(name="pad token", result="ok", found=f"{pad}", expected=f"compressed {whole[pad]}")


def _vocabulary(
    path: Path, config: Mapping[str, Any], tokenizer: Path | None, compressed: bool
) -> tuple[VocabMap | None, NDArray[np.int32] | None]:
    """Return the map of the base vocabulary and that of all ids; None where nobody has them."""
    if not compressed:
        plain = bare_map(count_in(config, "compressed_vocab_size"))
        return plain, plain.lookup
    if tokenizer is None and not (path / "tokenizer.json").is_file():
        return None, None
    loaded = load_tokenizer(tokenizer or path)
    whole = compress_vocab(loaded)
    base = min(int(loaded.backend.get_vocab_size(with_added_tokens=False)), len(whole.lookup))
    own = whole.lookup[:base]
    return VocabMap(lookup=own, size=int(own.max(initial=0)) + 1), base_lookup(whole.lookup, base)


def _module_check(
    label: str, tensors: Mapping[str, FoundTensor], config: Mapping[str, Any]
) -> Check:
    """Compare the shapes of the rows, the gate and the conv with the config."""
    if tensors.keys() <= {WEIGHT, OFFSETS}:
        return compared(f"{label}: module", None, "gates and conv: the package draws new ones")
    width, copies = count_in(config, "embedding_dim"), count_in(config, "hc_mult")
    value = tensors.get("gating.w_v.weight")
    given = config.get("hidden_size")
    hidden = given if type(given) is int else value.shape[0] if value and value.shape else 0
    columns = len(counts_in(config, "ngram_sizes")) * count_in(config, "n_head_per_ngram")
    expected: dict[str, tuple[int, ...]] = {
        WEIGHT: (tensors[WEIGHT].shape[0], width // max(columns, 1)),
        "gating.w_v.weight": (hidden, width),
        "short_conv.conv.weight": (copies * hidden, 1, count_in(config, "conv_kernel_size")),
    }
    for copy in range(min(copies, 64)):
        expected |= {
            f"gating.w_k.{copy}.weight": (hidden, width),
            f"gating.norm_h.{copy}.weight": (hidden,),
            f"gating.norm_k.{copy}.weight": (hidden,),
            f"short_conv.norms.{copy}.weight": (hidden,),
        }
    return shapes_check(label, tensors, expected, f"{copies} copies of {hidden:,} from {width:,}")


FORMAT = Format(
    name="engram-peft", recognise=_recognise, open=_open, facts=unhashed_facts, foreign=True
)
