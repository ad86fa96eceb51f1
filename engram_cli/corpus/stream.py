"""Reads a corpus as one stream of token blocks: reading, encoding and consuming run side by side.

Files are read in one thread and texts encoded in another, which uses all cores. The consumer gets
blocks in the order of the files. A few batches are held at a time, whatever the size of the corpus.
"""

from __future__ import annotations

import queue
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_cli.corpus.base import (
    BLOCK_TOKENS,
    NO_LABEL,
    CorpusFile,
    CorpusOptions,
    Document,
    Names,
    ReadPosition,
    TokenBlock,
    cut_names,
    runs,
)
from engram_cli.corpus.encode import Encoder
from engram_cli.corpus.readers import READERS
from engram_cli.corpus.text import cut_between
from engram_cli.errors import CorpusError, EngramError
from engram_cli.sizes import processors

T = TypeVar("T")
R = TypeVar("R")

_POLL = 0.1  # seconds: how late a thread may see that it is no longer wanted
# A batch of texts grows from the first to the second number of characters: something is to be seen
# soon, and later the encoder's threads are kept busy. `tokenizers` holds 100 bytes a token of it.
_FIRST_BATCH = 2**16
_FULL_BATCH = 2**19 * min(max(processors(), 2), 8)
_BATCH_TEXTS = 2**14
# Seconds to wait for threads when the run is interrupted: the encoder's is inside compiled code for
# at most a batch, the reader's may wait for a pipe forever.
_PATIENCE, _READER_PATIENCE = 10.0, 0.5


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BaseException


class _End:
    pass


class _Channel(Generic[T]):
    """The queue between a thread and its consumer."""

    def __init__(self, depth: int, cancel: threading.Event) -> None:
        self.items: queue.Queue[T | _Failure | _End] = queue.Queue(depth)
        self.unwanted = threading.Event()
        self.cancel = cancel

    def put(self, item: T | _Failure | _End) -> bool:
        """Hand over `item`; return False when the consumer is gone."""
        while not (self.unwanted.is_set() or self.cancel.is_set()):
            with suppress(queue.Full):
                self.items.put(item, timeout=_POLL)
                return True
        return False

    def get(self) -> T | _Failure | _End:
        """Return the next item; the end when everything was cancelled."""
        while not self.cancel.is_set():
            with suppress(queue.Empty):
                return self.items.get(timeout=_POLL)
        return _End()

    def run(self, source: Generator[T, None, None]) -> None:
        """Hand over all that `source` gives, then the end or the error it ended with."""
        last: _Failure | _End = _End()
        try:
            for item in source:
                if not self.put(item):
                    break
        except BaseException as error:
            last = _Failure(error)
        finally:
            source.close()
        self.put(last)


def prefetch(
    source: Generator[T, None, None],
    *,
    depth: int,
    cancel: threading.Event,
    patience: float,
    last: bool = False,
) -> Generator[T, None, None]:
    """Yield the items of `source`, made up to `depth` ahead in a thread.

    An error of the source is raised here. When this generator is closed the source is closed too,
    in its thread; up to `patience` seconds are waited for that, for the thread may hang in a read
    from a pipe and does not keep the program from ending. `cancel` is shared by all the threads of
    a line; only the `last` of them sets it, whose consumer is at the end of the chain.
    """
    channel: _Channel[T] = _Channel(depth, cancel)
    thread = threading.Thread(
        target=channel.run, args=(source,), daemon=True, name="engram-prefetch"
    )
    thread.start()
    try:
        while True:
            item = channel.get()
            if isinstance(item, _End):
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        channel.unwanted.set()
        if last:
            cancel.set()
        thread.join(patience)


def in_threads(
    items: Iterable[T], function: Callable[[T], R], threads: int
) -> Generator[R, None, None]:
    """Yield `function` of each item, in order; so many are computed at a time.

    An error of `items` is raised after the results of all items before it.
    """
    failed: EngramError | None = None
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="engram-ahead") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= threads:
                    yield waiting.popleft().result()
        except EngramError as error:
            failed = error
        while waiting:
            yield waiting.popleft().result()
    if failed is not None:
        raise failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """Documents of a partition; `files`: (index, key) of the first document of each file."""

    documents: list[Document]
    files: list[tuple[int, str]]
    partition: int
    read_position: ReadPosition


Batch: TypeAlias = Texts | TokenBlock
Encoded: TypeAlias = tuple[Texts, Any] | TokenBlock


class TokenStream:
    """The blocks of a corpus, read once from `blocks`, and what was met on the way."""

    def __init__(
        self,
        files: Sequence[CorpusFile],
        options: CorpusOptions,
        encoder: Encoder | None,
        read_position: ReadPosition | None = None,
        *,
        begins: Sequence[int] = (0,),
    ) -> None:
        """`encoder` may be None when no file holds texts. `begins`: the indices of the files that
        begin a partition, as in `corpus.partitions.Plan`; no block is of two of them. What is
        before `read_position` is left out: the file there is read from its beginning, but neither
        encoded nor handed on."""
        self._read_position = read_position = read_position or ReadPosition()
        self.empty_files = read_position.empty_files
        self.empty_documents = read_position.empty_documents  # texts in files that hold others
        self.cuts = read_position.cuts  # where long documents were cut
        self._files = files
        self._begins = begins
        self._options = options
        self._encoder = encoder
        self._open = read_position.open  # a document has begun of which no token was seen
        self._before = read_position.before  # the tokens of the current document before the batch

    def blocks(self) -> Generator[TokenBlock, None, None]:
        """Yield blocks of at most about `BLOCK_TOKENS` tokens. Raises CorpusError, VocabularyError.

        Close the generator to stop the threads.
        """
        cancel = threading.Event()
        ids = self._encoder is None
        batches = prefetch(
            self._batches(), depth=2, cancel=cancel, patience=_READER_PATIENCE, last=ids
        )
        encoded = self._encode(batches)
        if not ids:  # else there is nothing to encode, and one thread less to wait for
            encoded = prefetch(encoded, depth=1, cancel=cancel, patience=_PATIENCE, last=True)
        with closing(encoded):
            for item in encoded:
                if isinstance(item, TokenBlock):
                    yield replace(item, read_position=self._with_position(item.read_position))
                else:
                    yield from self._assemble(*item)

    def _batches(self) -> Generator[Batch, None, None]:
        """Texts gathered into batches, token blocks as they come, in the order of the files."""
        held = _Held()
        enough, at = _FIRST_BATCH, self._read_position
        for index, file in enumerate(self._files[at.file :], at.file):
            if index > at.file:
                at = ReadPosition(file=index)
            partition = bisect_right(self._begins, index) - 1
            if held.documents and held.partition != partition:
                yield held.batch(self._counted(at))
            items = READERS.load(file.format).read(file, self._options)
            end = ""  # of the piece before, also of one that was read before
            for number, item in enumerate(items):
                if number < at.items:
                    end = "" if isinstance(item, TokenBlock) else item.text[-1:]
                    continue
                if isinstance(item, TokenBlock):
                    if held.documents:
                        yield held.batch(self._counted(at))
                    at = replace(at, items=at.items + 1, blank=at.blank and not len(item.ids))
                    yield replace(
                        item,
                        files=((0, file.key),),
                        partition=partition,
                        read_position=self._counted(at),
                    )
                    continue
                if item.text and at.blank:
                    self.empty_documents += at.items  # before it in the file: all of them empty
                elif not item.text and not at.blank:
                    self.empty_documents += item.first
                held.take(item, file.key, partition)
                if not item.first:
                    self.cuts += cut_between(end, item.text)
                end = item.text[-1:]
                at = replace(at, items=at.items + 1, blank=at.blank and not item.text)
                if held.characters >= enough or len(held.documents) >= _BATCH_TEXTS:
                    yield held.batch(self._counted(at))
                    enough = min(2 * enough, _FULL_BATCH)
            self.empty_files += at.blank
        if held.documents:
            yield held.batch(self._counted(ReadPosition(file=len(self._files))))

    def _counted(self, read_position: ReadPosition) -> ReadPosition:
        return replace(
            read_position,
            empty_files=self.empty_files,
            empty_documents=self.empty_documents,
            cuts=self.cuts,
        )

    def _with_position(self, read_position: ReadPosition | None) -> ReadPosition | None:
        """Return `read_position` with what the consumer's side knows."""
        return (
            None
            if read_position is None
            else replace(read_position, open=self._open, before=self._before)
        )

    def _encode(self, batches: Generator[Batch, None, None]) -> Generator[Encoded, None, None]:
        with closing(batches):
            yield from map(self._encode_batch, batches)

    def _encode_batch(self, batch: Batch) -> Encoded:
        if isinstance(batch, TokenBlock):
            return batch
        if self._encoder is None:
            raise CorpusError(
                f"{batch.documents[0].file} holds text, but no tokenizer was given",
                "give a tokenizer.json with --tokenizer",
            )
        return batch, self._encoder.encode([each.text for each in batch.documents])

    def _assemble(self, batch: Texts, encoded: Any) -> Iterator[TokenBlock]:
        assert self._encoder is not None
        documents = batch.documents
        ids, begins = self._encoder.flatten(encoded)
        starts = self._starts(documents, begins)
        size = sum(document.size for document in documents)
        locate = partial(_locate, documents, begins, self._before)
        files = _placed(batch.files, begins)
        labels: Names = ()
        if self._options.label is not None:
            labels = runs([each.label or NO_LABEL for each in documents], begins.tolist())
        total = len(ids)
        last = np.flatnonzero(starts)[-1:]
        self._before = total - int(last[0]) if len(last) else self._before + total
        for begin in range(0, max(total, 1), BLOCK_TOKENS):
            end = min(begin + BLOCK_TOKENS, total)
            part = size * end // total - size * begin // total if total else size
            yield TokenBlock(
                ids=ids[begin:end],
                starts=starts[begin:end],
                size=part,
                locate=partial(_shifted, locate, begin),
                files=cut_names(files, begin, end) or ((0, batch.files[0][1]),),
                labels=cut_names(labels, begin, end),
                partition=batch.partition,
                read_position=self._with_position(batch.read_position) if end == total else None,
            )

    def _starts(self, documents: list[Document], begins: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return bool[T]: the first token since a document began, which may have been in a piece,
        or in documents, without a token."""
        starts = np.zeros(int(begins[-1]), dtype=np.bool_)
        begun = np.cumsum([self._open, *(document.first for document in documents)])[1:]
        filled = np.flatnonzero(np.diff(begins))
        before = np.concatenate([[0], begun[filled]])
        starts[begins[filled[np.diff(before) > 0]]] = True
        self._open = bool(begun[-1] > before[-1])
        return starts


class _Held:
    """The texts gathered so far, all of one partition."""

    def __init__(self) -> None:
        self.documents: list[Document] = []
        self.characters = self.partition = 0
        self._files: list[tuple[int, str]] = []

    def take(self, document: Document, key: str, partition: int) -> None:
        """Add a document of the file with that key."""
        if not self._files or self._files[-1][1] != key:
            self._files.append((len(self.documents), key))
        self.documents.append(document)
        self.characters += len(document.text)
        self.partition = partition

    def batch(self, read_position: ReadPosition) -> Texts:
        """Return all documents; none is held afterwards."""
        found = Texts(
            documents=self.documents,
            files=self._files,
            partition=self.partition,
            read_position=read_position,
        )
        self.documents, self._files, self.characters = [], [], 0
        return found


def _placed(names: list[tuple[int, str]], begins: NDArray[np.int64]) -> list[tuple[int, str]]:
    """Return where the tokens of each file begin; `names` by their first document. Files without a
    token are left out."""
    stops = [*(at for at, _ in names[1:]), len(begins) - 1]
    return [
        (int(begins[first]), name)
        for (first, name), stop in zip(names, stops, strict=True)
        if begins[first] < begins[stop]
    ]


def _locate(documents: list[Document], begins: NDArray[np.int64], before: int, index: int) -> str:
    which = int(np.searchsorted(begins, index, side="right")) - 1
    first = which
    while first > 0 and not documents[first].first:
        first -= 1
    position = index - int(begins[first]) + (0 if documents[first].first else before)
    document = documents[which]
    place = f", {document.place}" if document.place else ""
    return f"{document.file}{place}, position {position}"


def _shifted(locate: partial[str], begin: int, index: int) -> str:
    return locate(begin + index)
