"""Opening a table of 98 GB costs what its header does: neither memory nor packages that compute."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from formats import checkpoints

from engram_cli.vocab.compress import CompressedVocab

HEAVY = ("numba", "pyarrow", "zarr", "tokenizers", "torch", "fsspec", "aiohttp")
PROGRAM = """
import json, resource, sys
from pathlib import Path

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
from engram_cli import inspect
from engram_cli.commands.requests.reading import InspectRequest

result = inspect(InspectRequest(path=Path(sys.argv[1])))
loaded = [name for name in sys.argv[2:] if name in sys.modules]
print(json.dumps([result.kind, result.read.bytes, peak() - before, loaded]))
"""


def test_opening_loads_little_and_holds_nothing(
    tmp_path: Path, small_vocab: CompressedVocab
) -> None:
    written = checkpoints.deepseek_v41(
        tmp_path / "m", small_vocab, None, sparse=True, dim=256, rows_per_head=16_000_000
    )
    assert max(path.stat().st_size for path in written.path.iterdir()) > 10**11
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(written.path), *HEAVY],
        capture_output=True,
        text=True,
        check=True,
    )
    kind, read, grown, loaded = json.loads(done.stdout)
    assert (kind, loaded) == ("deepseek-v4.1", [])
    assert read < 2**16
    assert grown < 50 * 2**20
