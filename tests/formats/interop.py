"""Which packages read what convert writes, and write what engram reads: each line is a test.

The page docs/reference/compatibility.md shows this list (tests/runtime/compatibility.py).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A package, the version tested, what is exchanged, and the tests of each direction."""

    package: str
    version: str
    what: str
    they_read: tuple[str, ...]
    we_read: tuple[str, ...]


PEERS = (
    Peer(
        package="transformers",
        version="5.24.0",
        what="a Qwen4-Exp checkpoint (`qwen4_exp`): logits, and rows",
        they_read=("test_interop.py::test_transformers_loads_a_converted_table",),
        we_read=("test_interop.py::test_a_checkpoint_that_transformers_saved",),
    ),
    Peer(
        package="gguf",
        version="0.19.0",
        what="GGUF of V4.1 and Qwen4-Exp: keys, tensors, and Q8_0 in both directions",
        they_read=(
            "test_gguf_new.py::test_the_package_gguf_reads_a_new_file",
            "test_gguf_new.py::test_q8_0_is_that_of_the_package_gguf",
            "test_gguf_write.py::test_the_package_gguf_reads_what_is_written",
        ),
        we_read=(
            "test_interop.py::test_a_file_that_the_package_gguf_wrote",
            "test_gguf.py::test_blocks_are_ggmls_numbers",
        ),
    ),
    Peer(
        package="safetensors",
        version="0.8.0",
        what="a DeepSeek-V4.1 folder, float8 rows and scales",
        they_read=("test_interop.py::test_safetensors_reads_a_converted_table",),
        we_read=("test_interop.py::test_files_that_safetensors_wrote",),
    ),
    Peer(
        package="engram-peft",
        version="1.2.7",
        what="an adapter folder: hashes and rows",
        they_read=("test_engram_peft_write.py::test_the_package_loads_it",),
        we_read=("test_engram_peft_write.py::test_what_the_package_saves_is_read",),
    ),
    Peer(
        package="engramdb-python",
        version="0.3.0",
        what="a Store-I and its bundle.json: row ids and rows",
        they_read=("test_engramdb_write.py::test_every_reading_function_of_engramdb",),
        we_read=("test_engramdb.py::test_we_read_what_they_write",),
    ),
    Peer(
        package="torch",
        version="2.13.0",
        what="a state dict of the paper's demo, `.safetensors` or `.pt`",
        they_read=(
            "test_demo_write.py::test_the_demos_modules_load_it",
            "test_demo_write.py::test_torch_loads_a_pt",
        ),
        we_read=("test_demo_write.py::test_torch_loads_a_pt",),
    ),
)


def table() -> list[str]:
    """Return the lines of the page: a row a package, with the tests of both directions."""
    lines = [
        "| package | version tested | what is exchanged | it reads what engram writes "
        "| engram reads what it writes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for peer in PEERS:
        cells = [", ".join(f"`{_name(test)}`" for test in tests) for tests in
                 (peer.they_read, peer.we_read)]  # fmt: skip
        lines.append(f"| {peer.package} | {peer.version} | {peer.what} | {' | '.join(cells)} |")
    return lines


def _name(test: str) -> str:
    return test.partition("::")[2]


def missing() -> list[str]:
    """Return the tests of the list that are in no file."""
    found = []
    for peer in PEERS:
        for test in (*peer.they_read, *peer.we_read):
            file, _, name = test.partition("::")
            tree = ast.parse((HERE / file).read_text(encoding="utf-8"))
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            found += [] if name in names else [test]
    return found
