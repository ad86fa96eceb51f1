"""The guide docs/guides/attach.md runs as written."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny_models import llama
from transformers import PreTrainedTokenizerFast

from engram_cli.hashing.schemes import hash_layout
from engram_cli.runtime import attach
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.vocab.compress import compress_vocab

DOCS = Path(__file__).parents[2] / "docs"
GUIDE, SAVING = DOCS / "guides" / "attach.md", DOCS / "reference" / "saving.md"


def blocks(language: str, page: Path = GUIDE) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a checkpoint and a table, as the guide supposes."""
    monkeypatch.chdir(tmp_path)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    tokenizer.save_pretrained("ckpt")
    vocab = compress_vocab("ckpt")
    llama(vocab.vocab_size).save_pretrained("ckpt")
    layout = hash_layout("engram-v1", vocab, heads=2, rows_per_head=97, layers=(1, 2))
    init = make_init("normal", seed=0, std=0.5)
    spec = TableSpec(layout=layout, dim=4, dtype="bfloat16", init=init)
    build_store(spec, tmp_path / "engram-table.zarr")
    return tmp_path


def test_the_guide_runs(folder: Path) -> None:
    for line in "".join(blocks("sh")).splitlines():
        command = [sys.executable, "-m", "engram_cli", *shlex.split(line)[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert len(blocks("python")) == 7
    exec(compile("\n".join(blocks("python")), str(GUIDE), "exec"), {})


def test_the_page_on_saving_runs(folder: Path) -> None:
    command = [sys.executable, "-m", "engram_cli", "attach", "ckpt"]
    subprocess.run(command, cwd=folder, capture_output=True, check=True)
    model = llama(401)
    attach(model, "ckpt/engram")
    Path("checkpoint-300").mkdir()
    save_file(model.state_dict(), "checkpoint-300/model.safetensors")
    parts = blocks("python", SAVING)
    assert len(parts) == 3
    # Imported by another test, it may have been switched off since.
    parts[1] = parts[1].replace("engram_cli.hf\n", "engram_cli.hf\nengram_cli.hf.enable()\n", 1)
    parts[2] = "from engram_cli.runtime import detach\ndetach(model)\n" + parts[2]
    exec(compile("\n".join(parts), str(SAVING), "exec"), {})
