"""Losses kept by document: two passes compared are as one pass over both variants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from transformers import PreTrainedModel

from engram_cli.runtime.evaluation import document_losses, evaluate_losses
from engram_cli.runtime.evaluation.by_document import DocumentLosses
from engram_cli.typed_json import as_json, read_json_as

LENGTHS = (1, 2, 5, 17, 40, 41, 90, 3)


def test_two_passes_give_the_interval_of_one(awake: PreTrainedModel) -> None:
    rng = np.random.default_rng(0)
    size = awake.config.vocab_size
    documents = [rng.integers(3, size, length) for length in LENGTHS]
    # Token by token, so that rounding does not depend on the batch.
    options = {"context": 16, "batch_tokens": 1}
    whole = evaluate_losses(awake, documents, **options)
    bare = document_losses(awake, documents, variants=["bare"], **options)
    memory = document_losses(awake, documents, variants=["memory"], **options)
    bare = read_json_as(DocumentLosses, as_json(bare), "losses")
    found = bare.joined(memory.only("memory", "trained")).whole()
    assert (found.tokens, found.documents) == (whole.tokens, whole.documents)
    assert found.loss("trained") == whole.loss("memory")
    mine, other = found.interval("trained", "bare"), whole.interval("memory", "bare")
    assert mine.error is not None
    assert (mine.mean, mine.low, mine.high) == pytest.approx((other.mean, other.low, other.high))


def test_other_documents_are_not_compared() -> None:
    one = DocumentLosses(variants=("bare",), numbers=(0, 1), tokens=(3, 4), units=((7, 9),))
    with pytest.raises(ValueError, match="other documents"):
        one.joined(replace(one, tokens=(3, 5)))
    for wrong in ({"numbers": (0,)}, {"units": ()}, {"units": ((7,),)}, {"variants": ()}):
        with pytest.raises(ValueError, match="number of documents"):
            replace(one, **wrong)
