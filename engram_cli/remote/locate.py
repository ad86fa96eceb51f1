"""Tells what a source is: a path of this machine, a repository of the Hub, or an address."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from engram_cli.errors import EngramError, SourceError
from engram_cli.files import address_of
from engram_cli.remote.path import is_remote, remote_path
from engram_cli.remote.store import ObjectStore, ReadCount, Store, Traffic

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def locate(path: Path) -> Path:
    """Return `path` itself if it is one of this machine, else a `RemotePath` that reads it.

    What exists here wins. org/name is a repository of the Hugging Face Hub if there is no folder
    org here. Nothing is read yet, but for the Hub's list of files. Raises SourceError for what
    cannot be reached, InputError for no address, DependencyError for a package that is missing.
    """
    if is_remote(path) or os.path.lexists(path):
        return path
    address = address_of(path)
    if address is None:
        is_id = _HUB_ID.fullmatch(os.fspath(path)) is not None
        if not is_id or os.path.lexists(path.parent):
            return path
        try:
            return _open(f"hf://{path}")
        except SourceError as error:
            raise SourceError(f"{path} is no path here, and {error.message}", error.hint) from None
    if address.startswith("file:"):
        return Path(urlsplit(address).path)
    return _open(address)


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


def _open(address: str) -> Path:
    protocol, _, rest = address.partition(":")
    protocol, rest, traffic = protocol.lower(), rest.strip("/"), Traffic()
    if protocol == "hf":
        return _open_hub(address, traffic)
    store: Store
    if protocol in ("http", "https"):
        from engram_cli.remote.http import HttpStore

        store = HttpStore(f"{protocol}://{rest}", traffic)
        return remote_path(store, f"{store.origin}/{store.root}", 2)
    store = ObjectStore(f"{protocol}://{rest.partition('/')[0]}", traffic)
    return remote_path(store, f"{protocol}://{rest}", 2)


def _open_hub(address: str, traffic: Traffic) -> Path:
    from engram_cli.remote.hub import HubStore

    store = HubStore(address, traffic)
    if store.is_offline:
        if store.snapshot is None:
            raise SourceError(
                f"{address} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set",
                f"unset it, or download once: hf download {store.repository}",
            )
        return store.snapshot / store.key
    kind = "" if store.kind == "model" else f"{store.kind}s/"
    name = f"hf://{kind}{store.repository}@{store.revision.replace('/', '%2F')}"
    path = remote_path(store, f"{name}/{store.key}", 4 if kind else 3)
    if store.snapshot is None:
        path.session.entries("")  # whether it is there, and may be read
    return path
