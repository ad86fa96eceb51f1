"""Bundles that were tampered with, are damaged or newer: each is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from formats.bundles import hits_in_chunks, make_spec, write
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_cli.errors import ArtifactError, EngramError, InputError
from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.formats.bundle import read_bundle
from engram_cli.vocab.compress import CompressedVocab


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, small_vocab: CompressedVocab) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "engram"
    spec = make_spec(small_vocab)
    hits = hits_in_chunks(spec, 60)
    write(spec, path, shard_bytes=4096 + 200 * spec.row_bytes, hits=hits)
    return path


@pytest.fixture
def bundle(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "engram"))


def edit(bundle: Path, change: Callable[[Any], Any]) -> None:
    document = json.loads((bundle / "engram.json").read_bytes())
    change(document)
    (bundle / "engram.json").write_bytes(canonical_json(document))


def set_at(*keys: Any) -> Callable[[Any], None]:
    *path, last, value = keys

    def change(document: Any) -> None:
        for key in path:
            document = document[key]
        document[last] = value

    return change


def drop(*path: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


SHARD = ("layers", 0, "shards", 0)
DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "change",
    [
        set_at("format", "engram-stats"),
        set_at("version", 4),
        set_at("version", "1"),
        set_at("version", True),
        drop("layout"),
        set_at("layout", []),
        set_at("layout", "layers", 0, "moduli", 0, 101),
        set_at("fingerprint", DIGEST),
        drop("files"),
        set_at("files", []),
        set_at("files", "dense.safetensors", 3),
        set_at("files", "dense.safetensors", "bytes", 10),
        set_at("files", "dense.safetensors", "digest", DIGEST),
        drop("files", "dense.safetensors"),
        drop("files", "vocabulary.safetensors"),
        drop("files", "rows-00001-of-00004.safetensors"),
        set_at("files", "../engram/dense.safetensors", {"bytes": 1, "digest": DIGEST}),
        set_at("files", ".hidden", {"bytes": 1, "digest": DIGEST}),
        set_at("files", "gone.safetensors", {"bytes": 1, "digest": DIGEST}),
        set_at(*SHARD, "file", "../engram/rows-00001-of-00004.safetensors"),
        set_at(*SHARD, "file", "/etc/passwd"),
        set_at(*SHARD, "file", "rows-00003-of-00004.safetensors"),
        set_at(*SHARD, "file", 7),
        set_at(*SHARD, "first_row", 1),
        set_at(*SHARD, "rows", 10**30),
        set_at(*SHARD, "rows", -1),
        set_at(*SHARD, "rows", 199),
        set_at("layers", 0, "shards", []),
        drop("layers", 0, "hits"),
        set_at("layers", 0, "hits", []),
        set_at("layers", 0, "hits", None),
        set_at("layers", 0, "hits", 0, "rows", 3),
        set_at("layers", 0, "hits", 0, "file", "rows-00001-of-00004.safetensors"),
        set_at("layers", 0, "hits", 0, "file", "hits-00002-of-00002.safetensors"),
        set_at("layers", 0, "hits", 0, "file", "../hits-00001-of-00002.safetensors"),
        drop("files", "hits-00001-of-00002.safetensors"),
        set_at("layers", 0, "rows", 3),
        set_at("layers", 0, "layer", 2),
        set_at("layers", 0, "decoder_layer", 0),
        set_at("layers", []),
        set_at("model", "num_hidden_layers", 3),
        set_at("model", "hidden_size", 16),
        set_at("model", "hidden_size", 8.0),
        set_at("model", []),
        set_at("module", "kind", "engram-v9"),
        set_at("module", "kind", ["engram-v1"]),
        set_at("module", "streams", 2),
        set_at("module", "streams", 2**30),
        set_at("module", "conv_kernel", 0),
        set_at("module", "norm_eps", 1e-6),
        drop("module", "norm_eps"),
        set_at("packed", 1),
        drop("packed"),
        set_at("module", "conv_dilation", 1),
        set_at("rows", "dim", 5),
        set_at("rows", "dtype", "float16"),
        set_at("rows", "dtype", "float8"),
        set_at("rows", "dtype", []),
    ],
)
def test_a_changed_description_is_refused(bundle: Path, change: Callable[[Any], None]) -> None:
    edit(bundle, change)
    with pytest.raises(ArtifactError) as caught:
        read_bundle(bundle)
    assert caught.value.hint


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b'{"format": "engram-bundle"}'])
def test_a_description_that_is_none_is_refused(bundle: Path, text: bytes) -> None:
    (bundle / "engram.json").write_bytes(text)
    with pytest.raises(ArtifactError):
        read_bundle(bundle)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document, containers included."""
    if path:
        yield path
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield from leaves(inner, (*path, key))


STRANGE = [None, True, -1, 0, 2**70, 0.5, float("inf"), float("nan"), "", "x", "../x", [], {}, [[]]]


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_description_makes_the_reader_stumble(
    data: st.DataObject, pristine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    document = json.loads((pristine / "engram.json").read_bytes())
    path = data.draw(st.sampled_from(list(leaves(document))))
    set_at(*path, data.draw(st.sampled_from(STRANGE)))(document)
    folder = tmp_path_factory.getbasetemp() / "stumble"
    if not folder.exists():
        shutil.copytree(pristine, folder)
    (folder / "engram.json").write_text(json.dumps(document))
    # Some values decide nothing; nothing but an error of ours may come of the others.
    with suppress(EngramError):
        read_bundle(folder)


def test_other_files_are_ignored(bundle: Path) -> None:
    (bundle / "README.md").write_text("a model card")
    read_bundle(bundle, verify=True)


def test_a_newer_bundle_says_so(bundle: Path) -> None:
    edit(bundle, set_at("version", 7))
    with pytest.raises(ArtifactError, match=r"version 7, newer than 3") as caught:
        read_bundle(bundle)
    assert caught.value.hint == "upgrade engram"


@pytest.mark.parametrize(
    "name",
    ["dense.safetensors", "vocabulary.safetensors", "rows-00002-of-00004.safetensors"],
)
def test_changed_files_are_refused(bundle: Path, name: str) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[-1] ^= 1
    (bundle / name).write_bytes(raw)
    if name.startswith("rows"):
        read_bundle(bundle)  # a flipped bit among 100 GB of rows is not looked for...
    with pytest.raises(ArtifactError, match=f"{name} was changed"):
        read_bundle(bundle, verify=True)  # ...unless asked to
    (bundle / name).write_bytes(raw[:-1])
    with pytest.raises(ArtifactError, match=f"{name}: {len(raw) - 1} bytes, not {len(raw)}"):
        read_bundle(bundle)
    (bundle / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        read_bundle(bundle)


def test_a_shard_with_another_header_is_refused(bundle: Path) -> None:
    name = "rows-00002-of-00004.safetensors"
    raw = (bundle / name).read_bytes()
    (bundle / name).write_bytes(raw.replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(ArtifactError, match=r"does not hold layers\.1\.rows"):
        read_bundle(bundle)
    (bundle / name).write_bytes(b"\xff" * len(raw))
    with pytest.raises(ArtifactError, match="no safetensors file"):
        read_bundle(bundle)


def test_another_vocabulary_is_refused_even_with_its_digest(
    bundle: Path, small_vocab: CompressedVocab
) -> None:
    path = bundle / "vocabulary.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-4:] = small_vocab.lookup[:1].tobytes()
    path.write_bytes(raw)
    edit(bundle, set_at("files", path.name, "digest", sha256_bytes(bytes(raw))))
    with pytest.raises(EngramError, match="made for vocabulary"):
        read_bundle(bundle)


def test_no_bundle_is_an_input_error(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="no bundle at"):
            read_bundle(path)
