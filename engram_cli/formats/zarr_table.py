"""A table, a Zarr store, as a `RowSource`; and its checksums read again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, IncompleteError, InputError
from engram_cli.formats.base import Checks, Facts, Format, hash_facts, patch_facts, token_fact
from engram_cli.hashing.layout import short
from engram_cli.numbers import bytes_text
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.path import is_remote, readable_path
from engram_cli.rows.checksum import Checksum, file_checksum
from engram_cli.rows.copying import read_into
from engram_cli.rows.source import ROWS
from engram_cli.table.attributes import (
    META,
    PARTIAL_SUFFIX,
    PATCHING,
    UPDATE_AGAIN,
    Description,
    before_update,
    group_problem,
    half_built,
    half_updated,
    is_table,
    read_description,
)
from engram_cli.table.grid import array_name, half_patched_hint
from engram_cli.table.journal import filled
from engram_cli.table.kept_sums import has_sums, sums_array
from engram_cli.table.store import TableStore, bound_layout, open_table

if TYPE_CHECKING:
    from engram_cli.stats.stats_io import Statistics


_PIECE_BYTES = 2**18  # read, checked, hashed and written while it is in the L2 cache


def verify_table(
    path: Path | str,
    *,
    threads: int = 1,
    progress: Progress = SILENT,
    but: Collection[str] = (),
) -> Checks:
    """Recompute every checksum of the table at `path`, and the digest of its vocabulary map.

    `but`: files that are left out. Raises what `open_table` raises when the attributes themselves
    are not to be trusted.
    """
    about = read_description(readable_path(path))
    names = sorted(about.files.keys() - set(but))
    total = sum(about.files[name][0] for name in names)
    progress.start("verify", total, "bytes")
    groups = {name.rpartition("/")[0] for name in about.arrays} - {""}
    found = [group_problem(about.path, root=True)]
    found += [group_problem(about.path / name) for name in sorted(groups)]
    problems = [problem for problem in found if problem is not None]
    with ThreadPoolExecutor(threads) as pool:
        for name, problem in zip(names, pool.map(lambda n: _check(about, n), names), strict=True):
            progress.advance(about.files[name][0])
            if problem is not None:
                problems.append(f"{name}: {problem}")
    if not problems:
        try:
            bound_layout(about)
        except ArtifactError as error:
            problems.append(error.message)
    return Checks(problems=problems, files=len(names), stored_bytes=total)


def _check(about: Description, name: str) -> str | None:
    size, checksum = about.files[name]
    file = about.path / name
    try:
        found = file.stat().st_size
        if found != size:
            return f"has {found} bytes, the manifest says {size}"
        actual = file_checksum(file)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return _changed(actual, checksum)


def _changed(actual: str, checksum: str) -> str | None:
    if actual == checksum:
        return None
    return f"its bytes have changed: checksum {actual}, the manifest says {checksum}"


def checked_chunks(
    table: TableStore, hint: str, layer: int, part: str = ROWS
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (first row, [n, ...] as stored) of a part in pieces of at most `_PIECE_BYTES`.

    A piece is valid until the next one. The files are read once: what was yielded is what the
    checksums are of. Raises ArtifactError with `hint` at the end of a file that has another one.
    """
    files, array = read_description(table.path).files, table.arrays[array_name(layer, part)]
    step = max(1, _PIECE_BYTES // array.row_bytes)
    buffer = np.empty((step, *array.shape[1:]), dtype=array.dtype)
    raw = buffer.reshape(-1).view(np.uint8)
    for index, name in enumerate(array.files):
        checksum, (first, rows) = Checksum(), array.span(index)
        try:
            with (table.path / name).open("rb", buffering=0) as file:
                while size := read_into(file, raw.data):
                    checksum.update(raw[:size])
                    if rows:  # the rest is padding
                        count = min(size // array.row_bytes, rows)
                        yield first, buffer[:count]
                        first, rows = first + count, rows - count
        except OSError as error:
            raise _damaged(table, f"{name}: cannot be read: {error.strerror}", hint) from None
        problem = "ends too early" if rows else _changed(checksum.hexdigest(), files[name][1])
        if problem is not None:
            raise _damaged(table, f"{name}: {problem}", hint)


def _damaged(table: TableStore, problem: str, hint: str) -> ArtifactError:
    return ArtifactError(f"{table.path} is damaged: {problem}", hint)


AGAIN = "run the command again that began it, engram build-table or engram convert: it resumes"


def _check_table(path: Path, checks: Checks) -> TableStore | None:
    found = verify_table(path, threads=checks.threads, progress=checks.progress, but=checks.copied)
    checks.add("checksums", found)
    if not found.ok:
        checks.not_checked.append("layout and counts: the files were changed or damaged")
        return None
    table = open_table(path)
    if checks.sums and _keeps_sums(table):
        if table.attributes.get("patches"):
            checks.not_checked.append("kept sums: patches replaced rows, which they do not make")
            return table
        from engram_cli.table.scan.fault_scan import sample_size
        from engram_cli.table.sums.verify import sums_problems

        most = None if checks.fault_share is None else sample_size(checks.fault_share)
        problems = sums_problems(table.path, most, threads=checks.threads, progress=checks.progress)
        checks.take("kept sums", problems)
    return table


def _keeps_sums(table: TableStore) -> bool:
    return not is_remote(table.path) and has_sums(table.path)


def _count_problems(table: TableStore, statistics: Statistics) -> list[str]:
    """Return where the hits stored with the rows differ from the statistics."""
    problems = []
    for layer in table.layout.layer_ids:
        own, counted = table.hits(layer), statistics.hits(layer)
        if own is None:
            return ["the table has no counts to compare with the given statistics"]
        different = own != counted
        if different.any():
            first = int(np.argmax(different))
            problems.append(
                f"layer {layer}: {int(np.count_nonzero(different)):,} rows have other hits than "
                f"{statistics.path} says, the first is row {first:,}: {own[first]:,}, not "
                f"{counted[first]:,}"
            )
    tokens = table.attributes["statistics"]["tokens"]
    if tokens != statistics.tokens:
        problems.append(f"counted over {tokens:,} tokens, not {statistics.tokens:,}")
    return problems


def _recognise(path: Path) -> Path | None:
    if path.is_file():
        return None
    known = is_table(path) or path.name.endswith(PARTIAL_SUFFIX) or half_built(path)
    return path if known or (path / META).is_file() else None


def _open(path: Path) -> TableStore:
    if path.name.endswith(PARTIAL_SUFFIX):
        raise IncompleteError(f"{path} is half-built", AGAIN)
    return open_table(path)


def _facts(table: TableStore) -> Facts:
    attributes = table.attributes
    counted, source = attributes["statistics"], attributes.get("source")
    rows = sum(entry.rows for entry in table.layout.layers)
    converted = []
    if isinstance(source, Mapping):
        digest = str(source.get("digest"))
        sampled = digest.startswith("sampled ")
        digest = short(digest.removeprefix("sampled ")) + (" (of sampled rows)" if sampled else "")
        kind = source.get("format", "table")
        text = f"from a {kind} of {source.get('dtype')} with digest {digest}"
        converted.append(("converted", text))
    kept = []
    if _keeps_sums(table):
        size = sum(
            sums_array(entry.layer, entry.rows, table.dim).stored_bytes
            for entry in table.layout.layers
        )
        kept.append(("kept sums", f"{bytes_text(size)}: engram update needs no corpus"))
    return [
        *hash_facts(table.layout),
        ("rows", f"{rows:,} of {table.dim} x {table.dtype}"),
        ("parameters", f"{rows * table.dim:,}"),
        ("init", _init(table.init, attributes["init"].get("parameters") or {})),
        *converted,
        *kept,
        ("row hits", "none" if counted is None else f"of {counted['tokens']:,} tokens"),
        ("filled", "whole: every chunk is on the manifest"),
        token_fact(table.layout, table.row_type.row_bytes(table.dim)),
        *patch_facts(attributes),
        ("made by", f"engram {attributes.get('tool_version')}"),
    ]


def _init(name: str, parameters: Mapping[str, Any]) -> str:
    """Say what the rows were filled with: parameters by name, a corpus and its vectors in words."""
    vectors = parameters.get("embeddings")
    if not isinstance(vectors, Mapping):
        return ", ".join([name, *(f"{key} {value}" for key, value in parameters.items())])
    joined = ", joined to one stream" if parameters.get("join_documents") else ""
    source = f"embeddings {vectors.get('tensor')}"
    if vectors.get("kind") == "random":
        source = f"random vectors of std {vectors.get('std')}"
    return (
        f"{name} of {parameters.get('tokens'):,} tokens, {parameters.get('documents'):,} documents"
        f"{joined}; {source}, seed {vectors.get('seed')}"
    )


def _unfinished(path: Path) -> tuple[Facts, int, int]:
    if half_updated(path):
        about = before_update(path)
        facts = [("rows", "half-updated"), ("to go on", UPDATE_AGAIN)]
        return facts, len(about.files), sum(size for size, _ in about.files.values())
    with suppress(ArtifactError, InputError):
        about = read_description(path, patching=True)
        if PATCHING in about.attributes:
            facts = [("rows", "half-patched"), ("to go on", half_patched_hint(path))]
            return facts, len(about.files), sum(size for size, _ in about.files.values())
    folder = path if path.exists() else path.with_name(path.name + PARTIAL_SUFFIX)
    chunks, size = filled(folder)
    facts = [
        ("filled", f"half-built: {chunks:,} chunks, {size:,} bytes are whole"),
        ("to go on", AGAIN),
    ]
    return facts, chunks, size


FORMAT = Format(
    name="table",
    recognise=_recognise,
    open=_open,
    facts=_facts,
    unfinished=_unfinished,
    check=_check_table,
    counts=_count_problems,
)
