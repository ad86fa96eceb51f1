"""Loads what evaluate runs: the model, its memory and its adapter, in bytes known before."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_cli.commands.checkpoint import ModelShape
from engram_cli.commands.load_model import load_model, require_packages
from engram_cli.commands.processes import join_processes
from engram_cli.commands.requests.evaluation import AUTO, EvaluateRequest
from engram_cli.errors import DependencyError, InputError
from engram_cli.formats.bundle import BUNDLE_NAME, Bundle, read_bundle
from engram_cli.formats.checkpoint_reference import refers_to_itself
from engram_cli.patches.patch import Patch
from engram_cli.rows.safetensors import checkpoint_files, open_tensors
from engram_cli.runtime import attach, detach, memories
from engram_cli.runtime.evaluation.variants import PATCHED
from engram_cli.runtime.evaluation.windows import check_window
from engram_cli.sizes import available_memory

if TYPE_CHECKING:
    import torch

_CONTEXT = 2048
_LOGITS = {"cpu": 2**29, "cuda": 2**32}  # bytes of a batch's logits, by device
_BATCH_TOKENS = 2**14
_CHUNK_BYTES = 2**27  # logits as float32, and their exponentials, a part at a time
_ADAPTER = "adapter_config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Processes:
    """This process among those of a run: its number, how many there are, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that reports."""
        return self.rank == 0


def find_processes(device: str | None) -> Processes:
    """Return this process; joins the others that torchrun or accelerate have started.

    Raises DependencyError without torch or accelerate, InputError for a device that is not there.
    """
    import torch

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        require_packages("accelerate")
        state = join_processes(device)
        return Processes(
            rank=state.process_index, world=state.num_processes, device=torch.device(state.device)
        )
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        own = torch.device(wanted)
        torch.empty(0, device=own)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"--device {wanted}: {str(error).splitlines()[0]}",
            "name a device of this machine, such as cpu or cuda:0, or leave it out",
        ) from None
    return Processes(rank=0, world=1, device=own)


def dtype_on(device: torch.device, name: str) -> torch.dtype:
    """Return the dtype of the weights: the one named, or with "auto" bfloat16 on a GPU."""
    import torch

    auto = torch.float32 if device.type == "cpu" else torch.bfloat16
    found: torch.dtype = auto if name == AUTO else getattr(torch, name)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How the model will run: its dtype, the windows, the batches, and the bytes of all of it."""

    dtype: torch.dtype
    context: int
    stride: int
    batch_tokens: int
    weights: int
    rows: int
    logits: int

    def __str__(self) -> str:
        """The memory, to be said before it is taken."""
        total = self.weights + self.rows + self.logits
        return (
            f"memory: {total / 1e6:,.0f} MB ({self.weights / 1e6:,.0f} MB of weights, "
            f"{self.rows / 1e6:,.0f} MB of rows, {self.logits / 1e6:,.0f} MB for a batch of "
            f"{self.batch_tokens:,} tokens)"
        )


def plan_run(
    request: EvaluateRequest, bundle: Bundle | None, processes: Processes, shape: ModelShape
) -> Plan:
    """Return how the model will run. Raises InputError for windows or memory that cannot be."""

    on_gpu = processes.device.type != "cpu"
    dtype = dtype_on(processes.device, request.dtype)
    limit = shape.positions
    context = request.context_length or min(_CONTEXT, limit or _CONTEXT)
    if limit is not None and context > limit:
        raise InputError(
            f"--context-length {context:,}: the model takes {limit:,} positions",
            f"give {limit:,} or fewer",
        )
    stride = request.stride or max(context // 2, 1)
    check_window(context, stride)
    token = (shape.vocab_size or 1) * dtype.itemsize
    most = min(_LOGITS["cuda" if on_gpu else "cpu"] // token, _BATCH_TOKENS)
    batch_tokens = request.batch_tokens or max(most, context)
    plan = Plan(
        dtype=dtype,
        context=context,
        stride=stride,
        batch_tokens=batch_tokens,
        weights=_weights(request.checkpoint) * dtype.itemsize,
        rows=_near_rows(bundle, request.placement) * (2 if request.patch else 1),
        logits=max(batch_tokens, context) * token + _CHUNK_BYTES,
    )
    _check_memory(plan, processes.device)
    return plan


def load_variants(
    request: EvaluateRequest,
    bundle: Bundle | None,
    patches: Sequence[Patch],
    plan: Plan,
    processes: Processes,
) -> Any:
    """Return the model with its memory attached and its adapter loaded, on its device.

    With `patches` it has the memory twice, with and without them, and only the active one computes.
    Raises DependencyError without transformers or PEFT, InputError, RuntimeAttachError.
    """
    model = load_model(request.checkpoint, dtype=plan.dtype)
    model.to(processes.device)
    model.eval().requires_grad_(False)
    release(model)  # of a memory loaded with the checkpoint: another may be asked for
    if bundle is not None:
        where: dict[str, Any] = {"rows_trainable": False, "placement": request.placement}
        attach(model, bundle.folder, **where)
        if patches:
            given: dict[str, Any] = {"patches": patches, "any_base": request.any_base}
            attach(model, bundle.folder, name=PATCHED, **given, **where).patched = True
    if request.lora is None:
        return model
    try:
        from peft import PeftModel
    except ImportError:
        raise DependencyError(
            "--lora needs PEFT", "python -m pip install 'engram-tables[train]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names that transformers gives up
            return PeftModel.from_pretrained(model, str(request.lora)).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot load the adapter in {request.lora}: {reason}",
            "give a folder that PEFT saved for this model",
        ) from None


def release(model: Any) -> None:
    """Let go of the memory's files and threads."""
    if memories(model):
        detach(model)


def check_adapter(folder: Path | None) -> None:
    """Raise InputError for a folder that holds no adapter."""
    if folder is not None and not (folder / _ADAPTER).is_file():
        raise InputError(
            f"{folder} is no adapter: it has no {_ADAPTER}", "give a folder that PEFT saved"
        )


def _weights(checkpoint: Path) -> int:
    """Return the number of weights in the checkpoint's files that are loaded."""
    count = 0
    for path in set(checkpoint_files(checkpoint).values()):
        with path.open("rb") as file:
            places = open_tensors(file, str(path)).values()
        count += sum(prod(place.spec.shape) for place in places)
    own = checkpoint / BUNDLE_NAME
    if refers_to_itself(checkpoint, own):  # the model is loaded without its table
        spec = read_bundle(own).spec
        tensors = [spec.tensor(layer, part) for layer in spec.layers for part in spec.parts]
        count = max(count - sum(prod(tensor.shape) for tensor in tensors), 0)
    return count


def _near_rows(bundle: Bundle | None, placement: str) -> int:
    """Return the bytes of rows next to the model; tiers say theirs when they are resolved."""
    return 0 if bundle is None or placement != "hbm" else bundle.spec.table_bytes


def _check_memory(plan: Plan, device: torch.device) -> None:
    """Raise InputError where the plan does not fit the memory that is free on the device."""
    if device.type == "cuda":
        import torch

        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = available_memory() if device.type == "cpu" else None
    if free is not None and plan.weights + plan.rows + plan.logits > free:
        raise InputError(
            f"{plan}, and {device} has {free / 1e6:,.0f} MB free",
            "take fewer --batch-tokens, a smaller --context-length or --dtype bfloat16; rows "
            "may lie elsewhere (--placement disk)",
        )
