"""Other programs' files for the fuzzer: one small artifact of each format, and how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from formats import checkpoints, small_artifacts

from engram_cli.commands.inspect import inspect
from engram_cli.commands.requests.reading import InspectRequest, VerifyRequest
from engram_cli.commands.verify import verify
from engram_cli.vocab.compress import compress_vocab

Entry = tuple[str, Path, Callable[[Path], object]]


def foreign_artifacts(folder: Path, tokenizer: Path) -> Iterator[Entry]:
    """Yield (name, folder of the artifact, reader of a copy of that folder)."""
    vocab = compress_vocab(tokenizer)
    rows = np.array([7, 3, 90])
    payload = np.zeros((3, 34), dtype=np.uint8)
    checkpoints.deepseek_v41(folder / "deepseek", vocab, None)
    checkpoints.qwen_ple(folder / "qwen")
    checkpoints.longcat(folder / "longcat")
    small_artifacts.demo(folder / "demo", vocab)
    small_artifacts.store(folder / "engramdb")
    small_artifacts.engram_peft(folder / "engram-peft", vocab)
    files = {"gguf": "m.gguf", "pleo": "m.pleo", "plepatch": "m.plepatch"}
    for name in files:
        (folder / name).mkdir()
    checkpoints.deepseek_gguf(folder / "gguf" / "m.gguf", vocab, "llama.cpp")
    small_artifacts.pleo(folder / "pleo" / "m.pleo", rows, np.ones((3, 4)))
    small_artifacts.plepatch(folder / "plepatch" / "m.plepatch", rows, payload, dim=32, kind=8)
    for name in ("deepseek", "qwen", "longcat", "demo", "engramdb", "engram-peft", *files):

        def read(here: Path, file: str = files.get(name, ".")) -> None:
            verify(VerifyRequest(path=here / file, folder=here, threads=1))
            inspect(InspectRequest(path=here / file, folder=here, threads=1, rows=True))

        yield f"foreign {name}", folder / name, read
