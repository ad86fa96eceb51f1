"""row264: DeepSeek-V4.1's rows in one piece each: 256 float8 e4m3 items, then 8 e8m0 scales.

A folder holds a headerless file of rows for each layer, the token map, and row264.json, which
describes them. Rows of another width have as many scales as they have blocks of 32 values.
Described in docs/guides/checkpoints.md.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import canonical_json, read_json, sha256_bytes
from engram_cli.formats.base import Checks, Format, Target, WriteOptions, Written
from engram_cli.formats.row_files import grown_files, prepare_rows, put_folder
from engram_cli.formats.row_plan import RECORDS, NewFile, Place, RowFiles, require_map, require_rows
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import Kind, Listing
from engram_cli.rows.checksum import ALGORITHM, Checksum
from engram_cli.rows.gather import FileArray, FileRows
from engram_cli.rows.source import ROWS, SCALES, RowSource, Span
from engram_cli.rows.stored_as import PIECE_BYTES, require_same_rows, stored_reader
from engram_cli.table.spec import MAX_DIM
from engram_cli.vocab.lookup import MOST_VOCABULARY

DTYPE, BLOCK = "fp8_e8m0", 32
_NAME, _FORMAT, _VERSION = "row264.json", "engram-row264", 1
_MAP = "token_map.i32"
_HINT = "the folder is damaged: convert it again"


def require_e8m0(source: RowSource, target: str) -> None:
    """Raise InputError unless `source` has all rows of its layout, with e4m3 items under e8m0."""
    require_rows(source, target)
    if stored_reader(source, DTYPE) is None:
        raise InputError(
            f"{source.path} has rows of {source.dtype}, and {target} holds {DTYPE} alone",
            f"give --dtype {DTYPE}, which rounds the values",
        )
    if (source.dim or 0) % BLOCK:
        raise InputError(
            f"{source.path} has {source.dim} values a row, and {target} needs blocks of {BLOCK}",
            f"convert a table whose dim is a multiple of {BLOCK}",
        )


def _file(layer: int) -> str:
    return f"layer-{layer}.row264"


def _write(source: RowSource, out: Path, options: WriteOptions) -> Written:
    require_e8m0(source, "row264")
    layout, dim = source.layout, source.dim or 0
    require_map(source)
    width = dim + dim // BLOCK
    names = {entry.layer: _file(entry.layer) for entry in layout.layers}
    maps = [] if layout.lookup is None else [_MAP]
    plan = RowFiles(
        source=source,
        dtype=DTYPE,
        files=tuple(
            NewFile(name=names[entry.layer], size=entry.rows * width) for entry in layout.layers
        ),
        places=tuple(
            Place(file=names[entry.layer], layer=entry.layer, part=RECORDS, begin=0, first=0,
                  rows=entry.rows, width=width)
            for entry in layout.layers
        ),
        small=(*maps, _NAME),
        hashed=Checksum,
    )  # fmt: skip
    done = Written(files=(*names.values(), *maps, _NAME), size=plan.size)
    if options.check:
        return done
    prepare_rows(out, ROW264, options, (source.path,))
    with grown_files(out, plan, options) as grown:
        folder = grown.folder
        files = {
            file.name: (file.size, grown.digests[file.name].hexdigest()) for file in plan.files
        }
        if layout.lookup is not None:
            raw = layout.lookup.astype("<i4")
            raw.tofile(folder / _MAP)
            files[_MAP] = raw.nbytes, _checksum(raw)
        about = {
            "format": _FORMAT,
            "version": _VERSION,
            "dim": dim,
            "algorithm": ALGORITHM,
            "files": {name: list(each) for name, each in files.items()},
            "layout": layout.to_json(),
        }
        (folder / _NAME).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        if options.verify:
            require_same_rows(
                source, _open(folder), DTYPE, threads=options.threads, progress=options.progress
            )
        put_folder(folder, out, ROW264, options, done.files)
    return replace(done, verified=options.verify)


def _checksum(values: Any) -> str:
    checksum = Checksum()
    checksum.update(values.reshape(-1).view(np.uint8))
    return checksum.hexdigest()


def _recognise(path: Path) -> Path | None:
    return path if (path / _NAME).is_file() else None


def _described(path: Path) -> tuple[dict[str, Any], HashLayout, int]:
    """Return the description, its layout and dim. Raises ArtifactError."""
    about = read_json(path / _NAME, "a description of rows")
    if about.get("format") != _FORMAT or about.get("version") != _VERSION:
        raise ArtifactError(f"{path / _NAME} is not of version {_VERSION}", "upgrade engram")
    dim, files = about.get("dim"), about.get("files")
    if type(dim) is not int or not 0 < dim <= MAX_DIM or dim % BLOCK:
        raise ArtifactError(f"{path / _NAME}: dim is {dim!r}", _HINT)
    layout = HashLayout.from_json(about.get("layout"))
    wanted = {_file(entry.layer): entry.rows * (dim + dim // BLOCK) for entry in layout.layers}
    if layout.vocab_digest is not None:
        wanted[_MAP] = 4 * MOST_VOCABULARY
    if not isinstance(files, dict) or files.keys() != wanted.keys():
        raise ArtifactError(f"{path / _NAME} names other files than its layers", _HINT)
    for name, size in wanted.items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            raise ArtifactError(f"{path / name}: {error.strerror}", _HINT) from None
        if name == _MAP and found % 4 == 0 and found <= 4 * MOST_VOCABULARY:
            continue  # its digest is in the layout
        if found != size:
            raise ArtifactError(f"{path / name} has {found:,} bytes, not {size:,}", _HINT)
    return about, layout, dim


def _open(path: Path) -> FileRows:
    about, layout, dim = _described(path)
    if layout.vocab_digest is not None:
        layout = layout.bind(np.frombuffer((path / _MAP).read_bytes(), dtype="<i4"))
    scales, parts = dim // BLOCK, {}
    byte = np.dtype(np.uint8)
    for entry in layout.layers:
        for part, begin, width in ((ROWS, 0, dim), (SCALES, dim, scales)):
            span = Span(
                file=path / _file(entry.layer),
                begin=begin,
                first=0,
                rows=entry.rows,
                stride=dim + scales,
            )
            parts[entry.layer, part] = FileArray([span], byte, (width,), _HINT)
    return FileRows(
        format="row264",
        path=path,
        layout=layout,
        layers=layout.layer_ids,
        dim=dim,
        dtype=DTYPE,
        digest=sha256_bytes(b"engram row264 1\n", canonical_json(about)),
        parts=parts,
    )


def _check(path: Path, checks: Checks) -> FileRows:
    """Compare the checksums of all files."""
    source = _open(path)
    about = read_json(path / _NAME, "a description of rows")
    problems = []
    for name, said in about["files"].items():
        checksum = Checksum()
        size = (path / name).stat().st_size
        with (path / name).open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                checksum.update(np.frombuffer(piece, np.uint8))
        if said != [size, checksum.hexdigest()]:
            problems.append(f"{name}: its bytes have changed since it was written")
        checks.files += 1
        checks.stored_bytes += size
    checks.take("checksums", problems)
    return source


def _listing(path: Path) -> Listing | None:
    try:
        about, _, _ = _described(path)
    except EngramError:
        return None
    return Listing(frozenset((*about["files"], _NAME)))


ROW264 = Kind(name="folder of row264", listing=_listing)
FORMAT = Format(name="row264", recognise=_recognise, open=_open, check=_check)
TARGET = Target(write=_write, dtypes=(DTYPE,))
