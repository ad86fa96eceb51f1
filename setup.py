"""Gives the package's page on PyPI links that work there; everything else is in pyproject.toml.

The README's links are relative to the repository. With a `Repository` in [project.urls] they become
links into it; without one they stay as they are.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
# The target of a Markdown link or picture that is neither an address nor a place on the page.
_LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\]]*\])*\])\((?!https?:|#)([^)\s]+)\)")


def absolute(text: str, repository: str | None) -> str:
    """Return Markdown with its relative links as links into a repository."""
    if repository is None:
        return text
    base = repository.rstrip("/")
    return _LINK.sub(
        lambda link: f"{link[1]}{link[2]}({base}/{'raw' if link[1] else 'blob'}/HEAD/{link[3]})",
        text,
    )


if __name__ == "__main__":
    from setuptools import setup

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=absolute(readme, project["urls"].get("Repository")),
        long_description_content_type="text/markdown",
    )
