"""Two versions of the package, timed in turn: what a change costs or gains.

    python tests/benchmarks/versions.py OLD_TREE NEW_TREE RESULT.json hashing counting tables ...

A tree is a checkout. Each gets a process of its own that builds the cases of its own benchmark
modules (or, for a name that ends in .py, of that one file for both); the two never run at the same
time, and take turns in an order that changes every round. Only engram's own contestants run, and
only those that both trees have. A ratio above 1 means that the new tree is slower.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PEERS = ("NumPy", "Numba", "np.", "ndarray", "zarr", "engramdb", "plain files", "tokenizers alone")
ROUNDS = 7


class Worker:
    """A process that runs the cases of one tree on request."""

    def __init__(self, tree: Path, module: str) -> None:
        parts = [
            tree,
            tree / "tests",
            tree / "tests" / "benchmarks",
            os.environ.get("PYTHONPATH", ""),
        ]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, parts))}
        command = [sys.executable, str(HERE / "versions.py"), "--work", module]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def case(self) -> tuple[str, list[str]] | None:
        """The name and the contestants of the next case."""
        return self._ask(None)

    def seconds(self, contestant: str) -> float:
        """Run one contestant of the case once; its seconds."""
        return float(self._ask(contestant))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, what: str | None) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise SystemExit(f"a worker ended with {self._process.wait()}")


def work(module_name: str) -> None:
    """Serve `Worker`: name the contestants, then run what is asked for."""
    sys.path.remove(str(HERE))  # of the driver; the tree has its own
    if module_name.endswith(".py"):
        spec = importlib.util.spec_from_file_location("cases_of_a_file", module_name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(module_name)
    # A generator may keep files for as long as a case is measured.
    cases = iter(module.cases())
    for line in sys.stdin:
        contestant = json.loads(line)
        if contestant is None:
            case = next(cases, None)
            answer: Any = case and (case.name, [name for name in case.contestants if _ours(name)])
        else:
            if case.before is not None:
                case.before()
            begin = time.perf_counter()
            told = case.contestants[contestant]()
            passed = time.perf_counter() - begin
            # A contestant may time itself, on a device for example, and return its seconds.
            answer = told if isinstance(told, float) else passed
        print("answer", json.dumps(answer), flush=True)


def _ours(contestant: str) -> bool:
    return not contestant.startswith(PEERS)


def measure(trees: list[Path], module: str, rounds: int) -> list[dict[str, Any]]:
    """Time both trees on every contestant of a module that both have."""
    workers = [Worker(tree, module) for tree in trees]
    rows = []
    while (cases := [worker.case() for worker in workers]) and None not in cases:
        (case, _), names = cases[0], [name for name in cases[1][1] if name in cases[0][1]]
        if cases[1][0] != case:
            raise SystemExit(f"the trees differ in their cases: {case}, {cases[1][0]}")
        rows += [compare(workers, case, contestant, rounds) for contestant in names]
    for worker in workers:
        worker.close()
    return [{"benchmark": Path(module).stem} | row for row in rows]


def compare(workers: list[Worker], case: str, contestant: str, rounds: int) -> dict[str, Any]:
    """Time one contestant of both trees in turn."""
    times: list[list[float]] = [[], []]
    for turn in range(-1, rounds):  # the first round warms up
        for which in (0, 1) if turn % 2 else (1, 0):
            seconds = workers[which].seconds(contestant)
            if turn >= 0:
                times[which].append(seconds)
    before, after = map(statistics.median, times)
    fastest = min(times[1]) / min(times[0])
    print(f"{case[:60]:60} {contestant[:28]:28} {before:10.6f} {after:10.6f}", end=" ")
    print(f"{after / before:6.3f} {fastest:6.3f}", flush=True)
    return {
        "case": case,
        "contestant": contestant,
        "before_s": before,
        "after_s": after,
        "ratio": round(after / before, 3),
        "fastest_ratio": round(fastest, 3),
    }


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", metavar="MODULE", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("arguments", nargs="*", metavar="OLD NEW RESULT NAME")
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    old, new, result, *names = options.arguments
    trees = [Path(old).resolve(), Path(new).resolve()]
    sys.path.insert(0, str(HERE))
    import runner

    rows = [row for name in names for row in measure(trees, name, options.rounds)]
    document = {
        "benchmark": "versions",
        "about": (__doc__ or "").splitlines()[0],
        "machine": runner.machine(),
        "versions": runner.versions(),
        "rows": rows,
    }
    Path(result).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
