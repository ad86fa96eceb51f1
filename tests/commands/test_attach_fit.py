"""attach --fit: the bundle that is written helps at once, or starts silent where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attaching import Listener, build
from small_tokenizers import PROSE
from tiny_models import llama
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engram_cli.cli.app import app
from engram_cli.commands.attach import fit_gates
from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.formats.bundle import read_bundle
from engram_cli.runtime import attach
from engram_cli.table.inits import make_init
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture
def folder(
    tmp_path: Path,
    tokenizer_file: Path,
    small_vocab: CompressedVocab,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A checkpoint, a table and a text, and steps that suit a tiny model."""
    llama(small_vocab.vocab_size).save_pretrained(tmp_path / "ckpt")
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file)).save_pretrained(tmp_path / "ckpt")
    build(tmp_path / "table.zarr", small_vocab)
    lines = [json.dumps({"text": f"{number % 10}: {PROSE[number % 3]}"}) for number in range(300)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    torch.set_num_threads(1)
    for name, value in {"STEPS": 12, "BATCH_TOKENS": 64, "CONTEXT": 32}.items():
        monkeypatch.setattr(fit_gates, name, value)
    return tmp_path


def request(folder: Path, **options: Any) -> AttachRequest:
    given = {"checkpoint": folder / "ckpt", "table": folder / "table.zarr"}
    return AttachRequest(**given | options)


def changes(folder: Path) -> bool:
    """Whether the bundle changes what the model computes."""
    model = LlamaForCausalLM.from_pretrained(folder / "ckpt").eval()
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        before = model(ids).logits
        attach(model, folder / "ckpt")
        return not torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("reference", [False, True])
def test_the_bundle_that_is_written_helps(folder: Path, reference: bool) -> None:
    listener = Listener()
    text = str(folder / "text.jsonl")
    result = attach_checkpoint(request(folder, fit=text, reference=reference), listener)
    assert result.fit is not None
    assert result.fit.kept
    assert result.fit.before - result.fit.after > 0.1
    assert (result.fit.steps, result.fit.tokens) == (12, 768)
    assert (listener.total, listener.done) == (768, 768) or reference is False
    assert not result.identity
    bundle = read_bundle(result.out)
    assert (bundle.reference is not None) == reference
    assert not bundle.dense[1]["value_proj.weight"].any()  # the last layer alone
    assert bundle.dense[2]["value_proj.weight"].any()
    assert changes(folder)
    first = (result.out / "dense.safetensors").read_bytes()
    attach_checkpoint(request(folder, fit=text, reference=reference, force=True))
    assert (result.out / "dense.safetensors").read_bytes() == first


def test_where_it_cannot_help_the_memory_starts_silent(
    folder: Path, small_vocab: CompressedVocab
) -> None:
    with pytest.raises(InputError, match=r"none\.txt"):
        attach_checkpoint(request(folder, fit=str(folder / "none.txt")))
    assert not (folder / "ckpt" / "engram").exists()
    (folder / "short.txt").write_text("A horse.")
    with pytest.raises(InputError, match="windows of 32 tokens, and 8 are needed"):
        attach_checkpoint(request(folder, fit=str(folder / "short.txt")))
    assert not changes(folder)  # what was written is whole
    build(folder / "zero.zarr", small_vocab, init=make_init("zeros"))
    with pytest.raises(RuntimeAttachError, match="say nothing here"):
        attach_checkpoint(
            request(folder, table=folder / "zero.zarr", fit=str(folder / "text.jsonl"), force=True)
        )


def test_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["attach", str(folder / "ckpt"), "--table", str(folder / "table.zarr")]
    with pytest.raises(SystemExit) as ended:
        app([*command, "--fit", str(folder / "text.jsonl")])
    assert ended.value.code in (0, None)
    out = capsys.readouterr().out
    assert "fitted" in out
    assert "nats per token, after 768 tokens" in " ".join(out.split())
