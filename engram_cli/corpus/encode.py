"""Encodes texts to token ids, with `tokenizers` or, where it gives the same ids, `fastokens`.

The only file that imports `fastokens`. It is used when its ids equal those of `tokenizers` on texts
of this corpus and on a set of awkward ones. Later slices are compared again, one every few
megabytes.
"""

from __future__ import annotations

import importlib.util
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import CorpusError, DependencyError, InputError
from engram_cli.malloc import trim
from engram_cli.progress import Progress
from engram_cli.vocab.tokenizer import TokenizerFile

ENCODERS = ("auto", "tokenizers", "fast")
# Below this many bytes the reference is through before fastokens has loaded its vocabulary.
WORTH_LOADING = 4 * 2**20
# After so many characters so many are encoded by both: 0.2 % of the text, 5 % of the time.
_CHECK_EVERY, _SLICE = 2**22, 2**13
_AWKWARD = (
    " ",
    "  \n \n\n\t\tx  y   z\r\n\r\n  ",
    "I'm they'LL don't ΑΣΣ ǅ ß ﬁ Ⅷ ²³ 12345678901 1,234.5e-6 0x1F",
    "naïve nai\u0308ve café cafe\u0301 Å A\u030a \u1e9b\u0323 한국어 각",
    "\u200b\u200d\ufeff\u00a0\u2028\u3000|\u0000\u0007\u001b|\ue000\ufffd",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2620\ufe0f",
    "\U0001d518\U0001d52b العربية עברית हिन्दी ไทย 日本語 中文字",
    "camelCaseHTTPServer snake_case __init__ a.b->c::d &&|| ==/*x*/ // <!-- --> {}[]()",
)

_DISTRUST = "use --encoder tokenizers, and tell the makers of fastokens"

Tokens = tuple[NDArray[np.uint32], NDArray[np.int64]]


class EncoderDiffers(CorpusError):
    """The fast encoder gave other ids than the reference, after it had been trusted."""


class Encoder(Protocol):
    """Texts to token ids in two steps, so that two threads can share the work."""

    @property
    def name(self) -> str:
        """Return the name of the package that does the work."""

    def encode(self, texts: list[str]) -> Any:
        """Do the long step, which holds no lock."""

    def flatten(self, encoded: Any) -> Tokens:
        """Return what `encode` gave as ids uint32[T] of all texts, and where each begins
        int64[n+1]."""

    def close(self) -> None:
        """Stop what is running."""


class ReferenceEncoder:
    """`tokenizers`."""

    name = "tokenizers"

    def __init__(self, tokenizer: TokenizerFile) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> Any:
        """Return the encodings of `tokenizers`. Raises VocabularyError."""
        return self._tokenizer.encode_batch(texts)

    def flatten(self, encoded: Any) -> Tokens:
        """Their ids, one after another."""
        arrays = [np.array(each.ids, dtype=np.uint32) for each in encoded]
        begins = np.zeros(len(arrays) + 1, dtype=np.int64)
        np.cumsum([len(array) for array in arrays], out=begins[1:])
        return np.concatenate([np.empty(0, np.uint32), *arrays]), begins

    def close(self) -> None:
        """See `Encoder`; nothing is running."""


class FastEncoder:
    """`fastokens`, loaded from the same tokenizer.json."""

    def __init__(self, path: Path, changed: str | None = None) -> None:
        """`changed`: what to load in place of the file at `path`."""
        import fastokens

        if changed is None:
            self._backend = fastokens.Tokenizer.from_file(str(path))
        else:
            self._backend = fastokens.Tokenizer.from_json_str(changed)
        self._backend.no_truncation()
        self._backend.no_padding()
        self.name = f"fastokens {version('fastokens')}"

    def encode(self, texts: list[str]) -> Any:
        """Return the ids and where each text's begin, as bytes. Raises EncoderDiffers when it
        fails."""
        try:
            return self._backend.encode_batch_flat(texts)
        except BaseException as error:  # a panic of the Rust side is no Exception
            raise EncoderDiffers(
                f"{self.name} failed on a text that tokenizers takes: {error}", _DISTRUST
            ) from None

    def flatten(self, encoded: Any) -> Tokens:
        """Return the bytes as arrays, not copied."""
        ids, begins = encoded
        return np.frombuffer(ids, np.dtype("<u4")), np.frombuffer(begins, np.dtype("<i8"))


class FastLoader:
    """Loads the fast encoder in a thread: compiled code that lets others run.

    Start it before `tokenizers` reads the same file, which takes the interpreter lock, and before
    kernels are loaded.
    """

    def __init__(self, path: Path, changed: str | None = None) -> None:
        """`path`, `changed`: as `FastEncoder` takes them."""
        self.path, self._changed = path, changed
        self._loaded: FastEncoder | str = ""
        self._thread = threading.Thread(target=self._load, name="engram-load")
        self._thread.start()

    def wait(self) -> FastEncoder | str:
        """Return the encoder, or why there is none."""
        self._thread.join()
        return self._loaded

    def _load(self) -> None:
        try:
            self._loaded = FastEncoder(self.path, self._changed)
        except BaseException as error:  # a panic of the Rust side is no Exception
            self._loaded = f"cannot load this tokenizer ({error})"


class ChoosingEncoder:
    """The reference for the first batch; then the fast encoder, if it equals it there.

    The second batch waits until the fast encoder has loaded: the reference would take longer than
    the wait for what the other encodes in a twentieth of the time.
    """

    def __init__(
        self,
        tokenizer: TokenizerFile,
        progress: Progress,
        *,
        patient: bool,
        loader: FastLoader | None = None,
    ) -> None:
        """`patient`: the first batch waits, so that the choice is made whatever the corpus.

        `loader`: one that is loading this tokenizer already.
        """
        self._tokenizer = tokenizer
        self._reference = ReferenceEncoder(tokenizer)
        self._progress = progress
        self._patient = patient
        self._first: tuple[list[str], Any] | None = None  # the batch to decide by, and its ids
        self._trusted: FastEncoder | None = None
        self._decided = False
        self._unchecked = 0
        self._checks = 0
        if loader is None or tokenizer.changed or loader.path != tokenizer.path:
            changed = tokenizer.backend.to_str() if tokenizer.changed else None
            loader = FastLoader(tokenizer.path, changed)
        self._loader = loader

    @property
    def name(self) -> str:
        """Return the encoder in use."""
        return self._reference.name if self._trusted is None else self._trusted.name

    def encode(self, texts: list[str]) -> Any:
        """Encode with the encoder in use; compare the two. Raises EncoderDiffers."""
        if self._first is not None:
            self._decide(*self._first)
        if self._trusted is not None:
            encoded = self._trusted.encode(texts)
            self._spot_check(self._trusted, texts)
            return self._trusted, encoded
        expected = self._reference.encode(texts)
        if not self._decided:
            self._first = texts, expected
            if self._patient:
                self._decide(*self._first)
        return self._reference, expected

    def flatten(self, encoded: Any) -> Tokens:
        """Flatten what the encoder in use at the time gave."""
        encoder, raw = encoded
        tokens: Tokens = encoder.flatten(raw)
        return tokens

    def close(self) -> None:
        """Wait for the loading: a thread of compiled code must not outlive the program."""
        self._loader.wait()

    def _decide(self, texts: list[str], encoded: Any) -> None:
        """Trust the fast encoder from here on, or give it up and say why."""
        loaded, expected = self._loader.wait(), self._reference.flatten(encoded)
        self._decided, self._first = True, None
        trim()  # loading left 20 MB behind
        try:
            why = self._difference(loaded, texts, expected)
        except EncoderDiffers as error:
            why = error.message
        if why or isinstance(loaded, str):
            self._progress.note(f"encoder: tokenizers, because fastokens {why}")
            return
        self._trusted = loaded
        self._progress.note(
            f"encoder: {self.name}, equal to tokenizers on {len(expected[0]):,} tokens of this "
            "corpus"
        )

    def _difference(self, loaded: FastEncoder | str, texts: list[str], expected: Tokens) -> str:
        """Return why the fast encoder is not to be used, "" when it is."""
        if isinstance(loaded, str):
            return loaded
        probes = _probes(self._tokenizer)
        wanted = self._reference.flatten(self._reference.encode(probes))
        for batch, ids in ((texts, expected), (probes, wanted)):
            if not _same(loaded.flatten(loaded.encode(batch)), ids):
                return "gives other ids for this tokenizer"
        return ""

    def _spot_check(self, fast: FastEncoder, texts: list[str]) -> None:
        """Compare a slice of one text every now and then, each time elsewhere."""
        self._unchecked += sum(map(len, texts))
        if self._unchecked < _CHECK_EVERY:
            return
        self._unchecked = 0
        self._checks += 1
        text = texts[self._checks * 0x9E3779B1 % len(texts)]
        begin = self._checks * 0x85EBCA6B % max(len(text) - _SLICE, 1)
        part = [text[begin : begin + _SLICE]]
        wanted = self._reference.flatten(self._reference.encode(part))
        if not _same(fast.flatten(fast.encode(part)), wanted):
            raise EncoderDiffers(
                f"{fast.name} gives other ids than tokenizers for a text of this corpus", _DISTRUST
            )


def check_encoder(name: str) -> None:
    """Raise InputError for an unknown encoder, DependencyError for "fast" without fastokens."""
    if name not in ENCODERS:
        raise InputError(f"unknown encoder '{name}'", f"known: {', '.join(ENCODERS)}")
    if name == "fast" and not _fast_is_installed():
        raise DependencyError(
            "the fast encoder needs fastokens", "pip install 'engram-tables[fast]'"
        )


def _fast_is_installed() -> bool:
    return importlib.util.find_spec("fastokens") is not None


def make_encoder(
    tokenizer: TokenizerFile,
    name: str,
    progress: Progress,
    *,
    size: int | None,
    loader: FastLoader | None = None,
) -> Encoder:
    """Return the encoder called `name`; `size` is the bytes of the corpus, if known.

    `loader`: one that is loading this tokenizer already. Raises InputError for an unknown name,
    DependencyError for "fast" without fastokens.
    """
    check_encoder(name)
    if name == "auto" and not _fast_is_installed():
        progress.note("encoder: tokenizers; pip install 'engram-tables[fast]' is much faster")
    if not wants_fast(name, size):
        return ReferenceEncoder(tokenizer)
    return ChoosingEncoder(tokenizer, progress, patient=name == "fast", loader=loader)


def wants_fast(name: str, size: int | None) -> bool:
    """Return whether the encoder called `name` loads fastokens for a corpus of `size` bytes."""
    if name == "tokenizers" or not _fast_is_installed():
        return False
    return name == "fast" or size is None or size >= WORTH_LOADING


def _probes(tokenizer: TokenizerFile) -> list[str]:
    """Awkward texts, and the tokens that are matched before the text is split."""
    special = sorted(tokenizer.special_ids)[:1000]
    return [*_AWKWARD, *(f"a{tokenizer.token(i)} b {tokenizer.token(i)}" for i in special)]


def _same(one: Tokens, other: Tokens) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])
