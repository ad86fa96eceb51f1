"""docs/architecture.md names files and functions that exist; no imports run in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "engram_cli"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
HASH_FILES = {
    "NumPy": ("hashing/reference.py", "hashing/lookback.py"),
    "Numba": ("hashing/kernels.py", "hashing/hasher.py"),
    "torch": ("runtime/reference.py", "runtime/lookup_reference.py", "runtime/tables.py"),
    "Triton": ("runtime/kernels/lookup.py",),
}
_NAMES = r"(`\w+`(?:(?:,| and|, and) `\w+`)*)"
_FILE = r"`([\w/]+\.py)`"


def defines(file: Path, name: str) -> bool:
    """Whether a file defines `name`: a function, a class, a constant or a field."""
    pattern = rf"^\s*(?:(?:def|class) {name}\b|{name}(?::| =))"
    return bool(re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE))


def named_in_files() -> list[tuple[str, str]]:
    """The pairs of name and file that the text puts next to each other, in inline code."""
    text = " ".join(re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL).split())
    found = re.findall(rf"{_NAMES}(?: in| of| \() ?{_FILE}", text)
    found += [pair[::-1] for pair in re.findall(rf"{_FILE}(?: [\w ]+)? \({_NAMES}\)", text)]
    return sorted({(name, file) for names, file in found for name in re.findall(r"`(\w+)`", names)})


def dotted_names() -> list[tuple[str, str]]:
    """The names `module.function` and `Class.method` of the picture of a forward call."""
    picture = PAGE.split("### In a model")[1].split("```")[1]
    return sorted(set(re.findall(r"\b(\w+)\.(?!py\b)(\w+)", picture)))


def named_paths() -> list[str]:
    """The paths in inline code: files, and folders with a slash at the end."""
    code = re.findall(r"`([\w./*]+(?:\.py|\.md|/))`", PAGE)
    return sorted(set(code) - {"stats/", "engram-stats/"})


def tree_files() -> list[str]:
    """The files and folders that the package tree names, with the folder each stands in."""
    tree = re.search(r"```\nengram_cli/\n(.*?)```", PAGE, re.DOTALL)
    assert tree is not None
    found, folder = [], ""
    for line in tree[1].splitlines():
        names = re.findall(r"[\w*]+(?:\.py|/)", line)
        top = re.match(r"  (\w+/) ", line)
        if top is not None:
            folder = top[1]
            found.append(folder)
        elif re.match(r"  \w", line):
            folder = ""
            found += names[:1]
        elif re.match(r"    \w", line):
            found += [folder + name for name in names[:1]]
    return found


@pytest.mark.parametrize("path", named_paths())
def test_every_path_in_the_text_exists(path: str) -> None:
    assert list(PACKAGE.glob(path)) or list(ROOT.glob(path)), f"{path} does not exist"


@pytest.mark.parametrize(("name", "path"), named_in_files())
def test_every_name_is_defined_in_its_file(name: str, path: str) -> None:
    file = next(root / path for root in (PACKAGE, ROOT) if (root / path).is_file())
    assert defines(file, name), f"{name} is not in {path}"


@pytest.mark.parametrize(("owner", "name"), dotted_names())
def test_every_dotted_name_exists(owner: str, name: str) -> None:
    files = list(PACKAGE.glob("runtime/**/*.py"))
    if owner[0].isupper():
        homes = [file for file in files if defines(file, owner)]
    else:
        homes = [file for file in files if file.stem == owner]
    assert any(defines(home, name) for home in homes), f"{owner}.{name} does not exist"


@pytest.mark.parametrize("path", tree_files())
def test_every_path_in_the_tree_exists(path: str) -> None:
    assert list(PACKAGE.glob(path)), f"engram_cli/{path} does not exist"


def test_the_tree_has_every_folder() -> None:
    folders = {f"{init.parent.name}/" for init in PACKAGE.glob("*/__init__.py")}
    assert folders == {path for path in tree_files() if path in folders}


def test_every_function_is_in_the_files_of_its_column() -> None:
    table = PAGE.split("| step |")[1].split("\n\n")[0].splitlines()
    heads = [head.strip() for head in table[0].strip("|").split("|")]
    for line in table[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
        for head, cell in zip(heads, cells, strict=True):
            text = "\n".join((PACKAGE / name).read_text() for name in HASH_FILES[head])
            for function in re.findall(r"`(\w+)`", cell):
                assert f"def {function}(" in text, f"{function} is not in {HASH_FILES[head]}"


def imported(module: str, path: Path) -> Iterator[str]:
    """The names that a file imports anywhere: in functions and under TYPE_CHECKING too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def circles(package: Path) -> list[list[str]]:
    """The groups of modules that import each other, directly or through others."""
    modules = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = imported(module, path)
        # What is no module is a name inside one.
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        imports[module] = found & modules.keys() - {module}
    reached: dict[str, set[str]] = {}
    for module in modules:
        reached[module], waiting = set(), [module]
        while waiting:
            new = imports[waiting.pop()] - reached[module]
            reached[module] |= new
            waiting += new
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in modules
    }
    return sorted(list(group) for group in groups if group)


def test_no_imports_run_in_a_circle() -> None:
    assert not circles(PACKAGE)


@pytest.mark.parametrize(
    "back",
    [
        "import house.base",
        "from house.base import Noun",
        "from house import base",
        "from . import base",
        "from .base import Noun",
        "if TYPE_CHECKING:\n    from house.base import Noun",
        "def late():\n    from house.base import Noun",
    ],
)
def test_a_circle_is_found(tmp_path: Path, back: str) -> None:
    house = tmp_path / "house"
    house.mkdir()
    (house / "__init__.py").write_text("")
    (house / "base.py").write_text("from house.middle import Verb\n")
    (house / "middle.py").write_text("from house.top import Verb\n")
    (house / "top.py").write_text(f"{back}\n")
    (house / "user.py").write_text("from house.top import Verb\nfrom house import user\n")
    assert circles(house) == [["house.base", "house.middle", "house.top"]]


def test_threads_are_counted_in_one_place() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if "os.cpu_count" in path.read_text("utf-8")]
    assert files == [PACKAGE / "sizes.py"], "sizes.processors knows what a process may run on"
