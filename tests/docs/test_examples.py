"""Every script in examples/ runs, on small inputs, and prints what it promises."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest
import torch
from docs.blocks import ROOT
from docs.inputs import small_inputs, write_checkpoints

from engram_cli import (
    AttachRequest,
    BuildTableRequest,
    Geometry,
    HashStatsRequest,
    Workspace,
    attach_checkpoint,
    build_table,
    compress_vocab,
    hash_stats,
    write_vocab,
)

EXAMPLES = ROOT / "examples"
# The arguments of each script, and what its output holds.
RUNS = {
    "attach_and_train": (
        ["ckpt", "ckpt/engram", "corpus.txt", "trained", "--steps", "2", "--length", "32"],
        ["step 2: loss ", "parameters in trained"],
    ),
    "build_a_table": (
        ["tokenizer.json", "corpus", "out", "--rows-per-head", "97"],
        ["401 tokens are ", " distinct 3-grams in ", "sha256:", "'s' ["],
    ),
    "check_a_port": (
        ["golden.json", "theirs.json", "--preset", "engram-v1-demo"],
        ["rows: equal", "all rows are equal"],
    ),
    "compare_tokenizers": (
        ["corpus", "tokenizer.json", "ckpt/tokenizer.json", "--rows-per-head", "997"],
        ["tokenizer.json: 401 tokens, ", "of look-ups meet a shared row"],
    ),
    "convert_a_checkpoint": (
        ["DeepSeek-V4.1-Flash", "table", "out.zarr"],
        ["DeepSeek-V4.1-Flash: deepseek-v4.1, ", "  layer 3: ", "out.zarr in "],
    ),
    "serve_with_a_cache": (
        ["ckpt", "ckpt/engram", "--placement", "host", "--tokens", "2"],
        ["host: all ", "'Only Alexander the Great", "ahead_used=3"],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: texts, a model with a bundle, and checkpoints of other programs."""
    here = tmp_path / "work"
    small_inputs(here)
    monkeypatch.chdir(here)
    write_checkpoints()
    place = Workspace(here)
    geometry = Geometry(heads=2, rows_per_head=(97,), layers=(1, 2))
    write_vocab(compress_vocab("ckpt"), place.vocab)
    hash_stats(
        HashStatsRequest(
            sources=(here / "corpus",), tokenizer=Path("ckpt"), geometry=geometry, workspace=place
        )
    )
    build_table(BuildTableRequest(stats=place.stats, vocab=place.vocab, out=place.table, dim=4))
    attach_checkpoint(AttachRequest(checkpoint=Path("ckpt"), table=place.table))
    for made in (place.vocab, place.stats, place.table):
        made.rename(tmp_path / made.name)
    return here


@pytest.mark.parametrize("name", RUNS)
def test_an_example_runs(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected = RUNS[name]
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    out = capsys.readouterr().out
    for each in expected:
        assert each in out


def test_every_example_runs_and_is_listed() -> None:
    scripts = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert scripts == sorted(RUNS)
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in scripts:
        assert f"]({script}.py)" in page
        doc = ast.get_docstring(ast.parse((EXAMPLES / f"{script}.py").read_text(encoding="utf-8")))
        assert doc is not None
        assert f"python examples/{script}.py" in doc
