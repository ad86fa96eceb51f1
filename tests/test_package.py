"""The package as people get it: its metadata, its sdist, its changelog and its workflows."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from engram_cli.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# What the sdist holds, without building it: egg_info collects the list that sdist packs.
_LIST = """
import sys
from setuptools.dist import Distribution
made = Distribution({"script_name": "setup.py", "long_description": "of setup.py"})
made.parse_config_files()
command = made.get_command_obj("egg_info")
command.egg_base = sys.argv[1]
command.ensure_finalized()
command.run()
print("\\n".join(command.filelist.files))
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> frozenset[Path]:
    """The files of the sdist, relative to the root."""
    command = [sys.executable, "-c", _LIST, str(tmp_path_factory.mktemp("info"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if (ROOT / line).is_file()]
    return frozenset(map(Path, lines))


@pytest.mark.parametrize(
    "folder",
    ["tests", "docs", "examples", "sample_data", ".ci", ".github", "engram_cli/report/assets"],
)
def test_the_sdist_can_run_its_own_tests(packed: frozenset[Path], folder: str) -> None:
    there = {
        path.relative_to(ROOT)
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert there
    assert there <= packed


def test_the_sdist_has_the_texts_of_a_project_and_no_caches(packed: frozenset[Path]) -> None:
    texts = {"LICENSE", "README.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"}
    assert {Path(name) for name in (*texts, "pyproject.toml", "engram_tables.py")} <= packed
    assert not [path for path in packed if path.suffix == ".pyc" or "__pycache__" in path.parts]


def test_the_version_is_the_same_everywhere() -> None:
    changelog = (ROOT / "docs" / "changelog.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## (\S+)(?: \((?:unreleased|\d{4}-\d\d-\d\d)\))?$", changelog, re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert newest[0] == citation["version"] == __version__
    assert len(set(newest)) == len(newest)
    assert len(newest) == len(re.findall(r"^## ", changelog, re.M))


def test_the_licence_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert citation["license"] == "Apache-2.0"
    assert PROJECT["license"] == "Apache-2.0 AND ISC"
    named = {path for pattern in PROJECT["license-files"] for path in ROOT.glob(pattern)}
    vendored = set((ROOT / "engram_cli" / "report" / "assets").glob("*.LICENSE.txt"))
    assert named == {ROOT / "LICENSE", *vendored}
    assert len(vendored) == 2
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert not [each for each in PROJECT["classifiers"] if each.startswith("License")]  # PEP 639


def test_both_scripts_start_the_same_program() -> None:
    assert PROJECT["scripts"]["engram"] == PROJECT["scripts"][PROJECT["name"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_the_oldest_and_newest_python_and_both_ends_of_the_dependencies(
    path: Path,
) -> None:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    listed = [line.rpartition(" :: ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(allowed.contains(version) for version in listed)
    assert not allowed.contains(f"3.{int(listed[0].partition('.')[2]) - 1}")
    matrix = jobs["suite"]["strategy"]["matrix"]
    assert {listed[0], listed[-1]} <= set(matrix["python"])
    for job in ("suite", "package"):
        included = jobs[job]["strategy"]["matrix"]["include"]
        assert (listed[0], "lowest-direct") in {
            (each["python"], each["resolution"]) for each in included
        }
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for script in (".ci/run", ".ci/package"):
        assert script in scripts
        assert (ROOT / script).stat().st_mode & 0o111


def test_commands_that_run_models_load_no_compiler_before_the_model() -> None:
    code = (
        "import sys, engram_cli.commands.patch_make.command;"
        "print(sorted({'triton', 'torch._dynamo'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_the_end_of_a_command_is_quiet_where_triton_was_loaded() -> None:
    """Transformers loads it with a model; it reports what is left of it when the process ends."""
    pytest.importorskip("triton")
    code = (
        "import sys, triton; from engram_cli.__main__ import main;"
        "sys.argv[1:] = ['--version']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
