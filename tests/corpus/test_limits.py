"""Memory follows what is decoded, not what lies in the file: it is read in parts, or refused.

Small hostile files are read in a process of their own, which may take some megabytes more than one
that reads a file of one word.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from corpus.corpora import read_items, texts

from engram_cli.corpus.readers import jsonl
from engram_cli.errors import CorpusError


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "%s"}' % (b"a" * 3000), "line 2 has 2,048 bytes or more"),
        (b'{"text": "%s\\ud83d\\ude00"}' % (b"a" * 700), r"may take 2,8\d\d bytes .* as text"),
        ('{"text": "%s\U0001f34e"}' % ("a" * 700), r"may take 2,8\d\d bytes of memory as text"),
        ('{"text": "%s\u00e9"}' % ("a" * 1100), r"line 2, of 1,114 bytes, may take 2,2\d\d bytes"),
        (b'{"text": "", "n": [%s{}]}' % (b"{}," * 90), r"may take 9,\d\d\d bytes .* as values"),
        (b'{"text": "", "n": [%s0]}' % (b"0," * 250), r"may take 10,\d\d\d bytes .* as values"),
    ],
)
def test_a_line_that_would_fill_the_memory_is_refused_by_its_size(
    line: bytes | str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here with smaller limits."""
    for name, value in (("_LONGEST", 2**11), ("_LONG", 2**8), ("_MOST_VALUES", 2**13)):
        monkeypatch.setattr(jsonl, name, value)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(CorpusError, match=message):
        read_items(path)
    path.write_bytes(b'{"text": "%s"}' % (b"a" * 2000))
    assert texts(read_items(path)) == ["a" * 2000]
