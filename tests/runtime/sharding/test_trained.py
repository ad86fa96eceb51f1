"""Rows that learn, distributed over 2 and 3 processes, train as one process does with all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_bundles import quantised_bundle
from runtime.sharding.trained_processes import (
    CASES,
    DTYPES,
    STEPS,
    WAYS,
    Run,
    check_exchange,
    run_processes,
)

from engram_cli.errors import ArtifactError, MismatchError, RuntimeAttachError
from engram_cli.formats.bundle import read_bundle
from engram_cli.runtime import (
    RowwiseAdagrad,
    attach,
    load_row_states,
    row_parameters,
    save_row_states,
)
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, bundle: Path, small_vocab: CompressedVocab
) -> dict[str, Any]:
    """What 2 and 3 processes found, by world, and where they saved."""
    out = tmp_path_factory.mktemp("trained") / "out"
    return run_processes(bundle, small_vocab.vocab_size, out, "cpu", (2, 3))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world", [2, 3])
def test_vectors_and_gradients_are_those_of_the_whole_table(
    world: int, case: str, dtype: torch.dtype, found: dict[str, Any]
) -> None:
    check_exchange(found["worlds"][world]["exchange"][case, dtype], case, dtype)


@pytest.mark.parametrize("way", WAYS)
def test_two_then_three_then_one_process_train_as_one_does(
    way: str, found: dict[str, Any], bundle: Path, small_vocab: CompressedVocab
) -> None:
    alone = Run(way, bundle, small_vocab.vocab_size, None)
    losses = alone.steps(0, 3 * STEPS)
    two, three = (found["worlds"][world]["losses"][way] for world in (2, 3))
    last = Run(way, bundle, small_vocab.vocab_size, None).resume(f"{found['out']}.3.{way}")
    one = last.steps(2 * STEPS, STEPS)
    assert [*two, *three, *one] == pytest.approx(losses, abs=1e-5)
    assert len({round(loss, 3) for loss in losses}) == len(losses)
    for mine, whole in zip(row_parameters(last.model), row_parameters(alone.model), strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_what_two_processes_save_three_load_and_save_again(way: str, found: dict[str, Any]) -> None:
    two, three = Path(f"{found['out']}.2.{way}"), Path(f"{found['out']}.again.{way}")
    names = sorted(str(path.relative_to(two)) for path in two.rglob("*") if path.is_file())
    assert "states/states.safetensors" in names
    for name in names:
        if name != "model.pt":
            assert (two / name).read_bytes() == (three / name).read_bytes(), name
    read_bundle(two / "engram", verify=True)


@pytest.mark.parametrize("world", [2, 3])
def test_refusals(world: int, found: dict[str, Any]) -> None:
    first, *others = found["worlds"][world]["refusals"]
    assert f"rows with process 0 of {world}" in first["notes"]
    assert "placement='hbm'" in first["hbm"]
    assert "sent the first process's rows to all" in first["ddp"]
    assert first["left out"] == "nothing"
    assert "is not in the optimiser's state dict" in first["state"]
    assert first["keys"] == ""
    assert "already exists" in first["exists"]
    assert "is no bundle" in first["foreign"]
    for other in others:
        for tried in ("exists", "foreign"):
            assert other[tried].startswith("OutputError: the first process could not write")
    foreign = Path(f"{found['out']}.foreign.{world}")
    assert [path.name for path in foreign.iterdir()] == ["note.txt"]


def test_without_a_group_or_with_quantised_rows(
    bare: Any, bundle: Path, small_vocab: CompressedVocab, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeAttachError, match="there is no group"):
        attach(bare, bundle, rows_trainable=True, placement="shard")
    quantised = quantised_bundle(tmp_path / "engram", small_vocab, "int8")
    with pytest.raises(RuntimeAttachError, match="int8, which has no gradient"):
        attach(bare, quantised, rows_trainable=True, placement="shard")


def test_states_of_other_rows_and_damaged_ones(
    small_vocab: CompressedVocab, bundle: Path, tmp_path: Path
) -> None:
    run = Run("adagrad", bundle, small_vocab.vocab_size, None)
    run.steps(0, 1)
    folder = save_row_states(run.of_rows, run.model, tmp_path / "states")
    other = Run("adam", bundle, small_vocab.vocab_size, None)
    with pytest.raises(MismatchError, match="RowwiseAdagrad, not RowwiseAdam"):
        load_row_states(other.of_rows, other.model, folder)
    some = RowwiseAdagrad(row_parameters(run.model)[:1], lr=0.1)
    with pytest.raises(MismatchError, match="state of rows"):
        load_row_states(some, run.model, folder)
    gates = torch.optim.SGD(run.model.lm_head.parameters(), lr=0.1)
    with pytest.raises(RuntimeAttachError, match="none of the model's rows"):
        save_row_states(gates, run.model, tmp_path / "none")
    file = folder / "states.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="its header describes"):
        load_row_states(run.of_rows, run.model, folder)
