"""An EngramDB Store-I: rows of fixed width in shards without headers, described by bundle.json.

The shards say nothing of themselves: without bundle.json their number, rows and width must be given
(`ShardShape`). Row r is in shard r // rows_per_shard. EngramDB reads zeros where a shard is too
short: the sizes are checked. The rows are Qwen's, hashed as in `qwen-ple`; what bundle.json leaves
out, EngramDB takes from the release, and so does this reader, which names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, InputError
from engram_cli.files import read_json
from engram_cli.formats.base import Facts, Format, rows_facts
from engram_cli.formats.config_checks import there, token_count, token_id
from engram_cli.formats.model_folder import DAMAGED, Check, compared, count_in, counts_in, orders_in
from engram_cli.formats.shard_shape import ShardShape
from engram_cli.formats.stored_layers import StoredTensor
from engram_cli.hashing.layout import UNKNOWN_SCHEME, HashLayout, rows_alone
from engram_cli.hashing.schemes import hash_layout
from engram_cli.hashing.schemes.qwen_ple import multipliers as draw_multipliers
from engram_cli.rows.dtypes import TENSOR_DTYPES, physical_dtype
from engram_cli.rows.gather import FileArray, FileRows, HeldArray
from engram_cli.rows.source import ROWS, SCALES, Span

BUNDLE = "bundle.json"
SCHEMA = "engramdb-bundle-v1"
DIVISOR = 128  # of the number of rows
_SHARD = re.compile(r"shard_(\d{3,5})\.bin")
_FLOAT8 = "float8_e4m3fn"
_MOST_SHARDS = 2**16
# What EngramDB takes where the bundle does not say: the values of Qwen's release.
_QWEN = {"eos": 248044, "ngram_size": 3, "heads_per_ngram": 8}
_QWEN_VOCABULARY, _QWEN_ROWS = 248320, 20_000_000
_LAYERS, _SEED = [2], 1234  # decoder layer 1, counted from one
# Of ple; what lacks is taken from Qwen's release.
_KEYS = ("ple_embed_dim", "ngram_size", "heads_per_ngram", "scale", "eos", "vocab_size",
         "multipliers", "prime_sizes", "offsets")  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Store(FileRows):
    """An opened store, and what was compared."""

    dialect: str
    checks: tuple[Check, ...]
    shards: int
    rows_per_shard: int
    width: int

    def tensors_of(self, layer: int) -> tuple[StoredTensor, ...]:
        """Return where the shards are."""
        kind = TENSOR_DTYPES[_FLOAT8 if self.dtype == "fp8" else self.dtype or _FLOAT8][0]
        return tuple(
            StoredTensor(
                name=span.file.name,
                file=span.file,
                dtype=kind,
                shape=(span.rows, self.dim or 0),
                offset=span.begin,
            )
            for span in self.spans(layer)
        )


def _bundle(path: Path) -> tuple[Path, Mapping[str, Any] | None]:
    """Return the folder of bundle.json, and what it says; None where there is none."""
    folder = path.parent if path.name == BUNDLE else path
    if not (folder / BUNDLE).is_file():
        return folder, None
    return folder, read_json(folder / BUNDLE, "a bundle of EngramDB")


def _recognise(path: Path) -> Path | None:
    try:
        if (path / "shard_000.bin").is_file():
            return path
        described = _bundle(path)[1]
    except Exception:  # no folder, or another program's bundle.json
        return None
    schema = None if described is None else described.get("schema")
    is_store = isinstance(schema, str) and schema.startswith("engramdb-bundle-")
    return path if is_store else None


def _described(path: Path, shape: ShardShape | None) -> tuple[Path, Mapping[str, Any]]:
    """Return the folder of a store, and what bundle.json or `shape` says of it."""
    folder, described = _bundle(path)
    if described is None and shape is None:
        raise InputError(
            f"{path} has shards and no {BUNDLE}: nothing says how many rows of which width they "
            "hold",
            "give --shards, --rows-per-shard and --width",
        )
    if described is not None and shape is not None:
        raise InputError(
            f"{path} has a {BUNDLE}, which describes its shards",
            "leave --shards, --rows-per-shard and --width out",
        )
    if shape is not None:
        store = {"type": "store", "store": asdict(shape)}
        described = {"schema": None, "memory": store, "ple": {}}
    assert described is not None
    return folder, described


def _open(path: Path, tokenizer: Path | None = None, shape: ShardShape | None = None) -> Store:
    folder, described = _described(path, shape)
    memory = _mapping(described, "memory")
    if memory.get("type") != "store":
        raise InputError(
            f"{path} describes a {memory.get('type')!r}, not a store",
            "give the bundle of a Store-I: a view holds copies of its rows",
        )
    store, ple = _mapping(memory, "store"), _mapping(described, "ple")
    place = _inside(folder, store.get("path", "."))
    shards, height = count_in(store, "shards"), count_in(store, "rows_per_shard")
    width = count_in(store, "width")
    if not (0 < shards <= _MOST_SHARDS and 0 < height < 2**40 and 0 < width <= 2**24):
        raise ArtifactError(
            f"{path}: {shards:,} shards of {height:,} rows of {width:,} bytes", DAMAGED
        )
    checks = [compared("schema", described.get("schema"), SCHEMA)]
    files, sizes = _shard_checks(place, shards, height * width)
    layout, hashes = _layout(ple, shards * height, tokenizer)
    checks += sizes + hashes
    dtype, dim, scale = _dtype(ple, width)
    checks.append(compared("values a row", dim, _head_dim(ple)))
    if dtype == "fp8":  # EngramDB takes 1 where the bundle has no scale
        has = None if scale is None else "there"
        checks.append(compared("scale", has, "there"))
    parts: dict[tuple[int, str], FileArray] = {}
    whole = all(each.result == "ok" for each in sizes)
    if layout is None:  # of another model: rows can be read, and no token finds one
        layout = rows_alone(max(shards * height, 2))
    if whole:
        spans = [
            Span(file=file, begin=0, first=i * height, rows=height) for i, file in enumerate(files)
        ]
        physical = physical_dtype(_FLOAT8 if dtype == "fp8" else dtype)
        parts[layout.layer_ids[0], ROWS] = FileArray(spans, physical, (dim,), DAMAGED)
        if dtype == "fp8":
            parts[layout.layer_ids[0], SCALES] = HeldArray(
                np.array([scale or 1.0], dtype=np.float32)
            )
    return Store(
        format="engramdb",
        path=path,
        layout=layout,
        layers=layout.layer_ids if whole else (),
        dim=dim,
        dtype=dtype,
        parts=parts,
        dialect="Store-I" if shape is None else f"Store-I without {BUNDLE}",
        checks=tuple(checks),
        shards=shards,
        rows_per_shard=height,
        width=width,
    )


def _mapping(described: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = described.get(key)
    if not isinstance(value, Mapping):
        raise ArtifactError(f"{BUNDLE} has no {key}", "write it again")
    return value


def _inside(folder: Path, name: Any) -> Path:
    """Return a path of the bundle, which must not lead out of its folder."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ("..",)
    if ".." in parts or PurePosixPath(*parts).is_absolute():
        raise InputError(
            f"{BUNDLE} names the store {name!r}, outside its folder",
            "move the bundle to its shards, and name them relative to it",
        )
    return folder.joinpath(*parts)


def _shard_checks(place: Path, shards: int, size: int) -> tuple[list[Path], list[Check]]:
    """Return the files of the shards, and whether they are all there and as long as they must be.

    Raises InputError for a folder that cannot be read.
    """
    try:
        found = {file.name: file.stat().st_size for file in place.iterdir() if
                 _SHARD.fullmatch(file.name)}  # fmt: skip
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {place}: {error}", "check memory.store") from None
    names = [f"shard_{index:03d}.bin" for index in range(shards)]
    missing = [name for name in names if name not in found]
    other = [name for name in names if found.get(name, size) != size]
    beyond = len(set(found) - set(names))

    def some(wrong: list[str], what: str) -> str:
        return f"{what}: {', '.join(wrong[:4])} ({len(wrong)})" if wrong else "all there"

    return [place / name for name in names], [
        compared("shards", some(missing, "missing"), "all there"),
        compared(
            "sizes of the shards",
            some([f"{name} has {found[name]:,} bytes" for name in other], f"not {size:,}"),
            "all there",
        ),
        compared("shards that the bundle does not name", beyond, 0),
    ]


def _layout(
    ple: Mapping[str, Any], rows: int, tokenizer: Path | None
) -> tuple[HashLayout | None, list[Check]]:
    """Return the layout of the bundle's constants, and how they compare with the scheme's.

    None where the store has fewer rows than the hash needs.
    """
    given = {key: count_in(_QWEN | dict(ple), key) for key in _QWEN}
    sizes = counts_in(ple, "prime_sizes") if ple.get("prime_sizes") else None
    multipliers = counts_in(ple, "multipliers") if ple.get("multipliers") else None
    known = ple.get("vocab_size") is not None
    computed = hash_layout(
        "qwen-ple",
        vocab_size=count_in(ple, "vocab_size") if known else _QWEN_VOCABULARY,
        eos_id=given["eos"],
        orders=orders_in(given, "ngram_size"),
        heads=given["heads_per_ngram"],
        rows_per_head=_QWEN_ROWS if sizes is None else sizes[0],
        layers=_layers(ple),
    )
    entry = computed.layers[0]
    index = count_in({"ple_layer_index": 0, **ple}, "ple_layer_index")
    seed = count_in({"seed": _SEED, **ple}, "seed")
    drawn = draw_multipliers(computed.compressed_size, computed.max_order, index, seed)
    if index:  # one of several layers: the scheme makes no such layout of one
        computed = replace(computed, parameters={"seed": seed, "divisor": DIVISOR})
    offsets = counts_in(ple, "offsets") if ple.get("offsets") else None
    moduli = sizes or entry.moduli
    if offsets is not None and offsets != tuple(accumulate((0, *moduli[:-1]))):
        raise ArtifactError(f"{BUNDLE}: offsets do not follow from prime_sizes", "write it again")
    checks = [
        _keys_check([key for key in _KEYS if ple.get(key) is None]),
        compared("multipliers", multipliers, drawn),
        compared("rows of each head", sizes, entry.moduli),
        compared("offsets", offsets, tuple(accumulate((0, *moduli[:-1])))),
        token_count(ple.get("vocab_size"), tokenizer),
        token_id("EOS token", ple.get("eos"), computed.vocab_size),
    ]
    if max(multipliers or (0,)) * (computed.compressed_size - 1) >= 2**63:
        raise InputError(
            f"{BUNDLE}: token x multiplier passes 2^63, where EngramDB's two hashers differ",
            "use multipliers that fit the vocabulary",
        )
    height = -(-sum(moduli) // DIVISOR) * DIVISOR
    if rows != height and not ple:  # nothing says whose rows they are
        told = f"{rows:,}: another hash, which is not known"
        release = f"{height:,} of Qwen's release"
        return None, [Check(name="rows", result="undecided", found=told, expected=release)]
    checks.append(compared("rows", rows, height))
    if rows < sum(moduli):
        return None, checks
    own = replace(entry, multipliers=multipliers or drawn, moduli=moduli, rows=rows)
    return replace(computed, layers=(own,)), checks


def _keys_check(lacks: Sequence[str]) -> Check:
    """Name the keys that lack; the release's values stand in for them, right or wrong."""
    check = there(lacks, "keys of ple")
    return replace(check, result="undecided") if lacks else check


def _layers(ple: Mapping[str, Any]) -> tuple[int]:
    """Return the layer of the store; EngramDB has no name for it, so this is what engram writes."""
    layers = counts_in({"ple_layer_ids": _LAYERS, **ple}, "ple_layer_ids")
    if len(layers) != 1:
        raise ArtifactError(f"{BUNDLE} names the layers {layers}", "a store holds one layer")
    return (layers[0],)


def _head_dim(ple: Mapping[str, Any]) -> int | None:
    """Return the values of a row by the bundle; None where it does not say."""
    if ple.get("head_dim") is not None:
        return count_in(ple, "head_dim")
    if ple.get("ple_embed_dim") is None:
        return None
    heads = (count_in(_QWEN | dict(ple), "ngram_size") - 1) * count_in(
        _QWEN | dict(ple), "heads_per_ngram"
    )
    own = count_in(ple, "num_heads") if ple.get("num_heads") is not None else heads
    return count_in(ple, "ple_embed_dim") // max(own, 1)


def _dtype(ple: Mapping[str, Any], width: int) -> tuple[str, int, float | None]:
    """Return dtype, dim and scale of the rows. EngramDB's own are float8; `ple.dtype` says others.

    Raises InputError for what is not read.
    """
    dtype = ple.get("dtype", _FLOAT8)
    if dtype not in (_FLOAT8, "float32", "float16", "bfloat16"):
        raise InputError(f"rows of {dtype!r} are not read", f"{_FLOAT8}, or plain floats")
    item = physical_dtype(dtype).itemsize
    if width % item:
        raise ArtifactError(f"{width} bytes a row are no {dtype} values", DAMAGED)
    scale = ple.get("scale")
    if scale is None or dtype != _FLOAT8:
        return ("fp8" if dtype == _FLOAT8 else dtype), width // item, None
    if not isinstance(scale, (int, float)) or not math.isfinite(scale) or not 0 < scale < 2**120:
        raise ArtifactError(f"{BUNDLE} has scale = {scale!r}", "a number above 0 is needed")
    return "fp8", width // item, float(scale)


def _facts(source: Store) -> Facts:
    geometry = f"{source.shards:,} of {source.rows_per_shard:,} rows of {source.width:,} bytes"
    facts = list(rows_facts(source))
    if source.layout.scheme == UNKNOWN_SCHEME:
        facts = [fact for fact in facts if fact[0] in ("rows", "parameters")]
    return [*facts, ("dialect", source.dialect), ("shards", geometry)]


FORMAT = Format(
    name="engramdb",
    headerless=True,
    recognise=_recognise,
    open=_open,
    facts=_facts,
    foreign=True,
    number=lambda source, layer: None,
)
