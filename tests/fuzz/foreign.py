"""Other programs' files for the fuzzer: written by the tests and by engram, read and converted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from formats import checkpoints, small_artifacts

from engram_cli.commands.artifact import find_artifact
from engram_cli.commands.convert.to import convert
from engram_cli.commands.inspect.command import inspect
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.reading import InspectRequest, VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.vocab.compress import compress_vocab

Entry = tuple[str, Path, Callable[[Path], object]]

# The file within the folder, for artifacts that are one.
FILES = {
    "gguf": "m.gguf",
    "pleo": "m.pleo",
    "plepatch": "m.plepatch",
    "torch": "m.pt",
    "written gguf": "m.gguf",
    "written demo": "m.safetensors",
    "written torch": "m.pt",
    "written pleo": "m.pleo",
    "written plepatch": "m.plepatch",
}
# What each source is converted to: the target, the name of the output, and options.
CONVERSIONS: dict[str, tuple[tuple[str, str, dict[str, Any]], ...]] = {
    "deepseek": (
        ("row264", "out", {}),
        ("gguf", "out.gguf", {}),
        ("deepseek-v4.1", "out", {}),
        ("plepatch", "out.plepatch", {"layers": (3,), "rows": (5, 90)}),
    ),
    "qwen": (
        ("qwen-ple", "out", {}),
        ("engramdb", "out", {}),
        ("pleo", "out.pleo", {"rows": (0, 9)}),
    ),
    "longcat": (("table", "out", {}),),
    "demo": (("demo", "out.pt", {}), ("demo", "out.safetensors", {"dtype": "bfloat16"})),
    "torch": (("demo", "out.safetensors", {}),),
    "engramdb": (("engramdb", "out", {}), ("pleo", "out.pleo", {"rows": (5, 90)})),
    "engram-peft": (
        ("engram-peft", "out", {}),
        ("pleo", "out.pleo", {"layers": (14,), "rows": (5, 90)}),
    ),
    "gguf": (
        ("gguf", "out.gguf", {"dialect": "ds4"}),
        ("row264", "out", {}),
        ("plepatch", "out.plepatch", {"layers": (3,), "rows": (5, 90)}),
    ),
    "written gguf": (("gguf", "out.gguf", {"dialect": "llama.cpp"}),),
    "written row264": (("table", "out", {}),),
}


def foreign_artifacts(folder: Path, tokenizer: Path) -> Iterator[Entry]:
    """Yield (name, folder of the artifact, reader of a copy of that folder)."""
    _others(folder, tokenizer)
    _written(folder)
    names = sorted(path.name for path in folder.iterdir())
    for name in names:

        def read(here: Path, file: str = FILES.get(name, ".")) -> None:
            verify(VerifyRequest(path=here / file, folder=here, threads=1))
            inspect(InspectRequest(path=here / file, folder=here, threads=1, rows=True))

        def rows(here: Path, file: str = FILES.get(name, ".")) -> None:
            source = find_artifact(here / file).open()
            for layer in source.layers:
                count = source.layout.layer(layer).rows
                source.vectors(layer, [0, count // 2, count - 1])
                source.read(layer, count - 3, np.empty((3, source.dim or 1), dtype=np.float32))

        yield f"foreign {name}", folder / name, read
        yield f"foreign {name}, rows", folder / name, rows
        for to, out, options in CONVERSIONS.get(name, ()):

            def write(
                here: Path,
                file: str = FILES.get(name, "."),
                to: str = to,
                out: str = out,
                options: dict[str, Any] = options,
            ) -> None:
                convert(
                    ConvertRequest(source=here / file, to=to, out=here / out, force=True, threads=1,
                                   **options)
                )  # fmt: skip

            yield f"foreign {name} to {to}", folder / name, write


def _others(folder: Path, tokenizer: Path) -> None:
    """Write what other programs do."""
    vocab = compress_vocab(tokenizer)
    rows = np.array([7, 3, 90])
    payload = np.zeros((3, 34), dtype=np.uint8)
    checkpoints.deepseek_v41(folder / "deepseek", vocab, tokenizer)
    checkpoints.qwen_ple(folder / "qwen", dtype="float8_e4m3fn")
    checkpoints.longcat(folder / "longcat")
    small_artifacts.demo(folder / "demo", vocab)
    small_artifacts.store(folder / "engramdb")
    small_artifacts.engram_peft(folder / "engram-peft", vocab)
    for name in ("gguf", "pleo", "plepatch"):
        (folder / name).mkdir()
    checkpoints.deepseek_gguf(folder / "gguf" / "m.gguf", vocab, "llama.cpp")
    small_artifacts.pleo(folder / "pleo" / "m.pleo", rows, np.ones((3, 4)))
    small_artifacts.plepatch(folder / "plepatch" / "m.plepatch", rows, payload, dim=32, kind=8)


def _written(folder: Path) -> None:
    """Write what engram does, from the others' files."""
    for source, to, name, options in (
        ("deepseek", "row264", "row264", {}),
        ("deepseek", "deepseek-v4.1", "deepseek", {}),
        ("deepseek", "gguf", "gguf", {"dialect": "llama.cpp"}),
        ("qwen", "qwen-ple", "qwen", {}),
        ("qwen", "engramdb", "engramdb", {}),
        ("qwen", "pleo", "pleo", {"rows": (3, 90)}),
        ("gguf", "plepatch", "plepatch", {"rows": (3, 90), "layers": (3,)}),
        ("engram-peft", "engram-peft", "engram-peft", {}),
        ("demo", "demo", "demo", {}),
        ("demo", "demo", "torch", {}),
    ):
        out = folder / f"written {name}"
        file = FILES.get(out.name)
        if file is not None:
            out.mkdir(exist_ok=True)
            out = out / file
        place = folder / source / FILES.get(source, ".")
        convert(ConvertRequest(source=place, to=to, out=out, **options))
    (folder / "torch").mkdir()
    (folder / "torch" / "m.pt").write_bytes((folder / "written torch" / "m.pt").read_bytes())
