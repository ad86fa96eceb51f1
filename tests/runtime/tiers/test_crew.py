"""The crew gathers what plain indexing does, for many at once, and carries it through a ring."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.runtime.tiers.crew import kernels
from engram_cli.runtime.tiers.crew.carrier import Carrier, Driver
from engram_cli.runtime.tiers.crew.crew import Crew, the_crew
from engram_cli.runtime.tiers.host_rows import gather_plainly

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the crew is Linux's")

ROWS, WIDTH = 5000, 264


@pytest.fixture(scope="module", params=[1, 2, 5])
def crew(request: pytest.FixtureRequest) -> Iterator[Crew]:
    own = Crew(request.param)
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
    crew: Crew, records: Tensor, count: int, dtype: torch.dtype
) -> None:
    rows = some(count, dtype)
    mine, twin = torch.zeros(2, count, WIDTH, dtype=torch.uint8)
    assert crew.gather(records, rows, mine) == 0
    assert gather_plainly(records, rows, twin) == 0
    assert torch.equal(mine, twin)


@pytest.mark.parametrize("width", [8, 16, 72, 1024, 4104])
def test_records_of_any_width(crew: Crew, width: int) -> None:
    records = torch.arange(300 * width // 8).view(300, -1).view(torch.uint8)
    rows = torch.randint(0, 300, (500,), generator=torch.Generator().manual_seed(width))
    out = torch.zeros(500, width, dtype=torch.uint8)
    assert crew.gather(records, rows, out) == 0
    assert torch.equal(out, records[rows])


def test_rows_without_a_record_are_counted_and_never_read(crew: Crew, records: Tensor) -> None:
    rows = some(300)
    rows[[0, 63, 64, 299]] = torch.tensor([-1, ROWS, 2**62, -(2**63)])
    out = torch.full((300, WIDTH), 7, dtype=torch.uint8)
    assert crew.gather(records, rows, out) == 4
    inside = (rows >= 0) & (rows < ROWS)
    assert torch.equal(out[inside], records[rows[inside]])
    assert (out[~inside] == 7).all()
    assert gather_plainly(records, rows, out) == 1


def test_many_ask_at_once(crew: Crew, records: Tensor) -> None:
    """More threads than slots, requests of all sizes, some while the crew sleeps."""
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for turn in range(15):
            rows = some(1 + (seed * 37 + turn * 211) % 2000, seed=seed)
            out = torch.zeros(len(rows), WIDTH, dtype=torch.uint8)
            crew.gather(records, rows, out)
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
        self.early |= self.waits.count(event) > self.records.count(event) + 1
        return 0


def carrier(crew: Crew, fake: FakeDriver, buffers: int, size: int) -> Carrier:
    ring = torch.empty(buffers, size, dtype=torch.uint8)
    return Carrier(crew, fake.driver, ring, list(range(100, 100 + buffers)), stream=7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(("buffers", "size"), [(1, 264), (2, 1000), (3, 4096), (8, 60_000)])
def test_a_carrier_sends_every_record(
    crew: Crew, records: Tensor, buffers: int, size: int, dtype: torch.dtype
) -> None:
    fake = FakeDriver()
    own = carrier(crew, fake, buffers, size)
    parts = 0
    for count in (0, 1, 3, 4, 700):
        rows = some(count, dtype)
        target = torch.zeros(count, WIDTH, dtype=torch.uint8)
        waited = own.carry(records, rows, target)
        assert torch.equal(target, records[rows.long()])
        assert min(waited) >= 0
        parts += -(-count // (size // WIDTH))
    assert len(fake.copies) == len(fake.records) == len(fake.waits) == parts
    assert not fake.early
    assert {stream for _, stream in fake.copies} == {7}
    assert fake.records == [100 + i % buffers for i in range(parts)]


def test_errors_of_a_carrier_are_told_and_it_goes_on(crew: Crew, records: Tensor) -> None:
    fake = FakeDriver()
    own = carrier(crew, fake, 3, 10 * WIDTH)
    rows, target = some(100), torch.zeros(100, WIDTH, dtype=torch.uint8)
    fake.fail[4] = 719
    with pytest.raises(RuntimeError, match="CUDA error 719"):
        own.carry(records, rows, target)
    assert len(fake.copies) == 4, "nothing is copied after an error"
    outside = rows.clone()
    outside[50] = ROWS
    with pytest.raises(InputError, match=f"0..{ROWS - 1}"):
        own.carry(records, outside, target)
    own.carry(records, rows, target)
    assert torch.equal(target, records[rows])


def test_one_crew_a_process() -> None:
    assert the_crew() is the_crew()


PROGRAM = """
import os, torch
from engram_cli.runtime.tiers.crew.crew import the_crew
records, rows = torch.arange(800).view(-1, 8).view(torch.uint8), torch.arange(100).flip(0)
expected, out = records[rows].numpy().tobytes(), torch.zeros(2, 100, 64, dtype=torch.uint8)
def gathers(out):  # torch itself may hang in a child when its threads have run
    return the_crew().gather(records, rows, out) == 0 and out.numpy().tobytes() == expected
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
