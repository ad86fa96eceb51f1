"""Texts in; a tokenizer of 16,384 tokens and token files for training and for testing out.

    python tests/benchmarks/quality/prepare.py CORPUS OUT [--tokens 32000000]

CORPUS is a folder of .jsonl files with `text`, as tests/benchmarks/gather_corpus.py writes it. A
document is held out when the hash of its text says so, one in fifty.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 16_384
END = "<|end|>"
HELD_OUT = 50  # one document in so many
LEARNT_FROM = 40_000_000  # characters that the tokenizer sees
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=32_000_000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    texts = [text for _, text in sorted(read(arguments.corpus))]
    tokenizer = learn(texts)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    size = 0
    for begin in range(0, len(texts), BATCH):
        batch = texts[begin : begin + BATCH]
        for text, encoding in zip(batch, tokenizer.encode_batch_fast(batch), strict=True):
            ids = np.array([*encoding.ids, tokenizer.token_to_id(END)], dtype=np.uint16)
            held = int.from_bytes(digest(text)[8:12], "little") % HELD_OUT == 0
            parts[held].append(ids)
            size += 0 if held else len(ids)
        if size >= arguments.tokens:
            break
    for held, name in ((False, "train"), (True, "heldout")):
        ids = np.concatenate(parts[held])
        (arguments.out / f"{name}.u16.xz").write_bytes(lzma.compress(ids.tobytes(), preset=6))
        print(f"{name}: {len(ids):,} tokens", file=sys.stderr)


def read(corpus: Path) -> Iterator[tuple[bytes, str]]:
    """(hash, text) of every document: sorted, they lie in an order that mixes the kinds."""
    for path in sorted(corpus.rglob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                yield digest(text), text


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def learn(texts: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of the first texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    total = 0
    few = []
    for text in texts:
        few.append(text)
        total += len(text)
        if total > LEARNT_FROM:
            break
    tokenizer.train_from_iterator(few, trainer)
    return tokenizer


if __name__ == "__main__":
    main()
