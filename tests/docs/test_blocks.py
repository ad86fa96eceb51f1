"""Every block of Python and shell in the README and the documentation runs as it stands."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from docs.blocks import FIRST, ROOT, RUN, SHOWN, blocks_of, run_page
from docs.inputs import small_inputs

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_BLOCKS = [page for page in PAGES if any(each.language in RUN for each in blocks_of(page))]
_COMMANDS = ("engram ", "$ ", "python ", "pip ", "from ", "import ")


def name(page: Path) -> str:
    """The page as the names of tests have it."""
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of files that pages start from."""
    folder = tmp_path_factory.mktemp("inputs") / "page"
    small_inputs(folder)
    return folder


# Of transformers, called by PEFT.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name)
def test_blocks_run(
    page: Path, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, environment = torch.get_num_threads(), dict(os.environ)
    torch.set_num_threads(1)  # other tests have the other cores
    folder = tmp_path / "page"
    shutil.copytree(inputs, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))  # nothing was downloaded before
    try:
        run_page(page, folder)
    finally:
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_left_out_without_a_reason(page: Path) -> None:
    for block in blocks_of(page):
        where = f"{name(page)}:{block.line}"
        assert block.language in (*RUN, *SHOWN, *FIRST), (
            f"{where}: unknown language {block.language}"
        )
        if block.language in SHOWN:
            code = [line for line in block.text.splitlines() if line.startswith(_COMMANDS)]
            assert not code, f"{where}: {code[0]} - name its language: {', '.join(RUN)}"
        assert block.skipped is None or len(block.skipped) > 10, f"{where}: say why it is skipped"
        known = ("skip,", "figures vary", "other output,", "exit ")
        assert all(mark.startswith(known) for mark in block.marks), f"{where}: {block.marks}"


def test_most_blocks_run() -> None:
    blocks = [block for page in PAGES for block in blocks_of(page) if block.language in RUN]
    assert sum(block.skipped is None for block in blocks) > 0.6 * len(blocks)
