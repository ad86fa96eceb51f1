"""Saves what a row-wise optimiser knows of each row, for any number of processes to load.

A folder has one safetensors file with whole tensors, by the row's number in the table, and a
description with numbers such as the count of steps. So a run continues on fewer or more processes,
or on one that has all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engram_cli.errors import ArtifactError, EngramError, MismatchError, RuntimeAttachError
from engram_cli.files import canonical_json, local_path, read_json
from engram_cli.outputs import Kind, Listing, new_folder
from engram_cli.rows import safetensors as tensors
from engram_cli.rows.safetensors import Array, TensorPlace, TensorSpec
from engram_cli.runtime import loading
from engram_cli.runtime.modules.base import Rows
from engram_cli.runtime.sharding.trained.gathering import Blocks, Part, write_together
from engram_cli.runtime.sharding.trained.placing import owned
from engram_cli.runtime.sharding.trained.rows import ShardedRows
from engram_cli.runtime.training import row_modules

FORMAT, DESCRIPTION, FILE = "engram-row-states-1", "engram-row-states.json", "states.safetensors"
_WHAT = "the optimiser state of rows"
_BLOCK_ROWS = 2**16


def _listing(path: Path) -> Listing | None:
    try:
        is_own = read_json(path / DESCRIPTION, _WHAT).get("format") == FORMAT
    except EngramError:
        return None
    return Listing(frozenset((DESCRIPTION, FILE))) if is_own else None


ROW_STATES = Kind(name="optimiser state of rows", listing=_listing)


def save_row_states(
    optimiser: torch.optim.Optimizer, model: nn.Module, folder: str | Path, *, force: bool = False
) -> Path:
    """Write the state of the rows that `optimiser` trains, whole or not at all; `force` replaces.

    Every process must call it where rows are distributed over processes; the first one writes, a
    block of rows at a time. Raises RuntimeAttachError for an optimiser of no rows or whose state is
    not float32, OutputError.
    """
    path, modules = local_path(folder), _trained(optimiser, model)
    states = {
        f"{name}/{what}": (module, value)
        for name, module in modules.items()
        for what, value in sorted(optimiser.state[module.weight].items())
    }
    per_row = {key: pair for key, pair in states.items() if _is_per_row(key, *pair)}
    numbers = {key: float(value) for key, (_, value) in states.items() if key not in per_row}
    document = {
        "format": FORMAT,
        "optimiser": type(optimiser).__name__,
        "rows": {name: module.num_embeddings for name, module in modules.items()},
        "numbers": numbers,
    }
    specs = [
        TensorSpec(name=key, dtype="float32", shape=(module.num_embeddings, *value.shape[1:]))
        for key, (module, value) in per_row.items()
    ]
    shared = [key for key, (module, _) in per_row.items() if isinstance(module, ShardedRows)]

    def write(gathered: Callable[[int], Blocks] | None = None) -> None:
        def pieces() -> Iterator[Array]:
            for key, (_, value) in per_row.items():
                if gathered is not None and key in shared:
                    yield from (block.numpy() for _, block in gathered(shared.index(key)))
                else:
                    yield from (block.cpu().numpy() for block in value.split(_BLOCK_ROWS))

        with new_folder(path, ROW_STATES, force=force) as part:
            record = tensors.write_tensors(part / FILE, specs, pieces())
            (part / DESCRIPTION).write_bytes(
                canonical_json({**document, "size": record.size, "digest": record.digest})
            )

    if shared:
        parts = [Part(per_row[key][1], per_row[key][0].num_embeddings) for key in shared]
        write_together(parts, write)
    elif not dist.is_initialized() or dist.get_rank() == 0:
        write()
    return path


def load_row_states(optimiser: torch.optim.Optimizer, model: nn.Module, folder: str | Path) -> None:
    """Give `optimiser` the state that `save_row_states` wrote, each process that of its rows.

    Any number of processes may have written it. Raises MismatchError for the state of other rows or
    of another optimiser, InputError and ArtifactError for a folder that cannot be read.
    """
    path, modules = local_path(folder), _trained(optimiser, model)
    said = read_json(path / DESCRIPTION, _WHAT)
    if said.get("format") != FORMAT:
        raise ArtifactError(f"{path / DESCRIPTION} is of another version", "save it again")
    mine = {name: module.num_embeddings for name, module in modules.items()}
    for what, own in (("optimiser", type(optimiser).__name__), ("rows", mine)):
        if said.get(what) != own:
            raise MismatchError(
                f"{path} has the state of {what} {said.get(what)}, not {own}",
                "load it with the optimiser and the memories that it was saved from",
            )
    try:
        with (path / FILE).open("rb") as file:
            places = tensors.open_tensors(file, str(path / FILE))
    except OSError as error:
        raise ArtifactError(f"cannot read {path / FILE}: {error.strerror}", "save it") from None
    for key, place in places.items():
        module, what = _owner(modules, key, path)
        optimiser.state[module.weight][what] = _rows_of(module, path, place)
    for key, number in _numbers(said, path).items():
        module, what = _owner(modules, key, path)
        optimiser.state[module.weight][what] = torch.tensor(
            number, dtype=torch.float32, device=module.weight.device
        )


def keep_own_states(optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
    """Cut state of all rows, which one process saved by torch's means, down to this process's."""
    for module in _trained(optimiser, model).values():
        state = optimiser.state[module.weight]
        for what, value in state.items():
            is_whole = isinstance(value, Tensor) and value.shape[:1] == (module.num_embeddings,)
            if is_whole and isinstance(module, ShardedRows):
                own = owned([value], dist.get_rank(), dist.get_world_size())[0]
                state[what] = own.clone()


def _trained(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Rows]:
    """Return the tables that an optimiser trains, by name. Raises RuntimeAttachError for none."""
    own = {id(p) for group in optimiser.param_groups for p in group["params"]}
    found = {name: rows for name, rows in row_modules(model).items() if id(rows.weight) in own}
    if not found:
        raise RuntimeAttachError(
            f"{type(optimiser).__name__} trains none of the model's rows",
            "give the optimiser that got row_parameters(model)",
        )
    return found


def _is_per_row(key: str, module: Rows, value: Any) -> bool:
    """Return whether a state has a line for each row. Raises RuntimeAttachError for odd ones."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return False
    if value.dtype != torch.float32 or len(value) != len(module.weight):
        raise RuntimeAttachError(
            f"the state {key} is {value.dtype} {tuple(value.shape)}",
            "use RowwiseAdam or RowwiseAdagrad, whose state is float32",
        )
    return True


def _owner(modules: Mapping[str, Rows], key: str, path: Path) -> tuple[Rows, str]:
    name, _, what = key.partition("/")
    if name not in modules or not what:
        raise ArtifactError(f"{path} has a state {key[:200]!r} of no rows", "save it again")
    return modules[name], what


def _rows_of(module: Rows, path: Path, place: TensorPlace) -> Tensor:
    """Return float32 [owned, ...]: the lines of a tensor that this process owns."""
    spec, weight = place.spec, module.weight
    tails = ((module.num_embeddings,), (module.num_embeddings, *weight.shape[1:]))
    if spec.dtype != "float32" or spec.shape not in tails:
        raise ArtifactError(
            f"{path / FILE}: {spec.name[:200]} is {spec.dtype} {spec.shape}", "save it again"
        )
    whole = [torch.from_numpy(tensors.map_tensor(path / FILE, place))]
    if isinstance(module, ShardedRows):
        whole = owned(whole, dist.get_rank(), dist.get_world_size())
    shape = (len(weight), *spec.shape[1:])
    found = torch.empty(shape, dtype=torch.float32, device=weight.device)
    loading.fill(found, whole)
    return found


def _numbers(said: Mapping[str, Any], path: Path) -> dict[str, float]:
    numbers = said.get("numbers")
    if not isinstance(numbers, dict) or not all(
        type(number) in (int, float) and math.isfinite(number) for number in numbers.values()
    ):
        raise ArtifactError(f"{path / DESCRIPTION} has no numbers", "save it again")
    return numbers
