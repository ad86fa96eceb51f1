"""plan.json: the geometry, width and dtype of a planned table, as `plan` leaves and others read it.

docs/reference/plan-format.md describes it. What is read back is untrusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.geometry import Geometry
from engram_cli.errors import ArtifactError, EngramError
from engram_cli.files import canonical_json, read_json
from engram_cli.outputs import Kind, Listing, new_file
from engram_cli.version import __version__

FORMAT, VERSION = "engram-plan", 1
_REMAKE = "make it again with engram plan --out"
_KEYS = frozenset(
    (
        *("format", "version", "tool_version", "geometry", "dim", "dtype", "fingerprint"),
        "total_bytes",
    )
)
_LISTS = ("orders", "rows_per_head", "layers")
_NUMBERS = ("heads", "pad_id", "seed", "vocab_size", "eos_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedTable:
    """What a plan says to build; `fingerprint` and `total_bytes` are what the store will have."""

    geometry: Geometry
    dim: int
    dtype: str
    fingerprint: str
    total_bytes: int


def write_plan(planned: PlannedTable, path: Path, *, force: bool = False) -> None:
    """Write `planned`, whole or not at all; equal plans give equal bytes. Raises OutputError."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "tool_version": __version__,
        "geometry": planned.geometry.given,
        "dim": planned.dim,
        "dtype": planned.dtype,
        "fingerprint": planned.fingerprint,
        "total_bytes": planned.total_bytes,
    }
    with new_file(path, PLAN, force=force) as part:
        part.write_bytes(canonical_json(document) + b"\n")


def read_plan(path: Path) -> PlannedTable:
    """Read what `write_plan` wrote. Raises InputError when there is none, ArtifactError."""
    document = read_json(path, "a plan")
    if document.get("format") != FORMAT:
        raise ArtifactError(f"{path} is not a plan written by engram", _REMAKE)
    version: Any = document.get("version")
    if not _is_count(version):
        raise ArtifactError(f"{path} is damaged: its version is {version!r}", _REMAKE)
    if version > VERSION:
        raise ArtifactError(f"{path} has version {version}, newer than {VERSION}", "upgrade engram")
    for key, right in (
        ("dim", _is_count),
        ("total_bytes", _is_count),
        ("dtype", _is_text),
        ("fingerprint", _is_text),
    ):
        if not right(document.get(key)):
            raise ArtifactError(f"{path} is damaged: {key} is {document.get(key)!r}", _REMAKE)
    return PlannedTable(
        geometry=_geometry(path, document.get("geometry")),
        dim=document["dim"],
        dtype=document["dtype"],
        fingerprint=document["fingerprint"],
        total_bytes=document["total_bytes"],
    )


def is_plan(path: Path) -> bool:
    """Return whether engram wrote `path` as a plan, of any version and however damaged."""
    try:
        return path.is_file() and read_json(path, "a plan").get("format") == FORMAT
    except EngramError:
        return False


def _listing(path: Path) -> Listing | None:
    """List a plan of any version that holds no more than plans do."""
    try:
        document = read_json(path, "a plan")
    except EngramError:
        return None
    ours = document.get("format") == FORMAT and document.keys() <= _KEYS
    return Listing() if ours else None


PLAN = Kind(name="plan", listing=_listing, folder=False)


def _geometry(path: Path, choices: Any) -> Geometry:
    right = isinstance(choices, dict) and set(choices) <= {"scheme", *_LISTS, *_NUMBERS}
    if right:
        right = all(
            _is_text(value)
            if name == "scheme"
            else isinstance(value, list) and all(map(_is_count, value))
            if name in _LISTS
            else _is_count(value)
            for name, value in choices.items()
        )
    if not right:
        raise ArtifactError(f"{path} is damaged: geometry is {choices!r}", _REMAKE)
    made: dict[str, Any] = {name: tuple(v) if name in _LISTS else v for name, v in choices.items()}
    return Geometry(**made)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
