"""The README's four commands, typed literally in a folder with a checkpoint of somebody's own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cli.conftest import Engram
from small_tokenizers import PROSE
from tiny_models import llama, logits
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from engram_cli import attach, detach, read_vocab
from engram_cli.commands.checkpoint import find_checkpoints
from engram_cli.errors import MismatchError
from engram_cli.formats.bundle import read_bundle
from engram_cli.runtime import load, save_engram
from engram_cli.runtime.hooks import memories_at

README = Path(__file__).parents[2] / "README.md"
# Only the sizes: the default table has 20.7 M rows.
SMALL = '[layout]\nrows-per-head = "500"\n[build-table]\ndim = 4\n'


def literal_commands() -> list[list[str]]:
    """The commands of the README's section "Step by step", without their comments."""
    section = README.read_text(encoding="utf-8").split("## Step by step")[1]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block is not None
    lines = [line.split("#")[0].split() for line in block[1].splitlines()]
    assert all(line[0] == "engram" for line in lines)
    return [line[1:] for line in lines]


def own_tokenizer() -> Tokenizer:
    """A tokenizer whose id 2 is "#", with one special token at its end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE * 4, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    assert tokenizer.id_to_token(2) == "#"
    return tokenizer


@pytest.fixture
def folder(engram: Engram) -> Engram:
    """A folder with a corpus and a 4-layer checkpoint with a tokenizer of its own."""
    tokenizer = own_tokenizer()
    llama(tokenizer.get_vocab_size()).save_pretrained(engram.folder / "ckpt")
    tokenizer.save(str(engram.folder / "ckpt" / "tokenizer.json"))
    config = engram.folder / "ckpt" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": None}))
    (engram.folder / "corpus.txt").write_text("\n".join(PROSE * 40), encoding="utf-8")
    (engram.folder / "engram.toml").write_text(SMALL)
    return engram


def test_the_readme_has_the_four() -> None:
    assert literal_commands() == [
        ["compress-vocab"],
        ["hash-stats", "corpus.txt"],
        ["build-table", "--heads", "8"],
        ["attach", "ckpt/"],
    ]


def test_they_end_in_a_model_with_a_memory(folder: Engram) -> None:
    said = []
    for command in literal_commands():
        done = folder(*command)
        assert done.code == 0, done.err
        said.append(" ".join((done.err + done.out).split()))
    compressed, counted, built, attached = said
    assert "reading ckpt/tokenizer.json (the tokenizer of the checkpoint ckpt)" in compressed
    assert "pad token <|endoftext|> (id " in compressed
    assert "checkpoint ckpt: llama with 4 decoder layers; tables for 1 and 2" in counted
    assert "pad token: <|endoftext|> (id " in counted
    assert "the tokenizer of the checkpoint ckpt" in counted
    assert "next: engram attach ckpt/" in built
    assert "row hits of" in built
    assert "into decoder layers 1, 2, counted from 0" in attached
    assert "decoder layers 1, 2, counted from 0" in attached

    spec = read_bundle(folder.folder / "ckpt" / "engram", verify=True).spec
    assert spec.decoder_layers == (1, 2)
    vocab = read_vocab(folder.folder / "engram-vocab.parquet")
    assert spec.layout.filler_id == vocab.lookup[vocab.tokens.index("<|endoftext|>")]
    assert spec.layout.filler_id != vocab.lookup[2], "a document's start is not the token '#'"

    model = AutoModelForCausalLM.from_pretrained(folder.folder / "ckpt").eval()
    ids = torch.tensor([own_tokenizer().encode(PROSE[0]).ids])
    before = logits(model, ids)
    memory = attach(model, folder.folder / "ckpt" / "engram")
    assert torch.equal(logits(model, ids), before)
    for place, layer in enumerate(model.model.layers):
        assert bool(memories_at(layer)) == (place in (1, 2))
    model.train().requires_grad_(False)
    memory.requires_grad_(True)
    optimizer = torch.optim.AdamW(memory.parameters(), lr=1e-2)
    torch.autograd.backward(model(ids, labels=ids).loss)
    optimizer.step()
    assert not torch.equal(logits(model.eval(), ids), before)


def test_a_table_with_the_papers_layers_fits_too(folder: Engram) -> None:
    """Layers 1 and 15, of which a 4-layer model has only one: the other lies in the middle."""
    folder("compress-vocab")
    assert folder("build-table", "--layers", "1,15").code == 0
    done = folder("attach", "ckpt/")
    assert done.code == 0, done.err
    assert "into decoder layers 1, 2 (layer 15 of the table), counted from 0" in done.err
    assert "the model has no decoder layer 15" in " ".join(done.out.split())
    bundle = folder.folder / "ckpt" / "engram"
    assert "1, 2 (layer 15 of the table)" in (bundle / "README.md").read_text()
    told = folder("inspect", "ckpt/engram").out
    assert "15 in decoder layer 2, counted from 0" in told

    done = folder("attach", "ckpt/", "--at", "0,3", "--force")
    assert done.code == 0, done.err
    assert "into decoder layers 0 (layer 1 of the table), 3 (layer 15 of the table)" in done.err
    model = AutoModelForCausalLM.from_pretrained(folder.folder / "ckpt").eval()
    memory = attach(model, bundle)
    assert [bool(memories_at(layer)) for layer in model.model.layers] == [True, False, False, True]
    assert memory.spec.decoder_layers == (0, 3)
    assert "decoder layers 0 (layer 1 of the table)" in repr(memory)
    save_engram(model, folder.folder / "saved")
    load(model, folder.folder / "saved")
    assert folder("attach", "ckpt/", "--at", "1,3", "-o", "moved").code == 0
    with pytest.raises(MismatchError, match=r"decoder layers \(1, 3\), the attached memory"):
        load(model, folder.folder / "moved")
    detach(model)
    assert attach(model, folder.folder / "saved").spec.decoder_layers == (0, 3)
    traced = folder("trace", "ckpt/", PROSE[0], "--report", "page.html")
    assert traced.code == 0, traced.err
    assert "decoder layer 3 (layer 15 of the table): gates" in traced.out
    page = (folder.folder / "page.html").read_text()
    assert "Decoder layer 3 (layer 15 of the table)" in page


def test_a_pad_token_that_text_holds_is_warned_of(folder: Engram) -> None:
    folder("compress-vocab")
    done = folder("hash-stats", "corpus.txt", "--pad-id", "2")
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert "warning: the pad token # (id 2) is an ordinary token" in said
    assert "name another with --pad-id" in said
    built = folder("build-table", "--preset", "engram-v1-demo", "--rows-per-head", "300")
    assert "warning: the pad token # (id 2)" in " ".join(built.err.split())


def test_dry_runs_where_the_output_is_there(folder: Engram) -> None:
    for command in literal_commands():
        assert folder(*command).code == 0
    for command in (["build-table", "--heads", "8"], ["attach", "ckpt/"]):
        done = folder(*command, "--dry-run")
        assert done.code == 0, done.err
        said = " ".join(done.out.split())
        assert "already exists; use --force to replace it" in said
        assert json.loads(folder(*command, "--dry-run", "--json").out)["in_the_way"]
        assert "in the way" not in folder(*command, "--dry-run", "--force").out


def test_a_scheme_of_raw_ids_takes_the_models_vocabulary(folder: Engram) -> None:
    config = folder.folder / "ckpt" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token_id": [7, 8]}))
    model = AutoModelForCausalLM.from_pretrained(folder.folder / "ckpt").eval()
    done = folder("hash-stats", "corpus.txt", "--scheme", "qwen-ple")
    assert done.code == 0, done.err
    said = " ".join(done.err.split())
    assert f"its vocabulary has {model.config.vocab_size:,} token ids" in said
    assert "its EOS token has id 7" in said
    assert folder("build-table").code == 0
    done = folder("attach", "ckpt/")
    assert done.code == 0, done.err
    spec = read_bundle(folder.folder / "ckpt" / "engram").spec
    assert (spec.layout.eos_id, spec.decoder_layers) == (7, (1,))
    attach(model, folder.folder / "ckpt" / "engram")
    wrong = folder("build-table", "--scheme", "qwen-ple", "--eos-id", "999999", "-o", "x.zarr")
    assert "the EOS token id 999,999 is outside the vocabulary of" in wrong.error_line
    assert "filler" not in wrong.error_line


def test_several_checkpoints(folder: Engram, tokenizer_file: Path) -> None:
    other = folder.folder / "other"
    other.mkdir()
    config = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 9, "vocab_size": 500}
    (other / "config.json").write_text(json.dumps(config))
    (other / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    unclear = folder("compress-vocab")
    assert unclear.code == 2
    assert "checkpoints with different tokenizers: ckpt, other" in unclear.error_line
    assert folder("compress-vocab", "other").code == 0
    counted = folder("hash-stats", "corpus.txt")
    assert counted.code == 0, counted.err
    assert "checkpoint other: llama with 9 decoder layers; tables for 1 and 4" in " ".join(
        counted.err.split()
    )
    (folder.folder / "engram-vocab.parquet").unlink()
    (other / "tokenizer.json").write_bytes((folder.folder / "ckpt/tokenizer.json").read_bytes())
    assert folder("compress-vocab").code == 0
    built = folder("build-table", "--dim", "4", "--stats", "engram-stats", "-o", "x.zarr")
    assert built.code == 2, "the statistics are of another vocabulary"
    done = folder("hash-stats", "corpus.txt", "--force")
    assert "checkpoints ckpt, other differ, so none is used" in " ".join(done.err.split())
    document = json.loads((folder.folder / "engram-stats" / "stats.json").read_text())
    assert [entry["layer"] for entry in document["layout"]["layers"]] == [1, 15]


def test_a_plan_is_for_the_checkpoint_too(folder: Engram) -> None:
    folder("compress-vocab")
    done = folder("plan", "--tokens", "1M", "--out", "plan.json")
    assert done.code == 0, done.err
    assert "tables for 1 and 2" in " ".join(done.err.split())
    assert json.loads((folder.folder / "plan.json").read_text())["geometry"]["layers"] == [1, 2]


def test_what_is_no_checkpoint_is_passed_over(folder: Engram) -> None:
    names = ("image-model", "damaged", "empty", ".hidden")
    for name, config in zip(names, ('{"model_type": "vit"}', "{", "[]", "{}"), strict=True):
        (folder.folder / name).mkdir()
        (folder.folder / name / "config.json").write_text(config)
    (folder.folder / "gone").symlink_to(folder.folder / "nowhere")
    found = find_checkpoints(folder.folder)
    assert [each.folder.name for each in found] == ["ckpt"]
    assert [each.folder for each in find_checkpoints(folder.folder / "ckpt")] == [
        folder.folder / "ckpt"
    ]
    assert find_checkpoints(folder.folder / "nowhere") == []


def test_a_checkpoint_with_another_tokenizer_than_the_vocabulary(
    folder: Engram, tokenizer_file: Path
) -> None:
    done = folder("build-table")
    assert "no compressed vocabulary" in done.error_line
    assert "not used" not in done.err
    folder("compress-vocab", tokenizer_file)
    done = folder("hash-stats", "corpus.txt", "--layers", "1")
    assert "not used" not in done.err
    done = folder("hash-stats", "corpus.txt", "--force")
    assert "checkpoint ckpt: not used, its tokenizer is not that of" in done.err
    assert "engram compress-vocab ckpt --force" in " ".join(done.err.split())
