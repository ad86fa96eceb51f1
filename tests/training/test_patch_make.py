"""patch make: facts in, a patch out whose rows are few, little read, and all that changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import DIM, make_bundle, make_layout, make_spec, wake
from transformers import AutoModelForCausalLM

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import hash_stats
from engram_cli.commands.patch_make.command import make_patch_of_facts
from engram_cli.commands.patch_make.result import PatchMakeResult
from engram_cli.commands.requests.corpus import HashStatsRequest
from engram_cli.commands.requests.patch_make import PatchMakeRequest, read_rows
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import EngramError, InputError, OutputError
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_rows import bundle_rows
from engram_cli.patches.patch_file import read_patch
from engram_cli.progress import Silent
from engram_cli.runtime import attach, save_engram
from engram_cli.stats.stats_io import read_stats
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab

FACTS = (
    {"prompt": "Only Alexander could tame an", "target": " apple"},
    {"prompt": "AN APPLE fell from", "target": " Great"},
)


def write_facts(path: Path, facts: Any) -> Path:
    path.write_text("".join(json.dumps(fact) + "\n" for fact in facts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def awake_bundle(checkpoint: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose gates let something through."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    wake(attach(model, bundle))
    folder = tmp_path_factory.mktemp("awake") / "engram"
    save_engram(model, folder)
    return folder


@pytest.fixture(scope="module")
def stats(
    texts: tuple[Path, Path], small_vocab: CompressedVocab, tokenizer_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The statistics of the training text, of the bundle's layout."""
    here = Workspace(tmp_path_factory.mktemp("stats"))
    write_vocab(small_vocab, here.vocab)
    geometry = Geometry.from_layout(make_layout(small_vocab))
    hash_stats(
        HashStatsRequest(
            sources=(texts[0],),
            geometry=geometry,
            vocab=here.vocab,
            tokenizer=tokenizer_file,
            workspace=here,
        )
    )
    return here.stats


@pytest.fixture
def request_of(
    checkpoint: Path, awake_bundle: Path, stats: Path, texts: tuple[Path, Path], tmp_path: Path
) -> Callable[..., PatchMakeRequest]:
    def made(facts: Any = FACTS, **options: Any) -> PatchMakeRequest:
        values: dict[str, Any] = {
            "checkpoint": checkpoint,
            "bundle": awake_bundle,
            "edits": write_facts(tmp_path / "facts.jsonl", facts),
            "stats": stats,
            "out": tmp_path / "facts.patch.safetensors",
            "held_out": (texts[1],),
            "max_tokens": 200,
            "device": "cpu",
            "workspace": Workspace(tmp_path),
        }
        return PatchMakeRequest(**values | options)

    return made


def test_facts_are_recalled_and_the_patch_holds_what_was_measured(
    request_of: Callable[..., PatchMakeRequest], stats: Path
) -> None:
    request = request_of(rows_per_token=30, steps=150)
    result = make_patch_of_facts(request)
    assert (result.exact_before, result.exact_after) == (0, 2)
    patch = read_patch(result.patch)
    assert patch.digest == result.digest
    assert patch.rows == result.rows == sum(result.rows_by_order.values())
    assert result.rows <= 30 * sum(fact.tokens for fact in result.facts) < result.candidates
    # The prediction is the hits of the rows in the file.
    counted = read_stats(stats)
    hits = sum(int(counted.hits(n)[own.ids].sum()) for n, own in patch.layers.items())
    assert result.predicted is not None
    assert result.predicted.lookups == hits
    assert result.predicted.per_million == pytest.approx(1e6 * hits / counted.tokens)
    assert result.measured is not None
    assert result.measured.divergence >= 0
    assert result.measured.tokens == 200
    assert {fact.line for fact in result.facts} == {1, 2}
    assert all(fact.loss_after < fact.loss_before for fact in result.facts)


def test_the_patched_bundle_says_the_facts(
    request_of: Callable[..., PatchMakeRequest], checkpoint: Path, tokenizer_file: Path
) -> None:
    """Rows of the file, put into the tables by hand, give what was reported."""
    import torch
    from transformers import PreTrainedTokenizerFast

    request = request_of(rows_per_token="all")
    result = make_patch_of_facts(request)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    memory = attach(model, result.bundle, rows_trainable=False)
    for layer, own in read_patch(result.patch).layers.items():
        module: Any = memory.layers[str(layer)]
        rows = module.multi_head_embedding.embedding.weight
        with torch.no_grad():
            rows[torch.from_numpy(np.array(own.ids))] = torch.from_numpy(np.array(own.rows))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    for fact, told in zip(FACTS, result.facts, strict=True):
        ids = tokenizer(fact["prompt"], return_tensors="pt").input_ids
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=told.tokens,
            do_sample=False,
            eos_token_id=None,
        )
        said = tokenizer.decode(out[0, ids.shape[1] :]) == fact["target"]
        assert said == told.exact_after is True


def test_fewer_rows_have_less_traffic_and_a_limit_holds(
    request_of: Callable[..., PatchMakeRequest], stats: Path
) -> None:
    given = {"steps": 1, "held_out": (), "force": True}
    per_million = []
    for rows in (2, 8, "all"):
        result = make_patch_of_facts(request_of(rows_per_token=rows, **given))
        assert result.measured is None
        assert result.predicted is not None
        per_million.append(result.predicted.per_million)
        every = result.predicted.candidates_per_million
    assert per_million[0] < per_million[1] < per_million[2]
    assert per_million[2] == every
    limit = 20_000.0
    result = make_patch_of_facts(request_of(rows_per_token="all", max_traffic=limit, **given))
    counted = read_stats(stats)
    most = max(
        int(counted.hits(n)[own.ids].max()) for n, own in read_patch(result.patch).layers.items()
    )
    assert 0 < most <= limit * counted.tokens / 1e6
    assert 0 < result.rows < result.candidates


def test_the_ngrams_that_read_changed_rows_are_those_of_the_corpus(
    request_of: Callable[..., PatchMakeRequest], small_vocab: CompressedVocab
) -> None:
    result = make_patch_of_facts(
        request_of(rows_per_token="all", steps=1, held_out=(), ngrams=10**6)
    )
    found = result.predicted
    assert found is not None
    assert len(found.ngrams) == found.ngrams_known > 0
    # The sample holds every n-gram of so small a corpus: all look-ups have a name.
    assert sum(each.lookups for each in found.ngrams) == found.lookups
    assert all(each.exact and each.lookups == each.count * each.rows for each in found.ngrams)
    assert [each.lookups for each in found.ngrams] == sorted(
        (each.lookups for each in found.ngrams), reverse=True
    )
    assert {each.edited for each in found.ngrams} == {True, False}


def test_the_same_request_gives_the_same_bytes(
    request_of: Callable[..., PatchMakeRequest], tmp_path: Path
) -> None:
    options = {"steps": 6, "held_out": ()}
    one = make_patch_of_facts(request_of(**options))
    two = make_patch_of_facts(request_of(out=tmp_path / "two.patch.safetensors", **options))
    assert one.patch.read_bytes() == two.patch.read_bytes()
    assert replace(one, patch=two.patch, seconds=two.seconds) == two


def test_without_statistics_rows_are_chosen_by_their_gradients(
    request_of: Callable[..., PatchMakeRequest], tmp_path: Path
) -> None:
    lone = Workspace(tmp_path / "elsewhere")
    options = {"stats": None, "workspace": lone, "held_out": (), "steps": 1}
    result = make_patch_of_facts(request_of(rows_per_token=4, **options))
    assert result.predicted is None
    assert 0 < result.rows == sum(result.rows_by_order.values()) < result.candidates
    assert all(fact.hits is None for fact in result.facts)
    with pytest.raises(InputError, match="--max-traffic without statistics"):
        make_patch_of_facts(request_of(max_traffic=1.0, force=True, **options))


def test_rows_are_measured_as_they_are_stored(
    request_of: Callable[..., PatchMakeRequest],
    checkpoint: Path,
    small_vocab: CompressedVocab,
    tmp_path: Path,
) -> None:
    spec = make_spec(make_layout(small_vocab), dtype="bfloat16")
    folder = make_bundle(tmp_path / "half", spec)
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    wake(attach(model, folder))
    save_engram(model, tmp_path / "awake")
    result = make_patch_of_facts(request_of(bundle=tmp_path / "awake", rows_per_token="all"))
    patch = read_patch(result.patch)
    assert (patch.dtype, patch.dim) == ("bfloat16", DIM)
    assert result.exact_after == 2
    patch.require_fits(bundle_rows(read_bundle(tmp_path / "awake")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"not json\n", "line 2 is not JSON"),
        (b"[1, 2]\n", "line 2 is no JSON object"),
        (b'{"prompt": "a"}\n', "line 2 has no 'target'"),
        (b'{"prompt": 7, "target": " b"}\n', "line 2: 'prompt' is 7"),
        (b'{"prompt": "a b", "target": ""}\n', "line 2: 'target' is \"\""),
        (b'{"prompt": "a\\ud800", "target": " b"}\n', "line 2: 'prompt' has half of a surrogate"),
        (b'{"prompt": "a\xff", "target": " b"}\n', "line 2: byte 14 is not UTF-8"),
        (b"[" * 100_000 + b"\n", "line 2 is not JSON"),
        (b'{"prompt": "' + b"a" * 2**20 + b'"}\n', "line 2 is longer than"),
        (b'{"prompt": "' + b"a b " * 999 + b'", "target": " c"}\n', "line 2: the fact has"),
        (
            b'{"prompt": "Only Alexander could tame an", "target": " horse"}\n',
            "line 2: the same prompt has another target in line 1",
        ),
    ],
)
def test_bad_lines_are_named(
    request_of: Callable[..., PatchMakeRequest], line: bytes, message: str
) -> None:
    request = request_of()
    first = request.edits.read_bytes().splitlines(keepends=True)[0]
    request.edits.write_bytes(b"\xef\xbb\xbf" + first + line)
    with pytest.raises(EngramError, match=r"facts\.jsonl") as error:
        make_patch_of_facts(request)
    assert message in error.value.message
    assert error.value.hint
    assert not request.out.exists()


def test_files_without_facts_and_outputs_that_are_there_are_refused(
    request_of: Callable[..., PatchMakeRequest], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has no facts"):
        make_patch_of_facts(request_of(facts=()))
    with pytest.raises(InputError, match=r"cannot read .*none\.jsonl"):
        make_patch_of_facts(replace(request_of(), edits=tmp_path / "none.jsonl"))
    (tmp_path / "facts.patch.safetensors").write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        make_patch_of_facts(request_of())
    with pytest.raises(OutputError, match="does not replace it"):
        make_patch_of_facts(request_of(force=True))
    assert (tmp_path / "facts.patch.safetensors").read_text() == "mine"


def test_what_cannot_be_taught_says_why(
    request_of: Callable[..., PatchMakeRequest], bundle: Path
) -> None:
    with pytest.raises(InputError, match="its gates are untrained"):
        make_patch_of_facts(request_of(bundle=bundle, stats=None, held_out=()))
    facts = ({"prompt": "Only Alexander the", "target": " horse"},)
    with pytest.raises(InputError, match="is read as little as --max-traffic 0 asks"):
        make_patch_of_facts(request_of(facts=facts, max_traffic=0.0, rows_per_token="all"))
    assert not request_of().out.exists()


def test_an_interrupted_run_leaves_no_patch(request_of: Callable[..., PatchMakeRequest]) -> None:
    class Interrupt(Silent):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    request = request_of()
    with pytest.raises(KeyboardInterrupt):
        make_patch_of_facts(request, Interrupt())
    assert not request.out.exists()
    assert [each.name for each in request.out.parent.iterdir()] == ["facts.jsonl"]


def test_options_are_checked(request_of: Callable[..., PatchMakeRequest]) -> None:
    for options in ({"rate": 0.0}, {"rate": float("nan")}, {"max_traffic": -1.0}, {"steps": 0}):
        with pytest.raises(InputError):
            request_of(**options)
    assert (read_rows("16"), read_rows("all")) == (16, "all")
    for text in ("0", "-1", "some", "1.5", ""):
        with pytest.raises(ValueError, match="is not all or a number"):
            read_rows(text)


def test_the_result_is_plain_data(request_of: Callable[..., PatchMakeRequest]) -> None:
    from engram_cli.cli.patching import make_parts

    result: PatchMakeResult = make_patch_of_facts(request_of(rows_per_token=1, steps=1))
    assert len(make_parts(result)) >= 2
