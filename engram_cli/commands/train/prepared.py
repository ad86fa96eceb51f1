"""Makes what the parts of a training run share: both texts as ids, the bundle, the batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.commands.attach.layers import check_vocabulary
from engram_cli.commands.checkpoint import ModelShape
from engram_cli.commands.init_corpus import guess_tokens
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.trace import check_tokenizer
from engram_cli.commands.train.bundle import (
    check_first_rows,
    choose_geometry,
    count_parameters,
    make_bundle,
    vocabulary,
)
from engram_cli.commands.train.overlap import Overlap
from engram_cli.commands.train.text import PackedText, check_overlap, end_of_documents, pack_text
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import InputError
from engram_cli.formats.bundle import bundle_folder, read_bundle
from engram_cli.hashing.layout import HashLayout
from engram_cli.progress import Progress
from engram_cli.sizes import available_memory
from engram_cli.training import defaults
from engram_cli.training.results import Task
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer

_LOGIT_BYTES, _ACTIVATION_BYTES = 12, 40  # of a token: for each token id; each layer and value


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What the parts of a run share: texts, the bundle to begin with, batches.

    `overlap`: which held-out documents are trained on, None where that is not known.
    """

    train: PackedText
    held_out: PackedText
    overlap: Overlap | None
    bundle: Path
    end: int | None
    apart: int | None
    sequences: int
    length: int
    micro_batch: int
    device: Any
    world: int
    is_first_process: bool

    @property
    def tokens_a_step(self) -> int:
        """The tokens of a step of all processes."""
        return self.sequences * self.length


def for_device(request: TrainRequest, model: ModelShape, state: Any) -> TrainRequest:
    """Return the request with the sizes of batches that suit the device. Raises InputError."""
    size = defaults.ON_CPU if state.device.type == "cpu" else defaults.ON_GPU
    sequences, length = request.batch or size.sequences, request.length or size.length
    world = state.num_processes
    if request.batch is None:
        sequences = -(-sequences // world) * world
    if sequences % world:
        raise InputError(f"--batch {sequences} on {world} processes", f"give a multiple of {world}")
    if request.is_sharded and world == 1:
        raise InputError(
            "--placement shard distributes rows over processes, and there is one",
            "start it with torchrun --nproc-per-node GPUS -m engram_cli train, or leave it out",
        )
    own = sequences // world
    micro = request.micro_batch
    if micro is None:
        token = _LOGIT_BYTES * (model.vocab_size or 2**16)
        token += _ACTIVATION_BYTES * model.num_layers * model.hidden_size
        fitting = max(_free_bytes(state.device) // 3 // (token * length), 1)
        micro = max(n for n in range(1, own + 1) if own % n == 0 and n <= fitting)
    if own % micro:
        raise InputError(
            f"--micro-batch {micro} does not divide the {own} sequences of a process",
            f"give a divisor of {own}, or another --batch",
        )
    return replace(request, batch=sequences, length=length, micro_batch=micro)


def _free_bytes(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory() or 2**32


def prepare(
    request: TrainRequest, model: ModelShape, here: Workspace, state: Any, progress: Progress
) -> Prepared:
    """Read both texts and make the bundle, or take what an earlier start of the run made."""
    tokenizer, vocab, layout = _open_layout(request, model, here, progress)
    end = end_of_documents(layout, model, tokenizer)
    if end is None:
        progress.note("no token ends documents: they follow each other without a separator")
    texts = [
        pack_text(request, names, layout, tokenizer, end, here.folder / f"{name}.u32", progress)
        for name, names in (("train", request.sources), ("held-out", request.held_out))
    ]
    overlap = check_overlap(texts[0], texts[1], end)
    if overlap is not None and overlap.documents:
        progress.note(f"{overlap}: the loss on them says what was learned by heart")
    bundle = request.bundle
    if vocab is not None:
        parameters = count_parameters(request.checkpoint)
        layout = choose_geometry(request, model, parameters, texts[0].tokens, vocab)
        bundle = make_bundle(request, model, layout, texts[0].path, end, here, progress)
    assert bundle is not None
    return _gathered(request, texts[0], texts[1], bundle, end, state, overlap)


def _open_layout(
    request: TrainRequest, model: ModelShape, here: Workspace, progress: Progress
) -> tuple[TokenizerFile, Path | None, HashLayout]:
    """Return the tokenizer, and the layout of the bundle that is given.

    Or a compressed vocabulary, and the smallest layout for it. Raises MismatchError, InputError.
    """
    tokenizer = load_tokenizer(request.tokenizer or request.checkpoint, progress)
    if request.bundle is not None:
        place = bundle_folder(request.bundle)
        check_tokenizer(place, tokenizer)
        return tokenizer, None, read_bundle(place, verify=request.verify).spec.layout
    vocab = vocabulary(tokenizer.path, here, progress)
    layout = choose_geometry(request, model, 0, 0, vocab)
    check_first_rows(request, layout)
    check_vocabulary(layout, model, request.checkpoint, tokenizer.path, (vocab,))
    return tokenizer, vocab, layout


def _gathered(
    request: TrainRequest,
    train: PackedText,
    held_out: PackedText,
    bundle: Path,
    end: int | None,
    state: Any,
    overlap: Overlap | None = None,
) -> Prepared:
    assert request.batch
    assert request.length
    assert request.micro_batch
    packed = read_bundle(bundle_folder(bundle)).spec.packed
    return Prepared(
        train=train,
        held_out=held_out,
        overlap=overlap,
        bundle=bundle,
        end=end,
        apart=end if packed else None,
        sequences=request.batch,
        length=request.length,
        micro_batch=request.micro_batch,
        device=state.device,
        world=state.num_processes,
        is_first_process=state.is_main_process,
    )


def task_of(request: TrainRequest, prepared: Prepared) -> Task:
    """Return the task of the memory's training."""
    cpu = prepared.device.type == "cpu"
    size = defaults.ON_CPU if cpu else defaults.ON_GPU
    return Task(
        bundle=prepared.bundle,
        rows_trainable=request.rows == "trained",
        lora=request.lora,
        full=request.full,
        train=prepared.train.path,
        held_out=prepared.held_out.path,
        end=prepared.end,
        documents=prepared.held_out.documents,
        apart=prepared.apart,
        length=prepared.length,
        micro_batch=prepared.micro_batch,
        accumulated=prepared.sequences // prepared.world // prepared.micro_batch,
        sample=size.sample,
        final=size.final,
        patience=request.patience,
        rates={name: getattr(request, name) for name in ("rows_lr", "lr", "lora_lr", "full_lr")},
        row_optimiser=request.row_optimiser,
        placement=request.placement,
        gradient_checkpointing=request.gradient_checkpointing,
        half=_computes_in_half(prepared.device),
        cpu=cpu,
        seed=request.train_seed,
    )


def _computes_in_half(device: Any) -> bool:
    """Return whether to compute in bfloat16: on GPUs that have it."""
    if device.type != "cuda":
        return False
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def stand_in(
    request: TrainRequest, model: ModelShape, here: Workspace, state: Any, progress: Progress
) -> tuple[Prepared, int]:
    """Return texts of random ids and a small bundle, and the bytes that the real rows take more.

    With the optimiser's state. A bundle that is given is taken itself.
    """
    tokens = guess_tokens(find_sources(request.sources, request.corpus)).tokens
    _, vocab, layout = _open_layout(request, model, here, progress)
    bundle, more = request.bundle, 0
    if vocab is not None:
        parameters = count_parameters(request.checkpoint)
        planned = choose_geometry(request, model, parameters, tokens, vocab)
        bundle = make_bundle(request, model, layout, None, None, here, progress)
        rows = sum(entry.rows for entry in planned.layers)
        rows -= sum(entry.rows for entry in layout.layers)
        more = rows * _row_bytes(request) // (state.num_processes if request.is_sharded else 1)
    assert bundle is not None
    known = np.arange(layout.vocab_size)
    if layout.lookup is not None:
        known = known[layout.lookup >= 0]
    assert request.batch
    assert request.length
    count = 4 * request.batch * request.length
    ids = np.random.default_rng(0).choice(known, count).astype("<u4")
    texts = []
    for name, size in (("train", tokens), ("held-out", count)):
        path = here.folder / f"{name}.u32"
        path.write_bytes(ids.tobytes())
        texts.append(PackedText(path=path, tokens=size, documents=1, request=None))
    return _gathered(request, texts[0], texts[1], bundle, None, state), more


def _row_bytes(request: TrainRequest) -> int:
    """Return the bytes of a row of a new table with those of its optimiser's state."""
    dim = request.dim or defaults.DIM
    if request.rows == "frozen":
        return 2 * dim
    return 4 * dim + (8 * dim if request.row_optimiser == "adam" else 4)
