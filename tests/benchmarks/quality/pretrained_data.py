"""Token files for pretrained.py: two distant domains, and a third one.

    python tests/benchmarks/quality/pretrained_data.py CORPUS THIRD CHECKPOINT OUT [--tokens N]

CORPUS is a folder that tests/benchmarks/gather_corpus.py wrote; its documentation and manual pages
are the domain "docs", its Python sources the domain "python". THIRD is a folder of plain text
files that neither has anything to do with (we take Debian's package `fortunes`). CHECKPOINT's
tokenizer turns them into ids. A document is held out when the hash of its text says so, one in
forty. OUT gets docs-train, docs-held, python-train, python-held and third-held as .npy.xz, and
data.json with the number of tokens and bytes of each.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

DOMAINS = {"docs": ("docs", "manual"), "python": ("python",)}
HELD_OUT = 40  # one document in so many
HELD_TOKENS = 300_000  # no more than so many are kept of what is held out
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("third", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=12_000_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    encoder = Encoder(arguments.checkpoint)
    sizes = {}
    for domain, kinds in DOMAINS.items():
        texts = sorted(text for kind in kinds for text in documents(arguments.corpus / kind))
        held = [text for key, text in texts if is_held_out(key)]
        kept = [text for key, text in texts if not is_held_out(key)]
        sizes[f"{domain}-train"] = save(
            encoder, kept, arguments.out / f"{domain}-train.npy.xz", arguments.tokens
        )
        sizes[f"{domain}-held"] = save(
            encoder, held, arguments.out / f"{domain}-held.npy.xz", HELD_TOKENS
        )
    texts = [path.read_text(encoding="utf-8") for path in sorted(arguments.third.iterdir())]
    sizes["third-held"] = save(encoder, texts, arguments.out / "third-held.npy.xz", HELD_TOKENS)
    (arguments.out / "data.json").write_text(json.dumps(sizes, indent=1) + "\n")
    print(json.dumps(sizes, indent=1))


class Encoder:
    """A checkpoint's tokenizer; documents begin with its first token, or end with its last."""

    def __init__(self, checkpoint: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.tokenizer.no_truncation()
        config = json.loads((checkpoint / "config.json").read_text())
        begins = self.tokenizer.encode("a").ids[0] == config["bos_token_id"]
        self.end = [] if begins else [config["eos_token_id"]]
        self.dtype = np.uint16 if config["vocab_size"] <= 2**16 else np.uint32

    def encode(self, texts: list[str]) -> Iterator[np.ndarray]:
        for encoding in self.tokenizer.encode_batch_fast(texts):
            yield np.array([*encoding.ids, *self.end], dtype=self.dtype)


def documents(folder: Path) -> Iterator[tuple[bytes, str]]:
    """(hash, text) of every document: sorted, they lie in an order that mixes the kinds."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                yield hashlib.sha256(text.encode()).digest(), text


def is_held_out(key: bytes) -> bool:
    return int.from_bytes(key[8:12], "little") % HELD_OUT == 0


def save(encoder: Encoder, texts: list[str], path: Path, tokens: int) -> dict[str, int]:
    """Encode documents until there are `tokens`, and write their ids in a row."""
    parts: list[np.ndarray] = []
    size = read = documents = 0
    for begin in range(0, len(texts), BATCH):
        batch = texts[begin : begin + BATCH]
        for text, ids in zip(batch, encoder.encode(batch), strict=True):
            if size >= tokens:
                break
            parts.append(ids)
            size += len(ids)
            read += len(text.encode())
            documents += 1
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(parts))
    path.write_bytes(lzma.compress(buffer.getvalue(), preset=6))
    return {"documents": documents, "bytes": read, "tokens": size}


if __name__ == "__main__":
    main()
