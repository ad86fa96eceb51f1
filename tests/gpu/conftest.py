"""What holds for every test on a GPU."""

from __future__ import annotations

import pytest

# Whichever test compiles first makes inductor import parts of torch that torch 2.11 has deprecated.
_TORCH_OWN = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let torch warn of itself, in whatever order the tests run."""
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(_TORCH_OWN)
