"""trace: the tokens of a text as they stand in it, their gates, and the page of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import llama, make_bundle, spec_of, wake
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from engram_cli.cli.app import app
from engram_cli.commands.trace import TraceRequest, pieces_of, trace_text
from engram_cli.errors import InputError, MismatchError, OutputError, VocabularyError
from engram_cli.runtime import attach, save_engram, trace
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.tokenizer import load_tokenizer

TEXT = "Only Alexander, 苹果 <b>& the\nGreat"


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab, tokenizer_file: Path
) -> Path:
    """A tiny checkpoint with a bundle that matters beside it."""
    folder = tmp_path_factory.mktemp("ckpt")
    model = llama(small_vocab.vocab_size)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file)).save_pretrained(folder)
    spec = spec_of(small_vocab, "engram-v1")
    wake(attach(model, make_bundle(folder / "fresh", spec)))
    save_engram(model, folder / "engram")
    return folder


def test_it_is_the_runtimes_trace(
    checkpoint: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    result = trace_text(TraceRequest(checkpoint=checkpoint, text=TEXT))
    model = llama(small_vocab.vocab_size)
    attach(model, checkpoint / "engram")
    found = trace(model, TEXT, tokenizer=Tokenizer.from_file(str(tokenizer_file)))
    assert result.ids == found.ids
    for layer in result.layers:
        torch.testing.assert_close(
            torch.tensor(layer.gates), found.gates[layer.layer], atol=1e-4, rtol=0
        )
    fresh = trace_text(TraceRequest(checkpoint=checkpoint, text=TEXT, bundle=checkpoint / "fresh"))
    assert not any(any(layer.strengths) for layer in fresh.layers)
    assert result.untrained == ()
    assert fresh.untrained == tuple(layer.layer for layer in fresh.layers) == (1, 2)


@pytest.mark.parametrize("options", [{"placement": "host"}, {"placement": "disk"}])
def test_where_rows_lie_changes_nothing(checkpoint: Path, options: dict[str, str]) -> None:
    plain = trace_text(TraceRequest(checkpoint=checkpoint, text=TEXT))
    assert trace_text(TraceRequest(checkpoint=checkpoint, text=TEXT, **options)) == plain
    with pytest.raises(InputError, match="--device nonsense"):
        trace_text(TraceRequest(checkpoint=checkpoint, text=TEXT, device="nonsense"))


def test_the_command_names_what_is_untrained(checkpoint: Path) -> None:
    shown = []
    for bundle in ("fresh", "engram"):
        arguments = ["trace", str(checkpoint), TEXT, "--bundle", str(checkpoint / bundle)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        shown.append(" ".join(result.output.split()))
    said = "untrained: decoder layer 1, decoder layer 2: nothing is added to any token"
    assert said in shown[0]
    assert "untrained" not in shown[1]


def test_pieces_are_the_text(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file)
    for text in (TEXT, "🍎 café", "a", "\x00\t "):
        ids = tokenizer.encode(text)
        pieces = pieces_of(tokenizer, text, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces) == text


def test_the_page_shows_every_token_and_loads_nothing(checkpoint: Path, tmp_path: Path) -> None:
    page = tmp_path / "gates.html"
    request = TraceRequest(checkpoint=checkpoint, text=TEXT, report=page)
    result = trace_text(request)
    text = page.read_text()
    assert text.count('class="tok k') == len(result.ids) * 2
    assert ">k10" not in text
    assert "tok k10" in text
    assert "tok k0" in text
    assert "default-src &#x27;none&#x27;" in text
    assert text.count("<script") == 2  # the data of the page, and what every page runs
    assert text.count("<b>") == 2  # the titles of the two layers; that of the text is escaped
    assert "The stronger the colour, the wider the gate" in text
    assert text.count('class="key k') >= 2
    with pytest.raises(OutputError, match="already exists"):
        trace_text(request)


def test_what_cannot_be_traced(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the text has 0 tokens"):
        trace_text(TraceRequest(checkpoint=checkpoint, text=""))
    with pytest.raises(InputError, match="no bundle at"):
        trace_text(TraceRequest(checkpoint=checkpoint, text="a", bundle=tmp_path))
    with pytest.raises(InputError, match=r"is not a checkpoint: it has no config\.json"):
        trace_text(TraceRequest(checkpoint=tmp_path, text="a"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(VocabularyError, match="tokenizer"):
        trace_text(TraceRequest(checkpoint=tmp_path, text="a"))
    tokenizer, bundle = checkpoint / "tokenizer.json", checkpoint / "engram"
    with pytest.raises(InputError, match="cannot load the model"):
        trace_text(TraceRequest(checkpoint=tmp_path, text="a", tokenizer=tokenizer, bundle=bundle))


@pytest.mark.parametrize("named", [True, False])
def test_a_tokenizer_that_the_bundle_was_not_made_for(
    named: bool, checkpoint: Path, tmp_path: Path
) -> None:
    """One more token that compresses to another id: the rows would be those of other n-grams."""
    folder = tmp_path / "ckpt"
    shutil.copytree(checkpoint, folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    content = document["added_tokens"][-1] | {"id": 999, "content": "Zebra"}
    document["added_tokens"].append(content)
    other = tmp_path / "other.json" if named else folder / "tokenizer.json"
    other.write_text(json.dumps(document))
    request = TraceRequest(checkpoint=folder, text="a", tokenizer=other if named else None)
    with pytest.raises(MismatchError, match=r"gives vocabulary .* was made for"):
        trace_text(request)


def test_force_replaces_pages_only(checkpoint: Path, tmp_path: Path) -> None:
    page, mine = tmp_path / "gates.html", tmp_path / "mine.html"
    request: dict[str, Any] = {"checkpoint": checkpoint, "text": TEXT, "force": True}
    for _ in range(2):
        trace_text(TraceRequest(report=page, **request))
    mine.write_text("<!doctype html>\n<html lang='en'>mine</html>")
    with pytest.raises(OutputError, match="is no report, so --force does not replace it"):
        trace_text(TraceRequest(report=mine, **request))
    assert "mine" in mine.read_text()
