"""attach: what it writes, what it says first, and what it refuses to bring together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attaching import LLAMA, Listener, build, configure, request

from engram_cli.commands.attach import layers as attach_layers
from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.checkpoint import read_model_shape
from engram_cli.errors import InputError, MismatchError, OutputError, VocabularyError
from engram_cli.formats.bundle import read_bundle
from engram_cli.table.inits import make_init
from engram_cli.table.store import open_table
from engram_cli.vocab import kept
from engram_cli.vocab.compress import CompressedVocab
from engram_cli.vocab.kept import token_map
from engram_cli.vocab.lookup import VocabMap
from engram_cli.vocab.parquet import write_vocab


def test_the_bundle_holds_the_table_and_an_identity(checkpoint: Path, table: Path) -> None:
    listener = Listener()
    result = attach_checkpoint(request(checkpoint, table), listener)
    bundle = read_bundle(checkpoint / "engram", verify=True)
    store = open_table(table)

    assert result.written
    assert result.out == checkpoint / "engram"
    assert bundle.spec.layout.fingerprint == store.layout.fingerprint
    assert (bundle.spec.layers, bundle.spec.dtype, bundle.spec.dim) == ((1, 2), "bfloat16", 8)
    assert (bundle.spec.hidden_size, bundle.spec.num_layers) == (32, 4)
    for layer in (1, 2):
        rows = np.concatenate([rows for _, rows in store.chunks(layer)])
        assert np.array_equal(np.concatenate(bundle.maps(layer)), rows)
        assert not bundle.dense[layer]["value_proj.weight"].any()
    assert result.zero_rows == ()
    assert listener.done == listener.total == result.cost.table_bytes
    sizes = {path.name: path.stat().st_size for path in (checkpoint / "engram").iterdir()}
    assert sizes == dict(result.files)


def test_the_arithmetic_is_right_and_comes_first(checkpoint: Path, table: Path) -> None:
    listener = Listener()
    result = attach_checkpoint(request(checkpoint, table, dry_run=True), listener)
    assert not result.written
    assert not (checkpoint / "engram").exists()
    rows = sum(open_table(table).layout.layer(layer).rows for layer in (1, 2))
    assert result.cost.table_bytes == rows * 8 * 2
    assert (result.cost.token_rows, result.cost.token_bytes) == (8, 8 * 8 * 2)
    # value and key 32 x 32 with a bias, three norms, a convolution of 4 taps: for two layers
    assert result.cost.dense_parameters == 2 * (2 * (32 * 32 + 32) + 3 * 32 + 32 * 4)
    assert result.cost.dense_bytes == 4 * result.cost.dense_parameters
    assert f"{result.cost.table_bytes:,} bytes" in listener.notes[0]
    assert listener.total is None

    full = Listener()
    written = attach_checkpoint(request(checkpoint, table), full)
    assert full.notes == listener.notes
    with pytest.raises(OutputError, match="already exists"):
        attach_checkpoint(request(checkpoint, table))
    again = attach_checkpoint(request(checkpoint, table, dry_run=True))
    assert "already exists; use --force" in str(again.in_the_way)
    assert again.cost == result.cost
    forced = attach_checkpoint(request(checkpoint, table, dry_run=True, force=True))
    assert forced.in_the_way is None
    for dry_run in (False, True):
        with pytest.raises(InputError, match="unknown init-gate 'shut'"):
            attach_checkpoint(request(checkpoint, table, dry_run=dry_run, init_gate="shut"))
    assert written.cost == result.cost
    dense = (checkpoint / "engram" / "dense.safetensors").stat().st_size
    assert 0 <= dense - result.cost.dense_bytes <= 8192


def test_the_vocabulary_is_looked_up_only_if_no_file_has_its_digest(
    checkpoint: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary next to the table says which tokenizer it was made from."""
    calls = []

    def counted(source: Path, fits: Callable[[VocabMap], bool]) -> VocabMap:
        calls.append(source)
        return token_map(source, fits)

    monkeypatch.setattr(attach_layers, "token_map", counted)
    table = build(checkpoint.parent / "engram-table.zarr", small_vocab)
    attach_checkpoint(request(checkpoint, table, dry_run=True))
    assert calls == [checkpoint / "tokenizer.json"]

    write_vocab(small_vocab, checkpoint.parent / "engram-vocab.parquet")
    attach_checkpoint(request(checkpoint, table, dry_run=True))
    assert len(calls) == 1

    other = json.loads((checkpoint / "tokenizer.json").read_text())
    other["model"]["vocab"] = dict(list(other["model"]["vocab"].items())[:-1])
    (checkpoint / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises((MismatchError, VocabularyError)):
        attach_checkpoint(request(checkpoint, table, dry_run=True))
    assert len(calls) == 2


def test_equal_requests_write_equal_bytes(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        attach_checkpoint(request(checkpoint, table, out=tmp_path / name, seed=seed))
    one, two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two", "three")
    )
    assert one == two
    assert one["dense.safetensors"] != three["dense.safetensors"]


def test_some_of_the_layers(checkpoint: Path, table: Path) -> None:
    attach_checkpoint(request(checkpoint, table, layers=(2,)))
    bundle = read_bundle(checkpoint / "engram")
    assert bundle.spec.layers == (2,)
    assert bundle.spec.layout.layer_ids == (1, 2), "the layout stays the table's"


def test_a_table_of_zeros_gets_a_random_value_projection(
    checkpoint: Path, tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    table = build(tmp_path / "zeros.zarr", small_vocab, init=make_init("zeros"))
    result = attach_checkpoint(request(checkpoint, table))
    assert result.zero_rows == (1, 2)
    assert read_bundle(checkpoint / "engram").dense[1]["value_proj.weight"].any()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "vocab_size": 512},
        {"model_type": "gemma3", "vision_config": {"hidden_size": 7}, "text_config": LLAMA},
        {
            "model_type": "t5",
            "is_encoder_decoder": True,
            "d_model": 32,
            "num_layers": 7,
            "num_decoder_layers": 4,
            "vocab_size": 512,
        },
        LLAMA
        | {"model_type": "bart", "is_encoder_decoder": True}
        | {"num_hidden_layers": 7, "decoder_layers": 4},
    ],
)
def test_sizes_by_other_names_and_places(checkpoint: Path, config: dict[str, Any]) -> None:
    configure(checkpoint, config)
    shape = read_model_shape(checkpoint)
    assert (shape.model_type, shape.hidden_size, shape.num_layers, shape.vocab_size) == (
        config["model_type"],
        32,
        4,
        512,
    )


@pytest.mark.parametrize(
    ("count", "layers", "options", "expected"),
    [
        (4, (1, 2), {}, {1: 1, 2: 2}),
        (4, (1, 15), {}, {1: 1, 15: 2}),  # the demo's layers: the middle one of four
        (30, (1, 15), {}, {1: 1, 15: 15}),
        (4, (7, 15), {}, {7: 1, 15: 2}),
        (4, (2, 15), {}, {2: 2, 15: 1}),  # the middle one is taken
        (2, (1, 15), {}, {1: 1, 15: 0}),
        (4, (15,), {}, {15: 1}),
        (4, (1, 15), {"at": (0, 3)}, {1: 0, 15: 3}),
        (4, (1, 15), {"at": (3,), "layers": (15,)}, {15: 3}),
        (4, (1, 15), {"at": (3, 0), "layers": (15, 1)}, {1: 0, 15: 3}),
        (4, (1, 2, 15), {"at": (0, 1, 3)}, {1: 0, 2: 1, 15: 3}),
        (4, (1, 2, 15), {"layers": (1, 2, 15)}, {1: 1, 2: 2, 15: 3}),
    ],
)
def test_layers_lie_on_decoder_layers_that_exist(
    checkpoint: Path,
    tmp_path: Path,
    small_vocab: CompressedVocab,
    count: int,
    layers: tuple[int, ...],
    options: dict[str, Any],
    expected: dict[int, int],
) -> None:
    configure(checkpoint, LLAMA | {"num_hidden_layers": count})
    table = build(tmp_path / "t.zarr", small_vocab, layers=layers, heads=1)
    listener = Listener()
    result = attach_checkpoint(request(checkpoint, table, **options), listener)
    spec = read_bundle(checkpoint / "engram").spec
    assert {layer: spec.index(layer) for layer in spec.layers} == expected
    assert dict(zip(result.layers, result.decoder_layers, strict=True)) == expected
    assert listener.notes[0].startswith("into decoder layer")
    assert "counted from 0" in listener.notes[0]
    document = json.loads((checkpoint / "engram" / "engram.json").read_text())
    mapped = any(layer != place for layer, place in expected.items())
    assert document["version"] == (2 if mapped else 1)
    assert {entry["layer"]: entry["decoder_layer"] for entry in document["layers"]} == expected


def test_layers_of_qwen_ple_count_from_one(tmp_path: Path, checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()  # raw ids: no tokenizer is needed
    table = build(
        tmp_path / "ple.zarr", None, scheme="qwen-ple", vocab_size=512, eos_id=1, layers=(1, 4)
    )
    attach_checkpoint(request(checkpoint, table))
    spec = read_bundle(checkpoint / "engram").spec
    assert [spec.index(layer) for layer in spec.layers] == [0, 3]
    configure(checkpoint, LLAMA | {"num_hidden_layers": 3})
    result = attach_checkpoint(request(checkpoint, table, force=True))
    assert (result.layers, result.decoder_layers) == ((1, 4), (0, 1))
    assert "no decoder layer 3" in result.why
    configure(checkpoint, LLAMA | {"vocab_size": 513})
    with pytest.raises(MismatchError, match="hashes 512 token ids, the checkpoint has 513"):
        attach_checkpoint(request(checkpoint, table, force=True))


@pytest.mark.parametrize("module", ["engram-v1", "deepseek-v4.1", "qwen-ple"])
def test_the_module_is_the_schemes_or_the_one_named(
    checkpoint: Path, table: Path, module: str
) -> None:
    configure(checkpoint, LLAMA | {"rms_norm_eps": 1e-5, "hc_mult": 2})
    assert attach_checkpoint(request(checkpoint, table, dry_run=True)).module == "engram-v1"
    attach_checkpoint(request(checkpoint, table, module=module))
    bundle = read_bundle(checkpoint / "engram")
    assert (bundle.spec.module.kind, bundle.spec.module.streams) == (module, 2)
    assert bundle.spec.module.norm_eps == (None if module == "engram-v1" else 1e-5)
    value = {"deepseek-v4.1": "wkv.weight"}.get(module, "value_proj.weight")
    assert not bundle.dense[1][value][-32:].any()


def test_how_it_starts(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    def dense(**options: Any) -> Any:
        result = attach_checkpoint(request(checkpoint, table, force=True, **options))
        assert result.identity == (options.get("init_value") != "random")
        return read_bundle(checkpoint / "engram").dense[2]

    assert dense(init_value="random")["value_proj.weight"].any()
    assert not dense(init_value="zero")["value_proj.weight"].any()
    assert (dense(init_gate="even")["norm1.0.weight"] == np.float32(0.01)).all()
    centred = dense(init_gate="even", module="qwen-ple")["norm_key.weight"]
    assert np.allclose(1 + centred, 0.01)
    for bad in ({"init_value": "best"}, {"init_gate": "open"}, {"module": "mine"}):
        with pytest.raises(InputError, match=next(iter(bad.values()))) as caught:
            attach_checkpoint(request(checkpoint, table, force=True, **bad))
        assert "known: " in caught.value.hint


def test_packing_is_recorded(checkpoint: Path, table: Path) -> None:
    for packed in (False, True):
        attach_checkpoint(request(checkpoint, table, packed=packed, force=True))
        assert read_bundle(checkpoint / "engram").spec.packed is packed


def test_layers_that_suit_the_model(
    checkpoint: Path, tmp_path: Path, small_vocab: CompressedVocab, table: Path
) -> None:
    many = build(tmp_path / "many.zarr", small_vocab, layers=(0, 2, 5, 7, 11))
    configure(checkpoint, LLAMA | {"num_hidden_layers": 12})
    result = attach_checkpoint(request(checkpoint, many, dry_run=True))
    assert result.layers == (0, 5)
    assert "nearest to the second and to the middle of the model's 12" in result.why
    result = attach_checkpoint(request(checkpoint, many, dry_run=True, layers=(2, 7, 11)))
    assert (result.layers, result.why) == ((2, 7, 11), "as asked")
    result = attach_checkpoint(request(checkpoint, table, dry_run=True))
    assert (result.layers, result.why) == ((1, 2), "all that the table has")


def test_into_another_folder_with_a_card(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    result = attach_checkpoint(request(checkpoint, table, into=tmp_path / "hub"))
    assert result.out == tmp_path / "hub" / "engram"
    card = (result.out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: engram-tables\n")
    bundle = read_bundle(result.out, verify=True)
    assert bundle.spec.layout.fingerprint in card
    assert f"{result.cost.table_bytes:,} bytes" in card
    (result.out / "README.md").write_text("my own words")
    read_bundle(result.out, verify=True)
    with pytest.raises(InputError, match="both --out and --into"):
        attach_checkpoint(request(checkpoint, table, into=tmp_path, out=tmp_path / "x"))


def test_each_file_of_a_copied_table_is_read_once(
    checkpoint: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    before = Path.open

    def counted(path: Path, *args: Any, **others: Any) -> Any:
        opened.append(path)
        return before(path, *args, **others)

    monkeypatch.setattr(Path, "open", counted)
    attach_checkpoint(AttachRequest(checkpoint=checkpoint, table=table, threads=2))
    chunks = sorted(table.rglob("c.*.0"))
    assert sorted(path for path in opened if path in chunks) == chunks


def test_a_wrong_map_in_the_cache_refuses_no_table(
    checkpoint: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the right digest of its own, as one of another version of the normaliser would."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "_WORTH", 1)
    attach_checkpoint(request(checkpoint, table, dry_run=True))
    (place,) = kept.cache_folder().iterdir()
    good = place.read_bytes()
    kept._keep(place, VocabMap(lookup=np.zeros(500, np.int32), size=1))
    attach_checkpoint(request(checkpoint, table, dry_run=True))
    assert place.read_bytes() == good
