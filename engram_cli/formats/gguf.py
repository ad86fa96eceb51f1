"""Engram tables in GGUF files: DeepSeek-V4.1's in six dialects, and Qwen4-Exp's.

A dialect is known by its keys and tensors, never by the architecture's name. What a file does not
hold follows from what it does hold and from the token map or a tokenizer; it is named in the
checks, never filled in silently.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.formats.base import RAW_PAD, Facts, Format, rows_facts
from engram_cli.formats.gguf_checks import file_checks, own_tensors, scales_fit, table_checks
from engram_cli.formats.gguf_dialects import (
    CONSTANTS,
    QWEN,
    QWEN_ROWS,
    ROW_TENSOR,
    Constants,
    GgufRows,
    dialect_of,
)
from engram_cli.formats.model_folder import DAMAGED, FolderTokenizer, bare_map, compared
from engram_cli.hashing.layout import MAX_MODULUS, UNKNOWN_VOCABULARY, HashLayout
from engram_cli.hashing.schemes import hash_layout
from engram_cli.hashing.schemes.engram_v1 import distinct_primes
from engram_cli.numbers import counted
from engram_cli.rows import DTYPES
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.gather import FileArray
from engram_cli.rows.gguf_file import MAGIC, GgufFile, GgufTensor, Strings, read_gguf
from engram_cli.rows.source import ROWS, SCALES, Span
from engram_cli.vocab.lookup import VocabMap

_PAD = 2  # the pad token of the release
_MOST_LAYERS = 1024


def _recognise(path: Path) -> Path | None:
    try:
        with path.open("rb") as file:
            is_gguf = file.read(4) == MAGIC
    except OSError:
        return None
    if not is_gguf:
        return None
    try:
        return path if dialect_of(read_gguf(path)) is not None else None
    except EngramError:
        return path  # damaged: opening it says how


def _open(path: Path, tokenizer: Path | None = None) -> GgufRows:
    file = read_gguf(path)
    dialect = dialect_of(file)
    if dialect is None:
        raise InputError(f"{path} holds no Engram table", "give a file that has one")
    names = QWEN if dialect == "qwen4exp" else CONSTANTS[dialect]
    constants = Constants(file=file, names=names)
    constants.checks += file_checks(file)
    constants.name_missing()
    tables = _tables(file, dialect, constants)
    if dialect == "qwen4exp":
        layout = _qwen_layout(constants, tables)
    else:
        layout = _deepseek_layout(
            constants, tables, FolderTokenizer(folder=path.parent, given=tokenizer)
        )
    parts, dtype, dim = _parts(layout, tables, dialect)
    constants.checks += table_checks(constants, layout, tables, dialect)
    return GgufRows(
        format="gguf",
        path=path,
        layout=layout,
        layers=tuple(e.layer for e in layout.layers if (e.layer, ROWS) in parts),
        dim=dim,
        dtype=dtype,
        parts=parts,
        dialect=dialect,
        file=file,
        checks=tuple(constants.checks),
        tables={n: tuple(own_tensors(file, each, n)) for n, each in tables.items()},
    )


Tables = dict[int, list[GgufTensor]]


def _tables(file: GgufFile, dialect: str, constants: Constants) -> Tables:
    """Return, by the layer's number in the layout, the tensor of rows and the one of scales."""
    if dialect == "qwen4exp":
        layers = constants.counts("layers") or (1,)
        return {layers[0] + 1: [file.tensors[QWEN_ROWS]]}
    found: Tables = {}
    for name in sorted(file.tensors, key=len):  # scales have the longer names
        match = ROW_TENSOR.fullmatch(name)
        if match is not None:
            found.setdefault(int(match[1]), []).append(file.tensors[name])
    return found


def _parts(
    layout: HashLayout, tables: Tables, dialect: str
) -> tuple[dict[tuple[int, str], FileArray], str | None, int | None]:
    """Return the arrays of rows and scales, their dtype and dim. Raises InputError."""
    parts: dict[tuple[int, str], FileArray] = {}
    said: set[tuple[str, int]] = set()
    for entry in layout.layers:
        tensors = tables.get(entry.layer)
        if not tensors or len(tensors[0].shape) != 2:
            continue
        rows = tensors[0]
        if rows.begin + (rows.nbytes or 0) > rows.file.stat().st_size:
            continue  # named in the checks
        height, width = rows.shape
        if rows.type == "int8" and dialect == "side-car" and width % 33 == 0:
            said.add(("e8m0_e4m3", width // 33 * 32))
            parts[entry.layer, ROWS] = _bytes_of(rows, 0, width, width)
        elif rows.type == "int8" and len(tensors) > 1:
            if not scales_fit(rows, tensors[1]):
                continue  # named in the checks
            said.add(("fp8_e8m0", width))
            parts[entry.layer, ROWS] = _bytes_of(rows, 0, width, width)
            scales = tensors[1].shape[-1]
            parts[entry.layer, SCALES] = _bytes_of(tensors[1], 0, scales, scales)
        elif rows.type == "int8" and width % 33 == 0:
            dim = width // 33 * 32  # 256 values, then 8 scales
            said.add(("fp8_e8m0", dim))
            parts[entry.layer, ROWS] = _bytes_of(rows, 0, dim, width)
            parts[entry.layer, SCALES] = _bytes_of(rows, dim, width - dim, width)
        elif rows.type in ("float32", "float16", "bfloat16"):
            said.add((rows.type, width))
            span = Span(file=rows.file, begin=rows.begin, first=0, rows=height)
            array = FileArray([span], physical_dtype(rows.type), (width,), DAMAGED)
            parts[entry.layer, ROWS] = array
        elif rows.type in ("q8_0", "q4_0", "q4_k", "q6_k"):
            said.add((rows.type, width))
            size = DTYPES.load(rows.type).width(width)
            parts[entry.layer, ROWS] = _bytes_of(rows, 0, size, size)
        else:
            raise InputError(
                f"{rows.name} has rows of {rows.type}, which are not read",
                "F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q6_K and I8 are",
            )
    if len(said) > 1:
        raise InputError("the layers have several dtypes", "convert them one by one")
    if not said:
        return parts, None, None
    dtype, dim = said.pop()
    return parts, dtype, dim


def _bytes_of(tensor: GgufTensor, begin: int, width: int, stride: int) -> FileArray:
    """Return `width` bytes of every row, from byte `begin` of it on; rows are `stride` apart."""
    span = Span(
        file=tensor.file,
        begin=tensor.begin + begin,
        first=0,
        rows=tensor.shape[0],
        stride=0 if stride == width else stride,
    )
    return FileArray([span], np.dtype(np.uint8), (width,), DAMAGED)


def _deepseek_layout(
    constants: Constants, tables: Tables, tokenizer: FolderTokenizer
) -> HashLayout:
    """Return the layout of a V4.1 file: computed, then with the constants that the file has."""
    layers = constants.counts("layers") or tuple(sorted(tables))
    if not 0 < len(layers) <= _MOST_LAYERS:
        raise InputError(f"{constants.file.path} names {len(layers)} layers", "take it again")
    moduli, longest = constants.counts("moduli"), constants.count("longest") or 4
    columns = len(moduli) // len(layers) if moduli else 0
    heads = constants.count("heads") or (columns // (longest - 1) if columns else 8)
    columns = heads * (longest - 1)
    if columns < 1:
        raise ArtifactError(f"{heads} heads, n-grams up to {longest}: there is no row", DAMAGED)
    vocab, known = _vocabulary(constants, tokenizer)
    pad = min(constants.count("raw pad") or _PAD, len(vocab.lookup) - 1)
    base = _base(moduli, tables, layers, columns, constants)
    computed = hash_layout(
        "deepseek-v4.1",
        vocab,
        orders=tuple(range(2, longest + 1)),
        heads=heads,
        rows_per_head=base,
        layers=layers,
        pad_id=pad if known and vocab.lookup[pad] >= 0 else 0,
    )
    computed = replace(computed, filler_id=_filler(constants, vocab, known))
    if not known:
        computed = replace(computed, lookup=None, vocab_digest=UNKNOWN_VOCABULARY)
    return _with_stored(constants, computed)


def _vocabulary(constants: Constants, tokenizer: FolderTokenizer) -> tuple[VocabMap, bool]:
    """Return the token map: the file's, else the tokenizer's; and whether it is known."""
    stored = constants.get("map")
    # The tokenizer next to a file may be of another one: it is used where the file has no map.
    vocab = tokenizer.vocab() if tokenizer.given is not None or stored is None else None
    if stored is not None:
        if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "iu":
            raise ArtifactError(f"{constants.names['map']} is no array of integers", DAMAGED)
        lookup = np.ascontiguousarray(stored.reshape(-1).astype(np.int32))
        size = int(lookup.max(initial=-1)) + 1
        expected = None if vocab is None else "the tokenizer's"
        is_same = vocab is not None and np.array_equal(vocab.lookup, lookup)
        found = "the tokenizer's" if is_same else "another map"
        constants.checks.append(
            compared("token map", found if vocab is not None else f"{len(lookup):,} ids", expected)
        )
        told, other = constants.count("size"), None if vocab is None else vocab.size
        other = other if told is None or other is not None else size
        constants.checks.append(compared("compressed size", told or size, other))
        return VocabMap(lookup=lookup, size=size), True
    if vocab is not None:
        constants.checks.append(compared("compressed size", constants.count("size"), vocab.size))
        return vocab, True
    size = constants.count("size") or 0
    if not size:
        raise InputError(
            f"{constants.file.path} has neither a token map nor the compressed size",
            "give the model's tokenizer with --tokenizer",
        )
    return bare_map(size), False


def _filler(constants: Constants, vocab: VocabMap, known: bool) -> int:
    """Return the compressed pad id: the file's, else that of its pad token, which is 2 as released.

    Readers hash with `pad_id` as it is, so it must be the compressed id. Some files have the
    token's own id there: it is taken for what it is, and a check names it.
    """
    token, pad = constants.count("raw pad"), constants.count("pad")
    token = _PAD if token is None else token
    computed = int(vocab.lookup[token]) if known and token < len(vocab.lookup) else None
    if pad is not None and pad == token != computed and computed is not None:
        own = f"{pad:,}, the token's own id"
        constants.checks.append(compared(RAW_PAD, own, f"{computed:,}, its compressed id"))
        return max(computed, 0)
    constants.checks.append(compared("compressed pad id", pad, computed))
    if pad is not None and pad < vocab.size:
        return pad
    return computed if computed is not None and computed >= 0 else 0


def _base(
    moduli: tuple[int, ...] | None,
    tables: Tables,
    layers: tuple[int, ...],
    columns: int,
    constants: Constants,
) -> int:
    """Return the rows per head that the primes count up from: told by them, or by the height."""
    if moduli:
        return moduli[0]
    heights = constants.counts("rows") or ()
    first = tables.get(layers[0], [])
    rows = first[0].shape[0] if first else (heights[0] if heights else 0)
    low, high = 1, min(max(2, rows // columns + 1), MAX_MODULUS)
    while low < high:  # the least base whose primes sum to as many rows
        middle = (low + high) // 2
        if sum(next(iter(distinct_primes((middle,), columns, 1)))) < rows:
            low = middle + 1
        else:
            high = middle
    return low


def _with_stored(constants: Constants, computed: HashLayout) -> HashLayout:
    """Return the layout with the stored multipliers and moduli, which are compared."""
    columns, orders = computed.columns, computed.max_order
    wanted = {
        "multipliers": [value for e in computed.layers for value in e.multipliers],
        "moduli": [value for e in computed.layers for value in e.moduli],
        "offsets": [value for e in computed.layers for value in e.offsets],
    }
    stored = {}
    for what, values in wanted.items():
        found = constants.counts(what)
        if found is not None and len(found) != len(values):
            raise ArtifactError(
                f"{constants.names[what]} has {len(found)} values, {len(values)} are needed",
                DAMAGED,
            )
        stored[what] = found
        constants.checks.append(compared(what, found, tuple(values)))
    multipliers, moduli = stored["multipliers"], stored["moduli"]
    entries = []
    for index, entry in enumerate(computed.layers):
        own = slice(index * columns, (index + 1) * columns)
        if multipliers is not None:
            entry = replace(entry, multipliers=multipliers[index * orders : (index + 1) * orders])
        if moduli is not None:
            entry = replace(entry, moduli=moduli[own], rows=max(entry.rows, sum(moduli[own])))
        offsets = stored["offsets"]
        if offsets is not None and offsets[own] != tuple(accumulate((0, *entry.moduli[:-1]))):
            raise ArtifactError(
                f"layer {entry.layer}: the stored offsets do not follow from the sizes", DAMAGED
            )
        entries.append(entry)
    return replace(computed, layers=tuple(entries))


def _qwen_layout(constants: Constants, tables: Tables) -> HashLayout:
    """Return the layout of a Qwen4-Exp file, whose constants must be in it."""
    tokens = constants.file.keys.get("tokenizer.ggml.tokens")
    size = tokens.count if isinstance(tokens, Strings) else None
    size = size or next(
        (v for k, v in constants.file.keys.items() if k.endswith(".vocab_size")), None
    )
    moduli, longest = constants.counts("moduli"), constants.count("longest") or 3
    eos = constants.count("eos")
    if moduli is None or eos is None or not isinstance(size, int):
        raise InputError(
            f"{constants.file.path} lacks head_vocab_sizes, eos_token_id or its tokens",
            "convert it again: without them no row can be found",
        )
    (layer,) = tables
    computed = hash_layout(
        "qwen-ple",
        vocab_size=size,
        eos_id=eos,
        orders=tuple(range(2, longest + 1)),
        heads=constants.count("heads") or len(moduli) // (longest - 1),
        rows_per_head=moduli[0],
        layers=(layer,),
    )
    return _with_stored(constants, computed)


def _facts(source: GgufRows) -> Facts:
    parts, read = source.file.parts, source.file.header_bytes
    return [
        *rows_facts(source),
        ("dialect", source.dialect),
        ("architecture", str(source.file.keys.get("general.architecture"))),
        ("read", f"{read:,} bytes of headers in {counted(len(parts), 'file')}"),
    ]


def _number(source: GgufRows, layer: int) -> int:
    """Return what the file calls a layer: Qwen4-Exp's files count from 0, its config from 1."""
    return layer - 1 if source.dialect == "qwen4exp" else layer


FORMAT = Format(
    name="gguf",
    number=_number,
    recognise=_recognise,
    open=_open,
    facts=_facts,
    foreign=True,
)
