"""Counts the greedy texts that a cache changes, over all families: none may differ.

    python tests/runtime/greedy_texts.py

For each family: how many of 20 texts that `generate` writes with a cache differ from those of full
forwards without one, and how many the memory changes at all, which says that the test can fail.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROMPTS = 20
LENGTH = 6
NEW = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One family's texts: how many the cache changed, how many the memory, of PROMPTS."""

    family: str
    differing: int
    changed_by_memory: int


def figures() -> Iterator[Figure]:
    """A figure for each family."""
    from runtime.families import FAMILIES, MORE_FAMILIES, STATE_FAMILIES
    from runtime.modes import by_hand, generated
    from runtime.test_matrix import matrix_spec
    from small_tokenizers import byte_level_tokenizer
    from tiny_models import make_bundle, text, wake

    from engram_cli.runtime import attach
    from engram_cli.vocab.compress import compress_vocab

    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.json"
        byte_level_tokenizer().save(str(tokenizer))
        vocab = compress_vocab(tokenizer)
        bundle = make_bundle(Path(folder) / "engram", matrix_spec(vocab, "engram-v1"))
        for name, family in (FAMILIES | STATE_FAMILIES | MORE_FAMILIES).items():
            model = family.build(vocab.vocab_size)
            # transformers' RWKV mixes up the sequences of a batch.
            batch = 1 if name == "RWKV" else PROMPTS
            prompts = list(text(200, PROMPTS, LENGTH).split(batch))
            bare = [by_hand(model, ids, NEW) for ids in prompts]
            wake(attach(model, bundle))
            expected = [by_hand(model, ids, NEW) for ids in prompts]
            found = [generated(model, ids, max_new_tokens=NEW) for ids in prompts]
            yield Figure(
                family=name,
                differing=_differing(found, expected),
                changed_by_memory=_differing(expected, bare),
            )


def _differing(one: list[Any], other: list[Any]) -> int:
    """How many texts of two lists of batches differ."""
    return sum(int((a != b).any(1).sum()) for a, b in zip(one, other, strict=True))


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]
    import torch

    torch.set_num_threads(1)
    for figure in figures():
        print(figure.family, figure.differing, figure.changed_by_memory)
