"""Which steps of row optimisers become CUDA graphs; tests/gpu/test_training.py has real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from engram_cli.runtime import step_graphs
from engram_cli.runtime.step_graphs import StepGraphs


class Log:
    """A step, and captures of it that are replayed by calling it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        self.graphs = StepGraphs(self.capture)
        self.weight = torch.zeros(3, 2)

    def step(self) -> None:
        self.events.append("eager")

    def capture(self, step: Callable[[], None], pool: Any) -> Callable[[], None]:
        assert pool == "pool"
        self.events.append("capture")
        return lambda: self.events.append("replay")

    def run(self, *given: Tensor, constants: Any = 1.0) -> list[str]:
        self.events.clear()
        self.graphs.run(self.step, (self.weight, *given), constants)
        return list(self.events)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(monkeypatch)


def test_a_step_is_captured_when_its_addresses_come_again(log: Log) -> None:
    values, others = torch.ones(4, 2), torch.ones(4, 2)
    assert log.run(values) == ["eager"]
    assert log.run(values) == ["capture", "replay"]
    assert log.run(values) == ["replay"]
    assert log.run(others) == ["eager"]
    assert log.run(values) == ["replay"]
    assert log.run(others) == ["capture", "replay"]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values[:3],
        lambda values: values[:, :1],
        lambda values: values.t(),
        lambda values: values.view(torch.int32),
    ],
    ids=["rows", "columns", "strides", "dtype"],
)
def test_another_view_of_the_same_memory_is_another_step(
    change: Callable[[Tensor], Tensor], log: Log
) -> None:
    values = torch.ones(4, 4)
    log.run(values)
    log.run(values)
    assert log.run(change(values)) == ["eager"]


def test_other_constants_are_another_step(log: Log) -> None:
    values = torch.ones(4, 2)
    for _ in range(2):
        log.run(values)
    assert log.run(values, constants=2.0) == ["eager"]


def test_tensors_that_a_tracer_watches_are_never_captured(log: Log) -> None:
    class Traced(Tensor):
        pass

    values = torch.ones(4, 2).as_subclass(Traced)
    assert [log.run(values) for _ in range(3)] == [["eager"]] * 3


def test_few_steps_are_kept(log: Log) -> None:
    tensors = [torch.ones(2) for _ in range(step_graphs._KEPT + 1)]
    for tensor in tensors:
        log.run(tensor)
    assert log.run(tensors[1]) == ["capture", "replay"]
    assert log.run(tensors[0]) == ["eager"]


def test_captures_that_are_not_replayed_end(log: Log) -> None:
    held = [torch.ones(2) for _ in range(2 * step_graphs._TRIED)]
    for tensor in held:
        log.run(tensor)
        log.run(tensor)
    assert log.graphs.captured == step_graphs._TRIED
    assert log.run(held[0]) == ["eager"]


def test_where_nothing_can_be_captured_steps_are_launched(log: Log) -> None:
    def refuse(step: Callable[[], None], pool: Any) -> Callable[[], None]:
        log.events.append("refused")
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    log.graphs._capture = refuse
    values = torch.ones(4, 2)
    assert log.run(values) == ["eager"]
    assert log.run(values) == ["refused", "eager"]
    assert log.run(values) == ["eager"]
    assert (log.graphs.captured, log.graphs.replayed) == (0, 0)


def test_a_rate_changes_where_it_lies(log: Log) -> None:
    first = log.graphs.rate(log.weight, 0.1)
    again = log.graphs.rate(log.weight, 0.3)
    other = log.graphs.rate(torch.zeros(1), 0.3)
    assert first is again
    assert first.data_ptr() != other.data_ptr()
    assert (float(first), first.dtype) == (0.3, torch.float64)
