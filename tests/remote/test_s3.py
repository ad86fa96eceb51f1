"""S3, by a server of moto: listing, ranges, objects that change, and access that is denied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from formats import checkpoints

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.inspect.command import inspect
from engram_cli.commands.requests.reading import InspectRequest
from engram_cli.errors import InputError, SourceError
from engram_cli.remote.locate import count_read, locate

# Neither boto's clients nor s3fs close what they opened before they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server of S3."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def bucket(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bucket of boto's with a checkpoint at `models/qwen`."""
    import boto3
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # it keeps what an earlier test replaced
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    made = boto3.resource("s3").Bucket("tables")
    made.create()
    folder = checkpoints.qwen_ple(tmp_path / "qwen").path
    for path in folder.iterdir():
        made.upload_file(str(path), f"models/qwen/{path.name}")
    return made


def test_a_checkpoint(bucket: Any, tmp_path: Path) -> None:
    path = locate(Path("s3://tables/models/qwen"))
    source: Any = find_artifact(path).open()
    local: Any = find_artifact(tmp_path / "qwen").open()
    assert source.checks == local.checks
    ids = [900, 3, 3, 1500]
    assert (source.vectors(2, ids) == local.vectors(2, ids)).all()
    result = inspect(InspectRequest(path=Path("s3://tables/models/qwen")))
    assert (result.files, result.kind) == (4, "qwen-ple")
    assert result.read is not None
    assert result.read.requests is not None
    assert result.read.requests < 12
    assert sum(path.stat().st_size for path in (tmp_path / "qwen").iterdir()) == result.stored_bytes
    assert count_read(path, None) is not None


def test_an_object_that_changes(bucket: Any) -> None:
    source: Any = find_artifact(locate(Path("s3://tables/models/qwen"))).open()
    source.vectors(2, [3])
    name = "models/qwen/model-00001-of-00002.safetensors"
    body = bucket.Object(name).get()["Body"].read()
    bucket.put_object(Key=name, Body=body[:-1] + b"x")
    with pytest.raises(SourceError, match="has changed while it was read"):
        source.vectors(2, [4])


def test_what_is_not_there(bucket: Any) -> None:
    with pytest.raises(InputError, match="does not exist"):
        find_artifact(locate(Path("s3://tables/models/none")))
    with pytest.raises(InputError, match="does not exist"):
        find_artifact(locate(Path("s3://other/models")))


def test_access_that_is_denied(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    async def denied(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    S3FileSystem.clear_instance_cache()  # it binds its methods when it is made
    monkeypatch.setattr(S3FileSystem, "_info", denied)
    monkeypatch.setattr(S3FileSystem, "_ls", denied)
    with pytest.raises(SourceError, match="access to s3://tables/models/qwen is denied") as caught:
        find_artifact(locate(Path("s3://tables/models/qwen")))
    assert "AWS_PROFILE" in caught.value.hint


def test_memory_stands_for_other_stores(tmp_path: Path) -> None:
    import fsspec

    system: Any = fsspec.filesystem("memory")
    folder = checkpoints.qwen_ple(tmp_path / "qwen").path
    for path in folder.iterdir():
        system.pipe(f"/bucket/{path.name}", path.read_bytes())
    try:
        source: Any = find_artifact(locate(Path("memory://bucket"))).open()
        local: Any = find_artifact(folder).open()
        assert (source.vectors(2, [3, 1400]) == local.vectors(2, [3, 1400])).all()
        for path in folder.glob("*.safetensors"):
            system.pipe(f"/bucket/{path.name}", path.read_bytes()[::-1])
        with pytest.raises(SourceError, match="has changed while it was read"):
            source.vectors(2, [3, 1400])
    finally:
        system.rm("/bucket", recursive=True)
