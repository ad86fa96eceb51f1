"""hash-stats --to: added and removed documents give the statistics of a corpus with or without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.counted import GEOMETRY, Heard, run
from commands.test_merge_stats import bytes_of

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.requests.update_stats import UpdateStatsRequest
from engram_cli.commands.update_stats import command as module
from engram_cli.commands.update_stats.command import UpdateStatsResult, update_stats
from engram_cli.commands.verify.command import verify
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import InputError, MismatchError, OutputError
from engram_cli.stats.removal import NeverCounted
from engram_cli.stats.stats_io import read_stats

WORDS = [f"{a}{b}" for a in ("sun", "rain", "wind", "leaf") for b in ("", "s", "y", "ed", "ing")]


@pytest.fixture
def here(corpus_workspace: Path) -> Path:
    generator = np.random.default_rng(7)
    documents = [
        {"text": " ".join(generator.choice(WORDS, int(generator.integers(3, 40))))}
        for _ in range(40)
    ]
    (corpus_workspace / "documents.json").write_text(json.dumps(documents))
    return corpus_workspace


def put(here: Path, name: str, chosen: Sequence[int]) -> Path:
    """Write some of the documents as JSON lines."""
    documents = json.loads((here / "documents.json").read_text())
    path = here / f"{name}.jsonl"
    path.write_text("".join(json.dumps(documents[at]) + "\n" for at in chosen))
    return path


def counted(here: Path, out: str, *sources: Path, **options: Any) -> Path:
    return run(here, out=here / out, sources=sources, **options).out


def change(
    here: Path, to: Path, progress: Heard | None = None, **options: Any
) -> UpdateStatsResult:
    request = UpdateStatsRequest(to=to, workspace=Workspace(here), **options)
    return update_stats(request, progress or Heard())


def assert_counts(one: Path, two: Path) -> None:
    """Hits, samples, tokens, documents and all n-grams are the same."""
    first, second = read_stats(one), read_stats(two)
    assert (first.tokens, first.documents) == (second.tokens, second.documents)
    for layer in first.layout.layer_ids:
        assert np.array_equal(first.hits(layer), second.hits(layer))
    for own, other in zip(first.samples(), second.samples(), strict=True):
        assert (own.size, own.threshold) == (other.size, other.threshold)
        assert np.array_equal(own.hashes, other.hashes)
        assert np.array_equal(own.counts, other.counts)
    exact, others = first.partials(), second.partials()
    for name in exact:
        assert all(np.array_equal(array, others[name][key]) for key, array in exact[name].items())


@pytest.mark.parametrize("options", [{}, {"exact": True, "compare_uncompressed": True}])
def test_added_documents_give_the_bytes_of_the_whole(here: Path, options: dict[str, Any]) -> None:
    old, more = put(here, "old", range(30)), put(here, "more", range(30, 40))
    whole = counted(here, "whole", old, more, sample_size=60, **options)
    to = counted(here, "to", old, sample_size=60, **options)
    heard = Heard()
    result = change(here, to, heard, add=(more,))
    assert bytes_of(to) == bytes_of(whole)
    assert (result.out, result.added_documents, result.removed_documents) == (to, 10, 0)
    assert result.left_out == ()
    assert result.files == 2
    assert not list(here.glob(".*resume*"))
    assert not any("pad token" in note for note in heard.notes)


@pytest.mark.parametrize("seed", range(4))
def test_removed_documents_are_as_never_counted(here: Path, seed: int) -> None:
    generator = np.random.default_rng(seed)
    gone = sorted(generator.choice(40, int(generator.integers(1, 12)), replace=False).tolist())
    rest = [at for at in range(40) if at not in gone]
    to = counted(here, "to", put(here, "all", range(40)), sample_size=150)
    out = here / "out"
    heard = Heard()
    result = change(here, to, heard, remove=(put(here, "gone", gone),), out=out)
    assert read_stats(to).documents == 40
    again = counted(here, "again", put(here, "rest", rest), sample_size=result.sample_size)
    assert_counts(out, again)
    assert (result.removed_documents, result.documents) == (len(gone), len(rest))
    assert "growth" in result.left_out
    assert any("growth" in note and "recount" in note for note in heard.notes)
    document = json.loads((out / "stats.json").read_text())
    assert "growth" not in document
    assert document["partials"] == {"of": []}
    checked = verify(VerifyRequest(path=out))
    assert checked.ok


def test_exact_counts_lose_nothing(here: Path) -> None:
    everything = put(here, "all", range(40))
    to = counted(here, "to", everything, sample_size=60, exact=True, growth=False)
    result = change(here, to, remove=(put(here, "gone", range(5, 20)),))
    rest = put(here, "rest", [*range(5), *range(20, 40)])
    again = counted(here, "again", rest, sample_size=60, exact=True, growth=False)
    assert_counts(to, again)
    assert (result.sample_size, result.left_out) == (60, ())
    own, other = (json.loads((each / "stats.json").read_text()) for each in (to, again))
    for key in ("orders", "columns", "top_ngrams", "worst_rows", "clean_heads", "row_hits"):
        assert own[key] == other[key]


def test_both_at_once_and_back(here: Path) -> None:
    to = counted(here, "to", put(here, "old", range(30)), growth=False)
    before = read_stats(to)
    more, gone = put(here, "more", range(30, 40)), put(here, "gone", range(3))
    result = change(here, to, add=(more,), remove=(gone,))
    assert (result.added_documents, result.removed_documents, result.documents) == (10, 3, 37)
    assert_counts(to, counted(here, "again", put(here, "rest", range(3, 40)), growth=False))
    change(here, to, add=(gone,), remove=(more,))
    after = read_stats(to)
    assert after.tokens == before.tokens
    assert np.array_equal(after.hits(1), before.hits(1))


def test_a_recount_has_everything_and_is_checked(here: Path) -> None:
    to = counted(here, "to", put(here, "all", range(40)), sample_size=60, locality=True)
    gone, rest = put(here, "gone", range(10)), put(here, "rest", range(10, 40))
    again = counted(here, "again", rest, sample_size=60, locality=True)
    result = change(here, to, remove=(gone,), sources=(rest,), out=here / "out", sample_size=60)
    assert (result.recounted, result.left_out, result.sample_size) == (True, (), 60)
    assert bytes_of(here / "out") == bytes_of(again)
    other = put(here, "other", range(9, 40))
    with pytest.raises(MismatchError, match="31 documents, and the change leaves 30"):
        change(here, to, remove=(gone,), sources=(other,), out=here / "none")
    swapped = put(here, "rest", range(10, 40)).read_text().replace("sun ", "rain ")
    (here / "other.jsonl").write_text(swapped)
    with pytest.raises(MismatchError, match=r"(tokens|hits in the corpus), and the change leaves"):
        change(here, to, remove=(gone,), sources=(here / "other.jsonl",), out=here / "none")
    assert not (here / "none").exists()


def test_documents_that_were_never_counted_are_refused(here: Path) -> None:
    to = counted(here, "to", put(here, "old", range(30)))
    before = bytes_of(to)
    strange = here / "strange.jsonl"
    strange.write_text('{"text": "a whale"}\n')
    with pytest.raises(NeverCounted, match=r"the \d-gram '.*' occurs 1 times in the documents"):
        change(here, to, remove=(strange,))
    assert bytes_of(to) == before


def test_what_does_not_belong_is_refused(here: Path) -> None:
    old, gone = put(here, "old", range(30)), put(here, "gone", range(3))
    to = counted(here, "to", old)
    with pytest.raises(InputError, match=r"to has its own geometry \(heads was given\)"):
        change(here, to, add=(gone,), geometry=Geometry(heads=2))
    with pytest.raises(InputError, match=r"has its own geometry \(preset was given\)"):
        change(here, to, add=(gone,), preset="deepseek-v3")
    with pytest.raises(InputError, match="n-grams cross from one into the next"):
        change(here, counted(here, "joined", old, join_documents=True), remove=(gone,))
    with pytest.raises(InputError, match="parts of files were held out"):
        change(here, counted(here, "held", old, holdout=0.2), remove=(gone,))
    with pytest.raises(InputError, match="nothing is to be added to"):
        UpdateStatsRequest(to=to)
    with pytest.raises(InputError, match="--add and --remove change statistics"):
        UpdateStatsRequest(add=(old,))
    with pytest.raises(InputError, match="no corpus is named"):
        UpdateStatsRequest()
    with pytest.raises(InputError, match="no statistics folder"):
        change(here, here / "nothing", add=(old,))
    with pytest.raises(OutputError, match="already exists"):
        change(here, to, add=(gone,), out=here / "joined")
    (to / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt"):
        change(here, to, add=(gone,))
    assert (to / "notes.txt").read_text() == "mine"


def test_another_vocabulary_is_refused(here: Path) -> None:
    from small_tokenizers import sentencepiece_tokenizer

    from engram_cli import compress_vocab, write_vocab

    old = put(here, "old", range(30))
    to = counted(here, "to", old)
    other = here / "other"
    other.mkdir()
    sentencepiece_tokenizer().save(str(other / "tokenizer.json"))
    write_vocab(compress_vocab(other / "tokenizer.json"), here / "other.parquet")
    with pytest.raises(MismatchError, match=r"other\.parquet is .*, and the statistics were"):
        change(here, to, add=(old,), vocab=here / "other.parquet")


def test_a_run_that_dies_leaves_the_old_statistics(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = counted(here, "to", put(here, "old", range(30)))
    before, more = bytes_of(to), put(here, "more", range(30, 40))

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "note_finished", die)
    with pytest.raises(KeyboardInterrupt):
        change(here, to, add=(more,))
    assert bytes_of(to) == before


def test_a_change_is_not_made_twice_after_a_late_kill(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the statistics were in place already, and the same command runs again."""
    to = counted(here, "to", put(here, "old", range(30)))
    more, gone = put(here, "more", range(30, 40)), put(here, "gone", range(2))
    clear = module.clear_checkpoints

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "clear_checkpoints", die)
    with pytest.raises(KeyboardInterrupt):
        change(here, to, add=(more,))
    monkeypatch.setattr(module, "clear_checkpoints", clear)
    after = bytes_of(to)
    heard = Heard()
    result = change(here, to, heard, add=(more,))
    assert (result.repeated, result.documents) == (True, 40)
    assert any("has this change already" in note for note in heard.notes)
    assert bytes_of(to) == after
    assert not list(here.glob(".*resume*"))
    assert change(here, to, remove=(gone,)).documents == 38  # another change is made
    assert change(here, to, add=(gone,)).documents == 40  # and a finished one can be repeated
    monkeypatch.setattr(module, "clear_checkpoints", die)
    with pytest.raises(KeyboardInterrupt):
        change(here, to, remove=(gone,), out=here / "new")
    monkeypatch.setattr(module, "clear_checkpoints", clear)
    with pytest.raises(OutputError, match="already exists"):
        change(here, to, remove=(more,), out=here / "new")
    assert change(here, to, remove=(gone,), out=here / "new").repeated
    with pytest.raises(OutputError, match="already exists"):
        change(here, to, remove=(gone,), out=here / "new")
    assert not list(here.glob(".*resume*"))


def test_added_to_statistics_with_less(here: Path) -> None:
    """What was left out by a removal is not made up from the documents that are added."""
    to = counted(here, "to", put(here, "old", range(30)), sample_size=60)
    gone = put(here, "gone", range(3))
    size = change(here, to, remove=(gone,)).sample_size
    result = change(here, to, add=(gone,))
    assert result.sample_size == size < 60
    assert "growth" not in result.sections
    assert "top_ngrams" not in result.sections
    assert read_stats(to).occurrences() is None
    again = counted(here, "again", here / "old.jsonl", sample_size=size, growth=False)
    shutil.rmtree(here / "to" / "partials.zarr", ignore_errors=True)
    assert_counts(to, again)


def test_the_report_and_the_options_in_effect(here: Path) -> None:
    assert GEOMETRY.heads == 2
    to = counted(here, "to", put(here, "old", range(30)))
    page = here / "page.html"
    change(here, to, remove=(put(here, "gone", range(3)),), report=page)
    text = page.read_text()
    assert "without" in text
    assert "--remove" in text
