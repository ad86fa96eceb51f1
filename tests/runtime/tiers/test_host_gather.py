"""The gather pool gathers what plain indexing does, for many callers; a copy thread copies it."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.tiers import host_gather_kernels as kernels
from engram_cli.runtime.tiers.host import gather_plainly
from engram_cli.runtime.tiers.host_gather import (
    CopyThread,
    Driver,
    GatherPool,
    Load,
    shared_gather_pool,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the gather pool needs Linux")

ROWS, WIDTH = 5000, 264


@pytest.fixture(scope="module", params=[1, 2, 5])
def pool(request: pytest.FixtureRequest) -> Iterator[GatherPool]:
    own = GatherPool(request.param)
    yield own
    own.close()


@pytest.fixture(scope="module")
def records() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (ROWS, WIDTH), dtype=torch.uint8, generator=generator)


def some(count: int, dtype: torch.dtype = torch.int64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + count)
    return torch.randint(0, ROWS, (count,), dtype=dtype, generator=generator)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000, 7001])
def test_gathers_equal_the_twins(
    pool: GatherPool, records: Tensor, count: int, dtype: torch.dtype
) -> None:
    rows = some(count, dtype)
    mine, twin = torch.zeros(2, count, WIDTH, dtype=torch.uint8)
    assert pool.gather(records, rows, mine) == 0
    assert gather_plainly(records, rows, twin) == 0
    assert torch.equal(mine, twin)


@pytest.mark.parametrize("width", [8, 16, 72, 1024, 4104])
def test_records_of_any_width(pool: GatherPool, width: int) -> None:
    records = torch.arange(300 * width // 8).view(300, -1).view(torch.uint8)
    rows = torch.randint(0, 300, (500,), generator=torch.Generator().manual_seed(width))
    out = torch.zeros(500, width, dtype=torch.uint8)
    assert pool.gather(records, rows, out) == 0
    assert torch.equal(out, records[rows])


def test_rows_without_a_record_are_counted_and_never_read(
    pool: GatherPool, records: Tensor
) -> None:
    rows = some(300)
    rows[[0, 63, 64, 299]] = torch.tensor([-1, ROWS, 2**62, -(2**63)])
    out = torch.full((300, WIDTH), 7, dtype=torch.uint8)
    assert pool.gather(records, rows, out) == 4
    inside = (rows >= 0) & (rows < ROWS)
    assert torch.equal(out[inside], records[rows[inside]])
    assert (out[~inside] == 7).all()
    assert gather_plainly(records, rows, out) == 1


def test_many_ask_at_once(pool: GatherPool, records: Tensor) -> None:
    """More threads than slots, requests of all sizes, some while the pool sleeps."""
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for turn in range(15):
            rows = some(1 + (seed * 37 + turn * 211) % 2000, seed=seed)
            out = torch.zeros(len(rows), WIDTH, dtype=torch.uint8)
            pool.gather(records, rows, out)
            if not torch.equal(out, records[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(kernels.SLOTS + 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


class FakeDriver:
    """Copies on the host; `fail` is what the n-th copy answers."""

    def __init__(self) -> None:
        self.fail: dict[int, int] = {}
        self.copies: list[tuple[int, int]] = []
        self.waits: list[int] = []
        self.records: list[int] = []
        self.threads: set[str] = set()
        self.early = False
        word, code = ctypes.c_int64, ctypes.c_int
        self._held = [
            ctypes.CFUNCTYPE(code, *[word] * 4)(self._copy),
            ctypes.CFUNCTYPE(code, *[word] * 2)(self._record),
            ctypes.CFUNCTYPE(code, word)(self._synchronize),
        ]
        addresses = [ctypes.cast(each, ctypes.c_void_p).value or 0 for each in self._held]
        self.driver = Driver(**dict(zip(("copy", "record", "synchronize"), addresses, strict=True)))

    def _copy(self, target: int, source: int, size: int, stream: int) -> int:
        self.copies.append((size, stream))
        self.threads.add(threading.current_thread().name)
        code = self.fail.get(len(self.copies), 0)
        if not code:
            ctypes.memmove(target, source, size)
        return code

    def _record(self, event: int, stream: int) -> int:
        self.records.append(event)
        return 0

    def _synchronize(self, event: int) -> int:
        self.waits.append(event)
        # Whoever waits for a buffer must have sent what it held: recorded its event again.
        self.early |= event == 0 and self.waits.count(0) > self.records.count(0) + 8
        return 0


@contextmanager
def copy_thread(
    pool: GatherPool, fake: FakeDriver, buffers: int, size: int
) -> Iterator[CopyThread]:
    slots = pool.take_slots(min(3, buffers))
    assert slots is not None
    ring = torch.empty(buffers, size, dtype=torch.uint8)
    own = CopyThread(pool, slots, fake.driver, ring, device=torch.device("cpu"))
    try:
        yield own
    finally:
        own.close()


def a_load(records: Tensor, rows: Tensor, found: int = 0) -> tuple[Load, Tensor]:
    """A load whose row numbers are there, with room for two more, and where it goes."""
    host = torch.cat([torch.tensor([len(rows)]).to(rows.dtype), rows, rows[:2]])
    target = torch.zeros(len(host) - 1, WIDTH, dtype=torch.uint8)
    return Load(records, host, target, found=found, copied=99), target


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("buffers", "size"), [(1, 264), (2, 1000), (3, 4096), (8, 60_000)])
def test_a_copy_thread_copies_every_record(
    pool: GatherPool, records: Tensor, buffers: int, size: int, dtype: torch.dtype
) -> None:
    fake = FakeDriver()
    parts = 0
    with copy_thread(pool, fake, buffers, size) as own:
        loads = []
        for count in (0, 1, 3, 4, 700):
            rows = some(count, dtype)
            load, target = a_load(records, rows, found=55)
            own.send(load)
            loads.append((load, target, rows))
            parts += -(-count // (size // WIDTH))
        for load, target, rows in loads:
            load.wait()
            assert torch.equal(target[: len(rows)], records[rows.long()])
            assert not target[len(rows) :].any()
            assert load.rows == len(rows)
            assert min(load.seconds) >= 0
            load.wait()  # again, as a load that is dropped after an error is
    assert len(fake.copies) == parts
    assert fake.waits.count(55) == fake.records.count(99) == len(loads)
    assert fake.waits.count(0) == fake.records.count(0) == parts
    assert not fake.early
    assert fake.threads == ({"engram-copy"} if parts else set())


def test_a_copy_thread_reports_errors_and_continues(pool: GatherPool, records: Tensor) -> None:
    fake, rows = FakeDriver(), some(100)
    fake.fail[4] = 719
    with copy_thread(pool, fake, 3, 10 * WIDTH) as own:
        load, _ = a_load(records, rows)
        own.send(load)
        with pytest.raises(RuntimeError, match="CUDA error 719"):
            load.wait()
        assert len(fake.copies) == 4, "nothing is copied after an error"
        outside = rows.clone()
        outside[50] = ROWS
        load, _ = a_load(records, outside)
        own.send(load)
        with pytest.raises(InputError, match=f"0..{ROWS - 1}"):
            load.wait()
        load, target = a_load(records, rows)
        own.send(load)
        load.wait()
        assert torch.equal(target[:100], records[rows])


def test_a_dropped_load_is_not_copied(pool: GatherPool, records: Tensor) -> None:
    fake = FakeDriver()
    with copy_thread(pool, fake, 3, 4096) as own:
        load, target = a_load(records, some(100))
        load.drop()
        own.send(load)
        load.wait()
        assert load.rows == 0
        assert not target.any()
        assert not fake.copies


def test_slots_run_out_and_come_back(pool: GatherPool) -> None:
    taken = []
    while (slots := pool.take_slots(3)) is not None:
        taken.append(slots)
    assert len({slot for slots in taken for slot in slots}) == 3 * len(taken)
    assert kernels.SLOTS - 3 * len(taken) >= 2, "short jobs must find one"
    for slots in taken:
        pool.give_slots(slots)
    assert pool.take_slots(3) is not None


def test_one_gather_pool_a_process() -> None:
    assert shared_gather_pool() is shared_gather_pool()


PROGRAM = """
import os, torch
from engram_cli.runtime.tiers.host_gather import shared_gather_pool
records, rows = torch.arange(800).view(-1, 8).view(torch.uint8), torch.arange(100).flip(0)
expected, out = records[rows].numpy().tobytes(), torch.zeros(2, 100, 64, dtype=torch.uint8)
def gathers(out):  # torch itself may hang in a child when its threads have run
    wrong = shared_gather_pool().gather(records, rows, out)
    return wrong == 0 and out.numpy().tobytes() == expected
assert gathers(out[0])
child = os.fork()
if child == 0:
    os._exit(0 if gathers(out[1]) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("done")
"""


def test_a_forked_process_has_a_crew_of_its_own_and_ends() -> None:
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 30}
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], check=False, **options)
    assert (found.returncode, found.stdout) == (0, "done\n"), found.stderr
