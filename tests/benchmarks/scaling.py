"""From one core to all: hash-stats of text and of token ids, and rows filled from a corpus.

    python tests/benchmarks/scaling.py [RESULT.json] [--share 0.5] [--folder FOLDER] [--cores 1,4]

Each number of cores has a process of its own, which may use no other cores. Each stage reads two
corpora, one three times as large as the other: what the larger one takes longer is the rate of a
long corpus, and what is left is fixed work, such as loading code and writing the results. Both grow
with the number of cores. CPU time is that of the same difference, by thread.

The text is Python's standard library, again and again; its tokenizer a byte-level BPE of 16,384
tokens learnt from it, so that nothing else is needed. The ids are those of the text, again and
again with one token in twenty changed. --share makes all corpora smaller; --folder keeps them, or
takes those that it has; --prepare makes them, compiles all loops, and ends. `scaling.json` is of a
machine with two cores, `scaling_16.json` of one with sixteen.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

VOCABULARY, LEARNT_FROM, END = 16_384, 4 * 10**6, 1  # 1: <eos>
PARTS, LARGE = 48, 3  # parts of the largest corpus; a larger corpus is three times a smaller one
TEXT_PART, IDS_PART = 2 * 10**6, 16 * 10**6  # characters and tokens of a part
CHANGED = 20  # one token in so many
DEMO, V41 = "engram-v1", "deepseek-v4.1"
FEW = (1, 4, 16)  # cores for which V4.1's 1.5 GB of counters are worth their fixed time


def prepare(folder: Path, share: float) -> None:
    """Write a tokenizer, its vocabulary, and parts of text and of ids."""
    import numpy as np
    from texts import texts
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from engram_cli import compress_vocab, write_vocab

    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learnt.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learnt.train_from_iterator(texts(LEARNT_FROM), trainer)
    tokenizer = folder / "tokenizer.json"
    learnt.save(str(tokenizer))
    write_vocab(compress_vocab(tokenizer), folder / "engram-vocab.parquet", force=True)
    found = texts(20 * 10**6)
    endless = cycle(found)
    for part in range(PARTS):
        left = int(TEXT_PART * share)
        with (folder / f"text-{part}.jsonl").open("w", encoding="utf-8") as file:
            while left > 0:
                text = next(endless)
                file.write(json.dumps({"text": text}) + "\n")
                left -= len(text)
    own = [np.array([*each.ids, END], dtype=np.uint16) for each in learnt.encode_batch(found)]
    every, count = np.concatenate(own), int(IDS_PART * share)
    generator = np.random.default_rng(0)
    for part in range(PARTS):
        ids = np.resize(np.roll(every, -part * count), count)
        places = generator.integers(0, count, count // CHANGED)
        values = generator.integers(END + 1, VOCABULARY, len(places), dtype=np.uint16)
        ids[places] = np.where(ids[places] == END, END, values)
        ids.tofile(folder / f"ids-{part}.bin")


Run = Callable[[int], int]
"""Reads so many parts of a corpus; gives the number of tokens."""


def stages(folder: Path, cores: int) -> Iterator[tuple[str, Run, int]]:
    """Yield each stage with the parts of its smaller corpus."""
    yield "text to statistics", lambda n: count(folder, cores, DEMO, "text", n), cores
    yield "ids to statistics", lambda n: count(folder, cores, DEMO, "ids", n), cores
    if cores in FEW:
        name = "ids to statistics, V4.1"
        yield name, lambda n: count(folder, cores, V41, "ids", n), max(cores // 2, 1)
    yield "rows filled", lambda n: fill(folder, cores, n), max(cores // 2, 1)


def count(folder: Path, cores: int, scheme: str, kind: str, parts: int) -> int:
    """Run hash-stats on some parts."""
    from engram_cli.commands.geometry import Geometry
    from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
    from engram_cli.commands.workspace import Workspace

    options: dict[str, Any] = {"tokenizer": folder / "tokenizer.json", "encoder": "tokenizers"}
    if kind == "ids":
        options = {"format": "nanogpt", "ids_dtype": "uint16", "document_end_id": END}
    request = HashStatsRequest(
        sources=tuple(folder / name for name in names(kind, parts)),
        geometry=Geometry(scheme=scheme, layers=(1,), pad_id=0),
        workspace=Workspace(folder),
        threads=cores,
        out=folder / "stats",
        checkpoint_seconds=1e9,
        force=True,
        **options,
    )
    return hash_stats(request).tokens


def names(kind: str, parts: int) -> list[str]:
    """Return the files of the first parts."""
    return [f"{kind}-{part}.{'bin' if kind == 'ids' else 'jsonl'}" for part in range(parts)]


def fill(folder: Path, cores: int, parts: int) -> int:
    """Fill all rows of a layer with next tokens, as build-table does, and write none of them."""
    import filling

    from engram_cli import hash_layout
    from engram_cli.corpus.base import CorpusOptions
    from engram_cli.corpus.partitions import PARTITION_BYTES, plan_partitions
    from engram_cli.corpus.sources import find_sources
    from engram_cli.engines.base import Reading
    from engram_cli.engines.corpus_tokens import write_tokens
    from engram_cli.engines.local import LocalEngine
    from engram_cli.progress import SILENT
    from engram_cli.table.inits.corpus.tokens import TokenWriter
    from engram_cli.vocab.parquet import read_map

    layout = hash_layout(DEMO, read_map(folder / "engram-vocab.parquet"), layers=(1,))
    options = CorpusOptions(format="nanogpt", ids_dtype="uint16", document_end_id=END)
    sources = find_sources(tuple(folder / name for name in names("ids", parts)), options)
    plan = plan_partitions(sources.files, options, PARTITION_BYTES)
    work = Path(tempfile.mkdtemp(dir=folder))
    try:
        writer = TokenWriter(work / "tokens", None)
        reading = Reading(layout=layout, options=options, tokenizer=None, encoder="auto")
        write_tokens(LocalEngine(cores), reading, plan, writer, SILENT)
        assert writer.finished is not None
        made = filling._Fill(
            layout=layout,
            file=writer.finished,
            folder=work,
            threads=cores,
            columns=16,
            chunks=20,  # of 128 MB, as those of a table
        )
        made()
        return writer.finished.tokens
    finally:
        shutil.rmtree(work)


@contextmanager
def cpu_by_thread(found: dict[str, float]) -> Iterator[None]:
    """Add the seconds of CPU of each thread, by its name without a number, to `found`."""
    latest: dict[int, tuple[str, float]] = {}
    over = threading.Event()

    def look() -> None:
        called = {each.native_id: each.name for each in threading.enumerate()}
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError, IndexError):  # it ended meanwhile
                seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
                native = int(task.name)
                name = called.get(native) or latest.get(native, ("others",))[0]
                latest[native] = re.sub(r"[-_]?\d+(_\d+)?( .*)?$", "", name), seconds

    def watch() -> None:
        while not over.wait(0.02):
            look()

    look()
    before = dict(latest)
    watcher = threading.Thread(target=watch, name="watcher")
    watcher.start()
    try:
        yield
    finally:
        look()
        over.set()
        watcher.join()
        for native, (name, seconds) in latest.items():
            found[name] = found.get(name, 0.0) + seconds - before.get(native, (name, 0.0))[1]
        found.pop("watcher", None)


def point(folder: Path, cores: int) -> None:
    """Measure each stage on so many cores, and print it as JSON."""
    found = {}
    for name, run, parts in stages(folder, cores):
        run(1)  # loads the code
        sizes = []
        for size in (parts, LARGE * parts):
            cpu: dict[str, float] = {}
            begin = time.perf_counter()
            with cpu_by_thread(cpu):
                tokens = run(size)
            sizes.append({"tokens": tokens, "seconds": time.perf_counter() - begin, "cpu": cpu})
        found[name] = sizes
    print(json.dumps(found))


def main(out: Path, share: float, kept: Path | None, asked: list[int] | None) -> None:
    """Run all numbers of cores, write the result after each."""
    from runner import commit, machine, versions

    whole = sorted(os.sched_getaffinity(0))
    numbers = asked or sorted({2**k for k in range(12) if 2**k <= len(whole)} | {len(whole)})
    document: dict[str, Any] = {
        "benchmark": "scaling",
        "about": (__doc__ or "").strip().splitlines()[0],
        "machine": {**machine(), "cores": len(whole)},
        "versions": versions(),
        "commit": os.environ.get("ENGRAM_COMMIT") or commit(),
    }
    points: dict[int, Any] = {}
    with tempfile.TemporaryDirectory(prefix="engram-scaling-") as name:
        folder, begin = kept or Path(name), time.perf_counter()
        folder.mkdir(exist_ok=True)
        if not (folder / f"ids-{PARTS - 1}.bin").exists():
            prepare(folder, share)
        print(f"prepared in {time.perf_counter() - begin:.1f} s", flush=True)
        for cores in [numbers[-1], *numbers[:-1]]:  # if time runs out, both ends are there
            begin = time.perf_counter()
            mine = whole[:cores]
            environment = dict(os.environ)
            environment.pop("TOKENIZERS_PARALLELISM", None)  # as the command has it
            done = subprocess.run(
                [sys.executable, __file__, "--point", str(cores), str(folder)],
                preexec_fn=lambda mine=mine: os.sched_setaffinity(0, mine),
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                print(f"{cores} cores: {done.stderr[-2000:]}", flush=True)
                continue
            points[cores] = json.loads(done.stdout.splitlines()[-1])
            document["cases"] = cases(dict(sorted(points.items())))
            out.write_text(json.dumps(document, indent=1) + "\n")
            print(f"{cores} cores: {time.perf_counter() - begin:.1f} s", flush=True)
            for name, sizes in points[cores].items():
                print(f"  {name}: {json.dumps(row(cores, sizes))}", flush=True)


def row(cores: int, sizes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rate of a long corpus, the fixed seconds, and the CPU time by thread."""
    small, large = sizes
    tokens = large["tokens"] - small["tokens"]
    each = max((large["seconds"] - small["seconds"]) / tokens, 1e-12)
    cpu = defaultdict(float, large["cpu"])
    for name, seconds in small["cpu"].items():
        cpu[name] -= seconds
    return {
        "name": f"{cores} core{'s' * (cores > 1)}",
        "cores": cores,
        "median_s": round(large["seconds"], 4),
        "tokens": large["tokens"],
        "rate": round(1 / each, 1),
        "fixed_s": round(small["seconds"] - small["tokens"] * each, 2),
        "busy": round(sum(cpu.values()) / (tokens * each), 2),
        "cpu_ns": {
            name: round(1e9 * seconds / tokens, 2)
            for name, seconds in sorted(cpu.items(), key=lambda item: -item[1])
            if seconds > 5e-11 * tokens
        },
    }


def cases(points: dict[int, Any]) -> list[dict[str, Any]]:
    """Return what was measured as the page of benchmarks has it."""
    found = []
    for name in next(iter(points.values())):
        rows = [row(cores, each[name]) for cores, each in points.items() if name in each]
        rows = [{**each, "ratio": round(each["rate"] / rows[0]["rate"], 2)} for each in rows]
        tokens = max(each["tokens"] for each in rows)
        fixed = ", ".join(f"{each['fixed_s']:.1f}" for each in rows)
        found.append(
            {
                "name": name,
                "amount": tokens,
                "unit": "tokens",
                "runs": 1,
                "notes": f"Rates of a long corpus, up to {tokens:,} tokens, one layer; fixed work "
                f"comes on top: {fixed} s.",
                "rows": rows,
            }
        )
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", nargs="?", type=Path, default=HERE / "results" / "scaling.json")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--cores", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--point", type=int)
    given = parser.parse_args()
    if given.point:
        point(given.out, given.point)
    elif given.prepare:
        given.folder.mkdir(exist_ok=True)
        prepare(given.folder, given.share)
        for _, run, _ in stages(given.folder, 1):
            run(1)
    else:
        main(given.out, given.share, given.folder, given.cores)
