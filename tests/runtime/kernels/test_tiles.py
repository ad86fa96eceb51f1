"""Kernels are launched on the device of their first argument, whatever the current device is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
tiles = pytest.importorskip("engram_cli.runtime.kernels.tiles")


class Kernel:
    """Keeps what it is launched with."""

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: self.launches.append((grid, arguments, constants))


def test_the_first_argument_says_which_device(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = []

    @contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        entered.append((tensor, len(kernel.launches)))
        yield

    kernel = Kernel()
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    first, second = torch.zeros(2, 4)
    tiles.launch(kernel, (3, 2), first, second, 7, BLOCK=8)
    assert kernel.launches == [((3, 2), (first, second, 7), {"BLOCK": 8})]
    assert entered == [(first, 0)]


def test_a_tensor_on_the_cpu_needs_no_device() -> None:
    kernel = Kernel()
    tiles.launch(kernel, (1,), torch.zeros(4), BLOCK=8)
    assert len(kernel.launches) == 1
