"""What evaluate prints and writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from attaching import Listener
from commands.evaluated import CONTEXT, STRIDE, TEXTS, Evaluated
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands.evaluate.page import headline
from engram_cli.commands.evaluate.result import Difference, EvaluateResult
from engram_cli.errors import (
    CorpusError,
    DependencyError,
    InputError,
    MismatchError,
    OutputError,
    TokenIdError,
)


def test_the_command_prints_json_and_writes_a_page(
    evaluated: Evaluated, evaluation: EvaluateResult, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    arguments = ["evaluate", str(evaluated.checkpoint), str(evaluated.texts), "--report", str(page)]
    arguments += ["--context-length", str(CONTEXT), "--stride", str(STRIDE)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert (document["bare"], document["memory"]) == (evaluation.bare, evaluation.memory)
    assert document["lora"] is None
    kinds = [own["kind"] for own in document["passages"]]
    assert kinds.count("beginning") == 3  # one of the first four has nothing to predict
    first = document["passages"][kinds.index("beginning")]
    assert len("".join(first["pieces"])) > 20
    assert TEXTS[0][1:].find("".join(first["pieces"])) in (0, 1, 2, 3)  # all but the first token
    text = page.read_text()
    assert "Where it helps most" in text
    assert "Where it hurts most" in text
    assert "tok n10" in text
    assert "<b>apple" not in text
    assert text.count("<script") == 6  # data, charts, two libraries, and two scripts of engram
    with pytest.raises(OutputError, match="already exists"):
        evaluated.run(report=page)
    shown = CliRunner().invoke(app, [*arguments, "--force"])
    assert shown.exit_code == 0, shown.output
    for part in (
        "memory − model alone",
        "upper bounds",
        "2-grams before the token",
        "decoder layer 2",
        "perplexity",
    ):
        assert part in shown.output
    assert "interval" in shown.output


def test_memory_is_said_before_it_is_taken(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener()
    evaluated.run(listener=listener, max_documents=1)
    assert any(note.startswith("memory: ") and "of weights" in note for note in listener.notes)
    monkeypatch.setattr("engram_cli.commands.evaluate.model.available_memory", lambda: 10**6)
    with pytest.raises(InputError, match=r"memory: .* and cpu has 1 MB free"):
        evaluated.run()


def test_what_cannot_be_evaluated(evaluated: Evaluated, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    ids = tmp_path / "ids.npy"
    np.save(ids, np.array([3, 4, 60_000], dtype=np.int64))
    for options, error, message in (
        ({"checkpoint": tmp_path}, InputError, r"has no config\.json"),
        ({"sources": (tmp_path / "none.txt",)}, CorpusError, "corpus not found"),
        ({"sources": (empty,)}, CorpusError, "no token to predict"),
        ({"sources": (ids,)}, TokenIdError, "60000|60,000"),
        ({"bundle": tmp_path}, InputError, "no bundle"),
        ({"lora": tmp_path}, InputError, "is no adapter"),
        ({"context_length": 300}, InputError, "the model takes 256 positions"),
        ({"stride": 32}, InputError, "a stride of 32"),
        ({"bos": "5000"}, InputError, "--bos 5000"),
        ({"device": "cuda:77"}, InputError, "--device cuda:77"),
        ({"device": "toaster"}, InputError, "--device toaster"),
        ({"dtype": "int3"}, InputError, "unknown dtype"),
        ({"stats": tmp_path}, InputError, "no statistics folder"),
    ):
        with pytest.raises(error, match=message):
            evaluated.run(**options)


def test_a_tokenizer_of_another_memory(evaluated: Evaluated, tmp_path: Path) -> None:
    document = json.loads((evaluated.checkpoint / "tokenizer.json").read_text())
    document["added_tokens"].append(document["added_tokens"][-1] | {"id": 999, "content": "Zebra"})
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(document))
    with pytest.raises(MismatchError, match="gives vocabulary"):
        evaluated.run(tokenizer=other)


def test_without_transformers(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match="running the model needs transformers"):
        evaluated.run()


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (
            -0.3,
            -0.1,
            "Compared with the model alone, the memory lowers the loss by 0.2000 nats",
        ),
        (-0.5, 0.1, "No difference between the memory and the model alone is certain"),
        (None, None, "too few documents to say how certain"),
    ],
)
def test_the_page_begins_with_what_the_first_difference_says(
    low: float | None, high: float | None, said: str
) -> None:
    found = Difference(variant="memory", than="bare", mean=-0.2, low=low, high=high)
    assert said in headline(found)
