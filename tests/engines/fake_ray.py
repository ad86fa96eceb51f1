"""The few functions of Ray that its engine uses, in this process: everything is pickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np

from engram_cli.engines.ray import RayEngine
from engram_cli.progress import SILENT, Progress

_OBJECTS: dict[int, tuple[bytes, list[bytes]]] = {}
_NUMBERS = count()


@dataclass(frozen=True)
class Reference:
    """A value that was pickled."""

    number: int


class FakeRay:
    """Runs every task when it is submitted; arrays are read-only, as in Ray's object store."""

    exceptions = SimpleNamespace(RayError=ConnectionError)

    def __init__(self, cpus: int = 3) -> None:
        self.cancelled: list[Any] = []
        self._cpus = cpus

    def nodes(self) -> list[dict[str, Any]]:
        resources = {"CPU": self._cpus, "memory": 2**40, "object_store_memory": 4 * 4096}
        return [{"Alive": True, "Resources": resources}]

    def put(self, value: Any) -> Reference:
        buffers: list[bytes] = []
        keep = lambda buffer: buffers.append(bytes(buffer.raw()))  # noqa: E731
        raw = pickle.dumps(value, protocol=5, buffer_callback=keep)
        reference = Reference(next(_NUMBERS))
        _OBJECTS[reference.number] = raw, buffers
        return reference

    def get(self, reference: Reference) -> Any:
        raw, buffers = _OBJECTS[reference.number]
        return pickle.loads(raw, buffers=buffers)

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def cancel(self, reference: Any, force: bool) -> None:
        self.cancelled.append(reference)
        if isinstance(reference, Generator):
            reference.close()

    def remote(self, function: Callable[..., Any]) -> Any:
        def options(*, num_returns: int | str, **how: Any) -> Any:
            def submit(*arguments: Any) -> Any:
                sent = [
                    each if isinstance(each, Reference) else self.put(each) for each in arguments
                ]
                found = function(*map(self.get, sent))
                if num_returns == "streaming":
                    return self._stream(found)
                return [self.put(each) for each in found]

            return SimpleNamespace(remote=submit)

        return SimpleNamespace(options=options)

    def _stream(self, items: Generator[Any, None, None]) -> Generator[Reference, None, None]:
        with closing(items):
            for item in items:
                yield self.put(item)


class InProcess(RayEngine):
    """The engine of a cluster without one."""

    def __init__(self, threads: int = 1, progress: Progress = SILENT, cpus: int = 3) -> None:
        self.ray = FakeRay(cpus)
        super().__init__(self.ray, threads, progress)

    @property
    def fetch(self) -> Callable[[Any], Any]:
        return fetched


def fetched(reference: Any) -> Any:
    """As `engines.ray.fetched`."""
    return np.array(FakeRay().get(reference))
