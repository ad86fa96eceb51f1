"""What each process of test_shared_rows.py does; few imports, because each process makes them."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from engram_cli.formats.bundle import Bundle, read_bundle
from engram_cli.runtime.tiers.host import HostRows
from engram_cli.runtime.tiers.records import record_layout


def digest_of(bundle: Bundle, records: Tensor) -> str:
    """The digest of records without their padding."""
    layout, found = record_layout(bundle.spec), hashlib.sha256()
    for part in ("rows", "scales"):
        found.update(layout.part(records, part).contiguous().numpy().tobytes())
    return found.hexdigest()


def use_rows(path: str, layer: int, meeting: Any, answers: Any, leave: Any) -> None:
    """Take a layer's rows when all at the meeting do; answer with their digest and the inode."""
    bundle = read_bundle(path)
    meeting.wait()
    rows = HostRows.of_bundle(bundle, layer, pinned=False, shared=True)
    place = rows.records.data_ptr()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            begin, end = (int(each, 16) for each in line.split()[0].split("-"))
            if begin <= place < end:
                answers.put((digest_of(bundle, rows.records), line.split()[4]))
    assert leave.wait(60)
    rows.close()
