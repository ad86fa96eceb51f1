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


class Versions(Kernel):
    """Returns what it is launched with as the version that Triton chose; that is launched, too."""

    arg_names = ("out", "given", "count", "BLOCK", "WIDTH")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def launched(*arguments: Any, **constants: Any) -> Any:
            self.launches.append((grid, arguments, constants))
            return None if constants.get("interpreted") else self

        return launched


def test_a_launch_that_comes_again_is_one_of_the_version_that_was_chosen() -> None:
    kernel, (out, first, second) = Versions(), torch.zeros(3, 4)
    launches = tiles.Repeated(kernel)
    assert launches.find("key") is None
    launches.launch("key", (3, 2), (out, first), 7, WIDTH=1, BLOCK=8, num_warps=4)
    assert launches.find("other key") is None
    again = launches.find("key")
    assert again is not None
    again(out, second)
    assert kernel.launches == [
        ((3, 2), (out, first, 7), {"WIDTH": 1, "BLOCK": 8, "num_warps": 4}),
        ((3, 2, 1), (out, second, 7, 8, 1), {}),
    ]


def test_what_was_interpreted_or_has_no_key_does_not_come_again() -> None:
    launches, tensor = tiles.Repeated(Versions()), torch.zeros(4)
    launches.launch("key", (1,), (tensor, tensor), 7, BLOCK=8, WIDTH=1, interpreted=True)
    launches.launch(None, (1,), (tensor, tensor), 7, BLOCK=8, WIDTH=1)
    assert launches.find("key") is None
    assert launches.find(None) is None


def test_launches_beyond_those_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_KEPT", 2)
    launches, tensor = tiles.Repeated(Versions()), torch.zeros(4)
    for key in "abc":
        launches.launch(key, (1,), (tensor, tensor), 7, BLOCK=8, WIDTH=1)
    assert [launches.find(key) is not None for key in "abc"] == [False, False, True]
