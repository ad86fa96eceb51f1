"""From one core to all: hash-stats of text and of token ids, and rows filled from a corpus.

    python tests/benchmarks/scaling.py [RESULT.json] [--share 0.5] [--folder FOLDER] [--prepare]

The text is Python's standard library, its tokenizer a byte-level BPE of 16,384 tokens learnt from
it, so that nothing else is needed. Each number of cores has a process of its own, which may use no
other cores. Each stage is warmed up on a small corpus first. --share makes all corpora smaller;
--folder keeps them, or takes those that it has; --prepare makes them, compiles all loops, and ends.
`scaling.json` is of a machine with two cores, `scaling_16.json` of one with sixteen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

TEXT, IDS, FILLED = 8 * 10**6, 64 * 10**6, 24 * 10**6  # characters, and tokens twice
VOCABULARY, LEARNT_FROM = 16_384, 4 * 10**6
TEXT_STAGE, IDS_STAGE, FILL_STAGE = "text to statistics", "ids to statistics", "rows filled"
ROUNDS = 3


def prepare(folder: Path, share: float) -> None:
    """Write a tokenizer, its vocabulary, the text, and ids of it, with smaller ones to warm up."""
    import numpy as np
    from texts import texts
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from engram_cli import compress_vocab, write_vocab

    found = texts(int(TEXT * share))
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
    for name, some in (("text", found), ("warm-text", found[:8])):
        lines = [json.dumps({"text": text}) + "\n" for text in some]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    parts = [[*each.ids, 1] for each in learnt.encode_batch(found)]  # 1: <eos>
    ids = np.resize(np.concatenate(parts), int(max(IDS, FILLED) * share))
    for name, count in (("ids", IDS), ("filled", FILLED), ("warm", 10**5 / share)):
        ids[: int(count * share)].astype(np.uint32).tofile(folder / f"{name}.bin")


def stages(folder: Path, cores: int) -> Iterator[tuple[str, Callable[[bool], int]]]:
    """Yield each stage: a call that gives how many tokens it read, of the small corpus if asked."""
    from engram_cli.commands.geometry import Geometry
    from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
    from engram_cli.commands.workspace import Workspace

    here = Workspace(folder)

    def count(source: Path, **options: Any) -> int:
        request = HashStatsRequest(
            sources=(source,),
            geometry=Geometry(layers=(1,), pad_id=0),
            workspace=here,
            threads=cores,
            out=folder / f"stats-{cores}",
            checkpoint_seconds=1e9,
            force=True,
            **options,
        )
        return hash_stats(request).tokens

    text = {"tokenizer": folder / "tokenizer.json", "encoder": "tokenizers"}
    raw = {"format": "nanogpt", "ids_dtype": "uint32", "document_end_id": 1}
    yield TEXT_STAGE, lambda small: count(folder / f"{'warm-' * small}text.jsonl", **text)
    yield IDS_STAGE, lambda small: count(folder / f"{'warm' if small else 'ids'}.bin", **raw)
    yield FILL_STAGE, lambda small: fill(folder, "warm" if small else "filled", cores)


def fill(folder: Path, name: str, cores: int) -> int:
    """Fill all rows of a layer with next tokens, a piece at a time; gives the tokens read."""
    import filling
    import numpy as np

    from engram_cli import hash_layout
    from engram_cli.corpus.base import TokenBlock
    from engram_cli.table.inits.corpus.tokens import TokenWriter, piece_of
    from engram_cli.vocab.parquet import read_map

    layout = hash_layout("engram-v1", read_map(folder / "engram-vocab.parquet"), layers=(1,))
    work = Path(tempfile.mkdtemp(dir=folder))
    ids = np.fromfile(folder / f"{name}.bin", dtype=np.uint32).astype(np.int32)
    block = TokenBlock(ids=ids, starts=ids == 1, size=1, locate=str)
    file = TokenWriter(work / "tokens", None).write((piece_of(b, layout) for b in [block]), None)
    filling._Fill(layout=layout, file=file, folder=work, threads=cores, columns=16)()
    shutil.rmtree(work)
    return file.tokens


def point(folder: Path, cores: int) -> None:
    """Measure each stage on so many cores, and print it as JSON."""
    rounds = 1 if cores == 1 else ROUNDS
    found = {}
    for name, run in stages(folder, cores):
        run(True)
        seconds = []
        for _ in range(rounds):
            begin = time.perf_counter()
            tokens = run(False)
            seconds.append(time.perf_counter() - begin)
        found[name] = {"tokens": tokens, "seconds": seconds}
    print(json.dumps(found))


def main(out: Path, share: float, kept: Path | None) -> None:
    """Run all numbers of cores, write the result after each."""
    from runner import commit, machine, versions

    whole = sorted(os.sched_getaffinity(0))
    numbers = sorted({2**k for k in range(12) if 2**k <= len(whole)} | {len(whole)})
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
        if not (folder / "ids.bin").exists():
            prepare(folder, share)
        print(f"prepared in {time.perf_counter() - begin:.1f} s", flush=True)
        for cores in [numbers[-1], *numbers[:-1]]:  # if time runs out, both ends are there
            begin = time.perf_counter()
            mine = whole[:cores]
            done = subprocess.run(
                [sys.executable, __file__, "--point", str(cores), str(folder)],
                preexec_fn=lambda mine=mine: os.sched_setaffinity(0, mine),
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
            print(f"{cores} cores: {time.perf_counter() - begin:.1f} s {points[cores]}", flush=True)


def cases(points: dict[int, Any]) -> list[dict[str, Any]]:
    """Return what was measured as the page of benchmarks has it."""
    found = []
    first = next(iter(points))
    for name in points[first]:
        tokens = points[first][name]["tokens"]
        medians = {n: statistics.median(each[name]["seconds"]) for n, each in points.items()}
        rows = [
            {
                "name": f"{n} core{'s' * (n > 1)}",
                "cores": n,
                "median_s": round(seconds, 4),
                "rate": round(tokens / seconds, 1),
                "ratio": round(medians[first] / seconds, 2),
            }
            for n, seconds in medians.items()
        ]
        found.append(
            {
                "name": name,
                "amount": tokens,
                "unit": "tokens",
                "runs": ROUNDS,
                "notes": f"{tokens:,} tokens, one layer of engram-v1; on one core, one run.",
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
    parser.add_argument("--point", type=int)
    given = parser.parse_args()
    if given.point:
        point(given.out, given.point)
    elif given.prepare:
        given.folder.mkdir(exist_ok=True)
        prepare(given.folder, given.share)
        for _, run in stages(given.folder, 1):
            run(True)
    else:
        main(given.out, given.share, given.folder)
