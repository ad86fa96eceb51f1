"""What the rest of the runtime knows of rows in tiers, so that it loads them only where there are
some."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PlacedRows(nn.Module):
    """A layer's rows that stay where they were placed, whatever is done to the model.

    They are frozen, and no parameters or buffers. `device` is where their vectors come out.
    """

    sparse = False
    device: torch.device

    def vectors(self, rows: Tensor) -> Tensor:
        """[..., C x dim] of rows int64[..., C]."""
        raise NotImplementedError
