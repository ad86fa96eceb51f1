"""What may be asked of tiers, and what comes of it, byte for byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_models import make_layout, make_spec

from engram_cli.errors import InputError
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.tiers.disk import SCRATCH_BYTES
from engram_cli.runtime.tiers.free_memory import Free
from engram_cli.runtime.tiers.hot_set import hot_set_bytes
from engram_cli.runtime.tiers.placement import (
    DEFAULT_CACHE_BYTES,
    LEAST_CACHE_BYTES,
    Placement,
    Staging,
    Wanted,
    _share,
    parse_placement,
    resolve,
)
from engram_cli.runtime.tiers.row_cache import slot_bytes
from engram_cli.vocab.compress import CompressedVocab

PLENTY = Free(hbm=10**12, host=10**12)


def test_a_small_share_is_not_shown_as_nothing() -> None:
    assert [_share(value) for value in (0.0, 1e-9, 0.0004, 0.0005, 0.25)] == [
        "0.0%",
        "less than 0.1%",
        "less than 0.1%",
        "0.1%",
        "25.0%",
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hbm", Wanted(cold="none")),
        (" HBM ", Wanted(cold="none")),
        ("host", Wanted(cold="host")),
        ("disk", Wanted(cold="disk")),
        ("hbm=20GB", Wanted(hbm=20 * 10**9, cold="host")),
        ("hbm=20GB,host", Wanted(hbm=20 * 10**9, cold="host")),
        ("host=64GiB", Wanted(host=2**36)),
        ("hbm=20GB, host = 64GB", Wanted(hbm=20 * 10**9, host=64 * 10**9)),
        ("host=64GB,hbm=1.5G", Wanted(hbm=1_500_000_000, host=64 * 10**9)),
        ("disk,hbm=20GB", Wanted(hbm=20 * 10**9, cold="disk")),
        ("host=1M,disk", Wanted(host=10**6, cold="disk")),
        ("hbm=1k,host=1M,disk", Wanted(hbm=1000, host=10**6, cold="disk")),
        ("host,shared", Wanted(cold="host", shared=True)),
        ("hbm=20GB, Shared", Wanted(hbm=20 * 10**9, cold="host", shared=True)),
        ("private,host=64GB", Wanted(host=64 * 10**9, shared=False)),
    ],
)
def test_what_may_be_asked(text: str, wanted: Wanted) -> None:
    assert parse_placement(text) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no tier ''"),
        ("gpu", "no tier 'gpu'"),
        ("hbm,", "no tier ''"),
        ("hbm=1GB,hbm=2GB", "'hbm' twice"),
        ("hbm=", "'' is not a number"),
        ("hbm=lots", "'lots' is not a number"),
        ("hbm=-1", "'-1' is not a number"),
        ("hbm=1.5", "not a whole number"),
        ("hbm=20GB;host=64GB", "'20GB;host=64GB' is not a number"),
        ("disk=1TB", "the disk takes no size"),
        ("hbm,host", "hbm without a size takes all rows"),
        ("hbm,disk", "hbm without a size takes all rows"),
        ("host,disk", "host without a size takes all rows"),
        ("shared", "shared and private are about rows on the host"),
        ("hbm,shared", "shared and private are about rows on the host"),
        ("disk,private", "shared and private are about rows on the host"),
        ("host,shared,private", "no tier 'private'"),
        ("host,shared=2", "no tier 'shared'"),
    ],
)
def test_what_may_not_be_asked(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_placement(text)
    assert caught.value.message.startswith(f"placement '{text}': ")
    assert message in caught.value.message
    assert "hbm=20GB,host=64GB" in caught.value.hint


@pytest.fixture
def spec(small_vocab: CompressedVocab) -> BundleSpec:
    """Two layers of some hundred rows of 264 bytes."""
    return make_spec(make_layout(small_vocab), "fp8_e8m0", dim=256)


def hits_of(spec: BundleSpec) -> dict[int, Any]:
    """Layer 1 has hits 0, 1, 2, ...; every tenth row of layer 2 a thousand and its number."""
    first, second = (np.arange(spec.rows(layer), dtype=np.uint32) for layer in (1, 2))
    return {1: first, 2: np.where(second % 10 == 0, 1000 + second, 0).astype(np.uint32)}


def index_of(spec: BundleSpec) -> int:
    return sum(hot_set_bytes(spec.rows(layer)) for layer in spec.layers)


def records_of(spec: BundleSpec) -> int:
    return sum(spec.rows(layer) for layer in spec.layers) * 264


def place(spec: BundleSpec, text: str, *, hits: Any = None, **options: Any) -> Placement:
    return resolve(spec, hits, parse_placement(text), options.pop("free", PLENTY), **options)


def test_everything_in_one_tier(spec: BundleSpec) -> None:
    staging = Staging(hbm=1000, host=300)
    hbm, host, disk = (place(spec, text, staging=staging) for text in ("hbm", "host", "disk"))
    every = sum(spec.rows(layer) for layer in spec.layers)
    assert [one.cold for one in (hbm, host, disk)] == ["none", "host", "disk"]
    assert (hbm.hbm_bytes, hbm.host_bytes, hbm.disk_bytes) == (spec.table_bytes, 0, 0)
    assert (host.hbm_bytes, host.host_bytes) == (1000, 300 + records_of(spec))
    # The cache is never larger than all rows need.
    whole = every * slot_bytes(264)
    assert (disk.hbm_bytes, disk.host_bytes) == (1000, 300 + SCRATCH_BYTES + whole)
    assert disk.disk_bytes == spec.table_bytes
    assert sum(own.cache_bytes for own in disk.layers.values()) == whole
    for placement in (hbm, host, disk):
        assert list(placement.layers) == list(spec.layers)
        assert not any(len(own.hot_rows) for own in placement.layers.values())
        assert all(f"all {every:,} rows" in placement.lines()[-1] for _ in placement.lines())


def test_hot_rows_of_all_layers_are_chosen_together(spec: BundleSpec) -> None:
    staging, hits = Staging(hbm=5000), hits_of(spec)
    budget = index_of(spec) + 5000 + 60 * 264 + 263
    placement = place(spec, f"hbm={budget}", hits=hits, staging=staging)
    tens = -(-spec.rows(2) // 10)
    hot = {layer: own.hot_rows.tolist() for layer, own in placement.layers.items()}
    assert hot[2] == list(range(0, spec.rows(2), 10))
    assert hot[1] == list(range(spec.rows(1) - (60 - tens), spec.rows(1)))
    assert placement.hbm_bytes == budget - 263
    assert placement.host_bytes == records_of(spec)
    caught = sum(int(hits[layer][hot[layer]].sum()) for layer in hot)
    assert placement.caught == caught / sum(int(own.sum()) for own in hits.values())
    first, second = placement.lines()
    assert "the 60 hottest of" in first
    assert f"{placement.caught:.1%} of the counted look-ups" in first
    assert f"{placement.hbm_bytes:,} bytes" in first
    assert second == f"host: all {spec.rows(1) + spec.rows(2):,} rows, {records_of(spec):,} bytes"


def test_a_budget_beyond_the_rows(spec: BundleSpec) -> None:
    whole = place(spec, f"hbm={spec.table_bytes}")
    assert (whole.cold, whole.hbm_bytes) == ("none", spec.table_bytes), "no hits are needed"
    nearly = place(spec, f"hbm={spec.table_bytes - 1}", hits=hits_of(spec))
    assert nearly.cold == "host"
    few = {layer: np.uint32(own == 7) for layer, own in hits_of(spec).items()}
    one = place(spec, f"hbm={spec.table_bytes - 1}", hits=few)
    assert [len(own.hot_rows) for own in one.layers.values()] == [1, 0], "none without a hit"
    assert (one.caught, one.hbm_bytes) == (1.0, index_of(spec) + 264)
    none = {layer: np.zeros_like(own) for layer, own in few.items()}
    empty = place(spec, "hbm=50k", hits=none)
    assert (empty.caught, sum(len(own.hot_rows) for own in empty.layers.values())) == (None, 0)


def test_a_budget_of_the_host_decides_between_host_and_disk(spec: BundleSpec) -> None:
    staging, whole = Staging(host=700), records_of(spec) + 700
    assert place(spec, f"host={whole}", staging=staging).cold == "host"
    assert place(spec, "host=1G,disk", staging=staging).cold == "disk"
    budget = 3 * LEAST_CACHE_BYTES + SCRATCH_BYTES + 700
    wide = make_spec(spec.layout, "float32", dim=2**15)
    disk = place(wide, f"host={budget}", staging=staging)
    assert disk.cold == "disk"
    caches = [own.cache_bytes for own in disk.layers.values()]
    assert budget - 2 <= disk.host_bytes == sum(caches) + SCRATCH_BYTES + 700 <= budget
    assert caches[0] / caches[1] == pytest.approx(wide.rows(1) / wide.rows(2), rel=1e-3)
    cache, rows = disk.lines()[-2:]
    assert f"{disk.host_bytes:,} bytes at most" in cache
    assert f"{wide.table_bytes:,} bytes in the bundle's files" in rows
    assert wide.table_bytes < DEFAULT_CACHE_BYTES


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("hbm=20k", "no hits to choose the hot ones by", "--stats"),
        ("hbm=20k,disk", "no hits to choose the hot ones by", "placement=host"),
        ("host=1M", "too few for the caches of 2 layers", "give "),
        ("host=0,disk", "too few for the caches", "give "),
    ],
)
def test_what_cannot_be_had(spec: BundleSpec, text: str, message: str, hint: str) -> None:
    wide = make_spec(spec.layout, "float32", dim=2**15)
    with pytest.raises(InputError, match=message) as caught:
        place(wide, text)
    assert hint in caught.value.hint


def test_the_least_that_is_named_is_enough(spec: BundleSpec) -> None:
    wide = make_spec(spec.layout, "float32", dim=2**15)
    with pytest.raises(InputError) as caught:
        place(wide, "host=1M", staging=Staging(host=77))
    least = int(caught.value.hint.split()[1].replace(",", ""))
    staging = Staging(host=77)
    assert place(wide, f"host={least}", staging=staging).host_bytes <= least
    with pytest.raises(InputError, match="too few"):
        place(wide, f"host={least - 10}", staging=staging)


def test_a_budget_that_holds_no_row(spec: BundleSpec) -> None:
    size = index_of(spec) + 263
    with pytest.raises(InputError, match=rf"{size:,} bytes of HBM holds no row: .* a row 264"):
        place(spec, f"hbm={size}", hits=hits_of(spec))


def test_the_least_hbm_that_is_named_is_enough(spec: BundleSpec) -> None:
    hits, staging = hits_of(spec), Staging(hbm=1234, host=99)
    least = index_of(spec) + 1234 + 264
    for text in ("hbm=50", "hbm=50,disk"):
        with pytest.raises(InputError) as caught:
            place(spec, text, hits=hits, staging=staging)
        assert caught.value.hint.startswith(f"give {least:,} or more")
    one = place(spec, f"hbm={least}", hits=hits, staging=staging)
    assert sum(len(own.hot_rows) for own in one.layers.values()) == 1
    with pytest.raises(InputError, match="holds no row"):
        place(spec, f"hbm={least - 1}", hits=hits, staging=staging)
    with pytest.raises(InputError) as caught:
        place(spec, "hbm=50", hits=hits, staging=Staging(hbm=10**9))
    assert caught.value.hint.startswith(f"give {spec.table_bytes:,} or more")
    assert place(spec, f"hbm={spec.table_bytes}", staging=Staging(hbm=10**9)).cold == "none"


def test_the_least_of_the_host_may_be_all_rows(spec: BundleSpec) -> None:
    staging, whole = Staging(host=700), records_of(spec) + 700
    for text, least in (
        ("host=20k", whole),
        ("host=20k,disk", 700 + SCRATCH_BYTES + LEAST_CACHE_BYTES),
    ):
        with pytest.raises(InputError, match="too few") as caught:
            place(spec, text, staging=staging)
        named = int(caught.value.hint.split()[1].replace(",", ""))
        assert named >= least
        assert (named == whole) == (text == "host=20k")
        assert place(spec, text.replace("20k", str(named)), staging=staging).host_bytes <= named


def test_without_a_gpu_rows_on_the_host_need_no_staging(spec: BundleSpec) -> None:
    staging = Staging(hbm=1000, host=300, gpu=False)
    host = place(spec, "host", staging=staging)
    assert (host.hbm_bytes, host.host_bytes) == (0, records_of(spec))
    assert len(host.lines()) == 1
    assert place(spec, f"host={records_of(spec)}", staging=staging).cold == "host"
    disk = place(spec, "disk", staging=staging)
    assert disk.lines()[0] == "hbm (plain memory, no GPU): no rows, 1,000 bytes of staging"
    budget = index_of(spec) + 10 * 264
    for cold, room in (("host", 0), ("disk", 1000)):
        text = f"hbm={budget + room},{cold}"
        hot = place(spec, text, hits=hits_of(spec), staging=staging)
        assert hot.hbm_bytes == budget + room
        assert "hbm (plain memory, no GPU): the 10 hottest of" in hot.lines()[0]
        assert ("and staging" in hot.lines()[0]) == (cold == "disk")
    assert "no GPU" in place(spec, "hbm", staging=staging).lines()[0]


@pytest.mark.parametrize("given", [5, b"host", None, ["host"]])
def test_a_placement_that_is_no_text(given: Any) -> None:
    with pytest.raises(InputError) as caught:
        parse_placement(given)
    assert repr(given) in caught.value.message
    assert "hbm=20GB,host=64GB" in caught.value.hint


def test_what_does_not_fit_is_refused_with_its_bytes(spec: BundleSpec) -> None:
    for text, tier, needed in (
        ("hbm", "HBM", spec.table_bytes),
        ("host", "host memory", records_of(spec)),
    ):
        for there in (0, needed - 1):
            with pytest.raises(InputError) as caught:
                place(spec, text, free=Free(hbm=there, host=there))
            assert f"{needed:,} bytes of {tier}, {there:,} are free" in caught.value.message
            assert f"{needed - there:,} too many" in caught.value.message
        place(spec, text, free=Free(hbm=needed, host=needed))
    with pytest.raises(InputError, match="of host memory"):
        place(spec, "disk", free=Free(hbm=0, host=1000))
    with pytest.raises(InputError, match="of HBM"):
        place(spec, "disk", free=Free(hbm=9, host=10**12), staging=Staging(hbm=10))
