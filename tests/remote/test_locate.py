"""What a source is: a path, a repository of the Hub, or an address; and the Hub's local cache."""

from __future__ import annotations

import builtins
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from formats import checkpoints
from huggingface_hub import constants
from remote.hub import SHA, TOKEN, Hub, cached, hub, running

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.lookup.command import lookup
from engram_cli.commands.requests.reading import LookupRequest
from engram_cli.errors import DependencyError, InputError, SourceError
from engram_cli.remote.locate import count_read, locate
from engram_cli.remote.path import RemotePath, is_remote
from engram_cli.vocab.compress import CompressedVocab

__all__ = ["hub"]  # a fixture


@pytest.mark.parametrize(
    "address", ["org/name", "hf://org/name", "hf:org/name", "hf://org/name@v2"]
)
def test_a_repository(hub: Hub, address: str) -> None:
    path = locate(Path(address))
    assert str(path) == f"hf://org/name@{'v2' if '@' in address else 'main'}"
    found = find_artifact(path)
    source: Any = found.open()
    local: Any = find_artifact(hub.folder).open()
    assert (found.kind, source.checks) == ("qwen-ple", local.checks)
    assert (source.vectors(2, [3, 900]) == local.vectors(2, [3, 900])).all()
    listed = [asked for asked, _, _ in hub.asked if "/api/" in asked]
    assert len(listed) == 1
    assert f"/revision/{'v2' if '@' in address else 'main'}" in listed[0]
    assert {token for _, _, token in hub.asked} == {f"Bearer {TOKEN}"}
    count = count_read(path, None)
    assert count is not None
    assert count.requests == len(hub.asked)


def test_a_file_of_a_repository(hub: Hub) -> None:
    path = locate(Path("hf://org/name@refs/pr/3/config.json"))
    assert str(path) == "hf://org/name@refs%2Fpr%2F3/config.json"
    assert path.read_bytes() == (hub.folder / "config.json").read_bytes()
    assert path.with_name("none.json").exists() is False
    listed = next(asked for asked, _, _ in hub.asked if "/api/" in asked)
    assert listed.partition("?")[0].endswith("revision/refs%2Fpr%2F3")


def test_a_tokenizer_of_a_repository(
    hub: Hub, tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    shutil.copy(tokenizer_file, hub.folder / "tokenizer.json")
    made = checkpoints.deepseek_gguf(tmp_path / "m.gguf", small_vocab, "llama.cpp")
    request = LookupRequest(path=made.path, text="apple", tokenizer=Path("org/name"))
    assert lookup(request).tokens == lookup(replace(request, tokenizer=tokenizer_file)).tokens


def test_the_token_stays_with_the_hub(hub: Hub, tmp_path: Path) -> None:
    elsewhere = Hub(hub.folder)
    with running(elsewhere):
        there = elsewhere.address.replace("127.0.0.1", "localhost")
        hub.moved = f"{there}/org/name/resolve/{SHA}"
        path = locate(Path("hf://org/name/config.json"))
        assert path.read_bytes() == (hub.folder / "config.json").read_bytes()
    assert [token for _, _, token in elsewhere.asked] == [None]
    assert hub.asked[-1][2] == f"Bearer {TOKEN}"


def test_files_in_the_cache_are_not_asked_for(hub: Hub) -> None:
    cached(hub, "config.json", "model-00001-of-00002.safetensors")
    source: Any = find_artifact(locate(Path("org/name"))).open()
    assert source.layers == (2,)
    source.vectors(2, range(0, source.layout.layer(2).rows, 97))
    files = {asked.rpartition("/")[2] for asked, _, _ in hub.asked if "/resolve/" in asked}
    assert files == {"model.safetensors.index.json", "model-00002-of-00002.safetensors"}
    assert source.parts[2, "rows"].distant
    cached(hub, "model-00002-of-00002.safetensors")
    source = find_artifact(locate(Path("org/name"))).open()
    assert not source.parts[2, "rows"].distant  # mapped, as any file of this machine
    # The commit of the cache, not what main is now.
    assert f"/revision/{SHA}" in hub.asked[0][0]


def test_without_the_hub_the_cache_serves(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [path.name for path in hub.folder.iterdir()]
    snapshot = cached(hub, *every)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    source: Any = find_artifact(locate(Path("org/name"))).open()
    assert len(source.vectors(2, [5, 7])) == 2
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(Path("org/name")) == snapshot
    assert locate(Path("hf://org/name/config.json")) == snapshot / "config.json"
    assert hub.asked == []
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set") as caught:
        locate(Path("org/another"))
    assert "hf download org/another" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "error", "message", "hint"),
    [
        (404, "RepoNotFound", "is not on the Hub, or is private", "HF_TOKEN"),
        (401, "", "is denied", "HF_TOKEN"),
        (403, "GatedRepo", "is gated", "accept its conditions"),
        (404, "RevisionNotFound", "has no revision main", "check it"),
    ],
)
def test_access_to_a_repository(hub: Hub, status: int, error: str, message: str, hint: str) -> None:
    hub.status, hub.error = status, error
    with pytest.raises(SourceError, match=f"hf://org/name.* {message}") as caught:
        locate(Path("hf://org/name"))
    assert hint in caught.value.hint


def test_a_hub_that_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(SourceError, match="org/name is no path here, and hf://org/name") as caught:
        locate(Path("org/name"))
    assert "cannot be reached: the connection is refused" in caught.value.message


def test_a_path_here_wins(hub: Hub) -> None:
    Path("org").mkdir()
    assert locate(Path("org/name")) == Path("org/name")  # what is missing in a folder here
    Path("org/name").mkdir()
    for path in (Path("org/name"), Path("org"), Path("a"), Path("/a/b"),
                 Path("a/b/c"), Path("../a"), Path(".hidden/a"), Path("a/-b")):  # fmt: skip
        assert not is_remote(locate(path))
    assert locate(Path("file:///tmp/x")) == Path("/tmp/x")
    assert hub.asked == []


def test_paths_of_a_session(hub: Hub) -> None:
    path = locate(Path("hf://org/name"))
    assert isinstance(path, RemotePath)
    assert locate(path) is path
    assert is_remote(path / "config.json")
    assert is_remote((path / "config.json").parent)
    assert str(path / "config.json") == "hf://org/name@main/config.json"
    assert (path / "config.json").suffix == ".json"
    assert {each.name for each in path.glob("*.safetensors")} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    }
    with pytest.raises(OSError, match="only read"):
        (path / "config.json").open("wb")


def test_no_address(hub: Hub) -> None:
    for address in ("hf://name", "hf://"):
        with pytest.raises(InputError, match="names no repository"):
            locate(Path(address))
    with pytest.raises(InputError, match="Protocol not known"):
        locate(Path("nonsense://bucket/a"))


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("s3fs", "aiohttp", "gcsfs"):
            raise ImportError(f"no {name}")
        return real(name, *rest)

    for name in [name for name in sys.modules if name.partition(".")[0] in ("s3fs", "gcsfs")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    for address in ("https://host/a", "s3://bucket/a"):
        with pytest.raises(DependencyError) as caught:
            locate(Path(address))
        assert caught.value.hint == "pip install 'engram-tables[remote]'"
