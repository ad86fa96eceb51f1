"""What lies in the scratch folder of a table that is filled from a corpus."""

from __future__ import annotations

import re

from engram_cli.files import PART
from engram_cli.outputs import Work

SCRATCH = Work(
    name="scratch of a table",
    files=re.compile(
        rf"tokens\.(?:u32|json)(?:{re.escape(PART)})?|pairs-[0-9a-z-]+(?:\.u64|{re.escape(PART)})"
    ),
)
