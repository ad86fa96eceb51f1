"""What learns in a model: its memory, a LoRA adapter, or all of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engram_cli.errors import DependencyError, InputError
from engram_cli.formats.bundle import bundle_folder, read_bundle
from engram_cli.runtime.attach import attach
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.restoring import load
from engram_cli.runtime.training import row_parameters
from engram_cli.training import defaults


def prepare_model(
    model: Any,
    *,
    bundle: Path | None,
    rows_trainable: bool = True,
    placement: str = "hbm",
    lora: int | None = None,
    full: bool = False,
    seed: int = 0,
) -> Any:
    """Return `model` with the memory of `bundle` and an adapter of rank `lora`, where wanted.

    Only they learn, unless `full`. `placement` of the rows: "hbm", or "shard" over the processes of
    the default group. Rows get sparse gradients; the memory's other weights are
    float32, whatever the model's are. Raises InputError for rows that cannot learn, DependencyError
    without peft for an adapter.
    """
    model.requires_grad_(full)
    model.config.use_cache = False
    if lora is not None:
        model = _with_adapter(model, lora, seed)
    if bundle is not None:
        if rows_trainable:
            _check_rows(bundle)
        base = model.get_base_model() if lora is not None else model
        memory = attach(
            base,
            bundle,
            rows_trainable=rows_trainable,
            sparse_gradients=rows_trainable,
            placement=placement,
        )
        _widen(base, memory, bundle)
    return model


def _with_adapter(model: Any, rank: int, seed: int) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise DependencyError(
            "LoRA adapters need peft", "python -m pip install 'engram-tables[train]'"
        ) from None
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=round(defaults.LORA_ALPHA * rank),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that transformers gives up
        return get_peft_model(model, config)


def _check_rows(bundle: Path) -> None:
    spec = read_bundle(bundle_folder(bundle)).spec
    if spec.row_type.quantised:
        raise InputError(
            f"the rows of {bundle} are {spec.dtype}, which cannot be trained",
            "give --rows frozen, or a bundle of float rows (engram convert TABLE --dtype bfloat16)",
        )


def _widen(model: nn.Module, memory: Memory, bundle: Path) -> None:
    """Make the memory's weights float32, so that small steps are not rounded away; rows stay."""
    rows = {id(parameter) for parameter in row_parameters(model)}
    dense = [p for p in memory.parameters() if id(p) not in rows]
    if all(parameter.dtype == torch.float32 for parameter in dense):
        return
    for parameter in dense:
        parameter.data = parameter.data.float()
    load(model, bundle)  # once more: attaching rounded them
