"""The placement that is asked for: a text such as "hbm=20GB,host=64GB", read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from engram_cli.errors import InputError
from engram_cli.sizes import read_size

Cold = Literal["none", "host", "disk"]
TIERS = ("hbm", "host", "disk", "shard", "replicate")
SHARING = {"shared": True, "private": False}
MOST_GPUS = 1024
_KNOWN = (
    "give hbm, host or disk; or budgets for a part of them: hbm=20GB, host=64GB, "
    "hbm=20GB,host=64GB, hbm=20GB,disk; or shard, over the GPUs of a host: shard=2, "
    "shard,replicate=2GB, hbm=60GB,shard=2,host=64GB; and shared or private for rows on the host: "
    "host,shared"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The placement asked for, with budgets in bytes; a tier without a budget takes what it needs.

    `hbm` None: no hot set, or all rows in HBM (`cold` "none"). `host`: for all layers' rows, or for
    the cache of rows on disk. `cold` None: "host" where the rows fit in `host`, otherwise "disk".
    `shard`: over how many GPUs rows in HBM are distributed, 0 for all, None for one; then `hbm` is
    the budget of each, and `replicate` that of hot rows which each has a copy of. `shared`: one
    copy of rows on the host for all processes of the machine; None where several were started
    together.
    """

    hbm: int | None = None
    host: int | None = None
    cold: Cold | None = None
    shard: int | None = None
    replicate: int | None = None
    shared: bool | None = None

    @property
    def may_share(self) -> bool:
        """Whether rows may come to lie on the host, in one copy for all processes."""
        return bool(self.shared) and self.cold in (None, "host")


def parse_placement(text: str) -> Wanted:
    """Read "hbm", "host", "disk" or budgets such as "hbm=20GB,host=64GB". Raises InputError."""
    if not isinstance(text, str):
        raise InputError(f"placement {text!r} is no text", _KNOWN)
    sizes: dict[str, int | None] = {}
    shared: bool | None = None
    for part in text.split(","):
        name, given, size = (each.strip() for each in part.partition("="))
        tier = name.lower()
        if tier in SHARING and shared is None and not given:
            shared = SHARING[tier]
            continue
        if tier not in TIERS or tier in sizes:
            raise _unknown(text, f"'{name}' twice" if tier in sizes else f"no tier '{name}'")
        try:
            sizes[tier] = (_number if tier == "shard" else read_size)(size) if given else None
        except ValueError as error:
            raise _unknown(text, str(error)) from None
    wanted = _wanted(text, sizes)
    if shared is not None and (not sizes or wanted.cold in ("none", "disk")):
        raise _unknown(text, "shared and private are about rows on the host")
    return replace(wanted, shared=shared)


def _number(text: str) -> int:
    """Read a number of GPUs. Raises ValueError."""
    if not text.isdecimal() or not 2 <= int(text) <= MOST_GPUS:
        raise ValueError(f"'{text}' is not a number of GPUs from 2 to {MOST_GPUS}")
    return int(text)


def _wanted(text: str, sizes: Mapping[str, int | None]) -> Wanted:
    if sizes.get("disk") is not None:
        raise _unknown(text, "the disk takes no size; that of the cache over it is host=SIZE")
    hbm, host = sizes.get("hbm"), sizes.get("host")
    shard = sizes.get("shard") or 0 if "shard" in sizes else None
    replicate = sizes.get("replicate")
    if "replicate" in sizes and (shard is None or replicate is None):
        raise _unknown(text, "replicate takes a size, and goes with shard: shard,replicate=2GB")
    if "hbm" in sizes and hbm is None:
        if len(sizes) > 1:
            raise _unknown(text, "hbm without a size takes all rows, and leaves none")
        return Wanted(cold="none")
    if shard is not None and hbm is None:
        if "host" in sizes or "disk" in sizes:
            raise _unknown(text, "shard without hbm=SIZE takes all rows, and leaves none")
        return Wanted(cold="none", shard=shard, replicate=replicate)
    if "disk" in sizes:
        if "host" in sizes and host is None:
            raise _unknown(text, "host without a size takes all rows, and leaves none")
        return Wanted(hbm=hbm, host=host, cold="disk", shard=shard, replicate=replicate)
    cold: Cold | None = "host" if host is None else None
    return Wanted(hbm=hbm, host=host, cold=cold, shard=shard, replicate=replicate)


def _unknown(text: str, why: str) -> InputError:
    return InputError(f"placement '{text}': {why}", _KNOWN)
