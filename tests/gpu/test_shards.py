"""Rows over GPUs: the interpreter's checks on one GPU, and what only two can show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpu.interpreted import checks
from lookup_cases import FORMS, same_bits
from shard_cases import KINDS, distribute, whole

from engram_cli.runtime import lookup_reference, ops
from engram_cli.runtime.sharding.group import find_group

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

globals().update(checks("check_shards"))

SCRIPT = Path(__file__).with_name("two_gpus.py")
CUDA = torch.device("cuda", 0)


@TWO
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("reader", [0, 1])
def test_one_process_reads_two_gpus(dtype: str, reader: int) -> None:
    device = torch.device("cuda", reader)
    spec, hashed, tables = whole(dtype, device)
    group = find_group(2, [device])
    assert group.reads_peers, group.reason
    made = distribute(spec, tables, group, [device], dtype=torch.bfloat16, share=0.2)
    assert {block.device.index for block in made.memory.every} == {0, 1}
    ids, back = FORMS["dead"](device)
    found = ops.look_up_shards(hashed, ids, made, back)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, back, made.dtype))
    read, here = made.counted()
    assert 0 < here < read


@TWO
@pytest.mark.parametrize("dtype", ["fp8_e8m0", "int4"])
def test_gpus_that_cannot_read_each_other_copy(dtype: str) -> None:
    from dataclasses import replace

    spec, hashed, tables = whole(dtype, CUDA)
    group = replace(find_group(2, [CUDA]), reads_peers=False, reason="told so")
    made = distribute(spec, tables, group, [CUDA], dtype=torch.bfloat16)
    assert not made.memory.every
    ids, back = FORMS["dead"](CUDA)
    found = ops.look_up_shards(hashed, ids, made, back)
    assert same_bits(found, lookup_reference.look_up(hashed, ids, tables, back, made.dtype))


def _distributed() -> Any:
    from shard_cases import simulated

    spec, hashed, tables = whole("fp8_e8m0", CUDA)
    two = torch.cuda.device_count() > 1
    group = find_group(2, [CUDA]) if two else simulated(2, CUDA)
    return hashed, tables, distribute(spec, tables, group, [CUDA], dtype=torch.bfloat16)


def test_a_graph_replays_on_new_ids() -> None:
    hashed, tables, made = _distributed()
    held = torch.zeros(4, 9, dtype=torch.int64, device=CUDA)
    ops.look_up_shards(hashed, held, made)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = ops.look_up_shards(hashed, held, made)
    for _ in range(3):
        held.random_(0, 30)
        graph.replay()
        assert same_bits(out, lookup_reference.look_up(hashed, held, tables, dtype=made.dtype))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_compiled_it_is_one_operator() -> None:
    hashed, tables, made = _distributed()

    def twice(ids: torch.Tensor) -> torch.Tensor:
        return ops.look_up_shards(hashed, ids, made) * 2

    compiled = torch.compile(twice, fullgraph=True, mode="reduce-overhead")
    for seed in range(3):
        generator = torch.Generator(device=CUDA).manual_seed(seed)
        ids = torch.randint(0, 30, (2, 5), device=CUDA, generator=generator)
        expected = 2 * lookup_reference.look_up(hashed, ids, tables, dtype=made.dtype)
        assert torch.equal(compiled(ids), expected)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A bundle with hits, and the size of its vocabulary."""
    tiny_models = pytest.importorskip("tiny_models")
    from small_tokenizers import byte_level_tokenizer

    from engram_cli.vocab.compress import compress_vocab

    folder = tmp_path_factory.mktemp("bundle")
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    vocab = compress_vocab(folder / "tokenizer.json")
    spec = tiny_models.make_spec(tiny_models.make_layout(vocab), "bfloat16", dim=32)

    def hits(layer: int) -> list[tuple[int, Any]]:
        return [(0, np.random.default_rng(layer).integers(0, 9, spec.rows(layer)).astype("<u4"))]

    return tiny_models.make_bundle(folder / "bundle", spec, hits=hits), vocab.vocab_size


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers so small that the tiny bundle fills them."""
    path = tmp_path / "tuning.json"
    path.write_text('{"block_bytes": 4096, "ahead_bytes": 0, "ring_buffer_bytes": 4096}')
    monkeypatch.setenv("ENGRAM_TIERS_TUNING", str(path))
    monkeypatch.setenv("ENGRAM_HOST_MEMORY", "1GB")


@pytest.mark.usefixtures("tuning")
@pytest.mark.parametrize("gpus", [1, pytest.param(2, marks=TWO)])
@pytest.mark.parametrize("way", ["peer", "exchange"])
def test_two_processes(way: str, gpus: int, bundle: tuple[Path, int], tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    given = [way, str(gpus), str(tmp_path / "meet"), *map(str, bundle)]
    command = [sys.executable, str(SCRIPT), *given]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@TWO
@pytest.mark.usefixtures("tuning")
def test_a_model_over_two_gpus(bundle: tuple[Path, int]) -> None:
    from tiny_models import llama, wake

    from engram_cli.runtime import attach, detach

    path, vocab = bundle
    ids = torch.randint(3, vocab, (2, 30), generator=torch.Generator().manual_seed(0))
    found = []
    placements = ("hbm", "shard", "shard=2,replicate=20KB", "hbm=12KB,shard=2,host")
    for placement in placements:
        model = llama(vocab).to(CUDA)
        memory = attach(model, path, placement=placement)
        wake(memory)
        with torch.no_grad():
            found.append(model(input_ids=ids.to(CUDA)).logits)
            options = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2}
            found.append(model.generate(input_ids=ids.to(CUDA), **options))
        assert (memory.counters.peer > 0) == (placement != "hbm")
        assert (memory.counters.host > 0) == placement.endswith("host")
        print(*memory.notes, memory.counters, sep="\n")
        detach(model)
    for own in (found[2:4], found[4:6], found[6:8]):
        assert all(torch.equal(a, b) for a, b in zip(found[:2], own, strict=True))
