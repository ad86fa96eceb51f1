"""No command replaces what it reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands.jobs import JOBS
from test_files import contents

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.compress_vocab import CompressVocabRequest, run_compress_vocab
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import OutputError


def test_an_attachment_does_not_replace_the_checkpoint_or_the_table(here: Path) -> None:
    (here / "in").mkdir()
    shutil.copytree(here / "bundle", here / "in" / "out")
    shutil.copytree(here / "ckpt", here / "in" / "out" / "ckpt")
    shutil.copytree(here / "source.zarr", here / "in" / "out" / "t.zarr")
    before = contents(here)
    for options in (
        {"checkpoint": here / "in/out/ckpt", "table": here / "source.zarr"},
        {"checkpoint": here / "ckpt", "table": here / "in/out/t.zarr"},
    ):
        with pytest.raises(OutputError, match="which this command reads"):
            attach_checkpoint(AttachRequest(out=here / "in/out", force=True, **options))
    with pytest.raises(OutputError, match="is what this command reads"):
        attach_checkpoint(
            AttachRequest(
                checkpoint=here / "ckpt", table=here / "source.zarr", out=here / "ckpt", force=True
            )
        )
    assert contents(here) == before


@pytest.mark.parametrize("what", ["vocab", "stats", "corpus"])
def test_a_table_does_not_replace_what_it_is_built_from(what: str, here: Path) -> None:
    out = here / "t.zarr"
    job = JOBS["build-table --init token-mean" if what == "corpus" else "build-table"]
    job.run(here, False)
    name = {"vocab": "engram-vocab.parquet", "stats": "stats-a", "corpus": "corpus"}[what]
    shutil.move(here / name, out / name)
    (here / name).symlink_to(out / name)
    before = contents(here)
    with pytest.raises(OutputError, match="which this command reads"):
        job.run(here, True)
    assert contents(here) == before
    (here / name).unlink()
    shutil.move(out / name, here / name)


def test_statistics_do_not_replace_their_corpus(here: Path) -> None:
    for out in (here / "corpus", here / "corpus" / "a.txt"):
        with pytest.raises(OutputError, match="this command reads"):
            hash_stats(
                HashStatsRequest(
                    sources=(here / "corpus" / "a.txt",),
                    workspace=Workspace(here),
                    out=out,
                    force=True,
                )
            )
    with pytest.raises(OutputError, match="is what this command reads"):
        run_compress_vocab(
            CompressVocabRequest(
                source=here / "tokenizer.json", out=here / "tokenizer.json", force=True
            )
        )
