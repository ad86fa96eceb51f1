"""The sentence that an evaluation begins with claims no more than its interval shows."""

from __future__ import annotations

import pytest

from engram_cli.commands.evaluate.page import headline
from engram_cli.commands.evaluate.result import Difference


@pytest.mark.parametrize(
    ("mean", "low", "high", "said"),
    [
        (0.0, None, None, "On this text the memory changes nothing: the loss is that of the model "
                          "alone."),
        (0.0, 0.0, 0.0, "On this text the memory changes nothing: the loss is that of the model "
                        "alone."),
        (0.0003, None, None, "On this text the loss of the memory is 0.0003 nats per token above "
                             "that of the model alone. There are too few documents to say how "
                             "certain that is."),
        (-0.00001, None, None, "On this text the loss of the memory is less than 0.0001 nats per "
                               "token below that of the model alone. There are too few documents "
                               "to say how certain that is."),
        (0.0, -0.1, 0.1, "No difference between the memory and the model alone is certain on this "
                         "text."),
        (0.2, 0.1, 0.3, "Compared with the model alone, the memory raises the loss by 0.2000 nats "
                        "per token (95 % interval over documents)."),
    ],
)  # fmt: skip
def test_the_headline(mean: float, low: float | None, high: float | None, said: str) -> None:
    found = Difference(variant="memory", than="bare", mean=mean, low=low, high=high)
    assert headline(found) == said


def test_a_patch_that_changes_nothing() -> None:
    found = Difference(variant="patched", than="memory", mean=0.0)
    assert headline(found) == (
        "On this text the memory with patches changes nothing: the loss is that of the memory."
    )
