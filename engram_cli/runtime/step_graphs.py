"""Optimiser steps of rows as CUDA graphs, in a plain loop, where addresses come again.

A step of rows is a sort and a few kernels, about 15 launches, and the host takes longer to launch
them than a GPU to run them. torch gives the tensors of a loop of equal shapes the same addresses
step after step. So a step that comes a second time with the same addresses is captured, and from
then on replayed: one launch, the same kernels in the same order, and the same bits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from engram_cli.runtime.graph_capture import is_plain_call

_KEPT = 16  # steps that are known by their addresses, of all tables together
_TRIED = 32  # captures after which each must have been replayed
_WORTH = 4  # times, on average
Step = Callable[[], None]


def capture(step: Step, pool: Any) -> Step:
    """Return a replay of the CUDA graph of `step`, which is captured and not run."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Other threads may call CUDA meanwhile, such as those that load data.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            step()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


class StepGraphs:
    """The steps of one optimiser, by the addresses of all that they read and write.

    `capture` makes a replay of a step.
    """

    def __init__(self, capture: Callable[[Step, Any], Step] = capture) -> None:
        self._capture = capture
        self._known: OrderedDict[Hashable, Step | None] = OrderedDict()
        self._pools: dict[torch.device, Any] = {}
        self._rates: dict[Tensor, tuple[float, Tensor]] = {}
        self.captured = self.replayed = 0
        self._fails = False

    def rate(self, weight: Tensor, lr: float) -> Tensor:
        """Return the learning rate of a table, float64 [] on its device, always at one address."""
        last, held = self._rates.get(weight, (None, None))
        if held is None or held.device != weight.device:
            held = torch.full((), lr, dtype=torch.float64, device=weight.device)
        elif lr != last:
            held.fill_(lr)
        self._rates[weight] = lr, held
        return held

    def run(self, step: Step, tensors: Sequence[Tensor], constants: Hashable) -> None:
        """Run `step`, which reads and writes `tensors`, and nothing else but `constants`.

        The first of `tensors` says on which CUDA device. Nothing else may capture a graph now.
        """
        if is_plain_call(*tensors):
            key = (constants, *map(_place, tensors))
            replay = self._known.get(key) or self._new(key, step, tensors[0])
            if replay is not None:
                self._known.move_to_end(key)
                with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
                    replay()
                self.replayed += 1
                return
        step()

    def _new(self, key: Hashable, step: Step, weight: Tensor) -> Step | None:
        """Return the replay of a step that comes for the second time, None elsewhere."""
        if not self._worth:
            return None
        if key in self._known:
            with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]
                return self._captured(key, step, weight.device)
        self._known[key] = None
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return None

    def _captured(self, key: Hashable, step: Step, device: torch.device) -> Step | None:
        """Return the replay of a step, None where this machine captures none."""
        try:
            replay = self._capture(step, self._pool(device))
        except RuntimeError:  # nothing has run: the step is launched as ever
            self._fails = True
            return None
        self._known[key] = replay
        self.captured += 1
        return replay

    @property
    def _worth(self) -> bool:
        """Whether steps come again often enough for captures, which take as long as some steps."""
        if self._fails:
            return False
        return self.captured < _TRIED or self.replayed >= _WORTH * self.captured

    def _pool(self, device: torch.device) -> Any:
        """Return the memory that the steps of a device share, since they run one by one."""
        if device not in self._pools:
            self._pools[device] = torch.cuda.graph_pool_handle()
        return self._pools[device]


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
