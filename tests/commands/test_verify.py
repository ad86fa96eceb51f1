"""verify finds nothing wrong with what the commands wrote, and everything that was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from commands.made import Made
from patching.patched import patch_of, table
from table.tables import tamper

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.verify.command import VerifyRequest, VerifyResult, verify
from engram_cli.errors import InputError
from engram_cli.files import canonical_json
from engram_cli.patches.patch_file import write_patch
from engram_cli.rows.checksum import file_checksum


def verified(path: Path, **options: object) -> VerifyResult:
    return verify(VerifyRequest(path=path, threads=2, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["table", "bundle", "vocabulary", "statistics"])
def test_what_was_written_is_all_right(made_once: Made, kind: str) -> None:
    path = {
        "table": made_once.table,
        "bundle": made_once.bundle,
        "vocabulary": made_once.vocab,
        "statistics": made_once.stats,
    }[kind]
    assert find_artifact(path).kind == kind
    result = verified(path)
    assert result.problems == ()
    assert result.ok
    assert result.kind == kind
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    assert result.files >= 1
    assert result.stored_bytes <= sum(f.stat().st_size for f in files)
    wanted = {
        "table": {"checksums", "layout", "vocabulary", "counts", "rows"},
        "bundle": {"digests", "headers", "layout", "vocabulary", "rows"},
        "vocabulary": {"digest", "keys and ids", "texts"},
        "statistics": {"hits, sample and figures", "layout", "vocabulary"},
    }[kind]
    assert set(result.checked) == wanted
    assert result.not_checked == ()


def test_the_checkpoint_stands_for_its_bundle(made_once: Made) -> None:
    assert verified(made_once.bundle.parent).path == made_once.bundle


def test_a_flipped_bit_in_a_table_is_named(made: Made) -> None:
    chunk = made.table / "2" / "c.0.0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    result = verified(made.table)
    (problem,) = result.problems
    assert problem.startswith("2/c.0.0: its bytes have changed")
    assert not result.ok


def test_hits_that_are_not_the_statistics_are_found(made: Made) -> None:
    """Even by one who rewrote the checksum."""
    chunk = made.table / "hits" / "1" / "c.0"
    hits = np.fromfile(chunk, dtype="<u4")
    hits[17] += 1
    hits.tofile(chunk)
    entry = [chunk.stat().st_size, file_checksum(chunk)]
    tamper(made.table, lambda a: a["manifest"]["files"].update({"hits/1/c.0": entry}))
    (problem,) = verified(made.table).problems
    assert f"layer 1: 1 rows have other hits than {made.stats} says" in problem
    assert f"the first is row 17: {hits[17]}, not {hits[17] - 1}" in problem
    shutil.rmtree(made.stats)
    result = verified(made.table)
    assert result.ok
    assert result.not_checked == ("counts: the statistics they came from were not found",)


def test_a_layout_that_its_scheme_does_not_make_is_found(made: Made) -> None:
    """Other multipliers give other rows: a self-consistent table of a wrong hash."""

    def edit(attributes: dict) -> None:
        from engram_cli.hashing.layout import HashLayout

        own = attributes["layout"]["layers"][0]["multipliers"]
        own[0] = str(int(own[0]) + 2)
        attributes["fingerprint"] = HashLayout.from_json(attributes["layout"]).fingerprint

    tamper(made.table, edit)
    (problem,) = verified(made.table).problems
    assert "the layout is not what engram-v1 makes of its choices" in problem
    assert "multipliers of layer 1" in problem


def test_a_foreign_layout_is_said_not_to_be_checked(made: Made) -> None:
    tamper(made.table, lambda a: a["layout"].update(parameters={}))
    result = verified(made.table)
    assert result.ok
    assert "layout: the artifact does not record the choices of its scheme" in result.not_checked


def test_every_changed_shard_of_a_bundle_is_named(made: Made) -> None:
    shards = sorted(made.bundle.glob("rows*.safetensors"))
    assert len(shards) == 2
    for shard in shards:
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    problems = verified(made.bundle).problems
    assert all(shard.name in problem for shard, problem in zip(shards, problems, strict=True))
    shards[0].unlink()
    (problem,) = verified(made.bundle).problems
    assert "is missing" in problem


def edit_stats(stats: Path, edit: object) -> None:
    document = json.loads((stats / "stats.json").read_bytes())
    edit(document)  # type: ignore[operator]
    document.pop("digest", None)  # which would tell, whatever was changed
    (stats / "stats.json").write_bytes(canonical_json(document))


def test_wrong_figures_of_statistics_are_listed(made: Made) -> None:
    def edit(document: dict) -> None:
        document["columns"][3]["occupied"] += 1
        document["row_hits"][0]["rows"][0] += 1
        document["orders"][1]["distinct"] += 5
        document["orders"][1]["exact"] = False

    edit_stats(made.stats, edit)
    problems = verified(made.stats).problems
    assert len(problems) == 4
    assert "'columns' layer 1, order 2, head 3 occupied of stats.json is" in problems[0]
    assert "'orders' order 3 distinct of stats.json is" in problems[1]
    assert "'orders' order 3 exact of stats.json is False, not True" in problems[2]
    assert "'row_hits' layer 1, order 2 rows [0] of stats.json is" in problems[3]


def test_figures_that_cannot_be_computed_again_are_one_line(made: Made) -> None:
    edit_stats(made.stats, lambda document: document.update(dict.fromkeys("abcdef", 1)))
    assert verified(made.stats).not_checked == (
        "a, b, c, d and 2 more figures: its partial was not kept",
    )


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(where, what) for each number, text and truth value in a document."""
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(child, (*path, key))
    elif value is not None:
        yield path, value


def invented(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    return value + "x" if isinstance(value, str) else value * 1.01 + 1


def test_no_figure_can_be_invented(made: Made) -> None:
    """Of each key of stats.json, those that a count leaves by default among them."""
    file = made.stats / "stats.json"
    written = json.loads(file.read_bytes())
    # What does not follow from the counts, and what keeps a folder from being opened at all.
    free = {"format", "version", "tool_version", "complete", "corpus", "digest", "documents"}
    closing = {"layout", "fingerprint", "tokens", "join_documents", "samples", "partials", "arrays"}
    by_shape: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for path, _ in leaves(written):
        if path[0] not in free | closing:
            by_shape[tuple(key for key in path if isinstance(key, str))] = path
    assert len(by_shape) > 30
    for path in by_shape.values():
        document = json.loads(file.read_bytes())
        holder = document
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = invented(holder[path[-1]])
        edit_stats(made.stats, lambda own, document=document: own.update(document))
        problems = verified(made.stats).problems
        assert len(problems) == 1, (path, problems)
        assert f"'{path[0]}'" in problems[0]
        file.write_bytes(canonical_json(written))


@pytest.mark.parametrize("name", ["counters.zarr/1", "sample.parquet/2"])
def test_what_was_permuted_is_found(name: str, made: Made) -> None:
    """Sums, sizes and hashes stay as they were: only a digest tells."""
    if name.startswith("sample"):
        table = pq.read_table(made.stats / "sample.parquet")
        counts = table["count"].to_pylist()
        own = [i for i, order in enumerate(table["order"].to_pylist()) if order == 2]
        for i, value in zip(own, [counts[i] for i in reversed(own)], strict=True):
            counts[i] = value
        at = table.schema.get_field_index("count")
        table = table.set_column(at, "count", pa.array(counts, pa.uint64()))
        pq.write_table(table, made.stats / "sample.parquet")
    else:
        hits = zarr.open_group(made.stats / "counters.zarr", mode="r+")["1"]
        hits[:50] = hits[:50][::-1]
    (problem,) = verified(made.stats).problems
    assert "changed after it was written" in problem
    if name.startswith("sample"):  # without a digest, as earlier versions wrote, figures tell
        edit_stats(made.stats, lambda document: document.pop("arrays"))
        assert "layer 1, order 2" in verified(made.stats).problems[0]


def test_hits_that_do_not_sum_to_the_tokens_are_found(made: Made) -> None:
    edit_stats(made.stats, lambda document: document.update(tokens=document["tokens"] + 1))
    problems = verified(made.stats).problems
    assert "sum to" in problems[0]
    assert len(problems) == 2  # both layers


def test_a_damaged_look_up_of_statistics_is_their_own_damage(made: Made) -> None:
    """Not the vocabulary's, which is whole."""
    counters = zarr.open_group(made.stats / "counters.zarr", mode="r+")
    counters["lookup"][3] += 1
    problems = verified(made.stats).problems
    assert len(problems) == 1
    assert "counters.zarr/lookup is damaged" in problems[0]


def test_a_section_that_its_partial_does_not_give_is_told(made: Made) -> None:
    def edit(document: dict[str, Any]) -> None:
        document["growth"][0]["distinct"][-1] += 1

    edit_stats(made.stats, edit)
    (problem,) = verified(made.stats).problems
    assert problem.startswith("'growth' order 2 distinct [")


@pytest.mark.parametrize(
    ("column", "value", "match"),
    [("key", "zzz", "its key is not what"), ("text", "other", "its key is not what")],
)
def test_a_changed_vocabulary_is_found(made: Made, column: str, value: str, match: str) -> None:
    """Where the map and its digest were left alone."""
    table = pq.read_table(made.vocab)
    values = table[column].to_pylist()
    values[60] = value
    at = table.schema.get_field_index(column)
    table = table.set_column(at, table.schema.field(column), [values])
    pq.write_table(table, made.vocab)
    problems = verified(made.vocab, tokenizer=made.folder / "tokenizer.json").problems
    assert problems[0].startswith("token 60: ")
    assert match in problems[0]


def test_a_vocabulary_of_another_tokenizer_is_found(
    made: Made, deepseek_tokenizer_file: Path
) -> None:
    (problem,) = verified(made.vocab, tokenizer=deepseek_tokenizer_file).problems
    assert "it was not made from" in problem


def test_damage_that_keeps_it_from_opening_is_a_finding(made: Made) -> None:
    (made.table / "zarr.json").write_text("{")
    (problem,) = verified(made.table).problems
    assert "zarr.json is not JSON" in problem
    (made.bundle / "engram.json").write_text("[]")
    assert "holds no JSON object" in verified(made.bundle).problems[0]


def test_half_built_tables_are_not_all_right(made: Made) -> None:
    made.table.rename(made.table.with_name("t.zarr.partial"))
    (problem,) = verified(made.table.with_name("t.zarr")).problems
    assert "is half-built" in problem


def test_what_is_nothing_of_ours_is_refused(made: Made) -> None:
    for path in (made.folder / "corpus.txt", made.folder, made.folder / "nowhere"):
        with pytest.raises(InputError):
            verified(path)
    with pytest.raises(InputError, match=r"is no statistics folder: it has no stats\.json"):
        verified(made.table, stats=made.folder)


@pytest.mark.parametrize("where", ["table/hits", "table", "stats/counters.zarr"])
@pytest.mark.parametrize("change", ["not JSON", "another node", "no node"])
def test_damaged_groups_are_named(where: str, change: str, made: Made) -> None:
    kind, _, inner = where.partition("/")
    path = getattr(made, kind)
    file = path / inner / "zarr.json"
    meta = json.loads(file.read_bytes())
    if change == "no node":
        del meta["node_type"]
    else:
        meta["node_type"] = "arrby"
    file.write_text("{" * (change == "not JSON" and where != "table") + json.dumps(meta))
    result = verified(path)
    assert not result.ok
    assert "zarr.json" in result.problems[0]


def test_a_missing_key_is_named_in_plain_words(made: Made) -> None:
    file = made.table / "1" / "zarr.json"
    file.write_text(file.read_text().replace("chunk_key_encoding", "chunk_kez_encoding"))
    result = verified(made.table)
    assert "in 1/zarr.json, there is no 'chunk_key_encoding'" in result.problems[0]
    assert "Error" not in result.problems[0]


def test_a_patch_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "p.patch.safetensors"
    write_patch(path, patch_of(table(tmp_path / "t.zarr", "int8")))
    result = verified(path)
    assert (result.kind, result.ok, result.files) == ("patch", True, 1)
    assert result.checked == ("header", "row numbers and values", "digest")
    assert result.stored_bytes == path.stat().st_size
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)
    (problem,) = verified(path).problems
    assert "is damaged: its digest is" in problem


def test_a_patch_without_a_digest_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "p.patch.safetensors"
    write_patch(path, patch_of(table(tmp_path / "t.zarr", "int8")))
    raw = path.read_bytes()
    at = raw.index(b'"digest":"sha256:')
    path.write_bytes(raw[:at] + b'"nothin"' + raw[at + 8 :])
    result = verified(path)
    assert result.ok
    assert result.not_checked == (
        "digest: the file states none, so that damage to its values is not found",
    )
