"""The compatibility page is the one that the test matrix gives."""

from __future__ import annotations

from runtime.compatibility import PAGE, page


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python tests/runtime/compatibility.py"
