"""Damage every artifact and corpus, and read it: anything but an EngramError is a finding.

    PYTHONPATH=tests python tests/fuzz/run.py --count 100000 --workers 2

Each case has a number, and the same number is always the same damage: `--only` runs one again with
its traceback. A case fails that raises anything else, takes more than 20 seconds or more than 1 GB.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import multiprocessing as mp
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from fuzz.mutate import mutate
from fuzz.targets import Target, chosen, make_targets

from engram_cli.errors import EngramError

MOST_SECONDS, MOST_BYTES = 20.0, 10**9
ADDRESS_SPACE = 8 * 2**30  # beyond what a worker has when it starts
CASES_A_WORKER = 500  # threads leave address space behind, though little memory
HANG = 120.0  # a worker that is inside compiled code for so long is killed


MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # where flushing costs nothing


class Overtime(BaseException):
    """Raised by the alarm; no reader may catch it."""


@dataclass(frozen=True)
class Finding:
    """A case that is not as it should be."""

    case: int
    target: str
    file: str
    what: str
    trace: str = ""


class Fuzzer:
    """Runs cases over the targets, in a scratch copy of each of their folders."""

    def __init__(self, targets: list[Target], scratch: Path, seed: str) -> None:
        self.targets, self.seed = targets, seed
        self._scratch = scratch
        self._copies: dict[Path, Path] = {}
        self._whole: dict[Path, dict[str, bytes]] = {}

    def run(self, case: int) -> tuple[str, str, Finding | None]:
        """(target, outcome, finding) of a case."""
        chance = random.Random(f"{self.seed}/{case}")
        target = self.targets[case % len(self.targets)]
        here = self._copy(target.base)
        file = chance.choice(target.files)
        whole = self._whole[target.base]
        (here / file).write_bytes(mutate(file, whole[file], chance))
        if target.forge is not None and chance.random() < 0.7:
            try:
                target.forge(here)
            except Exception:  # damaged beyond that
                (here / file).write_bytes(mutate(file, whole[file], chance))
        outcome, finding = self._read(case, target, file, here)
        self._restore(target.base)
        return target.name, outcome, finding

    def _read(self, case: int, target: Target, file: str, here: Path) -> tuple[str, Finding | None]:
        begin, memory = time.monotonic(), _peak()
        outcome, what, trace = "read", "", ""
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        try:
            target.read(here)
        except EngramError as error:
            outcome = type(error).__name__
            if not (error.message.strip() and error.hint.strip()):
                what = f"an error that says nothing: {error!r}"
        except Overtime:
            what, trace = "takes more than 20 s", traceback.format_exc()
        except BaseException as error:
            what, trace = f"{type(error).__name__}: {str(error)[:200]}", traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if not what and time.monotonic() - begin > MOST_SECONDS:
            what = f"takes {time.monotonic() - begin:.0f} s"
        if not what and _peak() - memory > MOST_BYTES:
            what = f"takes {(_peak() - memory) / 1e6:,.0f} MB"
        if what:
            return "finding", Finding(case, target.name, file, what, trace)
        return outcome, None

    def _copy(self, base: Path) -> Path:
        if base not in self._copies:
            self._copies[base] = self._scratch / f"{len(self._copies)}"
            shutil.copytree(base, self._copies[base])
            self._whole[base] = _contents(base)
        return self._copies[base]

    def _restore(self, base: Path) -> None:
        """Make the copy what it was, whatever the readers left there."""
        here, whole = self._copies[base], self._whole[base]
        for path in sorted(here.rglob("*"), reverse=True):
            name = path.relative_to(here).as_posix()
            if path.is_dir() and not path.is_symlink():
                if not (base / name).is_dir():
                    shutil.rmtree(path)
            elif name not in whole:
                path.unlink()
        for name, raw in whole.items():
            path = here / name
            if not path.is_file() or path.read_bytes() != raw:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(raw)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def limit() -> None:
    """Bound the memory of this process, and let the alarm raise `Overtime`."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESS_SPACE,) * 2)
    signal.signal(signal.SIGALRM, _overtime)
    # The program shows warnings of libraries; they are no errors.
    warnings.simplefilter("ignore")
    threading.excepthook = lambda args: None


def _overtime(*_: object) -> None:
    raise Overtime


def _work(
    targets: list[Target], seed: str, cases: list[int], until: float, results: Connection, now: Any
) -> None:
    limit()
    faulthandler.enable()
    with tempfile.TemporaryDirectory(dir=MEMORY) as scratch:
        fuzzer = Fuzzer(targets, Path(scratch), seed)
        for case in cases[:CASES_A_WORKER]:
            if time.monotonic() > until:
                break
            now.value, begin = case, time.monotonic()
            name, outcome, finding = fuzzer.run(case)
            # Sent before the next case begins, which may end the process.
            results.send((case, name, outcome, finding, time.monotonic() - begin))


def fuzz(
    targets: list[Target], *, count: int, seed: str, workers: int, seconds: float, first: int = 0
) -> Iterator[tuple[int, str, str, Finding | None, float]]:
    """(case, target, outcome, finding, seconds) of each; a worker that dies is a finding too."""
    context = mp.get_context("fork")
    until = time.monotonic() + seconds
    left = {w: list(range(first + w, first + count, workers)) for w in range(workers)}
    running: dict[int, tuple[Any, Any, Connection]] = {}

    def begin(worker: int) -> None:
        now = context.Value("q", -1)
        reader, writer = context.Pipe(duplex=False)
        args = (targets, seed, left[worker], until, writer, now)
        process = context.Process(target=_work, args=args, daemon=True)
        process.start()
        writer.close()
        running[worker] = process, now, reader

    for worker in range(workers):
        begin(worker)
    heard = {worker: (-1, time.monotonic()) for worker in running}
    while running:
        wait([reader for *_, reader in running.values()], timeout=0.2)
        for worker, (process, now, reader) in list(running.items()):
            ended = not process.is_alive()  # asked first: what it sent last is then in the pipe
            yield from _sent(reader)
            case = now.value
            if case != heard[worker][0]:
                heard[worker] = case, time.monotonic()
            hanging = case >= 0 and time.monotonic() - heard[worker][1] > HANG
            if not ended and not hanging:
                continue
            if hanging:
                os.kill(process.pid, signal.SIGABRT)  # faulthandler says where it was
            process.join()
            yield from _sent(reader)
            reader.close()
            del running[worker]
            left[worker] = [each for each in left[worker] if each > case]
            if process.exitcode != 0:
                name = targets[case % len(targets)].name
                why = "hangs" if hanging else f"ends the process with {process.exitcode}"
                yield case, name, "finding", Finding(case, name, "?", why), 0.0
            elif not left[worker] or case < 0 or time.monotonic() >= until:
                continue
            begin(worker)
            heard[worker] = -1, time.monotonic()


def _sent(reader: Connection) -> Iterator[tuple[int, str, str, Finding | None, float]]:
    """The results that wait in the pipe of a worker."""
    try:
        while reader.poll():
            yield reader.recv()
    except EOFError:  # the worker has ended
        return


def faulty_targets(folder: Path) -> list[Target]:
    """Readers with a fault each, and one without."""
    (folder / "x.bin").write_bytes(b"12345")
    held: list[bytes] = []
    readers: dict[str, Callable[[Path], object]] = {
        "raises": lambda here: {}["x"],
        "hangs": lambda here: [time.sleep(1) for _ in range(99)],
        "takes memory": lambda here: held.append(b"1" * (2 * MOST_BYTES)),
        "dies": lambda here: os.kill(os.getpid(), signal.SIGKILL),
        "reads": lambda here: (here / "x.bin").read_bytes(),
    }
    global MOST_SECONDS, MOST_BYTES
    MOST_SECONDS, MOST_BYTES = 1.0, MOST_BYTES // 10
    return [Target(name, folder, ("x.bin",), read) for name, read in readers.items()]


def main() -> int:
    """Run the cases and print what was found; 1 where anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--target", action="append", default=[])
    parser.add_argument("--self-test", action="store_true", help="read what must be found")
    parser.add_argument("--only", type=int, help="run one case, and print its traceback")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        make = faulty_targets if options.self_test else make_targets
        targets = chosen(make(Path(folder)), options.target)
        if options.only is not None:
            limit()
            fuzzer = Fuzzer(targets, Path(tempfile.mkdtemp(dir=folder)), options.seed)
            name, outcome, finding = fuzzer.run(options.only)
            print(name, outcome, finding and f"{finding.file}: {finding.what}\n{finding.trace}")
            return finding is not None
        outcomes: Counter[tuple[str, str]] = Counter()
        slowest: dict[str, float] = {}
        findings: dict[str, list[Finding]] = {}
        for case, name, outcome, finding, took in fuzz(
            targets,
            count=options.count,
            seed=options.seed,
            workers=options.workers,
            seconds=options.seconds,
            first=options.first,
        ):
            outcomes[name, outcome] += 1
            slowest[name] = max(slowest.get(name, 0.0), took)
            if finding is not None:
                place = finding.trace.strip().splitlines()[-4:-1]
                key = f"{finding.what[:80]} {' '.join(place)}"
                if key not in findings:
                    print(f"case {case}, {name}, {finding.file}: {finding.what}")
                    print(finding.trace[-900:], flush=True)
                findings.setdefault(key, []).append(finding)
    for name in sorted(slowest):
        own = {what: n for (target, what), n in sorted(outcomes.items()) if target == name}
        print(f"{name}: {json.dumps(own)}, slowest {slowest[name]:.1f} s")
    total = sum(outcomes.values())
    print(
        f"{total:,} mutations, {sum(map(len, findings.values()))} findings of {len(findings)} kinds"
    )
    for key, own in findings.items():
        print(f"  {len(own)} x {own[0].target}, {own[0].file}, case {own[0].case}: {key[:200]}")
    return bool(findings)


if __name__ == "__main__":
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")
    sys.exit(main())
