"""Cost of an attached memory, compared with the bare model and with engram-peft if installed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import attached_peer
import numpy as np
import torch
import torch.nn.functional as F
from runner import Case
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from engram_cli import hash_layout
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values, module_spec
from engram_cli.runtime import RowwiseAdagrad, attach, ops, parameter_groups
from engram_cli.runtime.dense_gradients import look_up

WIDTH, LAYERS, VOCAB = 512, 8, 8192
BATCH, LENGTH, NEW = 4, 256, 32
ROWS = 20_000  # a head; 16 heads of 32 numbers a row
KINDS = ("engram-v1", "deepseek-v4.1", "qwen-ple")
SPARSE, PEER_SPARSE = "engram-v1, sparse gradients", "engram-peft, sparse gradients"
PLACES = (2, 5)  # the second layer and the middle, counted from 1 as this scheme does


def cases() -> Iterator[Case]:
    """Fresh memories in two of eight layers: outputs equal the bare model's to the bit."""
    torch.manual_seed(0)
    ids = torch.randint(3, VOCAB, (BATCH, LENGTH))
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, nn.Module] = {"bare": _model()}
        for kind in KINDS:
            models[kind] = _attached(_model(), Path(folder), kind)
        models[SPARSE] = _attached(_model(), Path(folder), "engram-v1", sparse_gradients=True)
        if attached_peer.PRESENT:
            models["engram-peft"] = _peer(_model(), sparse=False)
            models[PEER_SPARSE] = _peer(_model(), sparse=True)
        about = (
            f"Llama of {LAYERS} layers of width {WIDTH}, float32, memories in two layers: "
            f"16 heads, {16 * ROWS:,} rows of 32 a layer, embedded width {WIDTH}. ms more: than "
            "bare, the median of the rounds."
        )
        runs: list[tuple[str, int, Callable[[Any], Callable[[], Tensor]]]] = [
            ("forward", BATCH * LENGTH, lambda model: lambda: _forward(model, ids)),
            ("training step", BATCH * LENGTH, lambda model: lambda: _step(model, ids)),
            ("decode, one sequence", NEW, lambda model: lambda: _decode(model, ids[:1, :16])),
        ]
        for name, amount, make in runs:
            yield Case(
                name=name,
                amount=amount,
                unit="tokens",
                notes=about,
                rounds=5 if name == "training step" else 11,
                overhead=True,
                contestants={
                    which: make(model)
                    for which, model in models.items()
                    if name == "training step" or "sparse" not in which
                },
                same=torch.equal,
            )
        models.clear()
        yield _halves(Path(folder), ids[:1, :16])
        yield from _alone(Path(folder), ids)
        yield from _loops(Path(folder), ids)


def _halves(folder: Path, prompt: Tensor) -> Case:
    """Decoding in the usual dtype of a checkpoint."""
    models: dict[str, nn.Module] = {
        "bare": _model(),
        "engram-v1": _attached(_model(), folder, "engram-v1"),
    }
    if attached_peer.PRESENT:
        models["engram-peft"] = _peer(_model(), sparse=False)
    return Case(
        name="decode, one sequence, bfloat16",
        amount=NEW,
        unit="tokens",
        notes="The same model and memories in bfloat16.",
        rounds=11,
        overhead=True,
        contestants={
            which: partial(_decode, model.to(torch.bfloat16), prompt)
            for which, model in models.items()
        },
        same=torch.equal,
    )


def _loops(folder: Path, ids: Tensor) -> Iterator[Case]:
    """What runs in loops of its own on a CPU, and its plain twins."""
    shell = _attached(Shell(torch.randn(1, 1, WIDTH)), folder, "engram-v1")
    yield Case(
        name="memories alone, decode steps",
        amount=NEW,
        unit="tokens",
        notes="Two memories on layers that pass their hidden states on, a token at a time, with "
        "warm caches.",
        rounds=25,
        contestants={
            "torch operations": lambda: _plain_steps(shell, ids),
            "engram": lambda: _steps(shell, ids),
        },
        same=lambda one, other: torch.allclose(one, other, atol=1e-6),
    )
    rows = torch.randint(16 * ROWS, (BATCH, LENGTH, 16))
    weight = torch.zeros(16 * ROWS, 32, requires_grad=True)
    gradient = torch.randn(*rows.shape, 32)

    def run(look_up: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        (found,) = torch.autograd.grad(look_up(weight, rows), weight, gradient)
        return found

    yield Case(
        name="dense gradient of a table",
        amount=BATCH * LENGTH,
        unit="tokens",
        notes=f"Look-up and gradient of {16 * ROWS:,} rows of 32, 16 rows a token.",
        rounds=15,
        contestants={
            "torch's embedding": lambda: run(lambda weight, rows: F.embedding(rows, weight)),
            "engram": lambda: run(look_up),
        },
        same=torch.equal,
    )


class Counted:
    """A cache that holds nothing and counts."""

    length = 0

    def get_seq_length(self) -> int:
        """How many positions there were."""
        return self.length


def _steps(shell: Shell, ids: Tensor) -> Tensor:
    """Feed two tokens, and then one after another."""
    cache = Counted()
    shell.hidden = torch.ones(1, 2, WIDTH)
    with torch.no_grad():
        out: Tensor = shell(ids[:1, :2], cache)
        shell.hidden = torch.ones(1, 1, WIDTH)
        for place in range(2, 2 + NEW):
            out = shell(ids[:1, place : place + 1], cache)
    return out


def _plain_steps(shell: Shell, ids: Tensor) -> Tensor:
    with mock.patch.object(ops, "takes_decode_step", return_value=False):
        return _steps(shell, ids)


def _alone(folder: Path, ids: Tensor) -> Iterator[Case]:
    """What memories add to a training step, without the model around them."""
    hidden = torch.randn(BATCH, LENGTH, WIDTH)
    shells: dict[str, Shell] = {
        "engram-v1": _attached(Shell(hidden), folder, "engram-v1"),
        SPARSE: _attached(Shell(hidden), folder, "engram-v1", sparse_gradients=True),
    }
    owners: dict[str, nn.Module] = {**shells}
    own = {name: _optimisers(shell, sparse=name == SPARSE) for name, shell in shells.items()}
    if attached_peer.PRESENT:
        for name in ("engram-peft", PEER_SPARSE):
            sparse = name == PEER_SPARSE
            shells[name] = Shell(hidden)
            owners[name] = wrapped = _peer(shells[name], sparse=sparse)
            rows = "sparse_adam" if sparse else "adam"
            own[name] = [wrapped.create_optimizer(engram_sparse_optimizer=rows)]
    others = [kind for kind in KINDS if kind != "engram-v1"]
    whole = shells | {kind: _attached(Shell(hidden), folder, kind) for kind in others}
    yield Case(
        name="memories alone, forward",
        amount=BATCH * LENGTH,
        unit="tokens",
        notes="Two memories on layers that pass their hidden states on: hash, gather, projections "
        "and gate. The products of the projections alone, in one call a layer, are `projections`.",
        rounds=25,
        contestants={
            which: partial(_shell_forward, shell, ids)
            for which, shell in whole.items()
            if "sparse" not in which
        }
        | {"projections": _products(hidden)},
        same=lambda one, other: torch.allclose(one, other, atol=1e-6),
    )
    for name, step in (
        ("memories alone, training step", False),
        ("memories alone, training step and optimiser", True),
    ):
        yield Case(
            name=name,
            amount=BATCH * LENGTH,
            unit="tokens",
            notes="The same two memories on layers that pass their hidden states on. "
            + (
                "Rows with dense gradients: AdamW here, Adam there; with sparse ones "
                "RowwiseAdagrad here, SparseAdam there; the gates' weights AdamW here, Adam there."
                if step
                else "Forward and backward; the gradients are dropped."
            ),
            rounds=15,
            contestants={
                which: partial(_shell_step, shell, owners[which], ids, own[which] if step else [])
                for which, shell in shells.items()
            },
            same=lambda one, other: torch.allclose(one, other, atol=1e-6),
        )


class Shell(nn.Module):
    """Layers that pass on `hidden` as they get it; the output's gradient is the same each time."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden.clone().requires_grad_()
        self.gradient = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, input_ids: Tensor, cache: Counted | None = None) -> Tensor:
        hidden = self.hidden
        for layer in self.layers:
            hidden = layer(hidden)
        if cache is not None:
            cache.length += input_ids.shape[1]
        return hidden


class Layer(nn.Module):
    """A layer that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states


def _shell_forward(shell: Shell, ids: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = shell(ids)
    return out


def _products(hidden: Tensor) -> Callable[[], Tensor]:
    """The products of keys and values of two layers, which every memory here has to compute."""
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(hidden.shape, generator=generator)
    weights = torch.randn(len(PLACES), 2 * WIDTH, WIDTH, generator=generator)

    def run() -> Tensor:
        for weight in weights:
            torch.nn.functional.linear(vectors, weight)
        return hidden

    return run


def _optimisers(shell: nn.Module, *, sparse: bool) -> list[Any]:
    gates, rows = parameter_groups(shell, lr=1e-5)
    if not sparse:
        return [torch.optim.AdamW([gates, rows])]
    return [torch.optim.AdamW([gates]), RowwiseAdagrad([rows])]


def _shell_step(shell: Shell, owner: nn.Module, ids: Tensor, optimisers: list[Any]) -> Tensor:
    """A step of the memories whose parameters `owner` has."""
    out: Tensor = shell(ids)
    out.backward(shell.gradient)
    for optimiser in optimisers:
        optimiser.step()
    owner.zero_grad()
    shell.hidden.grad = None
    return out.detach()


def _peer(model: nn.Module, *, sparse: bool) -> Any:
    return attached_peer.attached(
        model,
        layers=tuple(place - 1 for place in PLACES),
        rows_per_head=ROWS,
        heads=8,
        dim=32,
        hidden=WIDTH,
        vocabulary=VOCAB,
        sparse=sparse,
    )


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        eos_token_id=None,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def _attached(model: Any, folder: Path, kind: str, **options: Any) -> Any:
    path = folder / kind
    layout = hash_layout("qwen-ple", vocab_size=VOCAB, eos_id=1, rows_per_head=ROWS, layers=PLACES)
    spec = BundleSpec(
        layout=layout,
        layers=PLACES,
        dim=32,
        dtype="float32",
        hidden_size=WIDTH,
        num_layers=LAYERS,
        model_type="llama",
        module=module_spec(kind),
    )

    def rows(layer: int) -> Iterator[tuple[int, Any]]:
        generator = np.random.default_rng(layer)
        yield 0, generator.standard_normal((spec.rows(layer), spec.dim), dtype=np.float32)

    def dense(layer: int, zero_rows: bool) -> dict[str, Any]:
        return first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero_rows)

    if not path.exists():
        write_bundle(path, spec, rows, dense, tool_version="0")
    layers = model.layers if isinstance(model, Shell) else None
    attach(model, path, layers=layers, **options)
    return model


def _forward(model: Any, ids: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _step(model: Any, ids: Tensor) -> Tensor:
    """Forward and backward; the gradients are dropped."""
    model.train()
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    model.zero_grad()
    return loss.detach()


def _decode(model: Any, prompt: Tensor) -> Tensor:
    model.eval()
    return model.generate(prompt, max_new_tokens=NEW, do_sample=False)
