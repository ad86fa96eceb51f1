"""A process that is forked after the model was called has no threads that could read rows."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tiny_models import llama, logits, text, wake

from engram_cli.runtime import attach
from engram_cli.runtime.memory import Memory
from engram_cli.vocab.compress import CompressedVocab

IDS = text(200, 2, 60)
_HANGS = 60  # seconds after which a child that waits for ever is ended, which fails the test


def in_a_child(work: Callable[[], bool]) -> int:
    """0 where `work` is True in a forked child."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: what this is for
        child = os.fork()
    if not child:
        code = 1
        try:
            signal.alarm(_HANGS)
            code = int(not work())
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def nothing(memory: Memory, held: ExitStack) -> None:
    """The model was called before, no more."""


def asked_ahead(memory: Memory, held: ExitStack) -> None:
    memory.prefetch(IDS)


def locks_held(memory: Memory, held: ExitStack) -> None:
    """As by threads that the child has not."""
    assert memory.tiers is not None
    stores = memory.tiers.stores.values()
    locks = [memory.tiers._lock]
    locks += [lock for store in stores for lock in (store.staging_queue._lock, store.cold._lock)]
    locks += [store.cold.cache._lock for store in stores if hasattr(store.cold, "cache")]
    for lock in {id(lock): lock for lock in locks}.values():
        held.enter_context(lock)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("placement", ["disk", "host"])
@pytest.mark.parametrize("state", [nothing, asked_ahead, locks_held])
def test_a_child_reads_its_own_rows(
    state: Callable[[Memory, ExitStack], None],
    placement: str,
    bundle: Path,
    small_vocab: CompressedVocab,
) -> None:
    model = llama(small_vocab.vocab_size)
    memory = attach(model, bundle, placement=placement)
    wake(memory)
    expected = logits(model, IDS)

    def work() -> bool:
        same = torch.equal(logits(model, IDS), expected)
        before = memory.counters.ahead_used
        memory.prefetch(IDS)
        same = same and torch.equal(logits(model, IDS), expected)
        return same and memory.counters.ahead_used == before + 1

    with ExitStack() as held:
        state(memory, held)
        assert in_a_child(work) == 0
        assert in_a_child(lambda: in_a_child(work) == 0) == 0
    assert torch.equal(logits(model, IDS), expected)
