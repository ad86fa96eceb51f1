"""hash-stats where something is wrong: refusals, bad files, interrupts; nothing half-written."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.counted import GEOMETRY, Heard, run
from small_tokenizers import PROSE

from engram_cli.commands import hash_stats as command
from engram_cli.commands.geometry import Geometry
from engram_cli.corpus import encode, stream
from engram_cli.corpus.encode import FastEncoder
from engram_cli.engines import counting
from engram_cli.errors import CorpusError, InputError, OutputError, TokenIdError


@pytest.fixture
def here(corpus_workspace: Path) -> Path:
    return corpus_workspace


def test_an_existing_folder_is_kept_unless_forced(here: Path) -> None:
    run(here)
    before = (here / "engram-stats" / "stats.json").read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        run(here, sample_size=16)
    assert (here / "engram-stats" / "stats.json").read_bytes() == before
    run(here, sample_size=16, force=True)
    assert (here / "engram-stats" / "stats.json").read_bytes() != before


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}], dtype=object), "holds pickled objects"),
        (np.array([0.5]), "holds float64, not token ids"),
    ],
)
def test_headers_of_arrays_are_checked_before_anything_is_counted(
    array: np.ndarray[Any, Any], message: str, here: Path
) -> None:
    folder = here / "arrays"
    folder.mkdir()
    np.save(folder / "a.npy", np.arange(5, dtype=np.uint16))
    np.save(folder / "b.npy", array)
    (folder / "text.txt").write_text(PROSE[0])
    heard = Heard()
    with pytest.raises(CorpusError, match=rf"b\.npy {message}"):
        run(here, heard, sources=(folder,))
    assert heard.totals == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"geometry": Geometry(heads=0)}, "0 heads"),
        ({"encoder": "slow"}, "unknown encoder 'slow'"),
        ({"holdout": 1.5}, "--holdout 1.5"),
        ({"group_by": "lang"}, "cannot be grouped by 'lang'"),
    ],
)
def test_what_is_in_the_way_hides_no_wrong_option(
    wrong: dict[str, Any], message: str, here: Path
) -> None:
    (here / "engram-stats").mkdir()
    (here / "engram-stats" / "mine").touch()
    with pytest.raises(InputError, match=message):
        run(here, **wrong)
    with pytest.raises(OutputError, match="already exists"):
        run(here)


def test_a_file_in_the_place_of_the_page_names_its_option(here: Path) -> None:
    (here / "precious").write_text("mine")
    with pytest.raises(OutputError, match="precious already exists") as caught:
        run(here, report=here / "precious")
    assert "--report to write elsewhere" in caught.value.hint
    assert "--out" not in caught.value.hint
    assert (here / "precious").read_text() == "mine"


def test_choices_that_change_nothing_are_told(here: Path) -> None:
    (here / "a.jsonl").write_text('{"text": "an apple"}\n')
    np.save(here / "ids.npy", np.arange(9, dtype=np.int32))

    def said(name: str, **options: Any) -> list[str]:
        heard = Heard()
        run(here, heard, sources=(here / name,), force=True, **options)
        return [note for note in heard.notes if "no effect" in note]

    separator = "--document-separator has no effect: the corpus is jsonl"
    assert said("a.jsonl", document_separator="\n\n", errors="replace") == [separator]
    assert said("corpus", document_separator="\n\n", suffixes=(".txt",)) == []
    [suffixes] = said("corpus/0.txt", suffixes=(".md",))
    assert suffixes.startswith("--suffixes has no effect: no folder was named")
    found = said("ids.npy", field="text", ids_dtype="int32", document_end_id=1, encoder="fast")
    assert [note.split()[0] for note in found] == [
        *("--field", "--document-end-id", "--ids-dtype", "--tokenizer")
    ]
    assert said("ids.npy", geometry=dataclasses.replace(GEOMETRY, eos_id=None)) == []


def test_a_folder_that_cannot_be_written_is_told_before_counting(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(counting, "CorpusCounter", None)
    with pytest.raises(OutputError, match="no permission to write in"):
        run(here, out=here / "new" / "deeper")


@pytest.mark.parametrize(
    ("name", "raw", "error", "message"),
    [
        ("a.txt", b"fine\xff", CorpusError, "a.txt, line 1: byte 4 is not UTF-8"),
        ("a.txt", b"", CorpusError, "holds no token"),
        ("a.jsonl", b"{", CorpusError, "a.jsonl, line 1 is not JSON"),
        ("a.npy", b"\x93NUMPY", CorpusError, "a.npy is not a .npy file"),
        ("a.parquet", b"PAR1", CorpusError, "a.parquet cannot be read as Parquet"),
    ],
)
def test_bad_files_are_named(name: str, raw: bytes, error: type, message: str, here: Path) -> None:
    (here / name).write_bytes(raw)
    with pytest.raises(error, match=message):
        run(here, sources=(here / name,))
    assert not (here / "engram-stats").exists()
    assert [path.name for path in here.iterdir() if path.name.endswith(".part")] == []


def test_bad_bytes_may_be_replaced(here: Path) -> None:
    (here / "a.txt").write_bytes(b"fine\xff")
    assert run(here, sources=(here / "a.txt",), errors="replace").tokens > 4


def test_ids_beyond_the_vocabulary_are_placed(here: Path) -> None:
    lines = np.zeros((3, 4), dtype=np.int32)
    lines[1, 2] = 5000
    np.save(here / "ids.npy", lines)
    with pytest.raises(
        TokenIdError, match=r"ids.npy, line 1, position 2 .*token id 5000 is beyond"
    ):
        run(here, sources=(here / "ids.npy",))


def test_missing_inputs_are_named(here: Path) -> None:
    with pytest.raises(CorpusError, match="corpus not found"):
        run(here, sources=(here / "missing.txt",))
    (here / "engram-vocab.parquet").unlink()
    with pytest.raises(InputError, match="no compressed vocabulary"):
        run(here)


@pytest.mark.parametrize("wrong", [{"threads": 0}, {"sample_size": 3}, {"errors": "ignore"}])
def test_unusable_choices(wrong: dict[str, Any], here: Path) -> None:
    with pytest.raises(InputError):
        run(here, **wrong)


def test_too_little_memory_is_told_before_counting(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "available_memory", lambda: 10**6)
    with pytest.raises(InputError, match=r"1\.0 MB of memory are available"):
        run(here)


class DiffersLater(FastEncoder):
    """Equal on the first batches, then not."""

    calls = 0

    def encode(self, texts: list[str]) -> Any:
        DiffersLater.calls += 1
        ids, begins = super().encode(texts)
        return (ids if DiffersLater.calls < 4 else bytes(len(ids))), begins


def test_a_fast_encoder_that_turns_out_to_differ_is_counted_again(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_FIRST_BATCH", 1)  # a batch a file
    monkeypatch.setattr(encode, "FastEncoder", DiffersLater)
    monkeypatch.setattr(encode, "_CHECK_EVERY", 1)
    for index in range(6):
        (here / "corpus" / f"more{index}.txt").write_text(PROSE[index % 4] * 2, encoding="utf-8")
    DiffersLater.calls = 0
    heard = Heard()
    result = run(here, heard, encoder="fast", out=here / "one")
    assert DiffersLater.calls >= 4
    assert any("counting again from the start with tokenizers" in note for note in heard.notes)
    assert result.encoder == "tokenizers"
    assert result.columns == run(here, encoder="tokenizers", out=here / "two").columns
    assert heard.done == result.bytes


def test_an_interrupt_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupts(Heard):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(here, Interrupts(), encoder="fast")
    assert threading.active_count() == before
    assert sorted(path.name for path in here.iterdir()) == [
        "corpus",
        "engram-vocab.parquet",
        "tokenizer.json",
    ]


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may ignore it
from pathlib import Path
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, hash_stats
from engram_cli.commands.workspace import Workspace

class Tells:
    def start(self, what, total, unit): print("started", flush=True)
    def advance(self, amount): pass
    def note(self, text): pass

geometry = Geometry(heads=2, rows_per_head=(211,), layers=(1,), pad_id=2)
here = Workspace(Path(sys.argv[1]))
try:
    hash_stats(HashStatsRequest(sources=("-",), geometry=geometry, workspace=here), Tells())
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_while_a_pipe_is_silent(here: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(here)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("a few words that never end")
    process.stdin.flush()
    assert process.stdout.readline() == "started\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=60)  # without its standard input being closed
    finally:
        process.kill()
    out, err = process.communicate()
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    assert not (here / "engram-stats").exists()
