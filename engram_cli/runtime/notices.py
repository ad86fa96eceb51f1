"""What a user should hear who saves a model with a memory by other means than save_engram."""

from __future__ import annotations

import sys
import warnings

from torch import nn

_HELD_BY_PEFT = ("modules_to_save.", "original_module.")  # which loads what it trained


def warn_of_saving(memory: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Warn where `save_pretrained` asks for a memory's state dict.

    Of transformers or of PEFT, also as a Trainer calls it. Neither loads a memory again: there is
    none in the model that they make. A state dict for `load_state_dict` is no reason to warn.
    """
    if not prefix or any(part in prefix for part in _HELD_BY_PEFT):
        return
    frame, depth = sys._getframe(1), 3  # 3: who called the caller
    while frame.f_back is not None:
        if frame.f_code.co_name == "save_pretrained":
            name = prefix.rstrip(".")
            warnings.warn(
                f"save_pretrained: the memory {name} will not be loaded with the model; write it "
                "with save_engram(model, folder) too, and attach(model, folder) after loading",
                stacklevel=depth,
            )
            return
        frame, depth = frame.f_back, depth + 1
