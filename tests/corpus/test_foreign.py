"""What the tools themselves write is read: stored bytes, and more where a tool is installed."""

from __future__ import annotations

import importlib.util
import os
import zipfile
from pathlib import Path

import pytest
from corpus.corpora import drain, read_items, stream_of, texts
from corpus.foreign import DOCUMENTS, TEXTS, TOOLS
from scripts import run_script

STORED = Path(__file__).parent / "foreign.zip"
IDS = {
    "streaming": ["ndarray", "uint32", "bytes"],
    "megatron": ["uint16.bin", "int32.bin", "uint16", "int32.idx"],
    "datatrove": ["2.ds", "4.ds"],
    "datasets": ["ids", "ids.parquet"],
    "llmc": ["gpt-2.bin", "llama-3.bin"],
}
OF_TEXT = {"streaming": ["text", "gz"], "datasets": ["text"]}


def check(folder: Path, tool: str) -> None:
    """Read all that a tool wrote."""
    for name in IDS[tool]:
        options = {"document_end_id": 2} if tool == "llmc" else {}
        found = drain(stream_of([folder / name], **options)[0])
        if tool == "llmc":  # the mark begins a document there
            found = [ids[1:] + ids[:1] for ids in found]
        assert found == DOCUMENTS, name
    for name in OF_TEXT.get(tool, ()):
        _, files = stream_of([folder / name])
        found = [text for file in files for text in texts(read_items(Path(file.name)))]
        assert found == TEXTS, name


def test_every_tool_has_stored_bytes() -> None:
    assert set(TOOLS) == set(IDS)
    with zipfile.ZipFile(STORED) as stored:
        assert {name.partition("/")[0] for name in stored.namelist()} == set(TOOLS)


@pytest.mark.parametrize("tool", TOOLS)
def test_the_stored_bytes_of_a_tool_are_read(tool: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(STORED) as stored:
        stored.extractall(tmp_path)
    check(tmp_path / tool, tool)


@pytest.mark.parametrize("tool", TOOLS)
def test_what_an_installed_tool_writes_is_read(tool: str, tmp_path: Path) -> None:
    found = "LLMC" in os.environ if tool == "llmc" else importlib.util.find_spec(tool) is not None
    if not found:
        pytest.skip(f"{tool} is not installed")
    run_script("corpus/foreign.py", tool, tmp_path)
    check(tmp_path / tool, tool)
