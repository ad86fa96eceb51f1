"""The gate, alone and with its convolution, on one GPU: torch, torch.compile, SGLang and engram.

    python tests/benchmarks/gpu_gate.py [RESULT.json]

bfloat16, 4 streams of 2,560; the sum with the hidden states comes out. Every contestant is a CUDA
graph, replayed in turn with the others, and must first equal the twin. SGLang's kernel takes part
where its wheel can be imported; it has no backward and no convolution.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import runner  # noqa: E402  # the folder is no package
import torch  # noqa: E402
from runtime.kernels.gate_cases import Call, GateCase, far, make_call  # noqa: E402
from torch import Tensor  # noqa: E402

from engram_cli.runtime import gate_reference, torch_ops_gate  # noqa: E402

ROUNDS, REPLAYS = 7, 20
WIDTH, STREAMS = 2560, 4
NEAR = 1e-2  # bfloat16


def main(result: Path, directions: Sequence[bool] = (False, True)) -> None:
    """Measure all cases, those with a backward pass where `directions` has True; write `result`."""
    copied = copy_rate()
    document = {
        "benchmark": "gpu_gate",
        "about": (__doc__ or "").splitlines()[0],
        "machine": runner.machine() | {"gpu": torch.cuda.get_device_name()},
        "versions": runner.versions() | _more_versions(),
        "commit": os.environ.get("ENGRAM_COMMIT") or runner.commit(),
        "copy_gb_s": round(copied / 1e9),
        "cases": [
            measure(tokens, conv, backward, copied)
            for conv in (False, True)
            for tokens in (4096, 16384)
            for backward in directions
        ],
    }
    result.write_text(json.dumps(document, indent=1) + "\n")


def measure(tokens: int, conv: bool, backward: bool, copied: float) -> dict[str, Any]:
    """The medians of one size."""
    case = GateCase(
        batch=2,
        count=tokens // 2,
        streams=STREAMS,
        width=WIDTH,
        dilation=3,
        conv=conv,
        dtype=torch.bfloat16,
        tail=64 if conv else None,
    )
    call = make_call(case, "cuda")
    runs = contestants(call, conv, backward)
    replays = {name: capture(run) for name, run in runs.items()}
    expected = [x.clone() for x in _flat(replays["torch eager"])]
    for name in replays:
        for found, other in zip(_flat(replays[name]), expected, strict=True):
            if not far(found, other) < NEAR:
                raise SystemExit(f"{name} does not equal the twin: {far(found, other)}")
    times: dict[str, list[float]] = {name: [] for name in replays}
    names = list(replays)
    for turn in range(ROUNDS):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(replays[name][0]))
    least = least_bytes(tokens, backward)
    limit = least / copied
    medians = {name: statistics.median(found) for name, found in times.items()}
    what = "gate and convolution" if conv else "gate"
    name = f"{what}, {'forward and backward' if backward else 'forward'}, {tokens:,} tokens"
    rows = []
    for contestant, median in medians.items():
        rows.append(
            {
                "name": contestant,
                "median_s": round(median, 8),
                "min_s": round(min(times[contestant]), 8),
                "max_s": round(max(times[contestant]), 8),
                "rate": round(tokens / median),
                "ratio": round(medians["torch eager"] / median, 2),
                "of_copy_rate": round(least / median / copied, 3),
            }
        )
        print(f"{name:58} {contestant:14} {median * 1e6:9.1f} us {rows[-1]}"[:110], flush=True)
    return {
        "name": name,
        "amount": tokens,
        "unit": "tokens",
        "runs": ROUNDS,
        "notes": f"At least {least / 1e6:,.0f} MB must move: {limit * 1e6:,.0f} us at the "
        f"rate of a device copy ({copied / 1e9:,.0f} GB/s), "
        f"{limit / medians['torch.compile']:.2f} of torch.compile's time. engram takes "
        f"{medians['engram'] / medians['torch.compile']:.2f} of it.",
        "facts": {"least_bytes": least},
        "rows": rows,
    }


def least_bytes(tokens: int, backward: bool) -> int:
    """Each input read once, each output written once: hidden, keys, value; the sum; gradients."""
    row = tokens * WIDTH * 2
    forward = row * (STREAMS + (STREAMS + 1) + STREAMS)
    back = row * (STREAMS + STREAMS + (STREAMS + 1) + STREAMS + (STREAMS + 1))
    return forward + back * backward


def contestants(call: Call, conv: bool, backward: bool) -> dict[str, Callable[[], Any]]:
    """Calls that give the sum, or the gradients of all leaves."""
    torch._dynamo.reset()
    compiled = torch.compile(gate_reference.gate, dynamic=False)
    functions = {
        "torch eager": gate_reference.gate,
        "torch.compile": compiled,
        "engram": torch_ops_gate.run_gate,
    }
    runs: dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():
        runs[name] = _gradients(call, function) if backward else _forward(call, function)
    theirs = sglang_gate()
    if theirs is not None and not conv and not backward:
        own = call.weights
        hidden, projected = (x.detach().flatten(0, 1) for x in (call.hidden, call.projected))
        weights = own.query.detach(), own.key.detach()
        runs["SGLang"] = lambda: theirs(
            hidden, projected, *weights, own.eps, gate_reference.MIN_DOT
        )
    return runs


def _forward(call: Call, function: Any) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return call.run(function)[0]

    return run


def _gradients(call: Call, function: Any) -> Callable[[], list[Tensor]]:
    # Leaves of their own: a graph's gradients must not meet another's.
    own = replace(call)
    return lambda: own.gradients(function)


def sglang_gate() -> Any:
    """SGLang's fused gate, None where its wheel is not at hand."""
    try:
        from sglang.kernels.ops.embeddings.engram_gate import fused_engram_gate
    except ImportError:
        return None
    return fused_engram_gate


def capture(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A graph of a call, to be replayed, and its outputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = run()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, outcome


def seconds(replay: Callable[[], None]) -> float:
    """A replay's time, by events around several."""
    replay()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(REPLAYS):
        replay()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / REPLAYS


def copy_rate() -> float:
    """Bytes read and written a second by a device copy of 2 GB."""
    source = torch.randint(0, 255, (2 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source)) for _ in range(3)]
    return 2 * len(source) / statistics.median(times)


def _flat(captured: tuple[Any, Any]) -> list[Tensor]:
    outcome = captured[1]
    found = outcome if isinstance(outcome, list) else [outcome]
    return [x.reshape(-1) for x in found]


def _more_versions() -> dict[str, str]:
    found = {}
    for package in ("triton", "sglang"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    asked = [name for name in sys.argv[1:] if name != "--forward"]
    out = Path(asked[0]) if asked else runner.RESULTS / "gpu_gate.json"
    main(out, (False,) if "--forward" in sys.argv else (False, True))
