"""Specs of every module with one and with three streams, and modules built from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runtime.modules.inputs import Build
from tiny_models import ALL_MODULES, make_bundle, spec_of, wake

from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.bundle_spec import BundleSpec
from engram_cli.runtime.loading import module as load_module
from engram_cli.runtime.loading import rows_of
from engram_cli.runtime.modules.base import MemoryModule
from engram_cli.vocab.compress import CompressedVocab

CPU = torch.device("cpu")


@pytest.fixture(params=ALL_MODULES)
def kind(request: pytest.FixtureRequest) -> str:
    """The name of a module."""
    return request.param


@pytest.fixture(params=[1, 3])
def streams(request: pytest.FixtureRequest) -> int:
    """How many copies of the hidden state there are."""
    return request.param


@pytest.fixture
def spec(kind: str, streams: int, small_vocab: CompressedVocab) -> BundleSpec:
    """A bundle's spec with the module `kind`; a test may name the kind by parametrizing it."""
    return spec_of(small_vocab, kind, streams=streams)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds the first layer's module of a spec, with random weights everywhere."""

    def built(
        spec: BundleSpec, dtype: torch.dtype = torch.float32, *, awake: bool = True
    ) -> MemoryModule:
        bundle = read_bundle(make_bundle(tmp_path / "engram", spec))
        layer = spec.layers[0]
        rows = rows_of(bundle, layer, CPU, trainable=True, sparse=False)
        found = load_module(bundle, layer, rows, device=CPU, dtype=dtype)
        if awake:
            wake(found)
        return found

    return built
