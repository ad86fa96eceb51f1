"""Records as tables: what a look-up makes of them is what it makes of rows and scales apart."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_layout, make_spec
from torch import Tensor

from engram_cli.errors import InputError
from engram_cli.formats.bundle_spec import ROWS, SCALES, BundleSpec
from engram_cli.rows import DTYPES
from engram_cli.runtime.tables import dequantise
from engram_cli.runtime.tiers.records import record_layout, table_of
from engram_cli.vocab.compress import CompressedVocab

DIMS = (1, 31, 32, 33, 64, 256)


def random_records(spec: BundleSpec, count: int) -> Tensor:
    """Records of random bytes, padding too."""
    layout = record_layout(spec)
    generator = torch.Generator().manual_seed(spec.dim)
    shape = (count, layout.record_bytes)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def scale_of(spec: BundleSpec) -> Tensor | None:
    return torch.tensor([0.37]) if spec.row_type.of_layer else None


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_the_parts_of_a_record_lie_in_order_and_aligned(
    small_vocab: CompressedVocab, dtype: str, dim: int
) -> None:
    spec = make_spec(make_layout(small_vocab), dtype, dim=dim)
    layout, kind = record_layout(spec), DTYPES.load(dtype)
    assert layout.row_bytes + layout.scale_bytes == spec.row_bytes
    assert layout.row_bytes <= layout.scale_begin
    end = layout.scale_begin + layout.scale_bytes
    assert end <= layout.record_bytes < end + 8
    assert layout.record_bytes % 8 == 0
    if layout.scale_bytes:
        assert kind.scaling is not None
        assert layout.scale_begin % kind.scaling.dtype.itemsize == 0


def test_the_published_row_takes_264_bytes(small_vocab: CompressedVocab) -> None:
    layout = record_layout(make_spec(make_layout(small_vocab), "fp8_e8m0", dim=256))
    assert (layout.row_bytes, layout.scale_begin, layout.scale_bytes) == (256, 256, 8)
    assert layout.record_bytes == 264


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("dtype", list(DTYPES))
def test_records_are_the_table_of_their_parts(
    small_vocab: CompressedVocab, dtype: str, dim: int
) -> None:
    spec = make_spec(make_layout(small_vocab), dtype, dim=dim)
    records = random_records(spec, 40)
    table = table_of(records, spec, layer_scale=scale_of(spec))
    assert table.values.untyped_storage().data_ptr() == records.untyped_storage().data_ptr()
    assert (len(table.values), table.width) == (40, dim)

    layout, kind = record_layout(spec), spec.row_type
    apart = records.clone()
    rows = apart[:, : layout.row_bytes].contiguous()
    parts = {"values": rows.view(table.values.dtype)}
    if layout.scale_bytes:
        begin = layout.scale_begin
        stored = apart[:, begin : begin + layout.scale_bytes].contiguous()
        assert table.scales is not None
        scales = stored.view(table.scales.dtype)
        parts["scales"] = scales[:, 0] if table.per == "row" else scales
    elif kind.of_layer and table.scales is not None:
        parts["scales"] = table.scales
    plain = type(table)(**parts, dim=table.dim)
    assert plain.kind == table.kind
    wanted = torch.tensor([3, 39, 3, 0])
    found, expected = (dequantise(one, wanted, torch.float32) for one in (table, plain))
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_no_records_are_a_table_too(small_vocab: CompressedVocab, dtype: str) -> None:
    spec = make_spec(make_layout(small_vocab), dtype, dim=32)
    table = table_of(random_records(spec, 0), spec, layer_scale=scale_of(spec))
    assert table.values.shape[0] == 0


def test_parts_are_written_through_their_views(small_vocab: CompressedVocab) -> None:
    spec = make_spec(make_layout(small_vocab), "int8", dim=33)
    layout, records = record_layout(spec), torch.zeros(2, 40, dtype=torch.uint8)
    layout.part(records, ROWS).fill_(1)
    layout.part(records, SCALES).fill_(2)
    assert records[0].tolist() == [1] * 33 + [0] * 3 + [2] * 4


def test_what_does_not_fit_is_refused(small_vocab: CompressedVocab) -> None:
    layout = make_layout(small_vocab)
    spec = make_spec(layout, "fp8_e8m0", dim=256)
    for wrong in (torch.zeros(2, 263, dtype=torch.uint8), torch.zeros(2, 264, dtype=torch.int8)):
        with pytest.raises(InputError, match=r"records are .* - .*\[n, 264\]"):
            table_of(wrong, spec)
    records = torch.zeros(2, 264, dtype=torch.uint8)
    with pytest.raises(InputError, match="have no layer_scale"):
        table_of(records, spec, layer_scale=torch.ones(1))
    with pytest.raises(InputError, match="need the layer_scale"):
        table_of(records[:, :256].clone(), make_spec(layout, "fp8", dim=256))
