"""A web server's files: ranges, retries, and every fault that a server has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from formats import checkpoints
from remote.server import Behaviour, serving

from engram_cli.commands.artifact import find_artifact
from engram_cli.errors import EngramError, InputError, SourceError
from engram_cli.remote import path as remote_path
from engram_cli.remote.locate import count_read, locate
from engram_cli.remote.path import RemotePath
from engram_cli.remote.session import BLOCK_BYTES, RANGE_BYTES, TRIES

CONTENT = os.urandom(3 * BLOCK_BYTES)


def at(server: Behaviour, name: str = "a.bin", content: bytes = CONTENT) -> RemotePath:
    (server.folder / name).write_bytes(content)
    return located(f"{server.address}/{name}")


def located(address: str) -> RemotePath:
    path = locate(Path(address))
    assert isinstance(path, RemotePath)
    return path


def read(path: Path, begin: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(begin)
        return bytes(file.read(size))


def test_ranges_and_what_they_cost(server: Behaviour) -> None:
    path = at(server)
    assert (path.is_file(), path.is_dir(), path.stat().st_size) == (True, False, len(CONTENT))
    assert read(path, 100_000, 9) == CONTENT[100_000:100_009]
    assert server.sent == 9
    for begin, size in ((0, 8), (8, 1000), (BLOCK_BYTES - 3, 3)):  # one block, read once
        assert read(path, begin, size) == CONTENT[begin : begin + size]
    assert server.sent == 9 + BLOCK_BYTES
    assert read(path, len(CONTENT) - 5, 50) == CONTENT[-5:]
    assert read(path, len(CONTENT), 50) == b""
    assert path.read_bytes() == CONTENT
    count = count_read(path, None)
    assert count is not None
    assert (count.bytes, count.requests) == (server.sent, len(server.asked))


def test_a_large_read_has_several_ranges_in_flight(
    server: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(RANGE_BYTES * 5 + 7)
    path = at(server, content=content)
    with path.open("rb") as file:
        assert file.read(len(content) + 1) == content
    assert [each[0] for each in server.asked] == ["HEAD"] + ["GET"] * 6
    assert server.sent == len(content)
    monkeypatch.setattr(remote_path, "AHEAD_BYTES", RANGE_BYTES)
    server.asked.clear()
    with path.open("rb") as file:  # a further read gets what follows
        pieces = [file.read(2**17) for _ in range(len(content) // 2**17 + 1)]
    assert b"".join(pieces) == content
    assert len(server.asked) < 16


def test_names_below_are_quoted(server: Behaviour) -> None:
    (server.folder / "a b").mkdir()
    (server.folder / "a b" / "50% #1?.bin").write_bytes(b"here")
    for typed in ("a%20b", "a b"):
        folder = located(f"{server.address}/{typed}")
        assert (folder / "50% #1?.bin").read_bytes() == b"here"
        assert [path.name for path in folder.iterdir()] == ["50% #1?.bin"]


def test_the_query_of_an_address_is_sent_for_its_file_alone(server: Behaviour) -> None:
    (server.folder / "b.json").write_bytes(b"{}")
    (server.folder / "a.gguf").write_bytes(b"GGUF")
    path = located(f"{server.address}/a.gguf?signature=secret")
    assert path.suffix == ".gguf"
    assert "secret" not in str(path)
    assert path.read_bytes() == b"GGUF"
    assert path.with_name("b.json").read_bytes() == b"{}"
    assert [asked[1] for asked in server.asked if "b.json" in asked[1]] == ["/b.json"] * 2
    assert all("secret" in asked[1] for asked in server.asked if "a.gguf" in asked[1])


def test_busy_and_cut_answers_are_asked_for_again(server: Behaviour) -> None:
    path = at(server)
    server.busy, server.cut = 2, 1
    assert read(path, 70_000, 100) == CONTENT[70_000:70_100]
    assert (server.busy, server.cut) == (0, 0)


def test_a_server_that_stays_busy_is_one_line(server: Behaviour) -> None:
    path = at(server)
    server.busy = 99
    with pytest.raises(SourceError, match=r"cannot read http.*a\.bin: 503"):
        read(path, 70_000, 100)
    assert len(server.asked) == 1 + TRIES
    with pytest.raises(SourceError, match="503"):  # and is asked no more
        read(path, 80_000, 100)
    assert len(server.asked) == 1 + TRIES


def test_a_server_without_ranges_is_refused_not_downloaded(server: Behaviour) -> None:
    server.ranges = False
    path = at(server)
    os.truncate(server.folder / "a.bin", 2**30)
    with pytest.raises(SourceError, match="ignores ranges") as caught:
        read(path, 2**20, 100)
    assert "download it" in caught.value.hint
    small = at(server, "small.json", b"{}")  # small files need none
    assert small.read_bytes() == b"{}"
    assert server.sent < 2**25  # what was under way when the connection was closed


@pytest.mark.parametrize("change", ["version", "size", "gone"])
def test_a_file_that_changes_is_an_error(server: Behaviour, change: str) -> None:
    path = at(server)
    assert read(path, 70_000, 10) == CONTENT[70_000:70_010]
    if change == "version":
        server.version = '"2"'
    elif change == "size":
        (server.folder / "a.bin").write_bytes(CONTENT + b"more")
    else:
        (server.folder / "a.bin").unlink()
    with pytest.raises(SourceError, match="has changed while it was read"):
        read(path, 80_000, 10)


def test_without_head_one_byte_is_asked_for(server: Behaviour) -> None:
    path = at(server)
    server.head = False
    assert path.stat().st_size == len(CONTENT)
    assert server.asked[-1][2] == "bytes=0-0"


@pytest.mark.parametrize("status", [401, 403])
def test_access_denied_is_one_line(server: Behaviour, status: int) -> None:
    path = at(server, "m.gguf")
    server.status["/m.gguf"] = status
    with pytest.raises(SourceError, match=r"access to http.*m\.gguf is denied") as caught:
        find_artifact(path)
    assert "hf://org/name" in caught.value.hint


def test_a_login_goes_to_its_own_host_alone(server: Behaviour, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.bin").write_bytes(CONTENT)
    with serving(tmp_path / "other") as other:
        server.token, server.moved = (
            "Basic bWU6c2VjcmV0",
            other.address.replace("127.0.0.1", "localhost"),
        )
        path = located(f"http://me:secret@{server.address.removeprefix('http://')}/a.bin")
        assert "secret" not in str(path)
        assert read(path, 70_000, 10) == CONTENT[70_000:70_010]
    assert set(server.tokens) == {server.token}
    assert set(other.tokens) == {None}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "s3://bucket/x"])
def test_nothing_outside_of_the_source_is_read(server: Behaviour, name: str) -> None:
    path = located(f"{server.address}/folder")
    asked = len(server.asked)
    if name.startswith("s3"):
        assert not (path / name).exists()  # a file of that name, below
        assert server.asked[-1][1] == "/folder/s3%3A/bucket/x"
    else:
        with pytest.raises(SourceError, match="leads out of"):
            (path / name).exists()
        assert len(server.asked) == asked


def test_an_index_that_leads_elsewhere_is_refused(server: Behaviour) -> None:
    made = checkpoints.qwen_ple(server.folder / "m").path
    index = made / "model.safetensors.index.json"
    for name in ("../x", "/etc/passwd", "http://127.0.0.1:1/x"):
        index.write_text(index.read_text().replace("model-00001-of-00002.safetensors", name))
        with pytest.raises(EngramError, match="names the file"):
            find_artifact(located(f"{server.address}/m")).open()
        index.write_text(index.read_text().replace(name, "model-00001-of-00002.safetensors"))


def test_many_files_are_asked_for_at_a_time(server: Behaviour) -> None:
    made = checkpoints.qwen_ple(server.folder / "m").path
    index = made / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"] |= {f"other.{i}": f"other-{i}.safetensors" for i in range(40)}
    index.write_text(json.dumps(listed))
    source: Any = find_artifact(located(f"{server.address}/m")).open()
    (check,) = [each for each in source.checks if each.name.startswith("files and tensors")]
    assert (check.result, check.found.split(", ")[1]) == ("differs", "other-1.safetensors")
    heads = [path for method, path, _ in server.asked if method == "HEAD" and "other" in path]
    assert sorted(heads) == sorted({f"/m/other-{i}.safetensors" for i in range(40)})


def test_a_folder_that_the_server_does_not_show(server: Behaviour) -> None:
    checkpoints.qwen_ple(server.folder / "m")
    server.lists = False
    path = located(f"{server.address}/m")
    assert path.is_dir()
    assert find_artifact(path).open().layers == (2,)
    assert len(list(path.rglob("*"))) == 4


def test_what_is_not_there(server: Behaviour) -> None:
    with pytest.raises(InputError, match=r"m\.gguf does not exist"):
        find_artifact(located(f"{server.address}/m.gguf"))
    with pytest.raises(InputError, match="is not a table"):
        find_artifact(located(f"{server.address}/folder"))
    with pytest.raises(SourceError, match="cannot be reached: the connection is refused"):
        find_artifact(located("http://127.0.0.1:1/m.gguf"))
    with pytest.raises(SourceError, match=r"cannot be reached: there is no host nowhere\.invalid"):
        find_artifact(located("http://nowhere.invalid/m.gguf"))
    with pytest.raises(InputError, match="names no host"):
        locate(Path("https://"))


def test_a_header_that_claims_too_much_is_not_downloaded(server: Behaviour) -> None:
    path = server.folder / "m.gguf"
    # One key: an array of 2^25 numbers of 8 bytes.
    start = b"GGUF" + (3).to_bytes(4, "little") + (0).to_bytes(8, "little")
    start += (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + b"k"
    start += (9).to_bytes(4, "little") + (10).to_bytes(4, "little") + (2**25).to_bytes(8, "little")
    with path.open("wb") as file:
        file.write(start)
        file.truncate(2**30)
    with pytest.raises(EngramError, match="claims a header of more than"):
        find_artifact(located(f"{server.address}/m.gguf")).open()
    assert server.sent <= BLOCK_BYTES
