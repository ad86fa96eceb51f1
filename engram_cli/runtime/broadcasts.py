"""Quantised rows kept out of DistributedDataParallel's broadcasts.

They are buffers, which it sends from the first process to the others before every forward. They
never change, and every process has read them from the bundle.
"""

from __future__ import annotations

from torch import nn

from engram_cli.runtime.modules.base import StoredRows

_IGNORED = "_ddp_params_and_buffers_to_ignore"  # read by DDP from the module that it wraps


def leave_out_of_broadcasts(model: nn.Module) -> None:
    """Name the quantised rows that `model` carries now, and no longer those it carried before.

    Names that others put there stay. DDP around a module that holds `model` does not see them:
    it is right there too, but sends the rows (`broadcast_buffers=False` keeps it from that).
    """
    rows = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, StoredRows)
        for name, _ in module.named_buffers(recurse=False)
    }
    others = [name for name in getattr(model, _IGNORED, ()) if not _is_rows(name)]
    if rows or others:
        setattr(model, _IGNORED, [*others, *sorted(rows)])
    elif hasattr(model, _IGNORED):
        delattr(model, _IGNORED)


def _is_rows(name: str) -> bool:
    return ".multi_head_embedding.embedding." in name
