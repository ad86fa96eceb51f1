"""The token file of a corpus: broken off, damaged, and with ids that no token has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from table.filled import corpus, write_corpus
from table.tables import mapped_layout

from engram_cli.corpus.base import CorpusOptions, ReadPosition, TokenBlock
from engram_cli.corpus.stamps import request_of
from engram_cli.errors import TokenIdError, UndecodableError
from engram_cli.table.inits.corpus.tokens import TokenWriter, piece_of


def test_a_token_file_goes_on_where_it_was_broken_off(tmp_path: Path) -> None:
    layout = mapped_layout()
    ids, starts = corpus(40)
    blocks = [
        TokenBlock(
            ids=ids[b : b + 500], starts=starts[b : b + 500], size=9, locate=str, read_position=m
        )
        for b, m in zip(range(0, 3000, 500), [ReadPosition(items=i) for i in range(6)], strict=True)
    ]
    whole = TokenWriter(tmp_path / "whole", "r").write((piece_of(b, layout) for b in blocks), None)

    def broken() -> Any:
        yield from (piece_of(block, layout) for block in blocks[:4])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engram_cli.table.inits.corpus.tokens.KEEP_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            TokenWriter(tmp_path / "cut", "r").write(broken(), "fast")
    with (tmp_path / "cut" / "tokens.u32").open("ab") as file:
        file.write(b"torn")
    writer = TokenWriter(tmp_path / "cut", "r")
    assert (writer.tokens, writer.size, writer.encoder) == (2000, 36, "fast")
    assert writer.read_position == ReadPosition(items=3)
    found = writer.write((piece_of(b, layout) for b in blocks[4:]), None)
    assert (found.digest, found.documents, found.largest) == (
        whole.digest,
        whole.documents,
        whole.largest,
    )
    assert TokenWriter(tmp_path / "cut", "r").finished == found
    assert TokenWriter(tmp_path / "cut", "other").finished is None


def test_what_was_written_before_text_that_is_not_utf8_serves_a_run_that_replaces_it(
    tmp_path: Path,
) -> None:
    layout = mapped_layout()
    ids, starts = corpus(40)
    blocks = [
        TokenBlock(
            ids=ids[b : b + 500], starts=starts[b : b + 500], size=9, locate=str, read_position=m
        )
        for b, m in zip(range(0, 1500, 500), [ReadPosition(items=i) for i in range(3)], strict=True)
    ]

    def bad() -> Any:
        yield from (piece_of(block, layout) for block in blocks)
        raise UndecodableError("a.txt", "replace it")

    strict, lenient = (request_of("r", CorpusOptions(errors=e)) for e in ("strict", "replace"))
    with pytest.raises(UndecodableError):
        TokenWriter(tmp_path / "cut", strict).write(bad(), None)
    writer = TokenWriter(tmp_path / "cut", lenient)
    assert (writer.tokens, writer.read_position) == (1500, ReadPosition(items=2))
    writer.write((piece_of(b, layout) for b in blocks), None)
    assert TokenWriter(tmp_path / "cut", strict).finished is None
    assert TokenWriter(tmp_path / "cut", lenient).finished is not None


@pytest.mark.parametrize("key", ["tokens", "mark", "format", "largest", "documents"])
def test_a_damaged_state_is_begun_anew(tmp_path: Path, key: str) -> None:
    layout = mapped_layout()
    write_corpus(tmp_path / "t", layout)
    state = json.loads((tmp_path / "t" / "tokens.json").read_text())
    state[key] = [10**12]
    (tmp_path / "t" / "tokens.json").write_text(json.dumps(state))
    writer = TokenWriter(tmp_path / "t", "request")
    assert writer.finished is None
    assert writer.tokens == 0


def test_foreign_ids_are_named_with_their_place(tmp_path: Path) -> None:
    block = TokenBlock(
        ids=np.array([3, 400]),
        starts=np.array([True, False]),
        size=1,
        locate=lambda at: f"a.txt, position {at}",
    )
    with pytest.raises(TokenIdError, match=r"a\.txt, position 1 .*400"):
        TokenWriter(tmp_path / "t", None).write(
            (piece_of(b, mapped_layout()) for b in [block]), None
        )
