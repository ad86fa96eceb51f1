"""What is explored in tests: the artifacts of a small corpus, and a tiny model with a memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands.made import Made, make
from tiny_models import llama, make_bundle, spec_of, wake
from transformers import PreTrainedTokenizerFast

from engram_cli.commands.requests.explore import ExploreRequest
from engram_cli.explore.app import make_app
from engram_cli.explore.explorer import open_explorer
from engram_cli.explore.workers import Workers
from engram_cli.runtime import attach, save_engram
from engram_cli.vocab.compress import CompressedVocab

with warnings.catch_warnings():
    # Older versions name a class of anyio by an alias that newer anyio warns of.
    warnings.simplefilter("ignore", DeprecationWarning)
    from starlette.testclient import TestClient

TOKEN, PORT = "token-of-the-tests", 8123


@pytest.fixture(scope="session")
def explored(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    """A vocabulary, statistics and a table of a small corpus, not to be changed."""
    return make(tmp_path_factory.mktemp("explored") / "work", tokenizer_file, small_vocab)


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab, tokenizer_file: Path
) -> Path:
    """A tiny checkpoint with a bundle that matters."""
    folder = tmp_path_factory.mktemp("ckpt")
    model = llama(small_vocab.vocab_size)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file)).save_pretrained(folder)
    spec = spec_of(small_vocab, "engram-v1")
    wake(attach(model, make_bundle(folder / "fresh", spec)))
    save_engram(model, folder / "engram")
    return folder


def client_of(request: ExploreRequest, workers: Workers | None = None) -> TestClient:
    """A browser that has the page's address."""
    app = make_app(open_explorer(request), workers or Workers(), TOKEN, PORT)
    return TestClient(
        app,
        base_url=f"http://127.0.0.1:{PORT}/{TOKEN}/",
        raise_server_exceptions=False,
        follow_redirects=False,
    )


@pytest.fixture(scope="session")
def client(explored: Made) -> Iterator[TestClient]:
    """A browser on the page of the table."""
    with client_of(ExploreRequest(path=explored.table)) as found:
        yield found
