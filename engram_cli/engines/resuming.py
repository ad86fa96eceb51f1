"""Finds the checkpoint of an interrupted run of hash-stats for a request."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engram_cli.corpus.base import CorpusFile, CorpusOptions
from engram_cli.corpus.stamps import Stamps, request_of
from engram_cli.errors import ArtifactError, MismatchError
from engram_cli.files import sha256_bytes
from engram_cli.progress import Progress
from engram_cli.stats.checkpoint import Checkpoint, read_checkpoint, remove_checkpoint
from engram_cli.version import __version__


def resume_folder(out: Path) -> Path:
    """Where the checkpoints of the run that writes `out` lie."""
    return out.parent / f".{out.name}.resume"


def request_fingerprint(
    files: Sequence[CorpusFile],
    corpus: CorpusOptions,
    decisive: Mapping[str, Any],
    stamps: Stamps | None,
) -> str | None:
    """Digest all that decides the figures: files and their `stamps`, how they are read, the
    versions that read them, and what else is `decisive`, as plain values.

    None without `stamps`: when a file cannot be read twice or may have changed unseen.
    """
    if stamps is None:
        return None
    value = {
        "files": [[file.name, file.format] for file in files],
        "stamps": {name: astuple(stamp) for name, stamp in stamps.items()},
        "corpus": asdict(replace(corpus, errors="strict")),
        "versions": [__version__, *(version(each) for each in ("pyarrow", "tokenizers"))],
        **decisive,
    }
    return request_of(sha256_bytes(json.dumps(value, sort_keys=True).encode()), corpus)


def find_checkpoint(
    folder: Path, request: str, progress: Progress, *, restart: bool
) -> Checkpoint | None:
    """The checkpoint to go on from; one that is of no use is removed, and that is said."""
    if not folder.exists():
        return None
    why = "--restart"
    if not restart:
        try:
            found = read_checkpoint(folder, request)
        except MismatchError:
            why = "it is of other files or options"
        except ArtifactError as error:
            why = error.message
        else:
            if found is not None:
                return found
            why = ""  # a run that was killed before the first was whole
    if why:
        progress.note(f"counting from the start, the checkpoint in {folder} is dropped: {why}")
    remove_checkpoint(folder)
    return None


def tell_resumed(checkpoint: Checkpoint, size: int | None, progress: Progress) -> None:
    """Say from where the count goes on."""
    whole = "" if size is None else f" of {size / 1e6:,.0f} MB"
    progress.note(
        f"going on from a checkpoint: {checkpoint.tokens:,} tokens, "
        f"{checkpoint.size / 1e6:,.0f}{whole}, are counted"
    )
