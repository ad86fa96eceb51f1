"""The memory of a model: its layers' modules, the hash they share, and one forward call's work.

Registered on the model, so that its parameters and state dict hold the memory. When the owner of
the decoder layers is called, the rows of all layers are computed at once; when a layer is called,
its module adds to the hidden states; when the call ends, the state goes onto the cache object.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from engram_cli.errors import RuntimeAttachError
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.rows.safetensors import Array
from engram_cli.runtime import ops
from engram_cli.runtime.batch_rows import given_rows
from engram_cli.runtime.caches import caches_in, carrier, handed_back, handed_out, values_of
from engram_cli.runtime.cpu_decode import DecodePlan, DecodeStep
from engram_cli.runtime.forward_args import (
    Call,
    document_ages,
    merge_calls,
    read_call,
    real_positions,
)
from engram_cli.runtime.kernel_lookup import look_up_call
from engram_cli.runtime.modules.base import AnyRows, MemoryModule
from engram_cli.runtime.past import (
    cache_at_layer,
    cache_of,
    check_end,
    check_start,
    ends_in_padding,
    past_of,
    unseen_state,
)
from engram_cli.runtime.recent import KEEP
from engram_cli.runtime.reference import (
    HashTensors,
    hash_rows,
    is_hole,
)
from engram_cli.runtime.sharding.trained.rows import look_up, sharded_rows
from engram_cli.runtime.state import DecodeState, is_followed, keep_on
from engram_cli.runtime.step import Replays, Step
from engram_cli.runtime.tiers import PlacedRows

if TYPE_CHECKING:
    from engram_cli.runtime.sharding.rows import ShardedTables
    from engram_cli.runtime.sharding.trained.placing import ShardedPlacement
    from engram_cli.runtime.tiers.embedding import Counters, TieredEmbedding, Tiers
    from engram_cli.runtime.tiers.placement import Placement


def _close(tiers: Tiers | None, shards: ShardedTables | None) -> None:
    """Free rows in tiers, or distributed rows of all layers."""
    if tiers is not None:
        tiers.close()
    if shards is not None:
        for _ in shards.blocks.heights:
            shards.close()


_BUFFERS = ("lookup", "multipliers", "columns")
_OF_THIS_PROCESS = ("_local", "_replays", "_plan", "tiers", "shards")
_CONSTANTS = ("orders", "filler", "eos", "shared", "summed", "salted", "heights")


class _Local(threading.local):
    """Each thread's calls under way, so that two threads may run one model."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.step: Step | DecodeStep | None = None


class Memory(nn.Module):
    """What `attach` registers on a model. `layers` has a module for each layer, by its id."""

    def __init__(
        self, name: str, spec: BundleSpec, hashed: HashTensors, modules: dict[int, MemoryModule]
    ) -> None:
        super().__init__()
        self.name = name
        self.rows_argument = f"{name}_rows"  # of a batch whose rows were found beforehand
        self.spec = spec
        self.layers = nn.ModuleDict({str(layer): module for layer, module in modules.items()})
        self.conv_receptive_fields = {layer: m.reach for layer, m in modules.items() if m.reach}
        self.places = {layer: place for place, layer in enumerate(modules)}
        self.hashed = hashed
        self.has_holes = bool(is_hole(hashed.lookup).any())
        for buffer in _BUFFERS:
            self.register_buffer(f"hash_{buffer}", getattr(hashed, buffer), persistent=False)
        self.notes: tuple[str, ...] = ()  # what was found, where the rows are a checkpoint's
        self.hits: dict[int, list[Array]] = {}  # mapped, of a bundle that has them, to be saved
        # Its states on caches are no other's, nor those of what was attached by its name before.
        self.key = f"{name} {spec.layout.fingerprint} {spec.module} {self.conv_receptive_fields}"
        self.active = True
        self.patched = False  # in evaluations: takes the place of the memory without the patches
        self.asked = "hbm"  # the placement asked for, and what was resolved
        self.placement: Placement | ShardedPlacement | None = None
        self.tiers, self.shards = self._find_placed()
        self._local = _Local()
        self._replays = Replays()
        self._plan: DecodePlan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch gives it no types
        self.tiers, self.shards = self._find_placed()
        self._local = _Local()
        self._replays = Replays()
        self._plan = None

    def _find_placed(self) -> tuple[Tiers | None, ShardedTables | None]:
        """Return the layers whose rows are in tiers, and those of rows distributed over GPUs."""
        rows = [cast(MemoryModule, m).multi_head_embedding.embedding for m in self.layers.values()]
        stores = {place: own for place, own in enumerate(rows) if isinstance(own, PlacedRows)}
        if not stores:
            return None, None
        from engram_cli.runtime.sharding.rows import tables_of
        from engram_cli.runtime.tiers.embedding import Tiers

        tables = tables_of(stores)
        tiers = None if tables else Tiers(cast("dict[int, TieredEmbedding]", stores))
        return tiers, tables

    @property
    def is_placed(self) -> bool:
        """Whether rows are in tiers or distributed: frozen, and in no state dict."""
        return self.tiers is not None or self.shards is not None

    @property
    def counters(self) -> Counters:
        """What was read from which tier since the memory was attached; waits for the device.

        All zero where all rows lie in one GPU's memory, which nothing counts.
        """
        from engram_cli.runtime.tiers.embedding import Counters

        if self.shards is not None:
            read, here = self.shards.counted()
            return Counters(local=here, peer=read - here)
        return Counters() if self.tiers is None else self.tiers.counters()

    def prefetch(self, ids: Tensor, **inputs: Any) -> None:
        """Ask for the rows that the next forward call with these arguments will need.

        `ids` int64[B, T]; `inputs`: the mask, the cache and the positions, as the model takes them.
        A call that turns out to need other rows gets its own. To be called before that forward: it
        begins when all is done that the current stream has. Where all rows lie in HBM nothing is
        done. Raises RuntimeAttachError, TokenIdError.
        """
        if self.tiers is None or not self.active:
            return
        call = read_call(0, ("input_ids",), (ids,), inputs)
        with torch.no_grad():
            step = self._begin(merge_calls([call]))
            assert isinstance(step, Step)  # rows in tiers
            self.tiers.prefetch(step.row_numbers)

    def replace_rows(self, rows: dict[int, AnyRows]) -> None:
        """Put other rows into all layers; those in tiers are let go of."""
        for layer, own in rows.items():
            cast(MemoryModule, self.layers[str(layer)]).multi_head_embedding.embedding = own
        earlier = self.tiers, self.shards
        self.tiers, self.shards = self._find_placed()
        _close(*earlier)

    def close(self) -> None:
        """Let go of rows in tiers, of their memory and threads, for good."""
        _close(self.tiers, self.shards)

    @property
    def in_force(self) -> Memory:
        """This memory; of a wrapper that passes attributes on, the one it uses now."""
        return self

    def extra_repr(self) -> str:
        """What is printed of it."""
        layers = ", ".join(self.spec.label(layer) for layer in self.spec.layers)
        return f"decoder layers {layers}; rows of {self.spec.dim} x {self.spec.dtype}"

    def hash_tensors(self) -> HashTensors:
        """Return the hash on the device where the model is now."""
        place = self.hash_lookup.device
        if place != self.hashed.lookup.device and place.type != "meta":  # offloaded: as they were
            moved = {name: getattr(self, f"hash_{name}") for name in _BUFFERS}
            kept = {n: getattr(self.hashed, n) for n in _CONSTANTS}
            self.hashed = HashTensors(**kept, **moved)
        return self.hashed

    def enter(self, call: Call, is_owner: bool) -> None:
        """Note the call of a module on the way to the layers; at the owner the look-up begins."""
        calls = self._local.calls
        while calls and calls[-1].depth >= call.depth:
            calls.pop()
        calls.append(call)
        if is_owner:
            self._local.step = None
            step = self._begin(merge_calls(calls))
            # A compiler sees one operator where a layer needs its rows.
            if self.tiers is not None and not torch.compiler.is_compiling():
                assert isinstance(step, Step)
                step.reads = self.tiers.start(step.row_numbers)
            self._local.step = step

    def leave(self, depth: int, names: Sequence[str], is_owner: bool, output: Any) -> None:
        """Note the end of a call; `output` is None when it failed, and nothing is remembered.

        `names`: those of the module's forward parameters.
        """
        calls = self._local.calls
        while calls and calls[-1].depth >= depth:
            calls.pop()
        if is_owner:
            step, self._local.step = self._local.step, None
            if isinstance(step, DecodeStep):
                if output is not None:
                    step.commit()
                    if not is_followed(step.cache):
                        keep_on(step.cache, self.key, step.state)
                return
            if step is not None and step.reads is not None:
                step.reads.drop()
            if step is not None and output is not None:
                self._remember(step, names, output)

    def add(self, layer: int, hidden: Tensor, given: Callable[[], Mapping[str, Any]]) -> Tensor:
        """Return the hidden states [B, T, d] of a layer with its memory added.

        `given` returns the layer's arguments by name.
        """
        step = self._local.step
        if step is None:
            return self._add_again(layer, hidden)
        if isinstance(step, DecodeStep):
            found = step.add(layer, hidden)
            if found is not None:
                return found
            step = self._local.step = step.as_step()
        self._check_shape(layer, hidden, step)
        if step.cache is None and not step.done:
            grad = torch.is_grad_enabled()
            step.cache = cache_at_layer(given(), self.key, step.tokens.shape, step.keep, grad=grad)
        history = step.state.conv_history(layer)
        rows_or_vectors = step.module_input(self.places[layer])
        self._replays.keep(layer, hidden, step, rows_or_vectors, history)
        summed, inputs = self._run(layer, hidden, rows_or_vectors, step, history)
        step.done.add(layer)
        if inputs is not None:
            step.conv[layer] = inputs
        return summed

    def _add_again(self, layer: int, hidden: Tensor) -> Tensor:
        """`add` where a checkpoint runs the layer again. Raises RuntimeAttachError elsewhere."""
        replay = self._replays.find(layer, hidden)
        step, rows_or_vectors = replay.step, replay.rows_or_vectors
        if rows_or_vectors.requires_grad and not replay.had_graph:
            # Each layer's backward frees the graph it goes through: none is shared by layers.
            window = torch.cat((step.older, step.tokens), dim=1)
            every_layer = hash_rows(self.hash_tensors(), window, step.seen)
            rows_or_vectors = every_layer[self.places[layer]]
        return self._run(layer, hidden, rows_or_vectors, step, replay.history)[0]

    def _run(
        self, layer: int, hidden: Tensor, rows_or_vectors: Tensor, step: Step, history: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return `hidden` with a layer's memory added, and its convolution's last inputs."""
        tail = self.conv_receptive_fields.get(layer, 0) + KEEP
        keep, age = step.keep, step.age
        summed, inputs = self.layers[str(layer)](
            hidden, rows_or_vectors, keep, history, age, residual=True, tail=tail
        )
        return summed, inputs

    def _check_shape(self, layer: int, hidden: Tensor, step: Step) -> None:
        """Raise RuntimeAttachError unless streams have their own dimension, or are side by side."""
        width, streams = self.spec.hidden_size, self.spec.module.carried_streams
        tails = [(streams * width,), *([(streams, width)] if streams > 1 else [])]
        if hidden.shape not in [(*step.tokens.shape, *tail) for tail in tails]:
            raise RuntimeAttachError(
                f"layer {layer} got hidden states {tuple(hidden.shape)}, "
                f"not {(*step.tokens.shape, *tails[-1])}",
                "attach a bundle that was made for this model",
            )

    def _begin(self, call: Call) -> Step | DecodeStep:
        """Look up the rows of a call's token ids. Raises RuntimeAttachError, TokenIdError."""
        hashed = self.hash_tensors()
        assert call.ids is not None
        ids = call.ids.to(hashed.lookup.device)
        cache = cache_of(call, self.key)
        older = max(1, hashed.max_order - 1)
        state, past = past_of(cache, self.key, ids.shape[0], older, self.conv_receptive_fields)
        check_end(state)
        keep = real_positions(call.mask, past, ids.shape[1])
        if isinstance(past, int) and past == 0:
            check_start(call, keep)
        elif keep is None and call.rows is None and type(state) is DecodeState:
            step = self._decode_step(hashed, ids, state, cache, call)
            if step is not None:
                return step
        dead = None if keep is None else ~keep.to(ids.device)
        age = document_ages(call, past, ids).to(ids.device) if self.spec.packed else None
        recent, vectors = state.recent_tokens(), None
        if ops.has_kernels(ids.device):
            found, vectors = look_up_call(
                hashed,
                ids,
                recent,
                dead,
                age,
                modules=[cast(MemoryModule, module) for module in self.layers.values()],
                shards=self.shards,
                has_holes=self.has_holes,
                is_given=call.rows is not None,
            )
        else:
            found = ops.hash_call(hashed, ids, recent, dead, age)
        rows = found.rows
        if call.rows is not None:
            rows = given_rows(call.rows, hashed, ids, past)
        sharded = sharded_rows(self.layers)
        if rows is not None and len(sharded) == len(self.layers):
            vectors = look_up(list(sharded.values()), rows)
        return Step(
            tokens=found.tokens,
            older=found.older,
            seen=found.seen,
            rows=rows,
            vectors=vectors,
            keep=keep,
            age=age,
            state=state,
            cache=cache,
            containers=call.containers,
            trains=torch.is_grad_enabled(),
        )

    def _decode_step(
        self, hashed: HashTensors, ids: Tensor, state: DecodeState, cache: Any, call: Call
    ) -> DecodeStep | None:
        """Return the step of a call without padding, None where no loop computes it."""
        if not ops.takes_decode_step(ids) or self.is_placed or self.spec.packed:
            return None
        if cache is not carrier(cache):
            return None
        plan = self._plan
        if plan is None or not plan.holds(hashed):
            plan = self._plan = DecodePlan(hashed, self.layers)
        return DecodeStep(plan, state, cache, call.containers, ids) if plan.fits else None

    def _remember(self, step: Step, names: Sequence[str], output: Any) -> None:
        """Leave the state on the cache, or on the tensors that the model will be given again."""
        if step.cache is None:
            step.cache = next(iter(caches_in(values_of(output))), None)
        ended = ends_in_padding(step.keep, step.state)
        if step.cache is not None and carrier(step.cache) is step.cache:
            step.state.extend(step.tokens, step.seen, step.conv)
            step.state.ends_in_padding = ended
            keep_on(step.cache, self.key, step.state)
            return
        assert isinstance(step.state, DecodeState)  # others lie on cache objects only
        again = handed_back(output, step.containers)
        if again and step.cache is None:
            raise unseen_state(list(step.containers))
        for value in [*again, *handed_out(output, names)]:
            state = step.state.fork()
            state.extend(step.tokens, step.seen, step.conv)
            state.ends_in_padding = ended  # of the copy: the tensors before it stay valid
            keep_on(value, self.key, state)
