"""convert: the bytes reckoned first, the figures last, damage not passed on."""

from __future__ import annotations

from pathlib import Path

import pytest
from table.tables import build

from engram_cli.commands.convert.command import ConvertRequest, convert_table
from engram_cli.errors import ArtifactError, EngramError, InputError, OutputError
from engram_cli.table.store import open_table


@pytest.fixture
def request_(tmp_path: Path) -> ConvertRequest:
    build(tmp_path / "t.zarr", dim=64, tokens=3)
    return ConvertRequest(source=tmp_path / "t.zarr", dtype="int8_b32", out=tmp_path / "u.zarr")


def changed(request: ConvertRequest, **changes: object) -> ConvertRequest:
    fields = ("source", "dtype", "out")
    return ConvertRequest(**({name: getattr(request, name) for name in fields} | changes))


def test_the_plan_is_what_lies_on_the_disk(request_: ConvertRequest) -> None:
    planned = convert_table(changed(request_, dry_run=True))
    assert not planned.written
    assert not request_.out.exists()
    result = convert_table(request_)
    assert result.written
    assert result.plan.total_bytes == planned.plan.total_bytes
    for path, size in (
        (request_.source, result.plan.source_bytes),
        (request_.out, result.plan.total_bytes),
    ):
        assert size == sum(file.stat().st_size for file in path.rglob("c.*"))
    assert result.plan.source_row_bytes == 256
    assert [layer.row_bytes for layer in result.plan.layers] == [64 + 2 * 2] * 2
    assert [layer.scales_bytes for layer in result.plan.layers] == [212 * 4] * 2
    assert result.digest == open_table(request_.out).digest
    assert all(0 < each.relative < 0.01 for each in result.differences)


def test_damage_is_not_passed_on(request_: ConvertRequest) -> None:
    chunk = request_.source / "3" / "c.1.0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"3/c\.1\.0: its bytes have changed") as caught:
        convert_table(request_)
    assert "--no-verify" in caught.value.hint
    assert not request_.out.exists()
    assert convert_table(changed(request_, verify=False)).written


def test_what_cannot_be_is_refused_before_anything_is_read(request_: ConvertRequest) -> None:
    with pytest.raises(OutputError, match="is the table to convert"):
        convert_table(changed(request_, out=request_.source, force=True))
    request_.out.mkdir()
    (request_.out / "mine").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError):
            convert_table(changed(request_, force=force))
    with pytest.raises(InputError, match="--threads 0"):
        changed(request_, threads=0)
    with pytest.raises(EngramError, match="no table at"):
        convert_table(changed(request_, source=request_.source.with_name("none.zarr")))


def test_an_older_result_is_replaced_with_force(request_: ConvertRequest) -> None:
    first = convert_table(request_).digest
    with pytest.raises(OutputError, match="already exists"):
        convert_table(changed(request_, dtype="int4"))
    planned = convert_table(changed(request_, dtype="int4", dry_run=True))
    assert "already exists; use --force" in str(planned.in_the_way)
    assert planned.plan.dtype == "int4"
    for dry_run in (False, True):
        with pytest.raises(InputError, match="unknown dtype 'int7'"):
            convert_table(changed(request_, dtype="int7", dry_run=dry_run))
    second = convert_table(changed(request_, dtype="int4", force=True, threads=2))
    assert second.digest != first
    assert open_table(request_.out).dtype == "int4"


@pytest.mark.parametrize("choice", [{}, {"dtype": "fp8", "scale": 0.0003}])
def test_after_an_interrupt_while_comparing_only_the_comparison_is_made(
    choice: dict[str, object], request_: ConvertRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    import engram_cli.commands.convert.command as module

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    request = changed(request_, **choice)
    with monkeypatch.context() as patch:
        patch.setattr(module, "compare_tables", interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert_table(request)
    written = {file: file.stat().st_mtime_ns for file in request.out.rglob("*")}
    assert convert_table(changed(request_, **choice, dry_run=True)).plan.fits
    again = convert_table(request)
    assert {file: file.stat().st_mtime_ns for file in request.out.rglob("*")} == written
    whole = convert_table(changed(request_, **choice, out=request.out.with_name("whole.zarr")))
    assert (again.digest, again.differences) == (whole.digest, whole.differences)
    assert again.resumed_chunks > 0


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"dtype": "int4"}),
        ({}, {"chunk_rows": 7}),
        ({"dtype": "fp8", "scale": 0.0003}, {"dtype": "fp8", "scale": 0.0004}),
        ({"dtype": "fp8", "scale": 0.0003}, {"dtype": "fp8"}),
    ],
)
def test_another_conversion_is_in_the_way(
    first: dict[str, object], then: dict[str, object], request_: ConvertRequest
) -> None:
    convert_table(changed(request_, **first))
    with pytest.raises(OutputError, match="already exists"):
        convert_table(changed(request_, **then))
