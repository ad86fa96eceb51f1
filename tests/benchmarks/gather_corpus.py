"""Gathers a real corpus from this machine: sources, documentation and manual pages, by kind.

    python tests/benchmarks/gather_corpus.py OUT [--megabytes 240]

Writes OUT/{python,docs,manual,manual-other}/NNNN.jsonl, one document a line with its `text`, its
`source` (the kind) and its `name`. Equal texts are kept once. Files are taken in the order of a
hash of their names, so that a smaller corpus is a fair part of a larger one. Half of it is Python,
a quarter documentation, a fifth manual pages in English, the rest those in other languages.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SHARES = {"python": 0.50, "docs": 0.25, "manual": 0.20, "manual-other": 0.05}
DOCUMENT_BYTES = range(512, 1_000_000)
FILE_BYTES = 32_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=240.0)
    arguments = parser.parse_args()
    for kind, share in SHARES.items():
        size = gather(kind, arguments.out / kind, int(arguments.megabytes * 1e6 * share))
        print(f"{kind}: {size / 1e6:.1f} MB", file=sys.stderr)


def gather(kind: str, folder: Path, most: int) -> int:
    """Write up to `most` bytes of documents of a kind; gives how many."""
    folder.mkdir(parents=True)
    total, seen = 0, set()
    lines: list[str] = []
    files = written = 0
    for path in sorted(_candidates(kind), key=_by_name):
        if total >= most:
            break
        text = _read(path)
        digest = hashlib.sha256(text.encode()).digest()
        if len(text) not in DOCUMENT_BYTES or digest in seen:
            continue
        seen.add(digest)
        lines.append(json.dumps({"text": text, "source": kind, "name": path.name}))
        total += len(text.encode())
        written += len(text)
        if written >= FILE_BYTES:
            _write(folder, files, lines)
            files, written, lines = files + 1, 0, []
    _write(folder, files, lines)
    return total


def _write(folder: Path, number: int, lines: list[str]) -> None:
    if lines:
        (folder / f"{number:04}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _candidates(kind: str) -> Iterator[Path]:
    if kind == "python":
        for root in {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")}:
            yield from _files(Path(root), ".py")
    elif kind == "docs":
        yield from _files(Path("/usr/share/doc"), "")
        yield from _files(Path(sysconfig.get_path("purelib")), ".md", ".rst", ".txt")
    else:
        for path in _files(Path("/usr/share/man"), ".gz"):
            if path.relative_to("/usr/share/man").parts[0].startswith("man") == (kind == "manual"):
                yield path


def _files(root: Path, *suffixes: str) -> Iterator[Path]:
    for path in root.rglob("*"):
        if path.name.endswith(suffixes) and path.is_file() and not path.is_symlink():
            yield path


def _by_name(path: Path) -> bytes:
    return hashlib.sha256(str(path).encode()).digest()


def _read(path: Path) -> str:
    """The text of a file, unpacked; empty when it is none."""
    try:
        raw = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
        text = raw.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError):
        return ""
    return "" if "\0" in text else text


if __name__ == "__main__":
    main()
