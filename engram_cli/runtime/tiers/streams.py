"""Side streams of a CUDA device behind one door; on a CPU everything is done in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Mark:
    """A point in what a stream does; on a CPU one that is always passed."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self._event = event

    @property
    def address(self) -> int:
        """Where CUDA's event is, 0 on a CPU."""
        return 0 if self._event is None else int(self._event.cuda_event)

    def wait(self) -> None:
        """Block this thread until the point is passed."""
        if self._event is not None:
            self._event.synchronize()

    def hold_back(self, device: torch.device) -> None:
        """Let what the current stream of `device` gets from now on begin after the point."""
        if self._event is not None:
            torch.cuda.current_stream(device).wait_event(self._event)


class Side:
    """A stream beside the current one; `stream` is None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device

    @contextmanager
    def after_current(self) -> Iterator[None]:
        """What is launched inside begins when all that the current stream has now is done."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What is launched inside waits for nothing but this stream itself."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield

    def mark(self) -> Mark:
        """The point that this stream has reached when all launched so far is done."""
        return Mark(None if self.stream is None else self.stream.record_event())


def with_index(device: torch.device) -> torch.device:
    """A CUDA device by its number, as tensors name theirs."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def lend(*tensors: Tensor) -> None:
    """Tell torch that the current stream uses memory that may be another's."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def is_captured(device: torch.device) -> bool:
    """Whether the current stream of `device` is being captured into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
