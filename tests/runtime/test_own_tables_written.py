"""Bundles on disk that refer to a checkpoint's files: written by `engram attach`, read back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_tables import QWEN_EOS, StreamDecoder, bare_qwen, deepseek, quiet, qwen, qwen_config, save
from tiny_models import text
from transformers import AutoModelForCausalLM, PreTrainedModel

import engram_cli.hf
from engram_cli import attach
from engram_cli.commands.attach.command import AttachResult, attach_checkpoint
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import hash_stats
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.load_model import load_model
from engram_cli.commands.requests.corpus import HashStatsRequest
from engram_cli.commands.requests.tables import AttachRequest
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.errors import ArtifactError, EngramError, InputError, MismatchError
from engram_cli.formats.bundle import read_bundle
from engram_cli.stats.stats_io import read_stats
from engram_cli.vocab.compress import CompressedVocab

engram_cli.hf.disable()  # until a test enables it


def refer(path: Path, **options: Any) -> AttachResult:
    """`engram attach CKPT --table CKPT --reference`."""
    return attach_checkpoint(AttachRequest(checkpoint=path, table=path, reference=True, **options))


@pytest.fixture
def saved(tmp_path: Path) -> tuple[PreTrainedModel, Path]:
    """Qwen4-Exp and its checkpoint, with a bundle in it that refers to it."""
    model = qwen()
    path = save(model, tmp_path / "ckpt")
    refer(path)
    return model, path


def same(whole: PreTrainedModel, path: Path, bundle: Path, **options: Any) -> None:
    """The bundle gives the model its own logits."""
    bare, ids = bare_qwen(path), text(300, 1, 12)
    attach(bare, bundle, **options)
    with torch.no_grad():
        torch.testing.assert_close(bare(ids).logits, whole(ids).logits, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("placement", ["hbm", "disk"])
def test_no_row_is_copied(saved: tuple[PreTrainedModel, Path], placement: str) -> None:
    whole, path = saved
    same(whole, path, path, placement=placement)
    files = {file.name for file in (path / "engram").iterdir()}
    assert files == {"engram.json", "dense.safetensors", "README.md"}
    document = json.loads((path / "engram" / "engram.json").read_text())
    assert (document["version"], document["checkpoint"]["path"]) == (3, "..")
    assert list(document["checkpoint"]["files"]) == ["model.safetensors"]


def test_the_folder_may_move(saved: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    whole, path = saved
    moved = path.rename(tmp_path / "moved")
    same(whole, moved, moved)


def test_a_bundle_elsewhere(tmp_path: Path) -> None:
    whole = qwen()
    path = save(whole, tmp_path / "ckpt")
    result = refer(path, out=tmp_path / "other" / "engram")
    assert result.trained
    assert not result.identity
    same(whole, path, tmp_path / "other" / "engram")


def touch(file: Path) -> None:
    stat = file.stat()
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"\0")


def rewrite_head(file: Path) -> None:
    """Other bytes, the size and time of before."""
    stat, raw = file.stat(), bytearray(file.read_bytes())
    raw[-3] ^= 1
    raw[3000] ^= 1
    file.write_bytes(raw)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (touch, "written to at another time"),
        (grow, "bytes, not"),
        (rewrite_head, "first 64 KiB are others"),
    ],
)
def test_a_changed_file_is_noticed(
    saved: tuple[PreTrainedModel, Path], change: Callable[[Path], None], message: str
) -> None:
    _, path = saved
    change(path / "model.safetensors")
    with pytest.raises(MismatchError, match=message) as caught:
        attach(bare_qwen_of(path), path)
    assert "--force" in (caught.value.hint or "")


def bare_qwen_of(path: Path) -> PreTrainedModel:
    """A model of the checkpoint's sizes; its weights may be damaged."""
    return qwen(ple_layer_ids=[])


def test_a_missing_file_is_noticed(saved: tuple[PreTrainedModel, Path]) -> None:
    _, path = saved
    (path / "model.safetensors").rename(path / "gone")
    with pytest.raises(InputError, match=r"model\.safetensors, which cannot be read"):
        read_bundle(path / "engram")


Change = Callable[[dict[str, Any]], None]


def spans_of(document: dict[str, Any]) -> list[list[Any]]:
    return document["checkpoint"]["parts"][0]["spans"]


CHANGES: dict[str, Change] = {
    "a file above the folder": lambda d: spans_of(d)[0].__setitem__(0, "../ckpt/model.safetensors"),
    "a file that is not listed": lambda d: spans_of(d)[0].__setitem__(0, "other.safetensors"),
    "beyond the file": lambda d: spans_of(d)[0].__setitem__(1, 2**40),
    "negative": lambda d: spans_of(d)[0].__setitem__(1, -8),
    "rows that overlap": lambda d: spans_of(d)[1].__setitem__(2, 0),
    "a gap": lambda d: spans_of(d)[1].__setitem__(3, 1),
    "huge": lambda d: spans_of(d)[0].__setitem__(3, 2**61),
    "a stride below a row": lambda d: spans_of(d)[0].__setitem__(4, 1),
    "no spans": lambda d: d["checkpoint"]["parts"].pop(),
    "a scale": lambda d: d["checkpoint"]["scales"].update({"2": 1.0}),
    "no path": lambda d: d["checkpoint"].update(path=""),
    "a file of text": lambda d: d["checkpoint"]["files"].update({"model.safetensors": "x"}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_spans_that_cannot_be(saved: tuple[PreTrainedModel, Path], what: str) -> None:
    _, path = saved
    file = path / "engram" / "engram.json"
    document = json.loads(file.read_text())
    CHANGES[what](document)
    file.write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="is not a bundle"):
        read_bundle(path / "engram")


def test_inspect_and_verify(saved: tuple[PreTrainedModel, Path], tmp_path: Path) -> None:
    _, path = saved
    bundle = path / "engram"
    found = inspect(InspectRequest(path=bundle, folder=tmp_path))
    assert any("qwen-ple checkpoint" in text for _, text in found.facts)
    assert verify(VerifyRequest(path=bundle, folder=tmp_path)).ok
    with (path / "model.safetensors").open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"\xff\xff\xff\xff")
    assert not verify(VerifyRequest(path=bundle, folder=tmp_path)).ok


def test_deepseek_with_the_models_tokenizer(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    """The bundle keeps the token map, so that loading it needs no tokenizer."""
    own = deepseek(tmp_path / "ckpt", small_vocab, changes={"vocab_size": small_vocab.vocab_size})
    shutil.copy(tokenizer_file, own.path / "tokenizer.json")
    result = refer(own.path)
    assert result.trained
    (own.path / "tokenizer.json").unlink()
    model = StreamDecoder(small_vocab.vocab_size)
    memory = attach(model, own.path, placement="disk")
    weights = memory.layers["3"].state_dict()
    assert np.array_equal(weights["wkv.weight"].numpy(), own.dense[3].wkv)


def test_a_fresh_module_when_asked(tmp_path: Path) -> None:
    path = save(qwen(), tmp_path / "ckpt")
    result = refer(path, init_gate="even")
    assert result.identity
    assert not result.trained


def test_copied_rows_keep_the_gates(tmp_path: Path) -> None:
    """Without --reference the rows are copied, and the module is the checkpoint's too."""
    whole = qwen()
    path = save(whole, tmp_path / "ckpt")
    result = attach_checkpoint(
        AttachRequest(checkpoint=path, table=path, out=tmp_path / "copy" / "engram")
    )
    assert result.trained
    for file in path.iterdir():
        if file.suffix == ".safetensors":
            touch(file)  # the copy does not depend on it
    same(whole, path, tmp_path / "copy" / "engram")


def test_another_model(tmp_path: Path) -> None:
    """Rows of one model under new gates in another of the same vocabulary."""
    path = save(qwen(ple_layer_ids=[2]), tmp_path / "ckpt")
    other = save(qwen(ple_layer_ids=[], hidden_size=64), tmp_path / "other")
    result = attach_checkpoint(AttachRequest(checkpoint=other, table=path, reference=True))
    assert result.identity
    assert result.reference == str(path.resolve())
    with pytest.raises(EngramError, match="Engram layers of its own"):
        attach_checkpoint(AttachRequest(checkpoint=path, table=other / "engram"))


def test_from_pretrained_leaves_the_own_table_to_the_memory(
    saved: tuple[PreTrainedModel, Path],
) -> None:
    """With `engram_cli.hf` a model comes with the memory of its own table, and nothing twice."""
    whole, path = saved
    ids = text(300, 1, 12)
    engram_cli.hf.enable(placement="disk")
    try:
        with quiet():
            models = [
                AutoModelForCausalLM.from_pretrained(path),
                type(whole).from_pretrained(path),
                type(whole).from_pretrained(str(path), config=qwen_config()),
            ]
    finally:
        engram_cli.hf.disable()
    for model in models:
        assert model.engram.notes == ()
        assert all(layer.ple is None for layer in model.model.layers)
        with torch.no_grad():
            found, expected = model.eval()(ids).logits, whole(ids).logits
        torch.testing.assert_close(found, expected, atol=4e-6, rtol=4e-6)


def test_commands_load_it_without_the_own_table(saved: tuple[PreTrainedModel, Path]) -> None:
    _, path = saved
    assert all(layer.ple is None for layer in load_model(path).model.layers)
    (path / "engram" / "engram.json").unlink()
    assert any(layer.ple is not None for layer in load_model(path).model.layers)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of everything inside a JSON value."""
    if not isinstance(value, dict | list):
        return [path]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(each for key, own in inner for each in places(own, (*path, key)))]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damage_gives_our_own_errors(
    saved: tuple[PreTrainedModel, Path], data: st.DataObject
) -> None:
    bundle = saved[1] / "engram"
    file = bundle / "engram.json"
    original = file.read_text()
    document = json.loads(original)
    wrong = [None, -1, 0, 1, 2**63, 1.5, float("nan"), "x", "..", "/etc", "\0", [], [5], {}, True]
    path = data.draw(st.sampled_from(places(document["checkpoint"])))
    target = document
    for key in ("checkpoint", *path)[:-1]:
        target = target[key]
    target[("checkpoint", *path)[-1]] = data.draw(st.sampled_from(wrong))
    file.write_text(json.dumps(document))
    try:
        with contextlib.suppress(EngramError):
            opened = read_bundle(bundle)
            assert opened.spec.layers == (2, 3)
            for layer in opened.spec.layers:
                assert sum(map(len, opened.maps(layer))) == opened.spec.rows(layer)
    finally:
        file.write_text(original)


@pytest.mark.parametrize("reference", [True, False])
def test_statistics_say_which_rows_are_hot(tmp_path: Path, reference: bool) -> None:
    """Hits of a corpus, counted with the checkpoint's hash, choose rows for the fastest memory."""
    whole = qwen(ple_layer_ids=[2], ngram_vocab_size_base=20011)
    path, stats = save(whole, tmp_path / "ckpt"), tmp_path / "stats"
    corpus = tmp_path / "ids.npy"
    np.save(corpus, np.random.default_rng(0).integers(8, 60, 4000).astype(np.uint16))
    geometry = Geometry(
        scheme="qwen-ple", vocab_size=300, eos_id=QWEN_EOS, layers=(2,), rows_per_head=(20011,)
    )
    hash_stats(HashStatsRequest(sources=(str(corpus),), geometry=geometry, out=stats))
    result = (
        refer(path, stats=stats)
        if reference
        else attach_checkpoint(AttachRequest(checkpoint=path, table=path, stats=stats))
    )
    assert result.cost.hits_bytes == 4 * result.rows[2]
    assert any(name.startswith("rows-") for name in result.files) is not reference
    bundle = read_bundle(path / "engram")
    assert np.array_equal(bundle.hits(2), read_stats(stats).hits(2))
    bare, ids = bare_qwen(path), text(60, 1, 12)
    memory = attach(bare, path, placement="hbm=3MB,disk")
    with torch.no_grad():
        torch.testing.assert_close(bare(ids).logits, whole(ids).logits, atol=4e-6, rtol=4e-6)
    assert memory.counters.hot > 0
    other = save(qwen(ple_layer_ids=[3]), tmp_path / "other")
    with pytest.raises(InputError, match="counted with layout"):
        refer(other, stats=stats)
