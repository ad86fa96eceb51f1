"""Rows on the host in one copy for all processes: equal rows, once in memory, and by default."""

from __future__ import annotations

import gc
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from runtime.tiers import sharing
from runtime.tiers.cases import random_bundle, records_of
from tiny_models import llama, logits, make_bundle, make_layout, make_spec, text, wake

from engram_cli import shared_copy
from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.formats.bundle_spec import ROWS
from engram_cli.runtime import attach, detach
from engram_cli.runtime.tiers import placement as placing
from engram_cli.runtime.tiers.free_memory import HOST_MEMORY
from engram_cli.runtime.tiers.host import HostRows
from engram_cli.runtime.tiers.placement import resolve_for
from engram_cli.runtime.tiers.shared_rows import LOCAL_PROCESSES, contents, in_file
from engram_cli.vocab.compress import CompressedVocab

CPU = torch.device("cpu")


def folder_of(base: Path) -> Path:
    """The folder of this user's copies."""
    return base / f"engram-{os.geteuid()}"


def test_processes_have_equal_rows_from_one_copy(
    tmp_path: Path, shared_base: Path, small_vocab: CompressedVocab
) -> None:
    """Two processes at the same time, then a third one."""
    bundle = random_bundle(tmp_path / "bundle", small_vocab, "fp8_e8m0", shard_rows=100)
    layer = bundle.spec.layers[0]
    spawn = multiprocessing.get_context("spawn")
    meetings, answers = [spawn.Barrier(2), spawn.Barrier(1)], spawn.Queue()
    leave, found = spawn.Event(), []
    processes = [
        spawn.Process(
            target=sharing.use_rows, args=(str(bundle.folder), layer, meeting, answers, leave)
        )
        for meeting in (meetings[0], meetings[0], meetings[1])
    ]
    for process in processes[:2]:
        process.start()
    found = [answers.get(timeout=60) for _ in range(2)]
    processes[2].start()
    found.append(answers.get(timeout=60))
    leave.set()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    records = records_of(bundle, layer, torch.arange(bundle.spec.rows(layer)))
    expected = sharing.digest_of(bundle, records)
    assert {digest for digest, _ in found} == {expected}
    assert len({inode for _, inode in found}) == 1
    assert not folder_of(shared_base).exists()


def test_a_second_memory_of_a_process_shares_the_copy(
    tmp_path: Path, shared_base: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = random_bundle(tmp_path / "bundle", small_vocab, "int8")
    one = HostRows.of_bundle(bundle, 1, pinned=False, shared=True)
    monkeypatch.setattr("engram_cli.runtime.tiers.host._fill", None)
    two = HostRows.of_bundle(bundle, 1, pinned=False, shared=True)
    assert torch.equal(one.records, two.records)
    names = os.listdir(folder_of(shared_base))
    assert names == [contents(bundle, 1).name]
    one.close()
    assert os.listdir(folder_of(shared_base)) == names
    del two  # without close
    gc.collect()
    assert not folder_of(shared_base).exists()


@pytest.mark.parametrize("placement", ["host,shared", "hbm=20KB,shared"])
def test_a_model_computes_the_same(
    placement: str, tmp_path: Path, shared_base: Path, small_vocab: CompressedVocab
) -> None:
    spec = make_spec(make_layout(small_vocab), "float32", dim=33)
    ones = lambda layer: [(0, torch.ones(spec.rows(layer)).numpy().astype("<u4"))]  # noqa: E731
    bundle = make_bundle(tmp_path / "bundle", spec, hits=ones)
    ids, found = text(small_vocab.vocab_size, 2, 9), []
    for place in ("hbm", placement):
        model = llama(small_vocab.vocab_size)
        memory = attach(model, bundle, placement=place)
        wake(memory)
        found.append(logits(model, ids))
        if place != "hbm":
            assert memory.placement is not None
            assert memory.placement.shared
            assert memory.placement.lines()[-1].endswith(", one copy for all processes")
            assert len(os.listdir(folder_of(shared_base))) == len(spec.layers)
        detach(model)
    assert torch.equal(*found)
    assert not folder_of(shared_base).exists()


def test_records_in_a_file_are_mapped_and_not_copied(
    tmp_path: Path, shared_base: Path, small_vocab: CompressedVocab
) -> None:
    bundle = random_bundle(tmp_path / "bundle", small_vocab, "bfloat16", dim=32)
    rows = HostRows.of_bundle(bundle, 1, pinned=False, shared=True)
    assert torch.equal(rows.records, records_of(bundle, 1, torch.arange(rows.rows)))
    assert not folder_of(shared_base).exists()
    rows.records[0] += 1  # reaches no file
    again = HostRows.of_bundle(bundle, 1, pinned=False, shared=True)
    assert torch.equal(again.records, records_of(bundle, 1, torch.arange(rows.rows)))


@pytest.mark.parametrize(
    ("dtype", "dim", "shard_rows"),
    [("bfloat16", 33, 10**6), ("bfloat16", 32, 100), ("fp8_e8m0", 32, 10**6)],
)
def test_records_in_no_file(
    dtype: str, dim: int, shard_rows: int, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    """Padded rows, rows in several files, rows with scales in another file."""
    bundle = random_bundle(tmp_path / "b", small_vocab, dtype, dim=dim, shard_rows=shard_rows)
    assert in_file(bundle, 1) is None


def test_another_source_is_another_copy(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    bundle = random_bundle(tmp_path / "bundle", small_vocab, "fp8_e8m0")
    first = contents(bundle, 1)
    assert contents(read_bundle(bundle.folder), 1).name == first.name
    assert contents(bundle, 2).name != first.name
    file = bundle.spans(1, ROWS)[0].file
    raw = file.read_bytes()
    file.write_bytes(raw)  # with a later time
    assert contents(bundle, 1).name != first.name
    file.unlink()
    with pytest.raises(ArtifactError, match="cannot read"):
        contents(bundle, 1)


@pytest.fixture
def small_bundle(tmp_path: Path, small_vocab: CompressedVocab) -> Bundle:
    """A bundle whose rows and scales are in different files."""
    return random_bundle(tmp_path / "bundle", small_vocab, "fp8_e8m0")


def placed(bundle: Bundle, placement: str) -> placing.Placement:
    """The placement on a CPU."""
    return resolve_for(bundle, placement, dict.fromkeys(bundle.spec.layers, CPU))


@pytest.mark.parametrize(
    ("processes", "placement", "shared"),
    [
        (None, "host", False),
        ("1", "host", False),
        ("2", "host", True),
        ("8", "host=1GB", True),
        ("2", "host,private", False),
        (None, "host,shared", True),
        ("lots", "host", False),
        ("2", "disk", False),
        ("2", "hbm", False),
        ("2", "host=2MB", False),
    ],
)
def test_shared_where_torchrun_starts_several(
    processes: str | None,
    placement: str,
    shared: bool,
    small_bundle: Bundle,
    shared_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if processes is None:
        monkeypatch.delenv(LOCAL_PROCESSES, raising=False)
    else:
        monkeypatch.setenv(LOCAL_PROCESSES, processes)
    if placement == "host=2MB":
        monkeypatch.setattr(placing, "_record_bytes", lambda spec: 10**9)
        placement = "host=100MB"  # which does not hold the rows: they stay on disk
    assert placed(small_bundle, placement).shared is shared


def test_a_copy_that_is_there_needs_no_more_memory(
    small_bundle: Bundle, shared_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOST_MEMORY, "1000")
    with pytest.raises(InputError, match="of host memory, 1,000 are free"):
        placed(small_bundle, "host,shared")
    layers = small_bundle.spec.layers
    held = [HostRows.of_bundle(small_bundle, i, pinned=False, shared=True) for i in layers]
    assert placed(small_bundle, "host,shared").shared
    with pytest.raises(InputError, match="of host memory, 1,000 are free"):
        placed(small_bundle, "host")
    for rows in held:
        rows.close()


def test_shared_memory_that_is_too_small(
    small_bundle: Bundle, shared_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_copy, "free_bytes", lambda place: 4096)
    with pytest.raises(InputError) as caught:
        placed(small_bundle, "host,shared")
    assert f"of {shared_base}, 4,096 are free" in caught.value.message
    assert "host,private" in caught.value.hint
    assert not folder_of(shared_base).exists()
    assert not placed(small_bundle, "host,private").shared
