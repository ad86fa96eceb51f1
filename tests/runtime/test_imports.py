"""The runtime loads next to nothing, and says what it needs when it is missing."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("numba", "zarr", "pyarrow", "tokenizers", "typer", "rich", "transformers")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_runtime_loads_torch_and_numpy_only() -> None:
    code = (
        "import sys\nfrom engram_cli.runtime import attach, detach\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run(code) == "[]"


def test_tiers_and_operators_are_loaded_where_there_are_some() -> None:
    late = (
        "tiers.embedding",
        "tiers.placement",
        "torch_ops",
        "torch_ops_rows",
        "torch_ops_gate",
        "kernels",
    )
    code = (
        "import sys\nfrom engram_cli.runtime import attach, detach\n"
        f"print([n for n in {late!r} if 'engram_cli.runtime.' + n in sys.modules])"
    )
    assert run(code) == "[]"


def test_without_torch_it_says_what_to_install() -> None:
    code = (
        "import importlib.util, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'torch' else found(name, *a)\n"
        "try:\n    import engram_cli.runtime\n"
        "except Exception as error:\n    print(type(error).__name__, error.hint)"
    )
    assert run(code) == "DependencyError python -m pip install 'engram-tables[torch]'"


def test_importing_hf_watches_from_pretrained_without_importing_transformers() -> None:
    code = (
        "import sys\nimport engram_cli.hf\nprint('transformers' in sys.modules)\n"
        "from transformers import PreTrainedModel\n"
        "print(hasattr(PreTrainedModel.from_pretrained.__func__, '__wrapped__'))\n"
    )
    assert run(code).split() == ["False", "True"]
