"""CUDA side streams and events; on a CPU they do nothing, because everything runs in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class CudaEvent:
    """An event of a stream; without one, as on a CPU, it has always happened."""

    def __init__(self, event: torch.cuda.Event | None) -> None:
        self._event = event

    @property
    def address(self) -> int:
        """The address of CUDA's event, 0 on a CPU."""
        return 0 if self._event is None else int(self._event.cuda_event)

    def wait(self) -> None:
        """Block this thread until the event has happened."""
        if self._event is not None:
            self._event.synchronize()

    def hold_back(self, device: torch.device) -> None:
        """Make later work of the current stream of `device` wait for the event."""
        if self._event is not None:
            torch.cuda.current_stream(device).wait_event(self._event)


class SideStream:
    """A stream in addition to the current one; `stream` is None on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device

    @contextmanager
    def after_current(self) -> Iterator[None]:
        """Launch on this stream, after all work that the current stream has now."""
        if self.stream is None:
            yield
            return
        self.stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self.stream):
            yield

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Launch on this stream, without waiting for others."""
        if self.stream is None:
            yield
            return
        with torch.cuda.stream(self.stream):
            yield

    def record(self) -> CudaEvent:
        """Record an event that happens when all work launched so far is done."""
        return CudaEvent(None if self.stream is None else self.stream.record_event())


def with_index(device: torch.device) -> torch.device:
    """Return a CUDA device with its index, as the devices of tensors have one."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def lend(*tensors: Tensor) -> None:
    """Tell torch that the current stream uses memory that another stream may have allocated."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def is_captured(device: torch.device) -> bool:
    """Whether the current stream of `device` is being captured into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
