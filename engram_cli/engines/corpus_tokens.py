"""Reads a corpus into a token file: tasks for any engine, whose pieces come back in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from engram_cli.corpus.base import ReadPosition
from engram_cli.corpus.partitions import Plan
from engram_cli.corpus.stream import in_threads
from engram_cli.engines.base import Engine, Reading, Task, portable
from engram_cli.progress import SILENT, Progress
from engram_cli.stats.counting.memory import base_bytes
from engram_cli.table.inits.corpus.tokens import Piece, TokenWriter, piece_of

_PIECE = 2**20  # tokens of a piece from a worker, at least


def write_tokens(
    engine: Engine,
    reading: Reading,
    plan: Plan,
    writer: TokenWriter,
    progress: Progress,
    *,
    insisted: bool = False,
) -> None:
    """Write the corpus into `writer`, from where it stands; a cluster continues with the partition
    after the last whole one.

    `insisted`: a run that continues must take the same encoder. Raises CorpusError and TokenIdError
    naming the file and the place, EncoderDiffers, OutputError; EngineError where a cluster fails.
    """
    read_position, first = writer.read_position, 0
    if engine.remote:
        plan = portable(plan)
        after = _partition_after(plan, read_position)
        if after is None:
            progress.note("they end inside a partition, so the cluster starts over")
            writer.restart()
            progress.start("tokens of the corpus", plan.size, "bytes")
        first = after or 0
    keep = reading.encoder if insisted else writer.encoder
    reading = replace(reading, encoder=keep or reading.encoder, threads=engine.threads)
    memory = base_bytes(text=reading.tokenizer is not None)
    task = Task(function=token_pieces, cpus=engine.threads, memory=memory)
    if not engine.remote:
        pieces = engine.stream(task, [((reading, plan, None, read_position, progress), 0)])
    else:
        slots = engine.slots(task)
        progress.note(
            f"ray: tokens of {len(plan) - first} partitions, {slots} at a time, "
            f"{memory / 1e6:,.0f} MB each"
        )
        shared = engine.put(reading.sent())
        ends = [*plan.begins[1:], len(plan.files)]
        parts = range(first, len(plan))
        calls = [((shared, plan.part(at, at + 1), ends[at]), 0) for at in parts]
        pieces = engine.stream(task, calls)
    writer.write(pieces, keep, progress)


def token_pieces(
    reading: Reading,
    plan: Plan,
    end: int | None,
    read_position: ReadPosition | None = None,
    progress: Progress = SILENT,
) -> Iterator[Piece]:
    """Yield the words of some partitions, from `read_position` on.

    `end`: the index of the file after the partition that a worker reads. Then words come a few MB
    at a time, and reading can resume after the last ones alone.
    """
    with (
        reading.stream(plan, read_position, progress) as (stream, _),
        closing(stream.blocks()) as blocks,
    ):
        if end is None:
            yield from in_threads(
                blocks, lambda block: piece_of(block, reading.layout), reading.threads
            )
            return
        held: list[Piece] = []
        for block in blocks:
            held.append(piece_of(block, reading.layout))
            if sum(len(piece.words) for piece in held) >= _PIECE:
                yield _joined(held)
                held = []
        empty = Piece(words=np.empty(0, dtype=np.uint32), size=0)
        yield replace(_joined([*held, empty]), read_position=ReadPosition(file=end))


def _joined(pieces: Sequence[Piece]) -> Piece:
    words = np.concatenate([piece.words for piece in pieces])
    return Piece(words=words, size=sum(piece.size for piece in pieces))


def _partition_after(plan: Plan, read_position: ReadPosition | None) -> int | None:
    """Return the first partition that is not read yet; None where a part of it is."""
    if read_position is None:
        return 0
    if read_position.items or read_position.open:
        return None
    if read_position.file == len(plan.files):
        return len(plan)
    return plan.begins.index(read_position.file) if read_position.file in plan.begins else None
