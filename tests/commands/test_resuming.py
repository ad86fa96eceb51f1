"""hash-stats that was broken off goes on from its last checkpoint, to the same bytes."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands.broken_off import GOING_ON, Heard, broken_off, contents, run, size_of
from scripts import run_script

from engram_cli.commands.geometry import Geometry
from engram_cli.corpus import encode
from engram_cli.corpus.base import ReadPosition
from engram_cli.corpus.encode import EncoderDiffers, ReferenceEncoder
from engram_cli.engines import base
from engram_cli.errors import CorpusError, InputError, UndecodableError
from engram_cli.stats.counting import checkpoint


@pytest.fixture
def here(batches: Path) -> Path:
    return batches


def test_after_ctrl_c_the_same_command_goes_on(here: Path) -> None:
    whole = run(here, out=here / "whole")
    assert whole.resumed_tokens == 0
    heard = broken_off(here)
    assert heard.notes[-1].endswith("tokens are kept: the same command resumes from there")
    assert heard.said("checkpoint: ")
    again = Heard()
    result = run(here, again)
    assert again.said(GOING_ON)
    assert again.done == result.bytes == whole.bytes
    assert again.said("1 empty files were skipped")
    assert 0 < result.resumed_tokens < result.tokens == whole.tokens
    assert result.columns == whole.columns
    assert contents(result.out) == contents(whole.out)
    assert not list(here.glob(".engram-stats*"))


@pytest.fixture
def heeding_ctrl_c() -> Iterator[None]:
    """A job in the background may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_after_ctrl_c_before_the_first_checkpoint_too(here: Path) -> None:
    whole = run(here, out=here / "whole")
    heard = Heard(stop_after=size_of(here) // 4, ctrl_c=1)
    with pytest.raises(KeyboardInterrupt):
        run(here, heard, checkpoint_seconds=30.0)
    assert heard.notes[-1].endswith("tokens are kept: the same command resumes from there")
    assert heard.done < size_of(here) // 2
    assert not (here / "engram-stats").exists()
    again = Heard()
    result = run(here, again, checkpoint_seconds=30.0)
    assert again.said(GOING_ON)
    assert 0 < result.resumed_tokens < whole.tokens
    assert contents(result.out) == contents(whole.out)


@pytest.mark.usefixtures("heeding_ctrl_c")
def test_the_second_ctrl_c_ends_at_once(here: Path) -> None:
    heard = Heard(stop_after=size_of(here) // 4, ctrl_c=2)
    with pytest.raises(KeyboardInterrupt):
        run(here, heard, checkpoint_seconds=30.0)
    assert heard.notes[-1] == "no checkpoint was written yet: the same command starts over"
    assert not list(here.glob(".engram-stats*"))


def test_what_was_counted_is_not_encoded_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(here)
    texts: list[str] = []

    def spying(self: ReferenceEncoder, batch: list[str]) -> Any:
        texts.extend(batch)
        return self._tokenizer.encode_batch(batch)

    monkeypatch.setattr(ReferenceEncoder, "encode", spying)
    run(here)
    assert texts
    assert not any(text.startswith(("0 ", "1 ", "2 ")) for text in texts)


def test_a_run_goes_on_with_other_threads_and_another_encoder(here: Path) -> None:
    whole = run(here, out=here / "whole")
    broken_off(here, threads=1)
    again = Heard()
    result = run(here, again, threads=4, encoder="fast", force=True)
    assert again.said(GOING_ON)
    assert contents(result.out) == contents(whole.out)


@pytest.mark.parametrize(
    "options",
    [
        {"join_documents": True},
        {"sample_size": 77},
        {"growth": False},
        {"geometry": Geometry(heads=1, rows_per_head=(211,), layers=(1,), pad_id=2)},
        {"restart": True},
    ],
)
def test_another_request_drops_it_and_says_so(options: dict[str, Any], here: Path) -> None:
    whole = run(here, out=here / "whole", **options)
    broken_off(here)
    again = Heard()
    result = run(here, again, **options)
    assert again.said("counting from the start, the checkpoint in ")
    assert contents(result.out) == contents(whole.out)
    assert result.resumed_tokens == 0


def test_text_that_is_not_utf8_is_read_by_the_same_command_with_errors_replace(here: Path) -> None:
    """What was counted before it is not counted again, however early it comes."""
    path = here / "corpus" / "11.txt"
    path.write_bytes(b"an apple\nand \xe9t\xe9" + path.read_bytes())
    whole = run(here, out=here / "whole", errors="replace")
    heard = Heard()
    with pytest.raises(UndecodableError, match=r"11\.txt, line 2: byte 13 is not UTF-8 \(0xE9\)"):
        run(here, heard, checkpoint_seconds=1e6)  # none is due before the error
    kept = heard.notes[-1].partition(" tokens are kept: the same command with --errors replace")
    again = Heard()
    result = run(here, again, errors="replace")
    assert again.said(GOING_ON)
    assert result.resumed_tokens == int(kept[0].replace(",", "")) > whole.tokens // 2
    assert contents(result.out) == contents(whole.out)


def test_what_was_replaced_is_no_part_of_a_strict_count(here: Path) -> None:
    (here / "corpus" / "0.txt").write_bytes(b"an apple \xff" * 40)
    broken_off(here, errors="replace")
    with pytest.raises(UndecodableError, match=r"0\.txt, line 1: byte 9 is not UTF-8"):
        run(here)


@pytest.mark.parametrize("change", ["grows", "other", "moved"])
def test_another_file_of_any_kind_drops_it(change: str, here: Path) -> None:
    broken_off(here)
    path = here / "corpus" / "11.txt"
    about = path.stat()
    raw = path.read_bytes()
    if change == "grows":
        path.write_bytes(raw + b"more")
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    elif change == "other":
        path.write_bytes(raw.replace(b"a", b"o"))
    else:  # of the same size and time, as tools write that set all times to one
        (here / "new").write_bytes(raw.replace(b"a", b"o"))
        os.utime(here / "new", ns=(about.st_atime_ns, about.st_mtime_ns))
        (here / "new").replace(path)
    again = Heard()
    run(here, again)
    assert again.said("counting from the start, the checkpoint in ")


def test_a_changed_file_drops_it(here: Path) -> None:
    broken_off(here)
    path = here / "corpus" / "11.txt"
    os.utime(path, ns=(1, 1))
    again = Heard()
    run(here, again)
    assert again.said("counting from the start, the checkpoint in ")


def test_when_the_fast_encoder_differs_nothing_it_gave_is_gone_on_with(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(here, out=here / "whole")
    broken_off(here)
    reference = ReferenceEncoder.encode

    def differs(self: Any, texts: list[str]) -> Any:
        raise EncoderDiffers("fast differs", "tell")

    monkeypatch.setattr(encode.ReferenceEncoder, "encode", differs)
    asked: list[str] = []

    def made(tokenizer: Any, name: str, progress: Any, **_: Any) -> Any:
        asked.append(name)
        if name == "tokenizers":
            monkeypatch.setattr(encode.ReferenceEncoder, "encode", reference)
        return ReferenceEncoder(tokenizer)

    monkeypatch.setattr(base, "make_encoder", made)
    again = Heard(stop_after=size_of(here) * 3 // 4)
    with pytest.raises(KeyboardInterrupt):
        run(here, again)
    assert again.said(GOING_ON)
    assert again.said("fast differs: counting again from the start")
    assert asked == ["auto", "tokenizers"]
    last = Heard()
    result = run(here, last)  # goes on with the encoder that the checkpoint was made with
    assert last.said(GOING_ON)
    assert asked[2:] == ["tokenizers"]
    assert contents(result.out) == contents(whole.out)


def test_a_pipe_takes_none_and_that_is_said(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Input(io.StringIO):
        buffer = io.BytesIO(b"an apple tree " * 50)

    monkeypatch.setattr(sys, "stdin", Input())
    heard = Heard()
    run(here, heard, sources=("-",))
    assert heard.said("no checkpoints: ")
    assert not heard.said("checkpoint: ")


def test_a_folder_of_that_name_keeps_what_else_is_in_it(here: Path) -> None:
    folder = here / ".engram-stats.resume"
    folder.mkdir()
    (folder / "letter.part").write_text("mine")
    run(here)
    assert contents(folder) == {"letter.part": b"mine"}


def test_an_interrupt_that_is_not_put_off_keeps_nothing(here: Path) -> None:
    heard = Heard(stop_after=size_of(here) // 2)
    with pytest.raises(KeyboardInterrupt):
        run(here, heard, checkpoint_seconds=30.0)
    assert not list(here.glob(".engram-stats*"))
    assert not any("kept" in note for note in heard.notes)
    assert heard.notes[-1] == "no checkpoint was written yet: the same command starts over"


def test_an_error_in_the_corpus_leaves_the_checkpoint(here: Path) -> None:
    (here / "corpus" / "11.txt").write_bytes(b"\xff" * 9)
    for _ in range(2):
        heard = Heard()
        with pytest.raises(CorpusError, match=r"11\.txt"):
            run(here, heard)
    assert heard.said(GOING_ON)


def test_the_interval_is_a_number_of_seconds(here: Path) -> None:
    for seconds in (-1.0, float("nan")):
        with pytest.raises(InputError, match="seconds"):
            run(here, checkpoint_seconds=seconds)


def test_the_time_between_two_grows_with_what_one_takes(tmp_path: Path) -> None:
    now = [100.0]

    class Counter:
        size, tokens = 1, 1

        def state(self) -> dict[str, Any]:
            now[0] += 7.0
            return {}

    checkpointer = checkpoint.FolderCheckpointer(tmp_path / "kept", "request", 30.0, Heard(), None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.time, "monotonic", lambda: now[0])
        checkpointer._next = 100.0
        assert checkpointer.due()
        checkpointer.save(ReadPosition(), Counter())  # type: ignore[arg-type]
        now[0] += 69.0
        assert not checkpointer.due()
        now[0] += 2.0
        assert checkpointer.due()


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_it_writes_the_same_bytes(seed: int, here: Path) -> None:
    found = run_script("commands/killed_counting.py", here, seed)
    assert found["equal"]
    assert found["killed"] > 3
    assert found["resumed"] > 0  # how often depends on how fast the machine is
    assert found["dropped"] == []
    assert found["left"] == []
