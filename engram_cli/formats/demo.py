"""A state dict of the paper's demo: one float table a layer, and where each head's rows begin.

There is no config. The decoder layer is the last number in a tensor's name. The offsets give the
moduli, and the first layer's moduli give the base sizes, from which the primes of all layers
follow. Neither the seed nor the vocabulary is stored: multipliers need a tokenizer, and seed 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.formats.base import Facts, Format
from engram_cli.formats.model_folder import (
    DAMAGED,
    Check,
    CheckpointRows,
    FolderTokenizer,
    FoundTensor,
    ModelFolder,
    bare_map,
    checkpoint_facts,
    compared,
    open_folder,
)
from engram_cli.hashing.layout import MAX_ORDER, UNKNOWN_VOCABULARY, HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows.safetensors import checkpoint_files
from engram_cli.rows.source import ROWS
from engram_cli.rows.torch_file import torch_tensors
from engram_cli.vocab.lookup import VocabMap

WEIGHT, OFFSETS = "multi_head_embedding.embedding.weight", "multi_head_embedding.offsets"
_NAME = re.compile(
    r"((?:[^.]{1,64}\.){0,16})(multi_head_embedding\.(?:embedding\.weight|offsets)"
    r"|short_conv\.(?:conv|norms\.\d{1,3})\.weight|norm[12]\.\d{1,3}\.weight"
    r"|(?:value_proj|key_projs\.\d{1,3})\.(?:weight|bias))"
)
_PICKLED = (".pt", ".pth", ".bin", ".pkl")
_FLOATS = ("float32", "float16", "bfloat16")
_MOST_LAYERS, _MOST_COLUMNS = 256, 4096


def _recognise(path: Path) -> Path | None:
    try:
        if path.is_file() and path.suffix in _PICKLED:
            with path.open("rb") as file:
                start = file.read(2)
            if start != b"PK":
                return path if start == b"\x80\x02" else None
            return path if _has_offsets(_torch_names(path)) else None
        if not path.is_dir() and path.suffix != ".safetensors":
            return None
        names = checkpoint_files(path)
    except (EngramError, OSError):
        return None
    return path if _has_offsets(names) else None


def _has_offsets(names: Iterable[str]) -> bool:
    found = (_NAME.fullmatch(name) for name in names)
    return any(match and match[2] == OFFSETS for match in found)


def _torch_names(path: Path) -> Iterable[str]:
    """Return the names in a file of torch.save.

    A damaged one counts as a state dict of the demo, so that `_open` says what is wrong with it.
    """
    try:
        return torch_tensors(path)[0]
    except EngramError:
        return (OFFSETS,)


def _open(path: Path, tokenizer: Path | None = None) -> CheckpointRows:
    if path.suffix in _PICKLED:
        folder = _torch_folder(path)
    else:
        folder = open_folder(path, {}, lambda name: _NAME.fullmatch(name) is not None)
    memories, numbered = _by_layer(folder)
    stored = {layer: stored_moduli(folder, own) for layer, own in memories.items()}
    # The multipliers follow from the layer's number too: without it no token is hashed.
    vocab = FolderTokenizer(folder=path, given=tokenizer).vocab() if numbered else None
    layout, computed = stored_layout(stored, vocab)
    checks = [*folder.file_checks(), *_hash_checks(computed, vocab, numbered)]
    parts, kinds = {}, set()
    for entry in computed.layers:
        own = memories[entry.layer]
        checks += moduli_checks(f"layer {entry.layer}", stored[entry.layer], entry.moduli)
        checks += _module_checks(folder, f"layer {entry.layer}", own, layout.columns)
        kinds.add((folder.tensors[own[WEIGHT]].dtype, folder.tensors[own[WEIGHT]].shape[1]))
        parts[entry.layer, ROWS] = folder.array([own[WEIGHT]])
    if len(kinds) > 1:
        raise InputError(f"the layers of {path} differ in dtype or width", "split the file")
    dtype, dim = kinds.pop()
    return CheckpointRows(
        format="demo",
        path=path,
        layout=layout,
        layers=layout.layer_ids,
        dim=dim,
        dtype=dtype,
        parts=parts,
        dialect="state dict",
        folder=folder,
        checks=tuple(checks),
        modules=memories,
        names={layer: tuple(own.values()) for layer, own in memories.items()},
    )


def _torch_folder(path: Path) -> ModelFolder:
    """Open a file of torch.save, which is never unpickled. Raises InputError, ArtifactError."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            raise InputError(
                f"{path} is pickled as torch did before 1.6: loading it could run any code",
                "load it where you trust it, and save it with safetensors.torch.save_file",
            )
    places, size = torch_tensors(path)
    tensors = {
        name: FoundTensor(file=path, place=place)
        for name, place in places.items()
        if _NAME.fullmatch(name)
    }
    return ModelFolder(path=path, config={}, tensors=tensors, header_bytes=size)


def _by_layer(folder: ModelFolder) -> tuple[dict[int, dict[str, str]], bool]:
    """Return the names of each layer's tensors, ascending, by what they are within the module.

    A file whose names have no number holds one memory, which is called layer 0, and False.
    """
    numbered = True
    prefixes: dict[int, str] = {}
    found: dict[int, dict[str, str]] = {}
    for name in folder.tensors:
        match = _NAME.fullmatch(name)
        assert match is not None
        numbers = re.findall(r"(?<![^.])\d{1,5}(?=\.)", match[1])
        layer = int(numbers[-1]) if numbers else 0
        numbered = numbered and bool(numbers)
        if prefixes.setdefault(layer, match[1]) != match[1]:
            raise InputError(
                f"{folder.path}: '{prefixes[layer]}' and '{match[1]}' both are layer {layer}",
                "give each memory the number of its decoder layer, such as layers.1.engram.",
            )
        found.setdefault(layer, {})[match[2]] = name
    whole = {layer: own for layer, own in sorted(found.items()) if WEIGHT in own and OFFSETS in own}
    if not whole:
        raise ArtifactError(f"{folder.path} lacks the rows or the offsets of its memory", DAMAGED)
    return whole, numbered


def stored_moduli(folder: ModelFolder, own: Mapping[str, str]) -> tuple[int, ...]:
    """Return how many rows each head of a layer has, by its offsets and the height of its table.

    Raises ArtifactError for offsets that cannot be true, InputError for a dtype that is not read.
    """
    table, offsets = folder.tensors[own[WEIGHT]], folder.tensors[own[OFFSETS]]
    if len(table.shape) != 2 or not 0 < table.shape[1] <= 2**20:
        raise ArtifactError(f"{own[WEIGHT]} is {table.shape}", DAMAGED)
    if table.dtype not in _FLOATS:
        raise InputError(f"rows of {table.dtype} are not read", ", ".join(_FLOATS))
    count = offsets.shape[0] if len(offsets.shape) == 1 else 0
    if offsets.dtype not in ("int64", "int32") or not 0 < count <= _MOST_COLUMNS:
        raise ArtifactError(f"{own[OFFSETS]} is {offsets.dtype} {offsets.shape}", DAMAGED)
    begins = (*offsets.values().tolist(), table.shape[0])
    moduli = tuple(end - begin for begin, end in pairwise(begins))
    if begins[0] != 0 or min(moduli) < 2:
        raise ArtifactError(
            f"{own[OFFSETS]} does not ascend from 0 to the {table.shape[0]:,} rows", DAMAGED
        )
    return moduli


def moduli_checks(label: str, stored: Sequence[int], computed: Sequence[int]) -> list[Check]:
    """Compare the rows of each head, and of all heads, with what the scheme gives."""
    return [
        compared(f"{label}: rows", sum(stored), sum(computed)),
        compared(f"{label}: rows of each head", tuple(stored), tuple(computed)),
    ]


def stored_layout(
    stored: Mapping[int, Sequence[int]], vocab: VocabMap | None
) -> tuple[HashLayout, HashLayout]:
    """Return the layout with the stored moduli, and the one with the scheme's primes.

    How columns are split into orders and heads is not stored: two orders, as in the demo, unless
    only another number gives the stored primes.
    """
    counts = {len(moduli) for moduli in stored.values()}
    if len(counts) > 1 or len(stored) > _MOST_LAYERS or len(stored) * max(counts) > _MOST_COLUMNS:
        raise ArtifactError("the layers have different or too many heads", DAMAGED)
    columns, first = counts.pop(), next(iter(stored.values()))
    tried = []
    for orders in (2, 1, *range(3, MAX_ORDER)):
        heads = columns // orders
        if heads * orders != columns or heads > 256:
            continue
        layout = hash_layout(
            "engram-v1",
            bare_map(1) if vocab is None else vocab,
            orders=tuple(range(2, orders + 2)),
            heads=heads,
            rows_per_head=first[::heads],
            layers=tuple(stored),
            pad_id=0 if vocab is None else None,
        )
        tried.append(layout)
        if all(entry.moduli == tuple(stored[entry.layer]) for entry in layout.layers):
            break
    else:
        if not tried:
            raise ArtifactError(f"{columns} heads a layer", DAMAGED)
        layout = tried[0]
    entries = [
        replace(entry, moduli=tuple(stored[entry.layer]), rows=sum(stored[entry.layer]))
        for entry in layout.layers
    ]
    if vocab is None:  # multipliers follow from the size of the vocabulary, which nobody has
        entries = [replace(each, multipliers=(0,) * layout.max_order) for each in entries]
    own = replace(layout, layers=tuple(entries))
    if vocab is None:
        own = replace(own, lookup=None, vocab_digest=UNKNOWN_VOCABULARY)
    return own, layout


def _hash_checks(computed: HashLayout, vocab: VocabMap | None, numbered: bool) -> list[Check]:
    """Name what the hash needs and the file does not hold."""
    orders = ", ".join(map(str, computed.orders))
    size = None if vocab is None else f"{vocab.size:,} compressed ids of the tokenizer"
    undecided = {
        "orders and heads": (
            f"{computed.columns} columns a layer",
            f"orders {orders} of {computed.heads} heads",
        ),
        "multipliers": ("not in the file", "seed 0" if size is None else f"seed 0, {size}"),
    }
    if not numbered:
        undecided["decoder layer"] = ("no number in the names", "such as layers.1.engram.")
    return [
        Check(name=name, result="undecided", found=found, expected=expected)
        for name, (found, expected) in undecided.items()
    ]


def _module_checks(
    folder: ModelFolder, label: str, own: Mapping[str, str], columns: int
) -> list[Check]:
    """Compare the shapes of the gate and the conv with each other and with the rows."""
    tensors: dict[str, FoundTensor] = {what: folder.tensors[name] for what, name in own.items()}
    value = tensors.get("value_proj.weight")
    width = columns * tensors[WEIGHT].shape[1]
    if value is None or len(value.shape) != 2:
        return [compared(f"{label}: value_proj", "missing", "there")]
    hidden = value.shape[0]
    copies = max(1, sum(what.startswith("key_projs.") for what in tensors) // 2)
    expected: dict[str, tuple[int, ...]] = {
        "value_proj.weight": (hidden, width),
        "value_proj.bias": (hidden,),
    }
    for copy in range(copies):
        expected |= {
            f"key_projs.{copy}.weight": (hidden, width),
            f"key_projs.{copy}.bias": (hidden,),
            f"norm1.{copy}.weight": (hidden,),
            f"norm2.{copy}.weight": (hidden,),
            f"short_conv.norms.{copy}.weight": (hidden,),
        }
    conv = tensors.get("short_conv.conv.weight")
    kernel = conv.shape[-1] if conv is not None and len(conv.shape) == 3 else 4
    expected["short_conv.conv.weight"] = (copies * hidden, 1, kernel)
    return [shapes_check(label, tensors, expected, f"{copies} copies of {hidden:,} from {width:,}")]


def shapes_check(
    label: str,
    tensors: Mapping[str, FoundTensor],
    expected: Mapping[str, tuple[int, ...]],
    shapes: str,
) -> Check:
    """Compare the shapes of a module's tensors; `shapes` says what they are, for people."""
    wrong = [
        f"{what} {'missing' if what not in tensors else tensors[what].shape}"
        for what, shape in expected.items()
        if what not in tensors or tensors[what].shape != shape
    ]
    return compared(f"{label}: module", ", ".join(wrong[:4]) or shapes, shapes)


def unhashed_facts(source: CheckpointRows) -> Facts:
    """Return what a checkpoint says of itself; without a vocabulary, nothing about token ids."""
    facts = checkpoint_facts(source)
    if source.layout.vocab_digest != UNKNOWN_VOCABULARY:
        return facts
    return [(name, text) for name, text in facts if name not in ("ids", "before the start")]


FORMAT = Format(name="demo", recognise=_recognise, open=_open, facts=unhashed_facts, foreign=True)
