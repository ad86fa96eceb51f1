"""One copy of host rows for two processes on one GPU: memory, start-up and look-ups.

    python tests/benchmarks/shared_host.py [RESULT.json] [--bytes 60GB] [--tiny]

Two processes take the same random records of 264 bytes (DeepSeek-V4.1's rows) as a shared copy,
pinned where there is a GPU; one fills it and one waits. A third one comes later. Then the two are
killed, and a fourth takes what they left. All have made their CUDA contexts and kernels before.
Memory is measured by the kernel: PSS of each process, which counts a shared page in parts, and what
the machine has left. Look-ups are measured in one process with a shared copy and an own one of the
same records, in turn.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from runner import RESULTS, commit, machine, versions
from tier_cases import tier_spec
from torch import Tensor

from engram_cli.errors import EngramError
from engram_cli.runtime.tiers.embedding import TieredEmbedding
from engram_cli.runtime.tiers.host import HostRows, host_memory, shared_memory
from engram_cli.shared_copy import Advance, Contents, check_room, remove_leftovers
from engram_cli.sizes import available_memory, read_size

RECORD, COLUMNS, PIECE, THREADS = 264, 24, 2**28, 8
ROUNDS, CALLS = 7, 20
BATCHES = (1, 64, 16_384) if torch.cuda.is_available() else (1, 64)  # tokens of a call


def device() -> torch.device:
    """The GPU, or the CPU for a dry run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def random_piece() -> Tensor:
    """Random bytes, the same in each process; every piece of the copy has them but for one word."""
    generator = torch.Generator().manual_seed(0)
    words = torch.empty(PIECE // 8, dtype=torch.int64).random_(generator=generator)
    return words.bitwise_and_(0x7E7E7E7E7E7E7E7E).view(torch.uint8)


def in_threads(work: Callable[[int], object], size: int) -> list[Any]:
    """Call `work` with the beginning of each piece, each call in one thread."""
    random_piece()
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # or each of the threads would start one for every core
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(work, range(0, size, PIECE)))
    finally:
        torch.set_num_threads(before)


def fill(held: Tensor, advance: Advance) -> None:
    """Write all records."""

    def write(begin: int) -> None:
        part = held[begin : begin + PIECE]
        part.copy_(random_piece()[: len(part)])
        part[:8].view(torch.int64).fill_(begin)
        advance(len(part))

    in_threads(write, len(held))


def what(size: int) -> Contents:
    """What the copy holds."""
    return Contents(about={"benchmark": "shared_host"}, size=size)


def is_right(held: Tensor) -> bool:
    """Whether all bytes are what they must be."""

    def check(begin: int) -> bool:
        part = held[begin : begin + PIECE].view(torch.int64)  # eight times as fast as bytes
        other = random_piece()[: 8 * len(part)].view(torch.int64)
        return int(part[0]) == begin and torch.equal(part[1:], other[1:])

    return all(in_threads(check, len(held)))


def memory_of(process: int | str = "self") -> dict[str, float]:
    """GB of a process as the kernel counts them."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e9 for line in lines}
    return {name.lower(): round(found[name], 3) for name in ("Rss", "Pss")}


def warm_up() -> None:
    """Make what each process makes once: the context and the kernels."""
    torch.zeros(8, device=device())
    spec = tier_spec("fp8_e8m0", 256)
    held = host_memory(64 * RECORD, pinned=device().type == "cuda").view(-1, RECORD)
    embedding = TieredEmbedding(spec, HostRows(held), device=device(), dtype=torch.bfloat16)
    embedding.vectors(torch.zeros(1, 2, COLUMNS, dtype=torch.int64, device=device()))
    embedding.close()


def user(size: int, meeting: Any, answers: Any) -> None:
    """A process that takes the copy, and waits until it is killed or the meeting is over."""
    try:
        warm_up()
        pinned = device().type == "cuda"
        before = memory_of()
        meeting.wait()
        meeting.wait()  # the machine's memory has been measured
        begin = time.perf_counter()
        filled: list[float] = []

        def timed(held: Tensor, advance: Advance) -> None:
            start = time.perf_counter()
            fill(held, advance)
            filled.extend([start - begin, time.perf_counter() - begin])

        held, _ = shared_memory(what(size), timed, pinned=pinned)
        ready = time.perf_counter() - begin
        meeting.wait()
        equal = is_right(held)
        meeting.wait()  # both have read all of it
        answers.put(
            {
                "filled": bool(filled),
                "reserved_s": round(filled[0], 2) if filled else None,
                "filled_s": round(filled[1], 2) if filled else None,
                "ready_s": round(ready, 2),
                "equal": equal,
                "memory_before_gb": before,
                "memory_gb": memory_of(),
                "left_gb": round((available_memory() or 0) / 1e9, 2),
            }
        )
        time.sleep(600)
    except BaseException:
        answers.put({"failed": traceback.format_exc()})
        raise


def late(size: int, begins: Any, answers: Any) -> None:
    """A process that starts when the copy is whole: used by others, or left by killed ones."""
    try:
        warm_up()
        begins.wait()
        begin = time.perf_counter()
        held, release = shared_memory(what(size), _never, pinned=device().type == "cuda")
        answers.put({"ready_s": round(time.perf_counter() - begin, 2), "equal": is_right(held)})
        del held
        release()
    except BaseException:
        answers.put({"failed": traceback.format_exc()})
        raise


def _never(held: Tensor, advance: Advance) -> None:
    raise AssertionError("the copy is there")


def looked_up(size: int, begins: Any, answers: Any) -> None:
    """Seconds of look-ups from a shared copy and from memory of this process, in turn."""
    try:
        warm_up()
        begins.wait()
        pinned, spec = device().type == "cuda", tier_spec("fp8_e8m0", 256)
        start = time.perf_counter()
        shared, release = shared_memory(what(size), fill, pinned=pinned)
        seconds = [time.perf_counter() - start]
        own = host_memory(size, pinned=pinned)
        seconds.append(time.perf_counter() - start - seconds[0])
        fill(own, lambda done: None)
        stores = {
            "shared": TieredEmbedding(
                spec, HostRows(shared.view(-1, RECORD)), device=device(), dtype=torch.bfloat16
            ),
            "own": TieredEmbedding(
                spec, HostRows(own.view(-1, RECORD)), device=device(), dtype=torch.bfloat16
            ),
        }
        found = [_turns(stores, tokens, size // RECORD) for tokens in BATCHES]
        answers.put(
            {
                "bytes": size,
                "shared_filled_and_pinned_s": round(seconds[0], 2),
                "own_pinned_s": round(seconds[1], 2),
                "cases": found,
            }
        )
        for store in stores.values():
            store.close()
        release()
    except BaseException:
        answers.put({"failed": traceback.format_exc()})
        raise


def _turns(stores: dict[str, TieredEmbedding], tokens: int, height: int) -> dict[str, Any]:
    """Median seconds of a call of `tokens` tokens, uniformly random rows."""
    generator = torch.Generator(device=device()).manual_seed(tokens)
    sets = [
        torch.randint(0, height, (1, tokens, COLUMNS), device=device(), generator=generator)
        for _ in range(CALLS)
    ]
    equal = torch.equal(*(store.vectors(sets[0]) for store in stores.values()))
    times: dict[str, list[float]] = {name: [] for name in stores}
    for _ in range(ROUNDS):
        for name, store in stores.items():
            _wait()
            begin = time.perf_counter()
            for rows in sets:
                store.vectors(rows)
            _wait()
            times[name].append((time.perf_counter() - begin) / CALLS)
    medians = {name: statistics.median(each) for name, each in times.items()}
    return {
        "tokens": tokens,
        "equal": equal,
        **{f"{name}_us": round(1e6 * each, 1) for name, each in medians.items()},
        "shared_to_own": round(medians["shared"] / medians["own"], 3),
    }


def _wait() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


class Part:
    """A process that warms up, and works when it is told to."""

    def __init__(self, target: Callable[..., None], size: int) -> None:
        self._begins, self._answers = SPAWN.Event(), SPAWN.Queue()
        given = (size, self._begins, self._answers)
        self._process = SPAWN.Process(target=target, args=given, daemon=True)
        self._process.start()

    def run(self) -> dict[str, Any]:
        """What it answers."""
        self._begins.set()
        found: dict[str, Any] = self._answers.get(timeout=150)
        self._process.join(30)
        return found


def together(size: int, later: Part, last: Part) -> dict[str, Any]:
    """Two processes at once, one that comes later, and one after both were killed."""
    meeting, answers = SPAWN.Barrier(3), SPAWN.Queue()
    processes = [
        SPAWN.Process(target=user, args=(size, meeting, answers), daemon=True) for _ in range(2)
    ]
    for process in processes:
        process.start()
    meeting.wait(120)
    before = (available_memory() or 0) / 1e9
    for _ in range(3):
        meeting.wait(120)
    both = [answers.get(timeout=30) for _ in processes]
    found: dict[str, Any] = {"left_before_gb": round(before, 2), "processes": both}
    found["joined_later"] = later.run()
    for process in processes:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    left = remove_leftovers(dry_run=True)
    found["left_by_killed_gb"] = [round(each.size / 1e9, 3) for each in left]
    found["after_both_were_killed"] = last.run()
    found["left_over"] = [str(each.path) for each in remove_leftovers()]
    return found


SPAWN = multiprocessing.get_context("spawn")


def main(out: Path, size: int, compared: int) -> None:
    """Run all parts; one that fails leaves the others as they are."""
    document: dict[str, Any] = {
        "benchmark": "shared_host",
        "about": (__doc__ or "").strip().splitlines()[0],
        "machine": machine(),
        "versions": versions(),
        "commit": os.environ.get("ENGRAM_COMMIT") or commit(),
        "bytes": size,
        "compared_bytes": compared,
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total,
    }
    if device().type == "cuda":
        document["machine"]["gpu"] = torch.cuda.get_device_name()
    try:
        check_room([what(2**60 // RECORD * RECORD)])
    except EngramError as error:
        document["too_small"] = str(error)
    later, last, looking = Part(late, size), Part(late, size), Part(looked_up, compared)
    for name, part in (
        ("together", lambda: together(size, later, last)),
        ("look_ups", looking.run),
    ):
        begin = time.perf_counter()
        try:
            document[name] = part()
        except BaseException:
            document[name] = {"failed": traceback.format_exc()}
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
        print(json.dumps(document[name], indent=1), flush=True)
        document["cases"] = list(cases(document))
        out.write_text(json.dumps(document, indent=1) + "\n")


def cases(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what was measured as the page of benchmarks has it."""
    found = document.get("together", {})
    if "processes" in found:
        first, second = sorted(found["processes"], key=lambda own: not own["filled"])
        size = document["bytes"] / 1e9
        yield {
            "name": f"start-up with {size:.1f} GB of rows",
            "amount": size,
            "unit": "GB",
            "runs": 1,
            "notes": _memory_notes(found, first, second),
            "rows": [
                _row(name, own["ready_s"], size, first["ready_s"])
                for name, own in (
                    (f"first process, reserved after {first['reserved_s']} s, filled after "
                     f"{first['filled_s']} s", first),
                    ("second process, started at the same time", second),
                    ("third process, started when the copy was whole", found["joined_later"]),
                    ("after the first two were killed (kill -9)", found["after_both_were_killed"]),
                )
            ],
        }  # fmt: skip
    for each in document.get("look_ups", {}).get("cases", ()):
        yield {
            "name": f"look-ups, {each['tokens']:,} tokens a call",
            "amount": each["tokens"],
            "unit": "tokens",
            "runs": ROUNDS,
            "notes": f"{each['own_us']:,} us a call from this process's own memory, "
            f"{each['shared_us']:,} us from the shared copy; equal vectors: {each['equal']}.",
            "rows": [
                _row(name, each[key] / 1e6, each["tokens"], each["own_us"] / 1e6)
                for name, key in (("own memory", "own_us"), ("shared copy", "shared_us"))
            ],
        }


def _memory_notes(found: dict[str, Any], *both: dict[str, Any]) -> str:
    """What two processes take together."""
    grown = [own["memory_gb"]["pss"] - own["memory_before_gb"]["pss"] for own in both]
    less = found["left_before_gb"] - min(own["left_gb"] for own in both)
    return (
        f"PSS grows by {grown[0]:.1f} GB in the first process and {grown[1]:.1f} GB in the second, "
        f"{sum(grown):.1f} GB together; the machine has {less:.1f} GB less. Equal rows: "
        f"{all(own['equal'] for own in both)}. Left when both were killed: "
        f"{sum(found['left_by_killed_gb']):.1f} GB; left at the end: "
        f"{found['left_over'] or 'nothing'}."
    )


def _row(name: str, seconds: float, amount: float, baseline: float) -> dict[str, Any]:
    seconds = max(seconds, 1e-6)
    return {
        "name": name,
        "median_s": round(seconds, 7),
        "rate": round(amount / seconds, 2),
        "ratio": round(baseline / seconds, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", type=Path, default=RESULTS / "shared_host.json")
    parser.add_argument("--bytes", type=read_size, default=60 * 10**9)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    wanted = 4 * 10**6 if given.tiny else given.bytes
    free = min(
        shutil.disk_usage("/dev/shm").free,
        (available_memory() or wanted) - 16 * 2**30 * (not given.tiny),
    )
    whole = min(wanted, free) // RECORD * RECORD
    main(given.out, whole, min(whole, 4 * 10**9) // RECORD * RECORD)
