"""Puts a bundle's rows where they are to be, and decides whether they learn there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from engram_cli.errors import RuntimeAttachError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.checkpoint_reference import CheckpointReference
from engram_cli.runtime.loading import rows_of
from engram_cli.runtime.modules.base import AnyRows

if TYPE_CHECKING:
    from engram_cli.runtime.sharding.trained.placing import ShardedPlacement
    from engram_cli.runtime.tiers.placement import Placement

SHARD = "shard"


def place_rows(
    bundle: Bundle,
    placement: str,
    homes: Mapping[int, tuple[torch.dtype, torch.device]],
    *,
    rows_trainable: bool | None,
    sparse_gradients: bool,
) -> tuple[Placement | ShardedPlacement, dict[int, AnyRows]]:
    """Return where the rows of all layers lie, and each layer's rows.

    `homes`: its dense dtype, and the device of its rows. The other arguments are those of `attach`.
    Raises RuntimeAttachError for rows that cannot be trained, InputError for rows that do not fit.
    """
    devices = {layer: device for layer, (_, device) in homes.items()}
    if placement == SHARD and (rows_trainable or (sparse_gradients and rows_trainable is None)):
        from engram_cli.runtime.sharding.trained.placing import placed_rows

        _check_floats(bundle, rows_trainable)
        over_processes, sharded = placed_rows(bundle, devices)
        return over_processes, {**sharded}
    from engram_cli.runtime.tiers.placement import resolve_for

    placed = resolve_for(bundle, placement, devices)
    trainable = _trainable(bundle, placed, rows_trainable, sparse_gradients)
    return placed, all_rows(bundle, placed, homes, trainable=trainable, sparse=sparse_gradients)


def all_rows(
    bundle: Bundle,
    placement: Placement,
    homes: Mapping[int, tuple[torch.dtype, torch.device]],
    *,
    trainable: bool,
    sparse: bool,
) -> dict[int, AnyRows]:
    """Return each layer's rows as placed; `homes`: its dense dtype, and the device of its rows."""
    if placement.group is not None and placement.cold == "none":
        from engram_cli.runtime.sharding.loading import load_distributed

        return {**load_distributed(bundle, placement.group, homes, placement.copied)}
    if placement.cold != "none":
        from engram_cli.runtime.tiers.embedding import stores_of

        return {**stores_of(bundle, placement, homes)}
    return {
        layer: rows_of(bundle, layer, device, trainable=trainable, sparse=sparse)
        for layer, (_, device) in homes.items()
    }


def _trainable(bundle: Bundle, placed: Placement, asked: bool | None, sparse: bool) -> bool:
    """Return whether rows are trained. Raises RuntimeAttachError where they cannot be."""
    floats = not bundle.spec.row_type.quantised
    where = f"on {placed.cold}" if placed.group is None else "over GPUs, to be read"
    if floats and placed.cold == "none" and placed.group is None:
        if isinstance(bundle.reference, CheckpointReference):
            return asked is True or (sparse and asked is None)
        return asked is not False
    if floats and (asked or sparse):
        raise RuntimeAttachError(
            f"{_wish(asked)}: rows placed {where} are frozen",
            "leave it out to train the gates alone, or attach with placement='hbm', or over "
            "several processes with placement='shard'",
        )
    if asked or sparse:
        _check_floats(bundle, asked)
    return False


def _check_floats(bundle: Bundle, asked: bool | None) -> None:
    """Raise RuntimeAttachError for rows that have no gradient, which were to be trained."""
    if bundle.spec.row_type.quantised:
        raise RuntimeAttachError(
            f"{_wish(asked)}: the rows of {bundle.folder} are {bundle.spec.dtype}, which has no "
            "gradient",
            "leave it out to train the gates alone, or attach a table of floats "
            "(engram convert TABLE --dtype bfloat16)",
        )


def _wish(asked: bool | None) -> str:
    return "rows_trainable=True" if asked else "sparse_gradients=True"
