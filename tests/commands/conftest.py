"""The artifacts of a small corpus, made once: what looks at artifacts is tested on copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands.made import Made, make

from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="session")
def made_once(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    """The artifacts, not to be changed."""
    return make(tmp_path_factory.mktemp("made") / "work", tokenizer_file, small_vocab)


@pytest.fixture
def made(made_once: Made, tmp_path: Path) -> Made:
    """A copy of the artifacts, to be damaged."""
    folder = tmp_path / "work"
    shutil.copytree(made_once.folder, folder)
    return Made(
        folder=folder,
        **{
            name: folder / getattr(made_once, name).relative_to(made_once.folder)
            for name in ("vocab", "stats", "table", "bundle")
        },
    )
