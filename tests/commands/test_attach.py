"""attach: what it writes, what it says first, and what it refuses to bring together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import byte_level_tokenizer

from engram_cli.commands.attach import layers as attach_layers
from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.checkpoint import read_model_shape
from engram_cli.errors import (
    ArtifactError,
    InputError,
    MismatchError,
    OutputError,
    VocabularyError,
)
from engram_cli.formats.bundle import read_bundle
from engram_cli.hashing.schemes import hash_layout
from engram_cli.table.build import build_store
from engram_cli.table.inits import make_init
from engram_cli.table.spec import TableSpec
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.parquet import write_vocab

LLAMA = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 4, "vocab_size": 512}


class Listener:
    """A progress listener that keeps what it hears."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.total: int | None = None
        self.done = 0

    def start(self, what: str, total: int | None, unit: str) -> None:
        self.total, self.done = total, 0

    def advance(self, amount: int) -> None:
        self.done += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def build(path: Path, vocab: CompressedVocab | None, **options: Any) -> Path:
    init = options.pop("init", None) or make_init("normal", seed=0, std=0.5)
    dtype = options.pop("dtype", "bfloat16")
    common: dict[str, Any] = {"orders": (2, 3), "heads": 2, "rows_per_head": 90, "layers": (1, 2)}
    scheme = options.pop("scheme", "engram-v1")
    layout = hash_layout(scheme, vocab, **common | options)
    build_store(TableSpec(layout=layout, dim=8, dtype=dtype, init=init, chunk_rows=100), path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    return build(tmp_path_factory.mktemp("table") / "engram-table.zarr", small_vocab)


@pytest.fixture
def checkpoint(tmp_path: Path, tokenizer_file: Path) -> Path:
    folder = tmp_path / "ckpt"
    folder.mkdir()
    shutil.copy(tokenizer_file, folder)
    configure(folder, LLAMA)
    return folder


def configure(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def request(checkpoint: Path, table: Path, **options: Any) -> AttachRequest:
    return AttachRequest(checkpoint=checkpoint, table=table, **options)


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


def test_the_vocabulary_is_compressed_again_only_if_no_file_has_its_digest(
    checkpoint: Path, small_vocab: CompressedVocab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary next to the table says which tokenizer it was made from."""
    calls = []

    def counted(source: Path) -> CompressedVocab:
        calls.append(source)
        return compress_vocab(source)

    monkeypatch.setattr(attach_layers, "compress_vocab", counted)
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
    ("text", "error"),
    [
        ("", ArtifactError),
        ("[]", ArtifactError),
        ("{}", InputError),
        ('{"hidden_size": 32}', InputError),
        ('{"hidden_size": "32", "num_hidden_layers": 4}', InputError),
        ('{"hidden_size": 32, "num_hidden_layers": 0}', InputError),
        ('{"hidden_size": 32, "num_hidden_layers": 4, "vocab_size": -1}', InputError),
        ('{"hidden_size": 32, "num_hidden_layers": 4, "altup_num_inputs": 4}', InputError),
    ],
)
def test_bad_configs(checkpoint: Path, table: Path, text: str, error: type[Exception]) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(error, match=r"config\.json"):
        attach_checkpoint(request(checkpoint, table))


def test_no_checkpoint(tmp_path: Path, table: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        attach_checkpoint(request(tmp_path / "none", table))


def test_no_tokenizer_names_the_flag(checkpoint: Path, table: Path, tokenizer_file: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json") as caught:
        attach_checkpoint(request(checkpoint, table))
    assert "--tokenizer" in caught.value.hint
    attach_checkpoint(request(checkpoint, table, tokenizer=tokenizer_file))


def test_another_tokenizer_is_refused(
    checkpoint: Path, table: Path, small_vocab: CompressedVocab
) -> None:
    path = checkpoint / "tokenizer.json"
    document = json.loads(path.read_text())
    document["added_tokens"].append(
        {**document["added_tokens"][-1], "id": len(small_vocab.lookup), "content": "Zebra"}
    )
    path.write_text(json.dumps(document))
    with pytest.raises(MismatchError, match="built for vocabulary"):
        attach_checkpoint(request(checkpoint, table))
    assert not (checkpoint / "engram").exists()


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


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (1, {}, ".* has 2 layers, the model only 1"),
        (12, {"layers": (1, 7)}, "has no layer 7, it has 1, 2"),
        (12, {"layers": (1, 1)}, "--layers 1, 1"),
        (4, {"at": (1,)}, "--at 1 for layers 1, 2"),
        (4, {"at": (1, 1)}, "--at 1, 1 in a model of 4 layers"),
        (4, {"at": (1, 4)}, "--at 1, 4 in a model of 4 layers"),
        (4, {"at": (-1, 1)}, "--at -1, 1 in a model of 4 layers"),
    ],
)
def test_layers_and_places_that_cannot_be(
    checkpoint: Path, table: Path, count: int, options: dict[str, Any], message: str
) -> None:
    configure(checkpoint, LLAMA | {"num_hidden_layers": count})
    with pytest.raises((MismatchError, InputError), match=message):
        attach_checkpoint(request(checkpoint, table, **options))
    assert not (checkpoint / "engram").exists()


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


def test_force_replaces_bundles_only(checkpoint: Path, table: Path, tmp_path: Path) -> None:
    attach_checkpoint(request(checkpoint, table))
    with pytest.raises(OutputError, match="already exists"):
        attach_checkpoint(request(checkpoint, table))
    attach_checkpoint(request(checkpoint, table, force=True, layers=(1,)))
    assert read_bundle(checkpoint / "engram").spec.layers == (1,)

    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="is no bundle"):
        attach_checkpoint(request(checkpoint, table, out=precious, force=True))
    assert (precious / "thesis.txt").is_file()


def test_a_failed_attach_leaves_the_old_bundle(
    checkpoint: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach_checkpoint(request(checkpoint, table))
    before = read_bundle(checkpoint / "engram").spec

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engram_cli.commands.attach.command.first_values", fail)
    with pytest.raises(OutputError, match="No space left"):
        attach_checkpoint(request(checkpoint, table, force=True, layers=(1,)))
    assert read_bundle(checkpoint / "engram", verify=True).spec == before
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json",
        "engram",
        "tokenizer.json",
    ]


def test_a_disk_without_room_is_refused_before_anything_is_written(
    checkpoint: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engram_cli.commands.attach.command.free_bytes", lambda out: 1000)
    with pytest.raises(OutputError, match=r"needs [0-9,]+ bytes, only 1,000 are free"):
        attach_checkpoint(request(checkpoint, table))
    assert not (checkpoint / "engram").exists()
    attach_checkpoint(request(checkpoint, table, dry_run=True))


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


def test_a_model_that_takes_fewer_ids_than_its_own_tokenizer(checkpoint: Path, table: Path) -> None:
    configure(checkpoint, LLAMA | {"vocab_size": 100})
    with pytest.raises(MismatchError, match=r"401 ids, the model only 100") as caught:
        attach_checkpoint(request(checkpoint, table))
    assert "resize_token_embeddings" not in caught.value.hint


def test_a_table_of_a_larger_tokenizer_names_the_checkpoints_own(
    checkpoint: Path, table: Path, small_vocab: CompressedVocab
) -> None:
    byte_level_tokenizer().save(str(checkpoint / "tokenizer.json"))
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    document["added_tokens"] = document["added_tokens"][:-1]
    (checkpoint / "tokenizer.json").write_text(json.dumps(document))
    configure(checkpoint, LLAMA | {"vocab_size": 400})
    with pytest.raises(MismatchError, match=r"built for vocabulary .* of 401 ids") as caught:
        attach_checkpoint(request(checkpoint, table))
    assert f"engram compress-vocab {checkpoint / 'tokenizer.json'}" in caught.value.hint
    assert "resize_token_embeddings" not in caught.value.hint


def weights(folder: Path, *names: str, file: str = "model.safetensors") -> None:
    header = {n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in names[:1]}
    header |= {n: {"dtype": "F32", "shape": [0], "data_offsets": [4, 4]} for n in names[1:]}
    raw = json.dumps(header).encode()
    (folder / file).write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(4))


def shards(folder: Path, *names: str) -> None:
    listed = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))


PLAIN = "model.layers.0.mlp.up_proj.weight"
OWN = {
    "config": lambda at: configure(at, LLAMA | {"engram_layer_ids": [2, 14]}),
    "text config": lambda at: configure(
        at, {"model_type": "vlm", "text_config": LLAMA | {"ple_layer_ids": [2]}}
    ),
    "one file": lambda at: weights(at, PLAIN, "layers.2.engram.wkv.weight"),
    "shards": lambda at: shards(
        at, PLAIN, "model.language_model.layers.1.ple.value_proj.weight"
    ),
    "saved with the model": lambda at: weights(at, PLAIN, "engram.layers.1.value_proj.weight"),
}  # fmt: skip


@pytest.mark.parametrize("how", OWN)
def test_a_second_memory_needs_force(how: str, checkpoint: Path, table: Path) -> None:
    OWN[how](checkpoint)
    with pytest.raises(MismatchError) as caught:
        attach_checkpoint(request(checkpoint, table))
    assert str(checkpoint) in caught.value.message
    shown = {
        "config": "of its own (config.json: engram_layer_ids 2, 14)",
        "text config": "of its own (config.json: ple_layer_ids 2)",
        "one file": "of its own (tensor layers.2.engram.wkv.weight)",
        "shards": "of its own (tensor model.language_model.layers.1.ple.value_proj.weight)",
        "saved with the model": "(tensor engram.layers.1.value_proj.weight)",
    }
    assert shown[how] in caught.value.message
    assert "--force" in caught.value.hint
    assert not (checkpoint / "engram").exists()
    assert attach_checkpoint(request(checkpoint, table, force=True)).written


@pytest.mark.parametrize("name", [PLAIN, "model.layers.1.mlp.sample.weight", "engrams.1.weight"])
def test_other_tensors_are_no_memory(name: str, checkpoint: Path, table: Path) -> None:
    weights(checkpoint, name)
    configure(checkpoint, LLAMA | {"ple_layer_ids": [], "engram_layer_ids": None})
    assert attach_checkpoint(request(checkpoint, table)).written


def test_weights_that_are_not_there_yet_show_nothing(checkpoint: Path, table: Path) -> None:
    (checkpoint / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert attach_checkpoint(request(checkpoint, table)).written


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_damaged_table_is_not_copied(
    place: str, threads: int, checkpoint: Path, table: Path, tmp_path: Path
) -> None:
    """The bundle's digests would vouch for the damage."""
    table = shutil.copytree(table, tmp_path / "damaged.zarr")
    files = sorted(table.rglob("c.*.0"))
    file = files[0 if place == "first" else -1]
    raw = bytearray(file.read_bytes())
    raw[5 if place == "first" else -1] ^= 1
    file.write_bytes(raw)
    name = file.relative_to(table).as_posix()
    with pytest.raises(ArtifactError, match=rf"is damaged: {name}: its bytes have changed"):
        attach_checkpoint(AttachRequest(checkpoint=checkpoint, table=table, threads=threads))
    assert not (checkpoint / "engram").exists()


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
