"""Makes the rows of all layers as they were placed: parameters, in tiers, or over several GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from engram_cli.formats.bundle import Bundle
from engram_cli.runtime.loading import rows_of
from engram_cli.runtime.modules.base import AnyRows

if TYPE_CHECKING:
    from engram_cli.runtime.tiers.placement import Placement


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
        from engram_cli.runtime.sharding.loading import sharded_rows

        return {**sharded_rows(bundle, placement.group, homes, placement.copied)}
    if placement.cold != "none":
        from engram_cli.runtime.tiers.embedding import stores_of

        return {**stores_of(bundle, placement, homes)}
    return {
        layer: rows_of(bundle, layer, device, trainable=trainable, sparse=sparse)
        for layer, (_, device) in homes.items()
    }
