"""What may be asked of rows over several GPUs, and what comes of it, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import make_layout, make_spec

from engram_cli.errors import InputError
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.sharding.blocks import BlockLayout, block_bytes, keeps_scales_here
from engram_cli.runtime.sharding.group import ShardGroup, split_by_host
from engram_cli.runtime.tiers.free_memory import Free
from engram_cli.runtime.tiers.hot_set import hot_set_bytes
from engram_cli.runtime.tiers.placement import Placement, Staging, Wanted, resolve
from engram_cli.runtime.tiers.wanted import parse_placement
from engram_cli.vocab.compress import CompressedVocab

PLENTY = Free(hbm=10**12, host=10**12)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("shard", Wanted(cold="none", shard=0)),
        (" Shard = 2 ", Wanted(cold="none", shard=2)),
        ("shard,replicate=2GB", Wanted(cold="none", shard=0, replicate=2 * 10**9)),
        ("hbm=60GB,shard=8", Wanted(hbm=60 * 10**9, cold="host", shard=8)),
        (
            "hbm=60GB,shard=2,host=64GB",
            Wanted(hbm=60 * 10**9, host=64 * 10**9, shard=2),
        ),
        ("hbm=1k,shard,disk", Wanted(hbm=1000, cold="disk", shard=0)),
        ("hbm=1k,shard,host,shared", Wanted(hbm=1000, cold="host", shard=0, shared=True)),
    ],
)
def test_what_may_be_asked(text: str, wanted: Wanted) -> None:
    assert parse_placement(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shard=1", "'1' is not a number of GPUs from 2 to 1024"),
        ("shard=2GB", "'2GB' is not a number of GPUs"),
        ("shard=9999", "'9999' is not a number of GPUs"),
        ("shard,shard", "'shard' twice"),
        ("replicate=2GB", "replicate takes a size, and goes with shard"),
        ("shard,replicate", "replicate takes a size"),
        ("hbm,shard", "hbm without a size takes all rows"),
        ("shard,host=64GB", "shard without hbm=SIZE takes all rows"),
        ("shard,disk", "shard without hbm=SIZE takes all rows"),
    ],
)
def test_what_may_not_be_asked(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_placement(text)
    assert message in caught.value.message
    assert "shard=2" in caught.value.hint


@pytest.fixture
def spec(small_vocab: CompressedVocab) -> BundleSpec:
    """Two layers of some hundred rows of 264 bytes."""
    return make_spec(make_layout(small_vocab), "fp8_e8m0", dim=256)


def place(spec: BundleSpec, text: str, world: int = 2, **options: object) -> Placement:
    hits = {layer: np.arange(spec.rows(layer), dtype=np.uint32) % 1000 for layer in spec.layers}
    group = ShardGroup(world=world, devices=(CPU,) * world)
    staging = Staging(hbm=500, host=300)
    free = options.pop("free", PLENTY)
    return resolve(spec, hits, parse_placement(text), free, staging=staging, group=group)  # type: ignore[arg-type]


def test_all_rows_on_several_gpus(spec: BundleSpec) -> None:
    every = [spec.rows(layer) for layer in spec.layers]
    scales = 8 * sum(every)
    assert keeps_scales_here(spec, 2)
    assert keeps_scales_here(spec, 4)
    assert not keeps_scales_here(spec, 8)
    half = place(spec, "shard=2")
    most = sum(-(-rows // 2) for rows in every)
    assert half.hbm_bytes == block_bytes(spec, 2) == most * 256 + scales
    assert half.cold == "none"
    assert half.copied is None
    blocks = BlockLayout(spec, tuple(every), 8, scales_here=False)
    most = sum(-(-rows // 8) for rows in every)
    assert blocks.begin(1) == -(-most * 256 // 256) * 256
    assert place(spec, "shard=8", 8).hbm_bytes == blocks.begin(1) + most * 8
    assert half.hbm_bytes < 0.55 * spec.table_bytes


def test_copies_of_the_hottest(spec: BundleSpec) -> None:
    index = sum(hot_set_bytes(spec.rows(layer)) for layer in spec.layers)
    found = place(spec, f"shard=2,replicate={index + 50 * 256 + 255}")
    assert found.copied is not None
    assert sum(map(len, found.copied.values())) == 50
    assert found.hbm_bytes == block_bytes(spec, 2) + index + 50 * 256
    assert found.caught is not None
    assert 0 < found.caught < 1


def test_a_budget_for_each_gpu(spec: BundleSpec) -> None:
    index = sum(hot_set_bytes(spec.rows(layer)) for layer in spec.layers)
    found = place(spec, f"hbm={index + 500 + 20 * 264 + 100},shard=3,host", 3)
    assert found.cold == "host"
    assert sum(len(own.hot_rows) for own in found.layers.values()) == 60
    assert found.hbm_bytes == index + 500 + 20 * 264
    assert found.copied is not None
    enough = place(spec, f"hbm={block_bytes(spec, 3)},shard=3,host", 3)
    assert enough.cold == "none"
    assert enough.hbm_bytes == block_bytes(spec, 3)


def test_what_does_not_fit_one_of_them(spec: BundleSpec) -> None:
    size = block_bytes(spec, 2)
    with pytest.raises(InputError, match=f"need {size:,} bytes of HBM, {size - 1:,} are free"):
        place(spec, "shard=2", free=Free(hbm=size - 1, host=0))
    assert place(spec, "shard=2", free=Free(hbm=size, host=0)).hbm_bytes == size


def test_groups_are_of_one_host() -> None:
    hosts = ["a", "b", "a", "b", "a", "b", "a", "b"]
    assert split_by_host(hosts, None) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert split_by_host(hosts, 2) == [[0, 2], [4, 6], [1, 3], [5, 7]]
    for asked, many in ((3, "4 processes"), (8, "4 processes")):
        with pytest.raises(InputError, match=f"shard={asked}: a host has {many}"):
            split_by_host(hosts, asked)
    with pytest.raises(InputError, match="a host has 1 process"):
        split_by_host(["a", "b"], None)
