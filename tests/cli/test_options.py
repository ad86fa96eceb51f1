"""Options that say more than their letters."""

from __future__ import annotations

import pytest

from engram_cli.commands.requests.options import unescape


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"\n\x1e", "\n\x1e"),
        (r"a\tb\\n", "a\tb\\n"),
        (r"\q \x1 \xZZ", r"\q \x1 \xZZ"),
        ("\n\x1e", "\n\x1e"),
    ],
)
def test_what_is_written_out_is_what_is_meant(typed: str, meant: str) -> None:
    assert unescape(typed) == meant
