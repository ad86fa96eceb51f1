"""Archives are read to the last byte of the file, or it is said why they cannot be."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from base64 import b64decode
from contextlib import suppress
from pathlib import Path

import pytest
from corpus.corpora import read_items, texts
from corpus.written import PACKERS, zstd

from engram_cli.corpus.byte_stream import HEAD, archive, compression_of
from engram_cli.errors import CorpusError

ONE, TWO = "the first half, " * 40, "and the second"
SKIPPED = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"size"


def read(folder: Path, raw: bytes) -> str:
    (folder / "a.txt").write_bytes(raw)
    return "".join(texts(read_items(folder / "a.txt")))


@pytest.mark.parametrize(
    ("ending", "between"),
    [(".xz", 4), (".xz", 2**17), (".gz", 1), (".gz", 512), (".bz2", 512), (".gz", 2**17 + 3)],
)
def test_zeros_between_and_behind_streams_are_padding(
    ending: str, between: int, tmp_path: Path
) -> None:
    """Tapes and sparse copies end in zeros; xz allows them between streams."""
    pack, zeros = PACKERS[ending], bytes(between)
    raw = pack(ONE.encode()) + zeros + pack(b"") + pack(TWO.encode()) + zeros
    assert read(tmp_path, raw) == ONE + TWO


@pytest.mark.parametrize("ending", [".xz", ".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("garbage", [b"x", b"garbage that is longer", b"\0\0\0\0x", b"\x1f"])
def test_what_follows_an_archive_is_not_passed_over(
    ending: str, garbage: bytes, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"a.txt is damaged or truncated: "):
        read(tmp_path, PACKERS[ending](ONE.encode()) + garbage)


def test_the_place_of_what_follows_is_named(tmp_path: Path) -> None:
    raw = gzip.compress(ONE.encode()) + bytes(2**17)
    with pytest.raises(CorpusError, match=rf"byte {len(raw):,} follows the last stream"):
        read(tmp_path, raw + b"x")


def test_padding_of_xz_is_of_four_bytes(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"3 zeros follow a stream, not a multiple of 4"):
        read(tmp_path, lzma.compress(b"one") + bytes(3))


@pytest.mark.parametrize("ending", [".xz", ".gz", ".bz2", ".zst"])
def test_a_second_stream_that_is_damaged_or_cut_is_named(ending: str, tmp_path: Path) -> None:
    first, second = (PACKERS[ending](part.encode()) for part in (ONE, TWO * 40))
    for end in range(1, len(second)):
        with pytest.raises(CorpusError, match=r"a.txt is damaged or truncated"):
            read(tmp_path, first + second[:end])
    if ending == ".zst":  # pyarrow writes no checksum
        return
    told = 0
    for at in range(len(second)):
        changed = second[:at] + bytes([second[at] ^ 0x10]) + second[at + 1 :]
        with suppress(CorpusError):
            told -= 1
            assert read(tmp_path, first + changed) == ONE + TWO * 40
            told += 1
    # All but the time that gzip writes, and bits at the end that mean nothing.
    assert -told > len(second) - 9


def test_frames_of_zstd_that_are_to_be_skipped_are_skipped(tmp_path: Path) -> None:
    one, two = zstd(ONE.encode()), zstd(TWO.encode())
    long = b"\x5f\x2a\x4d\x18" + (300).to_bytes(4, "little") + bytes(300)
    for raw in (SKIPPED + one + two, one + long + two, long + one + SKIPPED + two + long):
        assert read(tmp_path, raw) == ONE + TWO
    for cut in (SKIPPED[:9], one + SKIPPED[:9], SKIPPED + one[:-1]):
        with pytest.raises(CorpusError, match=r"a.txt is damaged or truncated"):
            read(tmp_path, cut)


def test_the_packing_is_told_from_behind_skipped_frames() -> None:
    for magic, kind in ((zstd(b"x"), "zstd"), (b"\x04\x22\x4d\x18", "lz4")):
        for skipped in (b"", SKIPPED, SKIPPED[:4] + bytes(4)):
            head = (skipped + magic)[:HEAD]
            assert (compression_of(head), archive(head)) == (
                (kind, None) if kind == "zstd" else (None, kind)
            )
    assert compression_of(SKIPPED[:4] + b"\xff\xff\xff\x7f" + bytes(8)) == "zstd"


# What `zstd --long=28` and `xz --lzma2=dict=256MiB` write, whatever the length of the text.
LARGE = {
    "zstd": "KLUv/QSQmQAAYSB3aW5kb3cgb2YgMjU2IE1pQoKCbWY=",
    "xz": "/Td6WFoAAATm1rRGAgAhASAAAAAJiKV2AQAAeAAAAABFru+D+O4WCgABGQGlLIHMH7bzfQEAAAAABFla",
}


@pytest.mark.parametrize("tool", LARGE)
def test_a_window_that_would_fill_the_memory_is_refused_by_its_size(
    tool: str, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match=r"a.txt takes more than 128 MiB") as caught:
        read(tmp_path, b64decode(LARGE[tool]))
    assert f"{tool} -dc" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"LZIP\x01\x0c", "lzip"),
        (b"\x1f\x9d\x90abc", "compress"),
        (b"\x89LZO\x00\r\n\x1a\n", "lzop"),
        (b"\x25\xb5\x2f\xfd", "zstd before 0.8"),
        (b"Rar!\x1a\x07\x00", "rar"),
        (b"\xff\x06\x00\x00sNaPpY", "snappy"),
    ],
)
def test_archives_that_are_not_read_are_named_and_not_read_as_text(
    head: bytes, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_bytes(head)
    with pytest.raises(CorpusError, match=f"a.txt is compressed with {kind}"):
        read_items(tmp_path / "a.txt", errors="replace")


TOOLS = {
    "gzip": ["gzip", "-c"],
    "pigz": ["pigz", "-c", "-b", "128"],
    "bzip2": ["bzip2", "-c"],
    "pbzip2": ["pbzip2", "-c"],
    "xz": ["xz", "-c", "-T2", "--block-size=100KiB"],
    "xz -9e": ["xz", "-c", "-9e"],
    "zstd": ["zstd", "-c", "--long=27", "--check"],
    "zstd -22": ["zstd", "-c", "--ultra", "-22"],
    "pzstd": ["pzstd", "-c", "-p", "2"],
}


@pytest.mark.parametrize("name", TOOLS)
def test_what_the_tools_write_is_read(name: str, tmp_path: Path) -> None:
    command = TOOLS[name]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    text = "".join(f"line {number * 7919 % 30011}\n" for number in range(40_000))
    (tmp_path / "plain").write_text(text)
    packed = subprocess.run(
        [*command, str(tmp_path / "plain")], capture_output=True, check=True
    ).stdout
    assert read(tmp_path, packed * 2) == text * 2
    with pytest.raises(CorpusError, match=r"a.txt is damaged or truncated"):
        read(tmp_path, packed + packed[:-1])


# The same tools' bytes of "stored\n", for where they are not installed.
STORED = {
    "pigz": "H4sIAAAAAAAAAysuyS9KTeECAOKcU6UHAAAA",
    "pbzip2": "QlpoOTFBWSZTWfhk6K8AAALBgAAQBgCcACAAIZNMCGA5OyXC7kinChIfDJ0V4A==",
    "xz": "/Td6WFoAAATm1rRGAgAhARYAAAB0L+WjAQAGc3RvcmVkCgAAiI9KuDK5vgkAAR8HFi64cx+2830BAAAA"
    "AARZWg==",
    "zstd": "KLUv/SQHOQAAc3RvcmVkCmoehr8=",
    "pzstd": "UCpNGAQAAAAUAAAAKLUv/QRYOQAAc3RvcmVkCmoehr8=",
}


@pytest.mark.parametrize("tool", STORED)
def test_what_the_tools_wrote_once_is_read(tool: str, tmp_path: Path) -> None:
    raw = b64decode(STORED[tool])
    assert read(tmp_path, raw * 3) == "stored\n" * 3
    for cut in range(13, len(raw)):  # at 12 the skipped frame of pzstd is whole
        with pytest.raises(CorpusError, match=r"a.txt is damaged or truncated"):
            read(tmp_path, raw + raw[:cut])
