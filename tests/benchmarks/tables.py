"""Tables: writing compared with ndarray.tofile and zarr, gathering with np.memmap and engramdb.

Writing goes to memory (tmpfs), so that no disk hides the work, and once to the disk, both flushed.
Files lie below ENGRAM_BENCHMARK_FOLDER, or else in /var/tmp, and go away at the end.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from runner import Case

from engram_cli.hashing.schemes import hash_layout
from engram_cli.rows import DTYPES
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import TableStore, open_table

MEMORY = Path("/dev/shm")
DISK = Path(os.environ.get("ENGRAM_BENCHMARK_FOLDER", "/var/tmp"))
THREADS = len(os.sched_getaffinity(0))
WARM_ROWS, COLD_ROWS = 2**16, 2**12
GENERATOR = np.random.default_rng(0)


def cases() -> Iterator[Case]:
    """Writing, then gathers from a warm and from a cold page cache."""
    for place in (MEMORY, DISK):
        folder = Path(tempfile.mkdtemp(prefix="engram-tables-", dir=place))
        try:
            yield from _writing(folder)
            if place == DISK:
                yield from _gathers(folder)
        finally:
            shutil.rmtree(folder)


@dataclass(frozen=True, kw_only=True)
class _Given:
    """An init that hands out rows of an array."""

    rows: NDArray[np.float32]
    name: str = "given"

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def bound(self, layer: int, dim: int) -> None:
        return None

    def filler(self, layer: int, dim: int) -> Callable[[int, NDArray[np.float32]], None]:
        def fill(first: int, out: NDArray[np.float32]) -> None:
            out[:] = self.rows[first : first + len(out)]

        return fill


def _layout(rows_per_head: int) -> Any:
    return hash_layout("qwen-ple", vocab_size=90_000, eos_id=1, rows_per_head=rows_per_head)


def _writing(folder: Path) -> Iterator[Case]:
    """Half a GiB of rows, three ways to know them."""
    layout = _layout(50_000)
    shape = (layout.layer().rows, 160)
    in_memory = folder.is_relative_to(MEMORY)
    given = GENERATOR.standard_normal(shape, dtype=np.float32)
    inits = {"given rows": _Given(rows=given)}
    if in_memory:
        inits |= {"zeros": make_init("zeros"), "normal": make_init("normal")}
    for name, init in inits.items():
        spec = TableSpec(layout=layout, dim=160, dtype="float32", init=init)
        rows = given if name == "given rows" else _rows_of(spec, folder)
        yield Case(
            name=f"write {name}, float32, {'to memory' if in_memory else 'to the disk, flushed'}",
            amount=rows.nbytes,
            unit="bytes",
            notes=f"{shape[0]:,} rows of 160. All others have the rows in memory; engram makes "
            f"them, sums a checksum and flushes every chunk, {THREADS} threads. Plain files, "
            f"{THREADS} threads: os.write of the same chunks and nothing else, the ceiling of any "
            f"writer here. zarr sums no checksum{'' if in_memory else '; its chunks are flushed'}.",
            contestants={
                "ndarray.tofile": lambda rows=rows: _tofile(rows, folder / "raw", not in_memory),
                "engram": lambda spec=spec: _build(spec, folder),
                "zarr, array[:] = rows": lambda rows=rows: _zarr(
                    rows, folder / "peer.zarr", not in_memory
                ),
                f"plain files, {THREADS} threads": lambda rows=rows: _plain(
                    rows, folder / "plain", not in_memory
                ),
            },
            same=np.array_equal,
        )


def _rows_of(spec: TableSpec, folder: Path) -> NDArray[np.float32]:
    build_store(spec, folder / "t.zarr", force=True, threads=THREADS)
    return np.concatenate([rows for _, rows in open_table(folder / "t.zarr").chunks()])


def _tofile(rows: NDArray[np.float32], path: Path, flush: bool) -> NDArray[np.float32]:
    with path.open("wb") as file:
        rows.tofile(file)
        if flush:
            os.fsync(file.fileno())
    return np.memmap(path, dtype=np.float32, mode="r", shape=rows.shape)


def _build(spec: TableSpec, folder: Path) -> NDArray[np.float32]:
    out = folder / "t.zarr"
    with suppress(FileNotFoundError):
        shutil.rmtree(out)
    build_store(spec, out, threads=THREADS)
    return _Lazy(lambda: np.concatenate([rows for _, rows in open_table(out).chunks()]))


class _Lazy:
    """An array that is read only when it is compared."""

    def __init__(self, read: Callable[[], NDArray[Any]]) -> None:
        self.read = read

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return self.read()


def _chunk_rows(rows: NDArray[np.float32]) -> int:
    """Of a chunk of about 128 MiB, as engram has."""
    return -(-len(rows) // max(1, round(rows.nbytes / 2**27)))


def _plain(rows: NDArray[np.float32], path: Path, flush: bool) -> Any:
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
    path.mkdir()
    step = _chunk_rows(rows)
    files = [path / f"{begin:09}" for begin in range(0, len(rows), step)]

    def write(file: Path) -> None:
        begin = int(file.name)
        view = memoryview(rows[begin : begin + step]).cast("B")
        with file.open("wb", buffering=0) as out:
            while view:
                view = view[out.write(view) :]
            if flush:
                os.fsync(out.fileno())

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, files))
    return _Lazy(
        lambda: np.concatenate([np.fromfile(f, rows.dtype) for f in files]).reshape(rows.shape)
    )


def _zarr(rows: NDArray[np.float32], path: Path, flush: bool) -> Any:
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
    step = _chunk_rows(rows)
    array = zarr.create_array(
        path, shape=rows.shape, chunks=(step, rows.shape[1]), dtype=rows.dtype, compressors=None
    )
    array[:] = rows
    if flush:
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(_flush, (path / "c").rglob("*")))
    return _Lazy(lambda: array[:])


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _gathers(folder: Path) -> Iterator[Case]:
    """Rows of 160 bytes, fp8 with one scale: Qwen's row, and what engramdb's Store holds."""
    init = make_init("normal")
    spec = TableSpec(layout=_layout(400_000), dim=160, dtype="fp8", init=init)
    build_store(spec, folder / "q.zarr", threads=THREADS)
    table = open_table(folder / "q.zarr")
    raw = folder / "q.raw"
    with raw.open("wb") as file:
        for _, rows in table.chunks():
            rows.tofile(file)
        os.fsync(file.fileno())
    peers = _Peers(table, folder / "shards", raw)
    del table
    for make in (_warm, _decoded, _cold):
        yield make(folder / "q.zarr", peers)


class _Peers:
    """The same rows as one raw file and, by hard links to our chunks, as an engramdb store."""

    def __init__(self, table: TableStore, shards: Path, raw: Path) -> None:
        self.path, self.array, self.shards, self.raw = table.path, table.arrays["2"], shards, raw
        self.files = [table.path / name for name in self.array.files]
        shards.mkdir()
        for index, file in enumerate(self.files):
            os.link(file, shards / f"shard_{index:03d}.bin")

    def memmap(self) -> NDArray[np.uint8]:
        return np.memmap(self.raw, dtype=np.uint8, mode="r", shape=self.array.shape)

    def engramdb(self) -> Any:
        import engramdb

        rows = self.array.chunk_rows
        width = self.array.row_bytes
        count = self.array.chunks
        return engramdb.Store(str(self.shards), shards=count, rows_per_shard=rows, width=width)

    def forget(self) -> None:
        """Take all files out of the page cache; nothing may map them."""
        for file in (*self.files, self.raw):
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def _warm(path: Path, peers: _Peers) -> Case:
    table = open_table(path)
    wanted = GENERATOR.integers(0, peers.array.rows, WARM_ROWS)
    numbers, raw, store = wanted.tolist(), peers.memmap(), peers.engramdb()
    array = zarr.open_array(table.path / "2", mode="r")
    for file in (*peers.files, peers.raw):
        file.read_bytes()
    return Case(
        name=f"gather {WARM_ROWS:,} rows as stored, warm",
        amount=WARM_ROWS,
        unit="rows",
        notes=f"From {peers.array.rows:,} rows of 160 bytes in {peers.array.chunks} chunks; one "
        "raw file for np.memmap.",
        contestants={
            "np.memmap.take": lambda: raw.take(wanted, axis=0),
            "engram, TableStore.stored": lambda: table.stored(2, wanted)[0],
            "engramdb, Store.fetch": lambda: np.frombuffer(store.fetch(numbers), np.uint8).reshape(
                -1, 160
            ),
            "zarr, array.oindex": lambda: array.oindex[wanted[:2048]],
        },
        same=lambda a, b: np.array_equal(a[: len(b)], b),
    )


def _decoded(path: Path, peers: _Peers) -> Case:
    table = open_table(path)
    wanted = GENERATOR.integers(0, peers.array.rows, WARM_ROWS)
    raw = peers.memmap()
    scale = np.float32(np.fromfile(table.path / "scales" / "2" / "c.0", "<f4")[0])
    meanings = DTYPES.load("fp8").items.values
    return Case(
        name=f"gather {WARM_ROWS:,} rows as float32, warm",
        amount=WARM_ROWS,
        unit="rows",
        contestants={
            "np.memmap.take and a table of 256": lambda: meanings[raw.take(wanted, axis=0)] * scale,
            "engram, TableStore.rows": lambda: table.rows(2, wanted),
        },
        same=np.array_equal,
    )


def _cold(path: Path, peers: _Peers) -> Case:
    # No store may stay open: pages that are mapped stay in memory.
    fixed = GENERATOR.integers(0, peers.array.rows, COLD_ROWS)
    ready: dict[str, Any] = {}

    def prepare() -> None:
        ready.clear()
        peers.forget()
        wanted = GENERATOR.integers(0, peers.array.rows, COLD_ROWS)
        ready.update(rows=wanted, numbers=wanted.tolist(), table=open_table(path))
        ready.update(store=peers.engramdb(), raw=peers.memmap())

    return Case(
        name=f"gather {COLD_ROWS:,} rows, cold",
        amount=COLD_ROWS,
        unit="rows",
        notes="Other rows each time, the page cache emptied of the files before.",
        before=prepare,
        contestants={
            "engramdb, Store.fetch": lambda: ready["store"].fetch(ready["numbers"]),
            "engram, TableStore.stored": lambda: ready["table"].stored(2, ready["rows"])[0],
        },
        checks={
            "engramdb, Store.fetch": lambda: peers.engramdb().fetch(fixed.tolist()),
            "engram, TableStore.stored": lambda: open_table(path).stored(2, fixed)[0].tobytes(),
        },
        same=lambda a, b: bytes(a) == b,
    )
