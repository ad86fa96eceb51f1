"""Patches on an attached bundle: the model computes as with the edited rows, the files stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from patching.patched import encoded
from tiny_models import llama, logits, make_layout, make_spec, text, wake
from torch import Tensor

from engram_cli.errors import InputError, MismatchError
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_rows import bundle_rows
from engram_cli.formats.bundle_writer import write_bundle
from engram_cli.formats.module_spec import first_values
from engram_cli.patches.making import make_patch
from engram_cli.patches.patch import Patch
from engram_cli.patches.patch_file import write_patch
from engram_cli.rows import DTYPES
from engram_cli.rows.source import HITS, ROWS, SCALES
from engram_cli.runtime import attach, detach, load, save_engram
from engram_cli.runtime.tiers.staging import VARIABLE
from engram_cli.vocab.compress import CompressedVocab

DIM = 33  # two blocks, the last of one value
PLACEMENTS = (
    "hbm",
    "host",
    "disk",
    "host,shared",
    "hbm=12KB,host",
    "hbm=12KB,disk",
    "shard=2",
    "hbm=8KB,shard=2,host",
)


@pytest.fixture(autouse=True)
def _small_staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_base: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text('{"block_bytes": 4096, "ahead_bytes": 0, "ring_buffer_bytes": 4096}')
    monkeypatch.setenv(VARIABLE, str(path))


def base_of(path: Path, vocab: CompressedVocab, dtype: str) -> Path:
    """A bundle of random rows in several files, with hits."""
    spec = make_spec(make_layout(vocab), dtype, dim=DIM)
    held: dict[tuple[int, str], Any] = {}
    for layer in spec.layers:
        values = np.random.default_rng(layer).standard_normal((spec.rows(layer), DIM))
        rows, scales = encoded(dtype, values.astype(np.float32))
        hits = np.random.default_rng(9).integers(0, 9, spec.rows(layer)).astype("<u4")
        held |= {(layer, ROWS): rows, (layer, SCALES): scales, (layer, HITS): hits}
    write_bundle(
        path,
        spec,
        lambda layer: [(0, held[layer, ROWS])],
        lambda layer, zero: first_values(spec.dense_parts, layer=layer, seed=0, zero_rows=zero),
        scales=lambda layer: [(0, held[layer, SCALES])],
        hits=lambda layer: [(0, held[layer, HITS])],
        tool_version="0",
        shard_bytes=4096 + 150 * spec.row_bytes,
    )
    return path


def patch_of(bundle: Path, *, every: int = 3, seed: int = 5, first: int = 0) -> Patch:
    """A patch of every third row from `first` on, and of the last."""
    source = bundle_rows(read_bundle(bundle))
    generator = np.random.default_rng(seed)
    changed = {}
    for layer in source.layers:
        rows = source.layout.layer(layer).rows
        ids = np.unique([*range(first, rows, every), rows - 1])
        changed[layer] = ids, generator.standard_normal((len(ids), DIM)).astype(np.float32)
    return make_patch(source, changed)


def edited(bundle: Path, out: Path, *patches: Patch) -> Path:
    """A bundle with the rows of the patches, written row by row."""
    opened = read_bundle(bundle)
    spec, held = opened.spec, {}
    for layer in spec.layers:
        for part in spec.parts:
            whole = held[layer, part] = np.concatenate(opened.maps(layer, part))
            for patch in patches:
                own = patch.layers[layer]
                new = own.rows if part == ROWS else own.row_scales
                for at, row in enumerate([] if new is None else own.ids.tolist()):
                    whole[row] = new[at]
    write_bundle(
        out,
        spec,
        lambda layer: [(0, held[layer, ROWS])],
        lambda layer, _: opened.dense[layer],
        scales=lambda layer: [(0, held[layer, SCALES])],
        tool_version="0",
    )
    return out


def computed(bundle: Path, vocab: CompressedVocab, **options: Any) -> Tensor:
    """What a model computes with a bundle attached."""
    model = llama(vocab.vocab_size)
    wake(attach(model, bundle, **options))
    found = logits(model, text(vocab.vocab_size, 2, 24))
    detach(model)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", tuple(DTYPES))
def test_a_model_computes_as_with_the_edited_rows(
    dtype: str, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    """In every placement, to the bit."""
    bundle = base_of(tmp_path / "base", small_vocab, dtype)
    before, patch = contents(bundle), patch_of(bundle)
    expected = computed(edited(bundle, tmp_path / "edited", patch), small_vocab)
    assert not torch.equal(expected, computed(bundle, small_vocab))
    for placement in PLACEMENTS:
        found = computed(bundle, small_vocab, placement=placement, patches=[patch])
        assert torch.equal(found, expected), placement
    assert contents(bundle) == before


@pytest.mark.parametrize("placement", ["hbm", "host", "disk"])
def test_a_stack_is_the_patches_in_turn(
    placement: str, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = base_of(tmp_path / "base", small_vocab, "int8_b32")
    one, two = patch_of(bundle), patch_of(bundle, every=4, seed=6)
    write_patch(tmp_path / "one", one)
    expected = computed(edited(bundle, tmp_path / "edited", one, two), small_vocab)
    other = computed(edited(bundle, tmp_path / "other", two, one), small_vocab)
    assert not torch.equal(expected, other)
    for order, wanted in (([tmp_path / "one", two], expected), ([two, one], other)):
        found = computed(bundle, small_vocab, placement=placement, patches=order)
        assert torch.equal(found, wanted)


def test_what_two_patches_say_of_one_row_is_noted(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = base_of(tmp_path / "base", small_vocab, "bfloat16")
    one, two = patch_of(bundle), patch_of(bundle, every=6, seed=6)
    met = sum(len(own) for own in two.layers.values())
    model = llama(small_vocab.vocab_size)
    memory = attach(model, bundle, patches=[one, two])
    assert memory.notes[0].startswith("2 patches: ")
    assert f"patches 1 and 2 give {met} rows other values, such as row 0" in memory.notes[1]
    detach(model)
    # Made for what the first leaves, the second knows it.
    after = patch_of(edited(bundle, tmp_path / "after", one), every=6, seed=6)
    memory = attach(model, bundle, patches=[one, after])
    assert not any("other values" in note for note in memory.notes)


def test_saved_rows_have_the_patches_and_loaded_ones_have_not(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    bundle = base_of(tmp_path / "base", small_vocab, "bfloat16")
    patch = patch_of(bundle)
    expected = bundle_rows(read_bundle(edited(bundle, tmp_path / "edited", patch)))
    for placement in ("hbm", "disk"):
        model = llama(small_vocab.vocab_size)
        attach(model, bundle, placement=placement, patches=[patch])
        out = save_engram(model, tmp_path / placement)
        found = bundle_rows(read_bundle(out))
        for layer in found.layers:
            rows = range(found.layout.layer(layer).rows)
            assert np.array_equal(found.stored(layer, rows)[0], expected.stored(layer, rows)[0])
        load(model, bundle)
        assert torch.equal(
            logits(model, text(small_vocab.vocab_size, 1, 9)),
            plain(bundle, small_vocab, text(small_vocab.vocab_size, 1, 9)),
        )


def plain(bundle: Path, vocab: CompressedVocab, ids: Tensor) -> Tensor:
    model = llama(vocab.vocab_size)
    attach(model, bundle)
    return logits(model, ids)


def test_a_shared_copy_with_patches_is_another_one(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    """Both at the same time, in one process."""
    bundle = base_of(tmp_path / "base", small_vocab, "fp8_e8m0")
    patch, ids = patch_of(bundle), text(small_vocab.vocab_size, 2, 24)
    models = [llama(small_vocab.vocab_size) for _ in range(2)]
    for model, patches in zip(models, ([], [patch]), strict=True):
        wake(attach(model, bundle, placement="host,shared", patches=patches))
    found = [logits(model, ids) for model in models]
    assert torch.equal(found[0], computed(bundle, small_vocab))
    assert torch.equal(found[1], computed(bundle, small_vocab, patches=[patch]))


def test_patches_that_do_not_fit_are_refused(tmp_path: Path, small_vocab: CompressedVocab) -> None:
    bundle = base_of(tmp_path / "base", small_vocab, "float32")
    model = llama(small_vocab.vocab_size)
    other = patch_of(base_of(tmp_path / "other", small_vocab, "bfloat16"))
    with pytest.raises(MismatchError, match="bfloat16"):
        attach(model, bundle, patches=[other])
    edit = edited(bundle, tmp_path / "edited", patch_of(bundle))
    made_for_the_edit = patch_of(edit, seed=7)
    with pytest.raises(MismatchError, match="another bundle") as caught:
        attach(model, bundle, patches=[made_for_the_edit])
    assert "any_base=True" in caught.value.hint
    assert not hasattr(model, "engram")
    attach(model, bundle, patches=[made_for_the_edit], any_base=True)
    detach(model)
    with pytest.raises(InputError, match="cannot read"):
        attach(model, bundle, patches=[tmp_path / "nothing"])
