"""Tells what a source is: a path of this machine, a repository of the Hub, or an address."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from engram_cli.errors import EngramError, InputError, SourceError
from engram_cli.files import address_of
from engram_cli.remote.path import RemotePath, is_remote, remote_path
from engram_cli.remote.store import ObjectStore, ReadCount, Store, Traffic

# org/name, and org/name@revision; a revision such as refs/pr/3 has slashes.
_HUB_ID = re.compile(
    r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(?:@(?:refs/[\w.-]+/[\w.-]+|[^/@]+))?"
)
_HUB = "hf://"
# What no repository is called: a corpus that is not there is a path with a mistake in it.
_FILE_SUFFIXES = frozenset(
    (
        *(".txt", ".md", ".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv"),
        *(".npy", ".bin", ".ds", ".gz", ".zst", ".xz", ".bz2", ".idx", ".mds", ".index"),
    )
)


def locate(path: Path, revision: str | None = None, files: tuple[str, ...] = ()) -> Path:
    """Return `path` itself if it is one of this machine, else a `RemotePath` that reads it.

    What exists here wins. org/name is a repository of the Hugging Face Hub if there is no folder
    org here; `revision`: the branch, tag or commit of it; `files`: what is read of it, for
    messages. Nothing is read yet, but for the Hub's list of files. Raises SourceError for what
    cannot be reached, InputError for no address and for a revision of what is no repository,
    DependencyError for a package that is missing.
    """
    if is_remote(path):
        return path
    address = None if os.path.lexists(path) else address_of(path)
    is_id = address is None and _is_hub_id(os.fspath(path))
    if is_id:
        address = f"{_HUB}{path}"
    if revision is not None:
        address = _revised(path, address, revision)
    if address is None:
        return path
    if address.startswith("file:"):
        return Path(urlsplit(address).path)
    try:
        return _open(address, files)
    except SourceError as error:
        if not is_id:
            raise
        raise SourceError(f"{path} is no path here, and {error.message}", error.hint) from None


def corpus_address(name: str | Path, revision: str | None = None) -> str:
    """Return the name of a corpus; org/name as hf://datasets/org/name if it is not here.

    `revision`: the branch, tag or commit of it. Raises InputError for a revision of anything else.
    """
    text = name if isinstance(name, str) else address_of(name) or str(name)
    address = address_of(text)
    if address is None and _is_hub_id(text) and Path(text).suffix.lower() not in _FILE_SUFFIXES:
        address = text = f"{_HUB}datasets/{text}"
    return text if revision is None else _revised(text, address, revision)


def hub_path(address: str) -> RemotePath:
    """Return the path of an address such as hf://datasets/org/name/file, offline too.

    What is not in the cache cannot be read then. Raises as `locate`.
    """
    found = _open_hub(address, Traffic(), (), mapped=False)
    assert is_remote(found)
    return found


def _is_hub_id(text: str) -> bool:
    """Return whether a text names a repository, and nothing that is on this machine."""
    if _HUB_ID.fullmatch(text) is None:
        return False
    return not os.path.lexists(text) and not os.path.lexists(text.partition("/")[0])


def _revised(given: Path | str, address: str | None, revision: str) -> str:
    """Return the address of a repository at a revision. Raises InputError for anything else."""
    if address is None or not address.startswith("hf:"):
        raise InputError(
            f"--revision {revision}: {given} is no repository of the Hugging Face Hub",
            "leave it out, or give org/name",
        )
    kind, *parts = address.partition(":")[2].strip("/").split("/")
    if kind in ("models", "datasets"):
        kind, parts = f"{kind}/{parts[0] if parts else ''}", parts[1:]
    if "@" in address:
        raise InputError(f"{given} has a revision, and --revision {revision} is another",
                         "give one of them")  # fmt: skip
    name, inside = (parts[0], parts[1:]) if parts else ("", [])
    return "/".join((f"{_HUB}{kind}/{name}@{revision}", *inside))


def failure_of(path: Path) -> EngramError | None:
    """Return why a source cannot be read, None where nothing went wrong so far."""
    return path.session.failure if is_remote(path) else None


def count_read(path: Path, headers: int | None, rows: int = 0) -> ReadCount | None:
    """Return what was read of a source so far.

    Of a path, the bytes of `headers` and `rows`; None where those of headers are not known.
    """
    if is_remote(path):
        traffic = path.session.store.traffic
        return ReadCount(bytes=traffic.bytes, requests=traffic.requests)
    return None if headers is None else ReadCount(bytes=headers + rows)


def _open(address: str, files: tuple[str, ...]) -> Path:
    protocol, _, rest = address.partition(":")
    protocol, rest, traffic = protocol.lower(), rest.strip("/"), Traffic()
    if protocol == "hf":
        return _open_hub(address, traffic, files, mapped=True)
    store: Store
    if protocol in ("http", "https"):
        from engram_cli.remote.http import HttpStore

        store = HttpStore(f"{protocol}://{rest}", traffic)
        return remote_path(store, f"{store.origin}/{store.root}", 2)
    store = ObjectStore(f"{protocol}://{rest.partition('/')[0]}", traffic)
    return remote_path(store, f"{protocol}://{rest}", 2)


def _open_hub(address: str, traffic: Traffic, files: tuple[str, ...], *, mapped: bool) -> Path:
    """Open a repository; offline and `mapped` its folder in the cache, a path of this machine."""
    from engram_cli.remote.hub import HubStore

    store = HubStore(address, traffic)
    if store.is_offline:
        if store.snapshot is None or not os.path.lexists(store.snapshot / store.key):
            raise SourceError(
                f"{address} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set",
                f"unset it, or download once, with a network: {store.download_command(files)}",
            )
        if mapped:
            return store.snapshot / store.key
    kind = "" if store.kind == "model" else f"{store.kind}s/"
    name = f"{_HUB}{kind}{store.repository}@{store.revision.replace('/', '%2F')}"
    path = remote_path(store, f"{name}/{store.key}", 4 if kind else 3)
    if store.snapshot is None:
        path.session.entries("")  # whether it is there, and may be read
    return path
