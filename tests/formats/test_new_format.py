"""A format is one file and one line: registered, it is read by every command that reads rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from commands.made import Made, make
from formats import npy_rows

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.convert.command import ConvertRequest, convert_table
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.lookup.command import LookupRequest, lookup
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.errors import ArtifactError, InputError
from engram_cli.formats import FORMATS
from engram_cli.formats.bundle import read_bundle
from engram_cli.progress import SILENT
from engram_cli.rows.source import HITS
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab

NAME = "npy-rows"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path, small_vocab: CompressedVocab
) -> Made:
    return make(tmp_path_factory.mktemp("npy") / "work", tokenizer_file, small_vocab)


@pytest.fixture
def npy(made: Made, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rows of the table in the new format, which the registry now knows."""
    monkeypatch.setitem(FORMATS._entries, NAME, "formats.npy_rows:FORMAT")
    out = made.folder / "npy"
    npy_rows.write(open_table(made.table), out, force=True, progress=SILENT)
    return out


def test_inspect_says_of_its_rows_what_it_says_of_the_tables(made: Made, npy: Path) -> None:
    ours = inspect(InspectRequest(path=npy, folder=made.folder))
    theirs = inspect(InspectRequest(path=made.table, folder=made.folder))
    assert (ours.kind, ours.complete, ours.files) == (NAME, True, 5)
    facts, others = dict(ours.facts), dict(theirs.facts)
    assert facts["rows"] == others["rows"]
    assert facts["row hits"] == "kept for every row"
    assert [digest.name for digest in ours.digests] == [NAME, "layout", "vocabulary"]
    assert ours.hottest == theirs.hottest
    assert ours.layers == theirs.layers
    for name in ("hits", "rows", "hit_rows", "zero"):
        assert [getattr(c, name) for c in ours.columns] == [
            getattr(c, name) for c in theirs.columns
        ]
    np.testing.assert_allclose([c.rms for c in ours.columns], [c.rms for c in theirs.columns])


def test_lookup_finds_the_rows_of_the_table(made: Made, npy: Path, tmp_path: Path) -> None:
    found = [
        lookup(
            LookupRequest(
                path=path,
                text="An apple",
                folder=made.folder,
                vectors=tmp_path / f"{path.name}.npy",
            )
        )
        for path in (npy, made.table)
    ]
    assert found[0].kind == NAME
    assert found[0].tokens == found[1].tokens
    ours, theirs = (np.load(tmp_path / f"{path.name}.npy") for path in (npy, made.table))
    np.testing.assert_array_equal(ours, theirs)


def test_verify_checks_its_rows_layout_and_vocabulary(made: Made, npy: Path) -> None:
    sound = verify(VerifyRequest(path=npy, folder=made.folder))
    assert (sound.kind, sound.ok) == (NAME, True)
    assert sound.checked == ("layout", "vocabulary", "rows")
    raw = bytearray((npy / "1.npy").read_bytes())
    raw[-npy_rows.GAP - 4 : -npy_rows.GAP] = np.float32(np.nan).tobytes()
    (npy / "1.npy").write_bytes(raw)
    damaged = verify(VerifyRequest(path=npy, folder=made.folder))
    (problem,) = damaged.problems
    assert problem.startswith("layer 1: values: 1 row is not finite, the first is row 2,611")


def test_convert_makes_the_table_of_it(made: Made, npy: Path, tmp_path: Path) -> None:
    made_of = convert_table(ConvertRequest(source=npy, dtype="float32", out=tmp_path / "t.zarr"))
    assert all(each.worst_row == -1 for each in made_of.differences)
    before, after = open_table(made.table), open_table(tmp_path / "t.zarr")
    assert after.attributes["source"]["format"] == NAME
    assert after.attributes["statistics"] == before.attributes["statistics"]
    assert verify(VerifyRequest(path=after.path, folder=made.folder)).ok
    for layer in before.layers:
        every = np.arange(before.layout.layer(layer).rows)
        np.testing.assert_array_equal(after.rows(layer, every), before.rows(layer, every))
        np.testing.assert_array_equal(after.hits(layer), before.hits(layer))
    again = convert_table(ConvertRequest(source=npy, dtype="float32", out=tmp_path / "t.zarr"))
    assert again.digest == made_of.digest


def test_attach_writes_a_bundle_of_it(made: Made, npy: Path, tmp_path: Path) -> None:
    shutil.copytree(made.bundle.parent, tmp_path / "ckpt", ignore=shutil.ignore_patterns("engram"))
    result = attach_checkpoint(AttachRequest(checkpoint=tmp_path / "ckpt", table=npy))
    ours, theirs = read_bundle(result.out, verify=True), read_bundle(made.bundle)
    for layer in theirs.spec.layers:
        for part in ("rows", HITS):
            assert np.array_equal(*(np.concatenate(b.maps(layer, part)) for b in (ours, theirs)))
    with pytest.raises(InputError, match="is no table, so that a bundle cannot refer to it"):
        attach_checkpoint(
            AttachRequest(checkpoint=tmp_path / "ckpt", table=npy, reference=True, force=True)
        )


def test_bundles_and_statistics_are_rows_like_any_other(made: Made, tmp_path: Path) -> None:
    convert_table(ConvertRequest(source=made.bundle, dtype="float32", out=tmp_path / "t.zarr"))
    before, after = open_table(made.table), open_table(tmp_path / "t.zarr")
    for layer in before.layers:
        assert np.array_equal(*(t.rows(layer, np.arange(300)) for t in (before, after)))
    with pytest.raises(InputError, match="holds no vectors"):
        convert_table(ConvertRequest(source=made.stats, dtype="int8", out=tmp_path / "s.zarr"))


def test_what_no_format_knows_is_no_artifact(npy: Path) -> None:
    (npy / npy_rows.DESCRIPTION).write_text('{"dim": 3}')
    with pytest.raises(ArtifactError, match="is damaged"):
        inspect(InspectRequest(path=npy))
    (npy / npy_rows.DESCRIPTION).unlink()
    with pytest.raises(InputError, match="is not a table, bundle, vocabulary or statistics"):
        inspect(InspectRequest(path=npy))
