"""The engine of one machine: threads, one partition after the other, checkpoints on the way.

It needs no package and no cluster; one set of counters sees the whole corpus, so nothing is merged.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from threading import Event

from engram_cli.corpus.encode import EncoderDiffers, make_encoder
from engram_cli.corpus.stream import TokenStream
from engram_cli.engines.interruption import put_off
from engram_cli.engines.resuming import find_checkpoint, tell_resumed
from engram_cli.engines.work import Counted, Running, Work
from engram_cli.errors import ArtifactError, UndecodableError
from engram_cli.progress import Progress
from engram_cli.stats.checkpoint import Checkpoint, FolderCheckpointer, remove_checkpoint
from engram_cli.stats.collector_set import CollectorSet
from engram_cli.stats.count import CorpusCounter
from engram_cli.stats.partial import Partial


def count(work: Work, running: Running, progress: Progress) -> Counted:
    """Go on from a checkpoint or count from the start; when the fast encoder turns out to differ,
    count again from the start without it.

    Raises CorpusError, TokenIdError, InputError when memory does not suffice.
    """
    found = None
    if running.fingerprint is not None:
        folder = running.checkpoints
        found = find_checkpoint(folder, running.fingerprint, progress, restart=running.restart)
    try:
        return _count(work, running, None, found, progress).checked(work, progress)
    except EncoderDiffers as error:
        if work.plan.size is None:  # what came through a pipe is gone
            raise
        remove_checkpoint(running.checkpoints)
        progress.note(f"{error.message}: counting again from the start with tokenizers")
    return _count(work, running, "tokenizers", None, progress).checked(work, progress)


def _count(
    work: Work,
    running: Running,
    encoder_name: str | None,
    found: Checkpoint | None,
    progress: Progress,
) -> Counted:
    """`encoder_name`: None for the one that the checkpoint was made with, or is asked for."""
    begin = time.perf_counter()
    plan = work.plan
    counter, collector_set, found = _start_counter(work, running, found, progress)
    if found is not None:
        encoder_name = encoder_name or found.encoder
    progress.start("counting", plan.size, "bytes")
    if counter.size:
        progress.advance(counter.size)
    checkpointer, ending = None, Event()
    if running.fingerprint is not None:
        every = running.checkpoint_seconds
        folder = running.checkpoints
        checkpointer = FolderCheckpointer(
            folder, running.fingerprint, every, progress, encoder_name, ending
        )
    resumed = counter.tokens
    encoder = None
    if work.tokenizer is not None:
        name = encoder_name or running.encoder
        encoder = make_encoder(work.tokenizer, name, progress, size=plan.size)

    def saved_tokens() -> int:
        latest = None if checkpointer is None else checkpointer.tokens
        return resumed if latest is None else latest

    read_position = None if found is None else found.read_position
    stream = TokenStream(plan.files, work.options, encoder, read_position, begins=plan.begins)
    try:
        with nullcontext() if checkpointer is None else put_off(ending):
            counts = counter.count(stream.blocks(), progress, checkpointer)
    except KeyboardInterrupt:
        if kept := saved_tokens():
            progress.note(f"{kept:,} tokens are kept: the same command resumes from there")
        else:
            progress.note("no checkpoint was written yet: the same command starts over")
        raise
    except UndecodableError:
        if kept := saved_tokens():
            progress.note(
                f"{kept:,} tokens are kept: the same command with --errors replace continues there"
            )
        raise
    finally:
        if encoder is not None:
            encoder.close()
    return Counted(
        partial=Partial(counts=counts, collected=collector_set.partials()),
        empty_files=stream.empty_files,
        cuts=stream.cuts,
        encoder=None if encoder is None else encoder.name,
        seconds=time.perf_counter() - begin,
        resumed_tokens=resumed,
    )


def _start_counter(
    work: Work, running: Running, found: Checkpoint | None, progress: Progress
) -> tuple[CorpusCounter, CollectorSet, Checkpoint | None]:
    """What counts, as the checkpoint left it; without it, which is said, where it is unsound."""
    collector_set = work.collector_set()
    counter = work.counter(collector_set, running.threads)
    if found is not None:
        try:
            counter.restore(found.state)
        except ArtifactError as error:
            progress.note(f"counting from the start, the checkpoint is dropped: {error.message}")
            remove_checkpoint(running.checkpoints)
            return _start_counter(work, running, None, progress)
        found.state.clear()  # its arrays are mapped from a file that is to go
        tell_resumed(found, work.plan.size, progress)
    return counter, collector_set, found
