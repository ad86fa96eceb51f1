"""Named geometries: the totals that were published come out of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engram_cli.commands.geometry import PRESETS, Geometry, find_preset, with_preset
from engram_cli.errors import InputError
from engram_cli.formats.bundle_spec import decoder_index
from engram_cli.hashing.schemes import hash_layout
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.parquet import write_vocab


@pytest.fixture(scope="module")
def vocab(tmp_path_factory: pytest.TempPathFactory, deepseek_vocab: CompressedVocab) -> Path:
    """DeepSeek's compressed vocabulary."""
    path = tmp_path_factory.mktemp("vocab") / "engram-vocab.parquet"
    write_vocab(deepseek_vocab, path)
    return path


def test_deepseek_has_the_released_rows(vocab: Path) -> None:
    layout = find_preset("deepseek-v4.1").geometry.resolve(vocab)
    assert [entry.rows for entry in layout.layers] == [384_006_168, 384_016_682]
    assert layout.layer(14).multipliers[0] == 67716810739261


def test_the_demo_has_its_multipliers_and_widths(vocab: Path) -> None:
    preset = find_preset("engram-v1-demo")
    layout = preset.geometry.resolve(vocab)
    assert layout.layer(1).multipliers == (76632096046245, 4839876093313, 35959672319349)
    assert layout.heads * preset.dim == 512


def test_qwen_has_the_released_shards(tmp_path: Path) -> None:
    preset = find_preset("qwen-ple")
    layout = preset.geometry.resolve(tmp_path / "none")
    assert layout.layers[0].rows == 320_001_536 == 128 * 2_500_012
    assert preset.dim == 160


def test_the_papers_27b_has_its_5_7_billion(vocab: Path) -> None:
    preset = find_preset("engram-27b")
    layout = preset.geometry.resolve(vocab)
    values = sum(entry.rows for entry in layout.layers) * preset.dim
    assert 5.7e9 < values < 5.8e9
    assert layout.columns * preset.dim == 1280


@pytest.mark.parametrize(
    ("name", "decoder_layers"),
    [
        ("engram-v1-demo", [1, 15]),
        ("deepseek-v4.1", [1, 14]),  # the release: layers.1.engram and layers.14.engram
        ("qwen-ple", [1]),  # the release: ple_layer_ids [2], counted from one
        ("engram-27b", [1, 14]),  # the paper: layers 2 and 15, counted from one
    ],
)
def test_every_preset_lies_in_the_published_decoder_layers(
    vocab: Path, name: str, decoder_layers: list[int]
) -> None:
    layout = find_preset(name).geometry.resolve(vocab)
    assert [decoder_index(layout, layer) for layer in layout.layer_ids] == decoder_layers


def test_every_preset_has_a_placement_test() -> None:
    assert set(PRESETS) == {"engram-v1-demo", "deepseek-v4.1", "qwen-ple", "engram-27b"}


def test_the_schemes_defaults_lie_where_their_presets_do(deepseek_vocab: CompressedVocab) -> None:
    assert hash_layout("qwen-ple").layer_ids == (2,)
    assert hash_layout("qwen-ple").layers[0].multipliers == (
        23703573157769,
        20109073645365,
        8052911324071,
    )
    assert hash_layout("deepseek-v4.1", deepseek_vocab).layer_ids == (1, 14)
    assert hash_layout("engram-v1", deepseek_vocab).layer_ids == (1, 15)


def test_other_choices_win_and_names_are_checked() -> None:
    for name, preset in PRESETS.items():
        assert with_preset(name, Geometry()) == preset.geometry
        assert with_preset(name, Geometry(layers=(3,))).layers == (3,)
    assert with_preset(None, Geometry(heads=4)) == Geometry(heads=4)
    with pytest.raises(InputError, match="which is qwen-ple"):
        with_preset("qwen-ple", Geometry(scheme="engram-v1"))
    with pytest.raises(InputError, match="unknown preset 'demo'"):
        find_preset("demo")
