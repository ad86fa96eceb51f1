"""hash-stats that was broken off goes on from its last checkpoint, to the same bytes."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands.killed_counting
import pytest
from small_tokenizers import PROSE

from engram_cli import write_vocab
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import HashStatsRequest, HashStatsResult, hash_stats
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus import encode, stream
from engram_cli.corpus.base import Mark
from engram_cli.corpus.encode import EncoderDiffers, ReferenceEncoder
from engram_cli.engines import local
from engram_cli.errors import CorpusError, InputError
from engram_cli.stats import checkpoint
from engram_cli.vocab.compress import CompressedVocab

GEOMETRY = Geometry(heads=2, rows_per_head=(211,), layers=(1, 5), pad_id=2)
GOING_ON = "going on from a checkpoint"


class Heard:
    """Remembers what it was told; breaks off after some bytes, by Ctrl-C as often as said, or by an
    exception that cannot be put off."""

    def __init__(self, stop_after: int | None = None, ctrl_c: int = 0) -> None:
        self.notes: list[str] = []
        self.done = 0
        self._stop_after = stop_after
        self._ctrl_c = ctrl_c

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.done = 0

    def advance(self, amount: int) -> None:
        self.done += amount
        if self._stop_after is not None and self.done > self._stop_after:
            if not self._ctrl_c:
                raise KeyboardInterrupt
            self._stop_after = None
            for _ in range(self._ctrl_c):
                signal.raise_signal(signal.SIGINT)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def said(self, text: str) -> bool:
        """Whether exactly one note begins so."""
        return sum(note.startswith(text) for note in self.notes) == 1


@pytest.fixture
def here(
    tmp_path: Path,
    tokenizer_file: Path,
    small_vocab: CompressedVocab,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A workspace with a corpus of twelve files, each of them a batch."""
    monkeypatch.setattr(stream, "_FIRST_BATCH", 1)
    monkeypatch.setattr(stream, "_FULL_BATCH", 1)
    shutil.copy(tokenizer_file, tmp_path / "tokenizer.json")
    write_vocab(small_vocab, tmp_path / "engram-vocab.parquet")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index in range(12):
        text = f"{index} " + PROSE[index % len(PROSE)] * (1 + index % 3)
        (corpus / f"{index:02}.txt").write_text(text, encoding="utf-8")
    (corpus / "05b.md").touch()
    lines = [json.dumps({"text": text}) + "\n" for text in PROSE * 4]
    (corpus / "lines.jsonl").write_text("".join(lines))
    return tmp_path


def run(here: Path, progress: Heard | None = None, **options: Any) -> HashStatsResult:
    defaults: dict[str, Any] = {
        "geometry": GEOMETRY,
        "workspace": Workspace(here),
        "sources": (here / "corpus",),
        "checkpoint_seconds": 0.0,
    }
    return hash_stats(HashStatsRequest(**defaults | options), progress or Heard())


def size_of(here: Path) -> int:
    return sum(path.stat().st_size for path in (here / "corpus").iterdir())


def broken_off(here: Path, **options: Any) -> Heard:
    """Break off in the middle; there is a checkpoint then."""
    heard = Heard(stop_after=size_of(here) // 2)
    with pytest.raises(KeyboardInterrupt):
        run(here, heard, **options)
    assert not (here / "engram-stats").exists()
    assert (here / ".engram-stats.resume" / checkpoint.DOCUMENT).is_file()
    return heard


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_after_ctrl_c_the_same_command_goes_on(here: Path) -> None:
    whole = run(here, out=here / "whole")
    assert whole.resumed_tokens == 0
    heard = broken_off(here)
    assert heard.notes[-1].endswith("tokens are kept: the same command goes on from there")
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
    assert heard.notes[-1].endswith("tokens are kept: the same command goes on from there")
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
    assert heard.notes[-1] == "no checkpoint was written yet: the same command begins anew"
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
        {"errors": "replace"},
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


def test_a_changed_file_drops_it(here: Path) -> None:
    broken_off(here)
    path = here / "corpus" / "11.txt"
    os.utime(path, ns=(1, 1))
    again = Heard()
    run(here, again)
    assert again.said("counting from the start, the checkpoint in ")


def cut_arrays(folder: Path) -> None:
    (path,) = folder.glob("arrays-*.bin")
    path.write_bytes(path.read_bytes()[:-16])


def flip_arrays(folder: Path) -> None:
    (path,) = folder.glob("arrays-*.bin")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def no_arrays(folder: Path) -> None:
    for path in folder.glob("arrays-*.bin"):
        path.unlink()


def document(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / checkpoint.DOCUMENT
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def no_json(folder: Path) -> None:
    (folder / checkpoint.DOCUMENT).write_text("{")


def entry(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        listed = json.loads((folder / checkpoint.DOCUMENT).read_text())["arrays"]
        document(arrays=[listed[0] | changes, *listed[1:]])(folder)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_arrays, flip_arrays, no_arrays, no_json),
        *(document(version=2), document(mark=None), document(mark={"file": -1}), document(size="")),
        *(document(arrays=[]), document(arrays=[None]), document(arrays_file="../corpus/00.txt")),
        *(document(encoder="eval"), document(tokens=True), document(digest=None)),
        *(entry(dtype="|O8"), entry(shape=[2**62, 2**62]), entry(offset=-16), entry(offset=8)),
        *(entry(name=5), entry(shape=[-1]), entry(shape="1"), entry(more=1), entry(shape=[2])),
    ],
)
def test_a_damaged_one_is_told_once_and_dropped(damage: Callable[[Path], None], here: Path) -> None:
    whole = run(here, out=here / "whole")
    broken_off(here)
    damage(here / ".engram-stats.resume")
    again = Heard()
    result = run(here, again)
    assert again.said("counting from the start, the checkpoint ")
    assert not again.said(GOING_ON)
    assert contents(result.out) == contents(whole.out)
    assert result.resumed_tokens == 0


def test_a_full_disk_ends_the_checkpoints_not_the_count(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(here, out=here / "whole")
    write, calls = checkpoint._write_arrays, []

    def full(path: Path, state: Any) -> str:
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"the beginning")
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, state)

    monkeypatch.setattr(checkpoint, "_write_arrays", full)
    heard = Heard(stop_after=size_of(here) * 3 // 4)
    with pytest.raises(KeyboardInterrupt):
        run(here, heard)
    assert len(calls) == 3
    assert heard.said("no checkpoints from here on: cannot write ")
    folder = here / ".engram-stats.resume"
    assert sorted(path.suffix for path in folder.iterdir()) == [".bin", ".json"]
    again = Heard()
    result = run(here, again)  # from the second one
    assert again.said(GOING_ON)
    assert contents(result.out) == contents(whole.out)


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

    def made(tokenizer: Any, name: str, progress: Any, *, size: int | None) -> Any:
        asked.append(name)
        if name == "tokenizers":
            monkeypatch.setattr(encode.ReferenceEncoder, "encode", reference)
        return ReferenceEncoder(tokenizer)

    monkeypatch.setattr(local, "make_encoder", made)
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
    assert heard.said("no checkpoints are kept: ")
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
    assert heard.notes[-1] == "no checkpoint was written yet: the same command begins anew"


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

    class Tally:
        size, tokens = 1, 1

        def state(self) -> dict[str, Any]:
            now[0] += 7.0
            return {}

    keeper = checkpoint.FolderKeeper(
        tmp_path / "kept", "request", 30.0, Heard(), None, threading.Event()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.time, "monotonic", lambda: now[0])
        keeper._next = 100.0
        assert keeper.due()
        keeper.keep(Mark(), Tally())  # type: ignore[arg-type]
        now[0] += 69.0
        assert not keeper.due()
        now[0] += 2.0
        assert keeper.due()


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_it_writes_the_same_bytes(seed: int, here: Path) -> None:
    script = Path(commands.killed_counting.__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(here), str(seed)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(script.parents[1]), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["equal"]
    assert found["killed"] > 3
    assert found["resumed"] > 2
    assert found["dropped"] == []
    assert found["left"] == []
