"""What the tables of a GGUF file are compared with: its layout, its keys, and each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from engram_cli.formats.base import NO_MODULE
from engram_cli.formats.config_checks import ALL_THERE, token_id
from engram_cli.formats.gguf_dialects import QWEN_ROWS, ROW264, Constants
from engram_cli.formats.model_folder import Check, compared
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY, HashLayout
from engram_cli.rows.gguf_file import GgufFile, GgufTensor, Strings

_MODULE = ("wkv", "q", "k")
_OTHERS = re.compile(r"blk\.(\d{1,5})\.engram_(wkv|q|k)\.weight")
_WIDTH = "embedding_length_per_layer_input"  # the key of Qwen4-Exp's files


def file_checks(file: GgufFile) -> list[Check]:
    """Return whether all parts of a file are there, and whole."""
    return [
        compared("missing parts", ", ".join(file.missing) or "none", "none"),
        compared("short parts", ", ".join(file.short) or "none", "none"),
    ]


def table_checks(
    constants: Constants,
    layout: HashLayout,
    tables: Mapping[int, Sequence[GgufTensor]],
    dialect: str,
) -> Iterator[Check]:
    """Yield the checks of the tables, by the layer's number in the layout."""
    file, dim = constants.file, _dim(constants)
    if dialect == "ds4":
        yield compared("encoding", constants.get("encoding"), ROW264)
    yield from _token_checks(constants, layout, dialect)
    numbers = tuple(sorted(entry.layer for entry in layout.layers))
    yield compared("layers with rows", tuple(sorted(tables)), numbers)
    told = constants.counts("rows")
    if "rows" in constants.names:
        heights = tuple(entry.rows for entry in layout.layers)
        yield compared("rows of the keys", told, heights)
    for entry in layout.layers:
        label, tensors = f"layer {entry.layer}", tables.get(entry.layer, [])
        rows = tensors[0] if tensors else None
        found = "missing" if rows is None else rows.shape[0]
        yield compared(f"{label}: rows", found, entry.rows)
        if rows is None or len(rows.shape) != 2:
            continue
        yield compared(f"{label}: values a row", _values(rows, len(tensors) > 1), dim)
        for scales in tensors[1:]:
            fits = "one for every 32 values"
            said = fits if scales_fit(rows, scales) else scales.shape
            yield compared(f"{label}: scales", said, fits)
        if dialect in ("llama.cpp", "tensors"):
            yield _module_check(file, label, entry.layer)


def scales_fit(rows: GgufTensor, scales: GgufTensor) -> bool:
    """Return whether a tensor is that of the scales of `rows`, and whole."""
    height, width = rows.shape
    whole = scales.begin + (scales.nbytes or 0) <= scales.file.stat().st_size
    return scales.type == "int8" and scales.shape == (height, -(-width // 32)) and whole


def own_tensors(file: GgufFile, tables: Sequence[GgufTensor], layer: int) -> list[GgufTensor]:
    """Return the tensors of a layer's memory: the rows, their scales, and the module's."""
    others = [
        tensor
        for name, tensor in file.tensors.items()
        if (match := _OTHERS.fullmatch(name)) is not None and int(match[1]) == layer
    ]
    return [*tables, *others]


def _token_checks(constants: Constants, layout: HashLayout, dialect: str) -> Iterator[Check]:
    """Yield whether the tokens that the hash needs are tokens of the file."""
    keys = constants.file.keys
    listed = keys.get("tokenizer.ggml.tokens")
    size = listed.count if isinstance(listed, Strings) else None
    if size is None and layout.vocab_digest != UNKNOWN_VOCABULARY:
        size = layout.vocab_size
    if dialect == "qwen4exp":
        yield token_id("EOS token", constants.get("eos"), size)
    dead = next((value for key, value in keys.items() if key.endswith(".image_token_id")), None)
    yield token_id("dead tokens", dead, size)


def _dim(constants: Constants) -> int | None:
    """Return the values of a row by the keys; None where they do not say."""
    if "dim" in constants.names:
        return constants.count("dim")
    keys = constants.file.keys
    found = next((value for key, value in keys.items() if key.endswith(_WIDTH)), None)
    return found if type(found) is int else None


def _values(rows: GgufTensor, has_scales: bool) -> int:
    """Return the values of a row: of 33 bytes, one is a scale where the scales are with the row."""
    width = rows.shape[1]
    packed = rows.type == "int8" and not has_scales and width % 33 == 0
    return width // 33 * 32 if packed and rows.name != QWEN_ROWS else width


def _module_check(file: GgufFile, label: str, layer: int) -> Check:
    """Say which tensors next to the rows lack; undecided where none is there, as in rows alone."""
    lost = [part for part in _MODULE if f"blk.{layer}.engram_{part}.weight" not in file.tensors]
    name = f"{label}: module"
    if len(lost) == len(_MODULE):
        return Check(name=name, result="undecided", found="rows alone", expected=ALL_THERE)
    found = f"{NO_MODULE}: {', '.join(lost)}" if lost else ALL_THERE
    return compared(name, found, ALL_THERE)
