"""attach: what it refuses, and what a refusal leaves as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from attaching import LLAMA, configure, request
from small_tokenizers import byte_level_tokenizer

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.errors import ArtifactError, InputError, MismatchError, OutputError
from engram_cli.formats.bundle import read_bundle
from engram_cli.vocab.compress import CompressedVocab


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
