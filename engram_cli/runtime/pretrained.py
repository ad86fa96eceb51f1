"""Memories are saved with their model: by `save_pretrained`, of transformers and of PEFT, and by
the Trainer, which also loads them again.

Each memory becomes a bundle in the folder that the model is saved to: `engram`, or `engram_NAME`.
The model's own files are those of a model without memories. A folder that holds an adapter has the
memory as it is under that adapter, since the adapter's file has the rest.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from engram_cli.errors import EngramError, OutputError, RuntimeAttachError
from engram_cli.files import local_path
from engram_cli.formats.bundle import BUNDLE, Bundle, bundles_in, read_bundle, saved_with
from engram_cli.outputs import new_folder
from engram_cli.runtime.adapters import adapted
from engram_cli.runtime.carried import memories, plain_name
from engram_cli.runtime.hooks import memory_in
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.restoring import fill_memory
from engram_cli.runtime.saving import States, base_states, computed_states, write_memory
from engram_cli.runtime.sharding.trained.rows import sharded_rows
from engram_cli.temporary import discard

_PEFT = "peft.peft_model"


def save_model(original: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained` of a model: its bundles first, then what the library saves without them."""
    carried = base_memories(model)
    call = inspect.signature(original).bind(model, *args, **kwargs)
    folder = call.arguments.get("save_directory")
    if not carried or not isinstance(folder, str | os.PathLike) or os.path.isfile(folder):
        return original(model, *args, **kwargs)
    is_adapter = saves_adapter(model)
    for memory in carried.values():
        if is_adapter and memory.name in getattr(model, "peft_config", {}):
            raise RuntimeAttachError(
                f"an adapter and a memory are both called {memory.name}, and would share a folder",
                "give the adapter another name",
            )
    distributed = [memory.name for memory in carried.values() if sharded_rows(memory.layers)]
    if distributed:
        warnings.warn(
            f"{', '.join(distributed)} is not saved with the model, since its rows are distributed "
            "over processes: call save_engram(model, folder) in every process, or give the Trainer "
            "EngramCallback()",
            stacklevel=3,
        )
        with set_aside(model):
            return original(model, *args, **kwargs)
    apart = call.arguments if "state_dict" in call.arguments else call.arguments.get("kwargs", {})
    given = apart.get("state_dict")
    is_writer = call.arguments.get("is_main_process", True)
    if hasattr(model, "should_save_on_this_rank"):  # transformers 5.24 writes from rank 0 alone
        is_writer = model.should_save_on_this_rank(is_writer)
    if is_writer or given is None:  # others take part in gathering weights, if those are sharded
        states = {
            prefix: _weights(model, memory, prefix, given, is_adapter=is_adapter)
            for prefix, memory in carried.items()
        }
        _write(carried, states, local_path(os.fspath(folder)), is_writer=is_writer)
    if is_adapter:  # its file has nothing of a memory but adapters
        return original(model, *args, **kwargs)
    if given is not None:
        apart["state_dict"] = {k: v for k, v in given.items() if not k.startswith(tuple(carried))}
    with set_aside(model), _uploaded(model, [memory.name for memory in carried.values()]):
        return original(*call.args, **call.kwargs)


def _weights(
    model: nn.Module,
    memory: Memory,
    prefix: str,
    given: Mapping[str, Tensor] | None,
    *,
    is_adapter: bool,
) -> States:
    """Return the weights to write: those of the state dict that was given, else the live ones."""
    in_force = memories(model)[plain_name(memory)]
    states = base_states(memory) if is_adapter else computed_states(in_force)
    if given is None or (not is_adapter and any(map(adapted, in_force.layers.values()))):
        return states
    named = {
        key.replace("base_layer.", "").replace("original_module.", ""): value
        for key, value in given.items()
        if key.startswith(prefix)
    }
    chosen: dict[int, dict[str, Tensor]] = {}
    for layer, state in states.items():
        chosen[layer] = {
            key: named.get(f"{prefix}layers.{layer}.{key}", value) for key, value in state.items()
        }
        for key, value in chosen[layer].items():
            if value is state[key] and hasattr(value, "full_tensor"):
                raise RuntimeAttachError(
                    f"state_dict lacks {key} of layer {layer}, which is sharded over processes",
                    "give the whole state dict, or none in every process",
                )
    return chosen


def _write(
    carried: Mapping[str, Memory], states: Mapping[str, States], folder: Path, *, is_writer: bool
) -> None:
    """Write the bundles of one model, and remove those that it was saved with before."""
    names = [memory.name for memory in carried.values()]
    for path in (folder / name for name in names) if is_writer else ():
        problem = BUNDLE.problem(path) if os.path.lexists(path) else None
        if problem is not None:
            raise OutputError(
                f"{path} {problem}, and the memory would be saved there",
                "move it away, or save the model to another folder",
            )
    for prefix, memory in carried.items():
        write_memory(
            memory,
            states[prefix],
            folder / memory.name,
            force=True,
            is_writer=is_writer,
            saved_with=names,
        )
    for name, path in bundles_in(folder).items() if is_writer else ():
        with suppress(EngramError, OSError):
            if name not in names and saved_with(path):
                discard(path, lambda moved: BUNDLE.problem(moved) is None)


@contextmanager
def set_aside(model: nn.Module) -> Iterator[None]:
    """Take the memories out of a model's modules for a while; calls still find them."""
    parents = [
        (parent, dict(parent._modules))
        for parent in model.modules()
        if memory_in(parent) is None and any(map(memory_in, parent.children()))
    ]
    for parent, modules in parents:
        for name, child in modules.items():
            if memory_in(child) is not None:
                del parent._modules[name]
    try:
        yield
    finally:
        for parent, modules in parents:
            modules |= parent._modules
            parent._modules.clear()
            parent._modules.update(modules)


@contextmanager
def _uploaded(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Have `save_pretrained(push_to_hub=True)` upload the bundles, written before it looks."""
    earlier = getattr(model, "_get_files_timestamps", None)
    if earlier is None:
        yield
        return

    def times(folder: Any) -> dict[str, float]:
        return {name: time for name, time in earlier(folder).items() if name not in names}

    model._get_files_timestamps = times
    try:
        yield
    finally:
        del model._get_files_timestamps


def base_memories(model: nn.Module) -> dict[str, Memory]:
    """Return the memories under any adapter, by the beginning of their names in a state dict."""
    found: dict[str, Memory] = {}
    met: set[str] = set()
    for path, module in model.named_modules():
        # PEFT's wrapper comes first with the module that it found there.
        if isinstance(module, Memory) and module.name not in met:
            met.add(module.name)
            found[f"{path.removesuffix('.original_module')}."] = module
    return found


def saves_adapter(model: Any) -> bool:
    """Return whether `save_pretrained` writes adapters alone."""
    peft = sys.modules.get(_PEFT)
    is_wrapped = peft is not None and isinstance(model, peft.PeftModel)
    return is_wrapped or bool(getattr(model, "_hf_peft_config_loaded", False))


def load_checkpoint(
    original: Callable[..., Any], trainer: Any, folder: Any, model: Any = None
) -> Any:
    """`Trainer._load_from_checkpoint`, which resumes: the memories' weights too."""
    target = trainer.model if model is None else model
    return _load(trainer, target, folder, lambda: original(trainer, folder, model))


def load_best(original: Callable[..., Any], trainer: Any) -> Any:
    """`Trainer._load_best_model`: the memories' weights too."""
    folder = trainer.state.best_model_checkpoint
    return _load(trainer, trainer.model, folder, lambda: original(trainer))


def push_checkpoint(original: Callable[..., Any], trainer: Any, folder: Any) -> Any:
    """`Trainer._push_from_checkpoint`, which uploads between saves: the bundles too.

    It uploads the folder of the run, into which it copies the model's own files alone.
    """
    running = trainer.push_in_progress
    waits = running is not None and not running.is_done() and not trainer.args.hub_always_push
    if trainer.is_world_process_zero() and trainer.args.hub_strategy != "end" and not waits:
        carried = {memory.name for memory in base_memories(trainer.model).values()}
        for name, bundle in bundles_in(local_path(os.fspath(folder))).items():
            if name in carried:
                target = local_path(trainer.args.output_dir) / name
                with new_folder(target, BUNDLE, force=True) as part:
                    shutil.copytree(bundle, part, dirs_exist_ok=True)
    return original(trainer, folder)


def _load(trainer: Any, model: nn.Module, folder: Any, load_model: Callable[[], Any]) -> Any:
    present = bundles_in(local_path(os.fspath(folder)))
    memories = [each for each in base_memories(model).values() if each.name in present]
    # FSDP and DeepSpeed restore whatever the model holds from their own files.
    if not memories or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return load_model()
    bundles: list[Bundle] = [read_bundle(present[memory.name]) for memory in memories]
    if saves_adapter(model):
        result = load_model()
    else:
        with set_aside(model):
            result = load_model()
    for memory, bundle in zip(memories, bundles, strict=True):
        fill_memory(model, memory, bundle)
    return result
