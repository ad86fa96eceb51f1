"""docs/reference/checks.md shows the checks that verify makes."""

from __future__ import annotations

import re
from pathlib import Path

from formats import check_table

from engram_cli.vocab.compress import CompressedVocab


def test_the_page_is_of_now(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    paths = check_table.made(tmp_path, small_vocab, tokenizer_file)
    assert check_table.page(paths, tokenizer_file) == check_table.PAGE.read_text(
        encoding="utf-8"
    ), "run python tests/formats/check_table.py"


def test_every_check_is_in_the_table(
    tmp_path: Path, small_vocab: CompressedVocab, tokenizer_file: Path
) -> None:
    paths = check_table.made(tmp_path, small_vocab, tokenizer_file)
    known = [re.compile(pattern) for pattern in check_table.ITEMS.values()]
    other = {"layout", "vocabulary", "rows", "schema", "scale"}
    other |= {"shards that the bundle does not name"}
    for label in check_table.FORMATS.values():
        names = {*check_table.results(paths[label], tokenizer_file)[1]}
        lost = [name for name in names - other if not any(p.fullmatch(name) for p in known)]
        assert not lost, label
