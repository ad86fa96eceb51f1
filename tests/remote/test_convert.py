"""convert from addresses: what is copied next to the rows is read over the network too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from formats import checkpoints
from formats.converted import converted
from remote.server import Behaviour

from engram_cli.vocab.compress import CompressedVocab


@pytest.mark.parametrize(
    ("to", "name", "options"),
    [
        ("deepseek-v4.1", "o", {}),
        ("row264", "o", {}),
        ("gguf", "o.gguf", {"dtype": "bfloat16"}),
        ("table", "o.zarr", {}),
    ],
)
def test_a_release(
    server: Behaviour,
    small_vocab: CompressedVocab,
    tokenizer_file: Path,
    tmp_path: Path,
    to: str,
    name: str,
    options: dict[str, Any],
) -> None:
    """The files are those of a conversion from the disk."""
    made = checkpoints.deepseek_v41(server.folder / "v41", small_vocab, tokenizer_file)
    written = []
    for source, folder in ((made.path, "near"), (f"{server.address}/v41", "far")):
        (tmp_path / folder).mkdir()
        out = tmp_path / folder / name
        if to == "table":
            from formats.converted import table

            table(Path(source), out, **options)
        else:
            assert converted(Path(source), to, out, **options).verified
        files = [out] if out.is_file() else [f for f in out.rglob("*") if f.is_file()]
        written.append({f.relative_to(tmp_path / folder): f.read_bytes() for f in files})
    assert written[0].keys() == written[1].keys()
    for file, raw in written[0].items():
        assert raw == written[1][file] or to == "table", file
