"""Reads repositories of the Hugging Face Hub: from its local cache, then in ranges.

A revision is resolved once, to a commit: the one in the cache if it has the revision, so that files
of the cache and of the Hub belong together. The token goes to the Hub's own host, and its client
drops it where a redirect leads to another. The client retries by itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engram_cli.errors import InputError, SourceError
from engram_cli.remote.store import (
    CONNECT_SECONDS,
    FOLDER,
    READ_SECONDS,
    ChangedError,
    Entry,
    RangesIgnoredError,
    Traffic,
)

# org/name@revision; a revision such as refs/pr/3 has slashes.
_ADDRESS = re.compile(
    r"(?:(models|datasets)/)?([\w.-]+/[\w.-]+?)(?:@(refs/[\w.-]+/[\w.-]+|[^/@]+))?(?:/(.*))?"
)
_TYPES = {None: "model", "models": "model", "datasets": "dataset"}
_TRIES = 4


class HubStore:
    """A repository at a commit. `repository`: org/name; `key`: what was asked for in it."""

    lists = True

    def __init__(self, address: str, traffic: Traffic) -> None:
        match = _ADDRESS.fullmatch(address.partition(":")[2].strip("/"))
        if match is None:
            raise InputError(
                f"{address} names no repository",
                "give hf://org/name, or hf://org/name@revision/path/in/it",
            )
        self.traffic, self.repository = traffic, match[2]
        self.kind, self.revision = _TYPES[match[1]], match[3] or "main"
        self.key = (match[4] or "").strip("/")
        self.hint = (
            f"accept its conditions on the Hub, then run hf auth login, or set HF_TOKEN "
            f"({self.repository})"
        )
        self._snapshot = self._cached_snapshot()
        self._files: dict[str, int] | None = None
        self.commit = None if self._snapshot is None else self._snapshot.name

    @property
    def is_offline(self) -> bool:
        """Whether only the cache may be read."""
        from huggingface_hub import constants

        return bool(constants.HF_HUB_OFFLINE)

    @property
    def snapshot(self) -> Path | None:
        """The folder of the revision in the cache, where it has one."""
        return self._snapshot

    def download_command(self, files: Sequence[str] = ()) -> str:
        """Return the command that puts what was asked for into the cache, or some `files` of it."""
        parts = ["hf download", self.repository, self.key or " ".join(files)]
        parts += [] if self.kind == "model" else [f"--repo-type {self.kind}"]
        parts += [] if self.revision == "main" else [f"--revision {self.revision}"]
        return " ".join(part for part in parts if part)

    def entry(self, key: str) -> Entry | None:
        """Return what there is at `key`, None for nothing."""
        files = self.files()
        if key in files:
            return Entry("file", files[key], self.commit or "")
        inside = f"{key}/" if key else ""
        return FOLDER if any(name.startswith(inside) for name in files) or not key else None

    def entries(self, key: str) -> Mapping[str, Entry] | None:
        """Return what is in a folder by name."""
        found: dict[str, Entry] = {}
        inside = f"{key}/" if key else ""
        for name, size in self.files().items():
            if name.startswith(inside):
                first, slash, _ = name.removeprefix(inside).partition("/")
                found[first] = FOLDER if slash else Entry("file", size, self.commit or "")
        return found

    def names(self, key: str) -> list[str] | None:
        """Return None: `entries` knows them."""
        return None

    def read(self, key: str, begin: int, end: int, entry: Entry) -> bytes:
        """Read a range of a file."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        url = hf_hub_url(
            self.repository,
            key,
            repo_type=self.kind,
            revision=self.commit,
            endpoint=constants.ENDPOINT,
        )
        headers = {**build_hf_headers(), "range": f"bytes={begin}-{end - 1}"}
        self.traffic.add(0)
        with self._told(key):
            answer = http_backoff(
                "GET", url, headers=headers, timeout=READ_SECONDS, max_retries=_TRIES
            )
            hf_raise_for_status(answer)
        if answer.status_code != 206 and len(answer.content) != end - begin:
            raise RangesIgnoredError
        total = answer.headers.get("content-range", "").rpartition("/")[2]
        if total.isdecimal() and int(total) != entry.size:
            raise ChangedError
        self.traffic.add(len(answer.content), 0)
        return bytes(answer.content)

    def local(self, key: str) -> Path | None:
        """Return the file in the cache, None where it is not there."""
        if self.commit is None or not key:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(
            self.repository, key, revision=self.commit, repo_type=self.kind
        )
        return Path(found) if isinstance(found, str) else None

    def may_retry(self, error: Exception) -> bool:
        """Return False: the client of the Hub retries by itself."""
        return False

    def _cached_snapshot(self) -> Path | None:
        """Return the folder of the revision in the cache of the Hub's client, None for none."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(
            repo_id=self.repository, repo_type=self.kind
        )
        reference = folder / "refs" / self.revision
        try:
            commit = reference.read_text().strip() if reference.is_file() else self.revision
        except OSError:
            return None
        found = folder / "snapshots" / commit
        return found if re.fullmatch(r"[\w.-]+", commit) and found.is_dir() else None

    def files(self) -> dict[str, int]:
        """Return the size of each file at the commit; asks once, which also checks the access."""
        if self._files is not None:
            return self._files
        from huggingface_hub import HfApi, constants

        self.traffic.add(0)
        try:
            with self._told(""):
                about: Any = HfApi(endpoint=constants.ENDPOINT).repo_info(
                    self.repository,
                    revision=self.commit or self.revision,
                    repo_type=self.kind,
                    files_metadata=True,
                    timeout=CONNECT_SECONDS,
                )
        except Exception:
            if self._snapshot is None:
                raise
            self._files = _files_in(self._snapshot)  # what there is without the Hub
            return self._files
        self.commit = str(about.sha)
        self._files = {each.rfilename: int(each.size or 0) for each in about.siblings or ()}
        return self._files

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Turn what the Hub's client raises into our errors."""
        from huggingface_hub import errors

        name = f"hf://{self.repository}/{key}".rstrip("/")
        try:
            yield
        except errors.GatedRepoError:
            raise SourceError(f"{name} is gated: access is denied", self.hint) from None
        except errors.RepositoryNotFoundError:
            raise SourceError(
                f"{name} is not on the Hub, or is private",
                "check the name; for a private one run hf auth login, or set HF_TOKEN",
            ) from None
        except errors.RevisionNotFoundError:
            raise SourceError(f"{name} has no revision {self.revision}", "check it") from None
        except errors.HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            if status in (401, 403):
                raise SourceError(f"access to {name} is denied", self.hint) from None
            if status == 404:
                raise FileNotFoundError(2, "not found", name) from None
            raise


def _files_in(snapshot: Path) -> dict[str, int]:
    """Return the size of each file of a folder of the cache."""
    files = (path for path in snapshot.rglob("*") if path.is_file())
    return {path.relative_to(snapshot).as_posix(): path.stat().st_size for path in files}
