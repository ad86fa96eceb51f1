"""train: a checkpoint, a text and a held-out text in; a trained bundle and what it does out.

The bundle is made from the text if none is given. Everything is written into the folder of the run,
where the same command resumes it. With `torchrun` every process runs this; the first one prepares.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engram_cli.commands.attach_layers import check_vocabulary
from engram_cli.commands.checkpoint import ModelShape, read_model_shape
from engram_cli.commands.init_corpus import guess_tokens
from engram_cli.commands.load_model import check_checkpoint, load_model
from engram_cli.commands.requests.train import TrainRequest
from engram_cli.commands.trace import check_tokenizer
from engram_cli.commands.train_bundle import (
    choose_geometry,
    count_parameters,
    make_bundle,
    vocabulary,
)
from engram_cli.commands.train_folder import RunFolder, decisive
from engram_cli.commands.train_text import PackedText, check_apart, end_of_documents, pack_text
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.sources import find_sources
from engram_cli.errors import DependencyError, InputError
from engram_cli.formats.bundle import bundle_folder, read_bundle
from engram_cli.progress import SILENT, Progress
from engram_cli.sizes import available_memory
from engram_cli.training import defaults
from engram_cli.training.results import Outcome, StepCost, Task
from engram_cli.vocab.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from engram_cli.training.part import PartRun

_PACKAGES = ("torch", "transformers", "accelerate")
MAIN, AGAINST = "memory", "lora-alone"
_LOGIT_BYTES, _ACTIVATION_BYTES = 12, 40  # of a token: for each token id; each layer and value


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What was trained, or after a dry run would be: then there is no `outcome`.

    `bundle`, `adapter`, `model`: where they were written, None for what did not learn. `steps`: of
    the memory's training. `cost`: measured on a few steps, None where it was not needed.
    `memory_bytes`: what training takes at least, beside the activations, after a dry run.
    """

    checkpoint: Path
    out: Path
    bundle: Path | None
    adapter: Path | None
    model: Path | None
    outcome: Outcome | None
    steps: int
    tokens_a_step: int
    cost: StepCost | None = None
    memory_bytes: int | None = None
    is_first_process: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What the parts of a run share: texts, the bundle to begin with, batches."""

    train: PackedText
    held_out: PackedText
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


def train(request: TrainRequest, progress: Progress = SILENT) -> TrainResult:
    """Train a memory, or resume; see `TrainRequest`.

    Raises DependencyError without torch, transformers and accelerate, InputError for choices that
    cannot be, MismatchError for a bundle of another tokenizer, CorpusError, OutputError.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"training needs {', '.join(missing)}", "python -m pip install 'engram-tables[train]'"
        )
    check_checkpoint(request.checkpoint)
    model = read_model_shape(request.checkpoint)
    if request.bundle is not None:
        bundle_folder(request.bundle)
    from accelerate import PartialState

    state = PartialState(cpu=request.device == "cpu")
    request = _for_device(request, model, state)
    if request.dry_run:
        check_apart(request)
        return _dry_run(request, model, state, progress)
    run = RunFolder(request.out)
    progress = progress if state.is_main_process else SILENT
    with state.main_process_first():
        if not run.is_begun:
            check_apart(request)
        run.open(decisive(request))
        outcome = run.outcome
        if outcome is None:
            prepared = _prepare(request, model, run.work, state, progress)
    if outcome is None:
        outcome = _train(request, prepared, run, progress)
        if state.is_main_process:
            run.finish(outcome)
    else:
        progress.note(f"{run.path} is finished; this is its result")
    return TrainResult(
        checkpoint=request.checkpoint,
        out=run.path,
        bundle=run.bundle,
        adapter=run.adapter if request.lora is not None else None,
        model=run.model if request.full else None,
        outcome=outcome,
        steps=run.steps(MAIN) or 0,
        tokens_a_step=outcome.tokens_a_step,
        is_first_process=state.is_main_process,
    )


def _for_device(request: TrainRequest, model: ModelShape, state: Any) -> TrainRequest:
    """Return the request with the sizes of batches that suit the device. Raises InputError."""
    size = defaults.ON_CPU if state.device.type == "cpu" else defaults.ON_GPU
    sequences, length = request.batch or size.sequences, request.length or size.length
    world = state.num_processes
    if request.batch is None:
        sequences = -(-sequences // world) * world
    if sequences % world:
        raise InputError(f"--batch {sequences} on {world} processes", f"give a multiple of {world}")
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


def _prepare(
    request: TrainRequest, model: ModelShape, here: Workspace, state: Any, progress: Progress
) -> _Prepared:
    """Read both texts and make the bundle, or take what an earlier start of the run made."""
    tokenizer = load_tokenizer(request.tokenizer or request.checkpoint, progress)
    vocab, layout = None, None
    if request.bundle is not None:
        check_tokenizer(bundle_folder(request.bundle), tokenizer)
        layout = read_bundle(bundle_folder(request.bundle)).spec.layout
    else:
        vocab = vocabulary(tokenizer.path, here, progress)
        layout = choose_geometry(request, model, 0, 0, vocab)
        check_vocabulary(layout, model, request.checkpoint, tokenizer.path, (vocab,))
    end = end_of_documents(layout, model, tokenizer)
    if end is None:
        progress.note("no token ends documents: they follow each other without a separator")
    texts = [
        pack_text(request, names, layout, tokenizer, end, here.folder / f"{name}.u32", progress)
        for name, names in (("train", request.sources), ("held-out", request.held_out))
    ]
    bundle = request.bundle
    if vocab is not None:
        parameters = count_parameters(request.checkpoint)
        layout = choose_geometry(request, model, parameters, texts[0].tokens, vocab)
        bundle = make_bundle(request, layout, texts[0].path, end, here, progress)
    assert bundle is not None
    return _gathered(request, texts[0], texts[1], bundle, end, state)


def _gathered(
    request: TrainRequest,
    train: PackedText,
    held_out: PackedText,
    bundle: Path,
    end: int | None,
    state: Any,
) -> _Prepared:
    assert request.batch
    assert request.length
    assert request.micro_batch
    packed = read_bundle(bundle_folder(bundle)).spec.packed
    return _Prepared(
        train=train,
        held_out=held_out,
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


def _train(
    request: TrainRequest, prepared: _Prepared, run: RunFolder, progress: Progress
) -> Outcome:
    """Train all parts of the run, and write what they came to."""
    task = _task(request, prepared)
    main = _open(request, task, prepared, progress)
    steps = _steps(request, main, prepared, run)
    progress.note(_plan(main, steps, prepared))
    lines = main.trained(steps, run.checkpoints(MAIN))
    main.write(bundle=run.bundle, adapter=run.adapter, model=run.model)
    parts = main.parts
    del main
    if request.against_lora is not None:
        rank = request.against_lora
        progress.note(f"the same with a LoRA adapter of rank {rank} and no memory, to compare")
        task = replace(task, bundle=None, lora=rank, full=False)
        other = _open(request, task, prepared, progress)
        lines += other.trained(steps, run.checkpoints(AGAINST))[1:]
        other.write(bundle=run.bundle, adapter=run.path / AGAINST, model=run.model)
        lines[-1] = replace(lines[-1], name="LoRA alone")
    return Outcome(
        train_tokens=prepared.train.tokens,
        held_out_tokens=prepared.held_out.tokens,
        held_out_documents=prepared.held_out.documents,
        tokens_a_step=prepared.tokens_a_step,
        parts=parts,
        lines=tuple(lines),
    )


def _task(request: TrainRequest, prepared: _Prepared) -> Task:
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


def _open(request: TrainRequest, task: Task, prepared: _Prepared, progress: Progress) -> PartRun:
    """Return the part of a task, its model loaded: in bfloat16 where it is frozen on a GPU."""
    import torch

    from engram_cli.training.part import PartRun

    dtype = torch.bfloat16 if task.half and not task.full else torch.float32
    model = load_model(request.checkpoint, dtype=dtype).to(prepared.device)
    return PartRun(model, task, progress)


def _steps(request: TrainRequest, part: PartRun, prepared: _Prepared, run: RunFolder) -> int:
    """Return how many steps to train: as noted by an earlier start, as asked, or as measured."""
    noted = run.steps(MAIN)
    if noted is not None:
        return noted
    steps = request.steps or _one_pass(prepared)
    if request.minutes is not None:
        steps = _in_minutes(request.minutes, part.cost(run.checkpoints(MAIN)))
    if prepared.is_first_process:
        run.note_steps(MAIN, steps)
    return steps


def _one_pass(prepared: _Prepared) -> int:
    """Return the steps of one pass over the text, within the limits of the defaults."""
    steps = -(-prepared.train.tokens // prepared.tokens_a_step)
    return min(max(steps, defaults.LEAST_STEPS), defaults.MOST_STEPS)


def _in_minutes(minutes: float, cost: StepCost) -> int:
    return max(round(60 * minutes / cost.seconds), 1)


def _plan(part: PartRun, steps: int, prepared: _Prepared) -> str:
    learning = sum(each.trainable for each in part.parts)
    passes = steps * prepared.tokens_a_step / max(prepared.train.tokens, 1)
    return (
        f"training the {part.task.learns}: {learning:,} parameters, {steps:,} steps of "
        f"{prepared.tokens_a_step:,} tokens, {passes:.2g} passes over the text"
    )


def _dry_run(
    request: TrainRequest, model: ModelShape, state: Any, progress: Progress
) -> TrainResult:
    """Return what a run would take: steps are timed on random ids with a small table of zeros."""
    with tempfile.TemporaryDirectory(prefix="engram-train-") as folder:
        here = Workspace(Path(folder))
        prepared, table_bytes = _stand_in(request, model, here, state, progress)
        part = _open(request, _task(request, prepared), prepared, progress)
        cost = part.cost(Path(folder) / "checkpoints")
        steps = request.steps or _one_pass(prepared)
        if request.minutes is not None:
            steps = _in_minutes(request.minutes, cost)
    return TrainResult(
        checkpoint=request.checkpoint,
        out=request.out,
        bundle=None,
        adapter=None,
        model=None,
        outcome=None,
        steps=steps,
        tokens_a_step=prepared.tokens_a_step,
        cost=cost,
        memory_bytes=cost.bytes + table_bytes,
        is_first_process=state.is_main_process,
    )


def _stand_in(
    request: TrainRequest, model: ModelShape, here: Workspace, state: Any, progress: Progress
) -> tuple[_Prepared, int]:
    """Return texts of random ids and a small bundle, and the bytes that the real rows take more.

    With the optimiser's state. A bundle that is given is taken itself.
    """
    tokens = guess_tokens(find_sources(request.sources, request.corpus)).tokens
    tokenizer = load_tokenizer(request.tokenizer or request.checkpoint, progress)
    more = 0
    if request.bundle is not None:
        bundle = request.bundle
        layout = read_bundle(bundle_folder(bundle)).spec.layout
    else:
        vocab = vocabulary(tokenizer.path, here, progress)
        planned = choose_geometry(
            request, model, count_parameters(request.checkpoint), tokens, vocab
        )
        layout = choose_geometry(request, model, 0, 0, vocab)
        bundle = make_bundle(request, layout, None, None, here, progress)
        rows = sum(entry.rows for entry in planned.layers)
        rows -= sum(entry.rows for entry in layout.layers)
        more = rows * _row_bytes(request)
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
