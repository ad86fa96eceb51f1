"""Attach the memories of bundles or checkpoints to a live model, and detach them without a trace.

A model carries any number of memories by name. In a layer that several have tables for, each sees
what those attached before it have added.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from engram_cli.errors import InputError, RuntimeAttachError
from engram_cli.files import local_path
from engram_cli.formats import checkpoint
from engram_cli.formats.bundle import Bundle, bundle_folder, read_bundle, saved_bundles
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.formats.bundle_patches import patched_bundle
from engram_cli.formats.checkpoint_reference import CheckpointReference
from engram_cli.patches.patch import Patch
from engram_cli.runtime import loading
from engram_cli.runtime.carried import (
    NAME,
    leave_out_of_broadcasts,
    memories,
    memory_of,
    no_memory,
    plain_name,
)
from engram_cli.runtime.decoder import Decoder, find_decoder, text_config
from engram_cli.runtime.hooks import attachments, hook, memories_at, memory_in
from engram_cli.runtime.hub import local_checkpoint
from engram_cli.runtime.library_hooks import watch_saving
from engram_cli.runtime.memory import Memory
from engram_cli.runtime.place_rows import SHARD, place_rows
from engram_cli.runtime.weights_inside import weights_inside

if TYPE_CHECKING:
    from engram_cli.formats.checkpoint_bundle import HostModel

_PLAIN_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_STREAMS = ("hc_mult", "hc_count")  # as configs call the copies of the hidden state
_LOG = logging.getLogger(__name__)
# Readers of checkpoints need more than torch and NumPy, and are imported where there is one.
_CHECKPOINTS = "engram_cli.formats.checkpoint_bundle"
_FITTING = "engram_cli.runtime.fitting"


def attach(
    model: nn.Module,
    bundle_dir: str | Path,
    *,
    name: str | None = None,
    layers: Sequence[nn.Module] | None = None,
    rows_trainable: bool | None = None,
    sparse_gradients: bool = False,
    rows_device: torch.device | str | None = None,
    placement: str = "hbm",
    verify: bool = False,
    force: bool = False,
    tokenizer: str | Path | None = None,
    fit: Iterable[ArrayLike] | None = None,
    patches: Sequence[str | Path | Patch] = (),
    any_base: bool = False,
) -> Memory:
    """Attach a bundle to `model`, which from then on carries it as `model.engram`.

    `bundle_dir` is its folder, a checkpoint's with the bundle in `engram`, or a model on the
    Hugging Face Hub (`org/name`). It may be a checkpoint that has an Engram table of its own
    (docs/guides/attach.md lists the formats): rows stay in its files, and its gates are the
    memory's; `tokenizer` names the model's tokenizer where the checkpoint lacks it. Such rows are
    frozen unless `rows_trainable=True`, which trains them in memory and never in the files. What
    was found is logged, and is in `memory.notes`. A memory with another `name` is
    `model.engram_NAME`. Without a name, a checkpoint that was saved with several memories gives all
    of them, by their names, and the first is returned. `layers` are the decoder layers, where they
    cannot be found. Dense weights take the dtype and device of their layer; rows keep the table's
    dtype and lie on `rows_device`, by default the layer's. `sparse_gradients` gives the rows sparse
    gradients, `rows_trainable=False` freezes them; quantised rows are always frozen, and to ask for
    more is an error. `placement`: where rows lie instead, "host", "disk" or budgets such as
    "hbm=20GB,host=64GB"; such rows are frozen (docs/reference/placement.md). "host,shared" is one
    copy for all processes of the machine, the default under torchrun. "shard" distributes rows that
    are read over the GPUs of a host, and with `rows_trainable=True` rows that learn over the
    processes of the default group, each with its part (docs/reference/training.md); their gradients
    are sparse. `verify` checks every byte of the bundle. `force` adds it to a model that has Engram
    layers of its own. A fresh bundle changes no output; `fit`, documents of token ids, has the
    gates fitted to them at once, which runs the model for minutes (`fitting.fit`). `patches`: rows
    that stand in the place of the bundle's, which is not changed; of a row that several have, the
    last one wins. `any_base` takes patches that were made for another base. Raises MismatchError
    for a patch that does not fit, and RuntimeAttachError when the model is not one the bundle was
    made for, has a smaller vocabulary than its tokenizer, has Engram layers, or carries a memory of
    this name already; InputError for rows that do not fit.
    """
    attached: list[Memory] = []
    wanted = _wanted(bundle_dir, name)
    if patches and len(wanted) > 1:
        raise InputError(
            f"{bundle_dir} has several memories, and patches are for one of them",
            f"name the one to attach with name=: {', '.join(wanted)}",
        )
    try:
        for attribute, folder in wanted.items():
            made = _attach_one(
                model,
                folder,
                attribute,
                tokenizer=tokenizer,
                verify=verify,
                layers=layers,
                rows_trainable=rows_trainable,
                sparse_gradients=sparse_gradients,
                rows_device=rows_device,
                placement=placement,
                force=force,
                patches=patches,
                any_base=any_base,
            )
            attached.append(made)
        if fit is not None:
            found = import_module(_FITTING).fit(model, fit, name=plain_name(attached[0]))
            attached[0].notes += (str(found),)
            _LOG.info(str(found))
    except BaseException:
        for made in attached:
            detach(model, plain_name(made))
        raise
    watch_saving(model)
    return attached[0]


def _wanted(path: str | Path, name: str | None) -> dict[str, Path]:
    """Return the folder of each bundle to attach, by the attribute that is to hold its memory."""
    folder = local_checkpoint(path)
    attribute = NAME if name is None else _attribute(name)
    one = bundle_folder(folder, attribute)
    is_checkpoint = one != folder or not (folder / DESCRIPTION).exists()
    if one == folder and is_checkpoint and weights_inside(folder, attribute):
        raise InputError(
            f"{folder} has the memory {attribute} among its model's tensors, without its hash",
            "attach the bundle that it was trained from, then load(model, folder)",
        )
    return (name is None and is_checkpoint and saved_bundles(folder)) or {attribute: one}


def _attach_one(
    model: nn.Module,
    folder: Path,
    attribute: str,
    *,
    tokenizer: str | Path | None,
    verify: bool,
    layers: Sequence[nn.Module] | None,
    rows_trainable: bool | None,
    sparse_gradients: bool,
    rows_device: torch.device | str | None,
    placement: str,
    force: bool,
    patches: Sequence[str | Path | Patch],
    any_base: bool,
) -> Memory:
    """Attach one bundle as `model.ATTRIBUTE`. Raises what `attach` does."""
    decoder = find_decoder(model, layers)
    bundle, notes = _open(model, decoder, folder, tokenizer, verify)
    if patches:
        bundle, stack = patched_bundle(bundle, patches, any_base=any_base)
        notes += tuple(stack.lines())
    spec, vocabulary = bundle.spec, _vocabulary_size(model)
    _check(model, decoder, bundle, attribute)
    if not force:
        _check_first_memory(model)
    _check_vocabulary(model, bundle, vocabulary)
    homes = {layer: _home(decoder.layers[spec.index(layer)]) for layer in spec.layers}
    place = None if rows_device is None else _device(rows_device)
    rows_homes = {layer: (dtype, place or own) for layer, (dtype, own) in homes.items()}
    placed, rows = place_rows(
        bundle,
        placement,
        rows_homes,
        rows_trainable=rows_trainable,
        sparse_gradients=sparse_gradients,
    )
    modules = {
        layer: loading.module(bundle, layer, rows[layer], device=own, dtype=dtype)
        for layer, (dtype, own) in homes.items()
    }
    device = _home(decoder.layers[0])[1]
    hashed = loading.hash_tensors(spec.layout, spec.layers, vocab_size=vocabulary, device=device)
    memory = Memory(attribute, spec, hashed, modules)
    memory.hits = loading.hits(bundle)
    memory.asked, memory.placement = placement, placed
    is_spread = placed.group is not None or placement == SHARD
    memory.notes = (*notes, *placed.lines()) if notes or is_spread else ()
    if memory.shards is not None:
        memory.notes += tuple(memory.shards.lines())
    for line in memory.notes:
        _LOG.info(line)
    memory.train(model.training)
    hook(memory, model, decoder)
    model.add_module(attribute, memory)
    leave_out_of_broadcasts(model)
    return memory


def _open(
    model: nn.Module,
    decoder: Decoder,
    folder: Path,
    tokenizer: str | Path | None,
    verify: bool,
) -> tuple[Bundle, tuple[str, ...]]:
    """Open a bundle, or a checkpoint with a table of its own and what was found in it."""
    if (folder / DESCRIPTION).exists() or not folder.exists():
        return read_bundle(folder, verify=verify), ()
    checkpoints = import_module(_CHECKPOINTS)
    given = None if tokenizer is None else local_path(tokenizer)
    bundle = checkpoints.open_checkpoint(folder, given, _host_model(model, decoder))
    if bundle is None:
        return read_bundle(folder, verify=verify), ()  # says that there is none
    if verify:
        raise RuntimeAttachError(
            f"verify=True: the bytes of {folder} are not checked here",
            f"run engram verify {folder}, and attach it without verify",
        )
    return bundle, checkpoints.describe(bundle)


def _host_model(model: nn.Module, decoder: Decoder) -> HostModel:
    """Return what a model's config says of its sizes."""
    found: HostModel = import_module(_CHECKPOINTS).HostModel(
        hidden_size=decoder.hidden_size, num_layers=len(decoder.layers)
    )
    config = text_config(model)
    streams = next((n for key in _STREAMS if type(n := getattr(config, key, None)) is int), 1)
    eps, kind = getattr(config, "rms_norm_eps", None), getattr(config, "model_type", None)
    return replace(
        found,
        streams=max(streams, 1),
        norm_eps=float(eps) if isinstance(eps, (int, float)) else found.norm_eps,
        model_type=kind if isinstance(kind, str) and kind else found.model_type,
    )


def _attribute(name: str) -> str:
    """Return the attribute of a memory called `name`. Raises RuntimeAttachError."""
    if not _PLAIN_NAME.fullmatch(name):
        raise RuntimeAttachError(
            f"a memory cannot be called {name!r}", "use lower-case letters, digits and _"
        )
    return name if name == NAME else f"{NAME}_{name}"


def _check_vocabulary(model: nn.Module, bundle: Bundle, vocabulary: int) -> None:
    """Raise RuntimeAttachError for a model with fewer token ids than the bundle's tokenizer."""
    size = bundle.spec.layout.vocab_size
    if 0 < vocabulary < size:
        raise RuntimeAttachError(
            f"the bundle {bundle.folder} was made for a tokenizer of {size:,} ids, "
            f"{type(model).__name__} takes {vocabulary:,}",
            "attach a bundle that was made with this model's own tokenizer",
        )


def detach(model: nn.Module, name: str | None = None) -> None:
    """Remove the memory called `name`, or all of them, from `model`, as if never attached.

    Raises RuntimeAttachError when the model carries none.
    """
    wanted = memories(model) if name is None else {name: memory_of(model, name)}
    if not wanted:
        raise no_memory()
    leaving = {id(memory) for memory in wanted.values()}
    for attachment in attachments(model):
        if id(attachment.memory) in leaving:
            for handle in attachment.handles:
                handle.remove()
            attachment.handles.clear()
    for memory in wanted.values():
        memory.close()
    for parent in list(model.modules()):
        for attribute, child in list(parent.named_children()):
            if id(memory_in(child)) in leaving:
                delattr(parent, attribute)
    leave_out_of_broadcasts(model)


def activate(model: nn.Module, *names: str) -> None:
    """Switch these memories, or all, on again. Raises RuntimeAttachError for an unknown one."""
    _switch(model, names, active=True)


def deactivate(model: nn.Module, *names: str) -> None:
    """Switch these memories, or all, off: the model computes as if they were detached.

    A cache that is filled meanwhile cannot be continued once they are active again. Raises
    RuntimeAttachError for an unknown one.
    """
    _switch(model, names, active=False)


def _switch(model: nn.Module, names: Sequence[str], *, active: bool) -> None:
    for memory in [memory_of(model, name) for name in names or memories(model) or (None,)]:
        memory.active = active


def _check(model: nn.Module, decoder: Decoder, bundle: Bundle, attribute: str) -> None:
    """Raise RuntimeAttachError unless the bundle fits the model, whose name for it is free."""
    spec = bundle.spec
    present = [memory for layer in decoder.layers for memory in memories_at(layer)]
    if any(memory.name == attribute for memory in present):
        raise RuntimeAttachError(
            "the model carries a memory already", "detach(model) first, or attach by another name="
        )
    if hasattr(model, attribute):
        raise RuntimeAttachError(
            f"{type(model).__name__} has an attribute '{attribute}' of its own",
            "attach by another name=, or to a module inside it",
        )
    count, size = len(decoder.layers), decoder.hidden_size
    for what, fits, found in (
        (f"{spec.num_layers} decoder layers", count == spec.num_layers, count),
        (f"hidden size {spec.hidden_size}", size in (None, spec.hidden_size), size),
    ):
        if not fits:
            raise RuntimeAttachError(
                f"the bundle {bundle.folder} was made for {what}, "
                f"{type(model).__name__} has {found}",
                "attach to the model that the checkpoint is of, or put its rows under new gates: "
                f"engram attach MODEL --table {bundle.folder}"
                if isinstance(bundle.reference, CheckpointReference)
                else "make a bundle for this model with engram attach",
            )


def _check_first_memory(model: nn.Module) -> None:
    """Raise RuntimeAttachError for a model that has Engram layers of its own."""
    config = getattr(model, "config", None)
    as_dict = getattr(config, "to_dict", None)
    found = checkpoint.named_in_config(as_dict() if callable(as_dict) else config)
    found = found or checkpoint.named_in_layers(name for name, _ in model.named_modules())
    if found is not None:
        raise RuntimeAttachError(
            f"{type(model).__name__} has Engram layers of its own ({found})",
            "load it without them (ple_layer_ids=[] in its text config for Qwen4-Exp) to attach "
            "its own table, or attach a second memory with force=True",
        )


def _device(named: torch.device | str) -> torch.device:
    """Return a device that exists. Raises RuntimeAttachError for another one."""
    try:
        device = torch.device(named)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RuntimeAttachError(
            f"rows_device={str(named)!r}: {str(error).splitlines()[0]}",
            "name a device of this machine, such as cpu or cuda:0, or leave it out",
        ) from None
    return device


def _home(layer: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and device of a layer's first floating-point parameter."""
    for parameter in layer.parameters():
        if parameter.is_floating_point() and parameter.dtype.itemsize > 1:
            if parameter.device.type == "meta":
                raise RuntimeAttachError(
                    "the model's weights are not loaded (they are on the meta device)",
                    "load the model first, without offloading the layers that get a memory",
                )
            return parameter.dtype, parameter.device
    raise RuntimeAttachError(
        f"a decoder layer ({type(layer).__name__}) has no floating-point parameter",
        "attach to a model whose layers have bfloat16, float16 or float32 weights",
    )


def _vocabulary_size(model: nn.Module) -> int:
    """Return how many token ids the input embedding takes, 0 when the model does not say."""
    getter = getattr(model, "get_input_embeddings", None)
    try:
        embedding = getter() if callable(getter) else None
    except NotImplementedError:
        return 0
    weight = getattr(embedding, "weight", None)
    return len(weight) if isinstance(weight, Tensor) else 0
