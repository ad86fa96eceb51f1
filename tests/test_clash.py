"""Another package that installs a module `engram_cli` is named in one line."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import engram_tables

FILES = ("engram_tables.py", "engram_cli/__init__.py", "engram_cli/__main__.py")
MAIN = "def main() -> None:\n    print('runs')\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages with this package, as small as it can be, installed with its RECORD."""
    site = tmp_path / "site"
    (site / "engram_cli").mkdir(parents=True)
    shutil.copy(engram_tables.__file__, site)
    (site / "engram_cli" / "__init__.py").write_text("")
    (site / "engram_cli" / "__main__.py").write_text(MAIN)
    info = site / "engram_tables-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: engram-tables\nVersion: 1.0\n")
    lines = []
    for name in FILES:
        data = (site / name).read_bytes()
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    (info / "RECORD").write_text("".join(lines))
    return site


def start(*paths: Path) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:0] = {[str(path) for path in paths]}\n"
    code += "import engram_tables; engram_tables.main()"
    command = [sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def install_other(site: Path) -> None:
    (site / "engram_cli-3.1.0.dist-info").mkdir()


def test_alone_it_runs_and_says_nothing(site: Path) -> None:
    done = start(site)
    assert (done.stdout, done.stderr, done.returncode) == ("runs\n", "", 0)


def test_next_to_the_other_package_it_warns_and_runs(site: Path) -> None:
    install_other(site)
    done = start(site)
    assert (done.stdout, done.returncode) == ("runs\n", 0)
    assert done.stderr.startswith("warning: the package engram-cli is installed too")
    assert done.stderr.count("\n") == 1


def test_replaced_files_are_an_error(site: Path) -> None:
    install_other(site)
    (site / "engram_cli" / "__init__.py").write_text('"""Another program."""\n')
    done = start(site)
    assert (done.stdout, done.returncode) == ("", 2)
    assert done.stderr.startswith("error: the package engram-cli replaced engram_cli/__init__.py")
    assert done.stderr.count("\n") == 1


def test_a_removed_module_is_an_error(site: Path) -> None:
    shutil.rmtree(site / "engram_cli")
    done = start(site)
    assert done.stderr.startswith("error: the module engram_cli cannot be found - uninstall both")
    assert done.returncode == 2


def test_another_module_of_the_same_name_is_an_error(site: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "engram_cli"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    done = start(other.parent, site)
    assert done.stderr.startswith(f"error: the module engram_cli is {other}, which belongs to")
    assert done.returncode == 2
