"""Every pair of a source's format and a target: what convert does, and the page that says so.

    python tests/formats/matrix.py

writes the matrix into docs/reference/convert.md, from the registries and a small checkpoint of each
format. test_matrix.py runs every pair, and fails while the page is not the one that this gives.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_cli.commands.convert.to import convert
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.errors import EngramError
from engram_cli.formats import TARGETS
from engram_cli.vocab.compress import CompressedVocab, compress_vocab

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "convert.md"
BEGIN, END = "<!-- matrix: written by tests/formats/matrix.py -->", "<!-- end of the matrix -->"
ALL_TARGETS = ("table", "bundle", *TARGETS)
QWEN_SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "hc_count": 4}
SUFFIXES = {"gguf": ".gguf", "demo": ".safetensors", "pleo": ".pleo", "plepatch": ".plepatch"}


@dataclass(frozen=True, kw_only=True)
class Source:
    """A small artifact: its format in the registry, a label, and options that it needs."""

    format: str
    label: str
    make: Callable[[Path, CompressedVocab, Path], Path]
    options: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What becomes of a pair: converted with these options, or the reason why not."""

    options: dict[str, Any]
    reason: str = ""

    @property
    def text(self) -> str:
        """The cell of the page, without its reason."""
        if self.reason:
            return "no"
        given = [f"`--{name} {_shown(value)}`" for name, value in self.options.items()]
        return " ".join(given) or "yes"


def _model(folder: Path, tokenizer: Path) -> Path:
    """A checkpoint of a model that gets a bundle."""
    path = folder / "model"
    if not path.exists():
        path.mkdir()
        config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 4}
        (path / "config.json").write_text(json.dumps(config))
        shutil.copy(tokenizer, path / "tokenizer.json")
    return path


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _table(path: Path, of: Path, **options: Any) -> Path:
    convert(ConvertRequest(source=of, to="table", out=path, **options))
    return path


def _v41(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.checkpoints import deepseek_v41

    changes = {"num_hidden_layers": 5}
    return deepseek_v41(path, vocab, tokenizer, rows_per_head=29, changes=changes).path


def _v41_table(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    return _table(path, _v41(path.with_name("of-table"), vocab, tokenizer))


def _row264(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    made = _v41(path.with_name("of-row264"), vocab, tokenizer)
    convert(ConvertRequest(source=made, to="row264", out=path))
    return path


def _qwen(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.checkpoints import qwen_ple

    return qwen_ple(path, changes=QWEN_SIZES).path


def _qwen_fp8(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.checkpoints import qwen_ple

    return qwen_ple(path, dtype="float8_e4m3fn", changes=QWEN_SIZES).path


def _longcat(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.checkpoints import longcat

    return longcat(path).path


def _gguf(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    made = _v41(path.with_name("of-gguf"), vocab, tokenizer)
    convert(ConvertRequest(source=made, to="gguf", out=path))
    return path


def _gguf_qwen(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    made = _qwen(path.with_name("of-qwen-gguf"), vocab, tokenizer)
    convert(ConvertRequest(source=made, to="gguf", out=path))
    return path


def _bundle(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.bundles import make_spec, write

    write(make_spec(vocab), path)
    return path


def _statistics(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from commands.made import make

    return make(path, tokenizer, vocab).stats


def _demo(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.small_artifacts import demo

    return demo(path, vocab).path


def _engram_peft(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.small_artifacts import engram_peft
    from formats.test_engram_peft_write import base_vocabulary

    base = base_vocabulary(vocab, tokenizer)
    return engram_peft(path, base, pad_id=3, changes={"pad_id": 3}).path


def _engramdb(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.small_artifacts import store

    return store(path, width=32).path


def _pleo(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.small_artifacts import pleo

    values = np.arange(64, dtype=np.float32).reshape(2, 32)
    return pleo(path, np.array([3, 9]), values)


def _plepatch(path: Path, vocab: CompressedVocab, tokenizer: Path) -> Path:
    from formats.small_artifacts import plepatch

    values = np.arange(64, dtype=np.float16).reshape(2, 32)
    return plepatch(path, np.array([3, 9]), values.view(np.uint8), dim=32, kind=1)


SOURCES = (
    Source(format="table", label="table of V4.1's rows", make=_v41_table, options={}),
    Source(format="bundle", label="bundle (float32)", make=_bundle, options={}),
    Source(format="statistics", label="statistics folder", make=_statistics, options={}),
    Source(format="row264", label="row264", make=_row264, options={}),
    Source(format="deepseek-v4.1", label="DeepSeek-V4.1 folder", make=_v41, options={}),
    Source(format="qwen-ple", label="Qwen4-Exp folder (bfloat16)", make=_qwen, options={}),
    Source(format="qwen-ple", label="Qwen4-Exp folder (fp8)", make=_qwen_fp8, options={}),
    Source(format="longcat", label="LongCat folder", make=_longcat, options={}),
    Source(format="gguf", label="GGUF of V4.1", make=_gguf, options={}),
    Source(format="gguf", label="GGUF of Qwen4-Exp", make=_gguf_qwen, options={}),
    Source(format="engramdb", label="EngramDB Store-I", make=_engramdb, options={}),
    Source(format="overlay", label="overlay (.pleo)", make=_pleo, options={}),
    Source(format="overlay", label="overlay (.plepatch)", make=_plepatch, options={}),
    Source(
        format="engram-peft", label="engram-peft adapter", make=_engram_peft,
        options={"tokenizer": True},
    ),
    Source(format="demo", label="state dict of the demo", make=_demo, options={"tokenizer": True}),
)  # fmt: skip


def make_sources(folder: Path, vocab: CompressedVocab, tokenizer: Path) -> dict[str, Path]:
    """Write all sources; return their paths by label."""
    made = {}
    for number, source in enumerate(SOURCES):
        suffix = {"gguf": ".gguf", "table": ".zarr", "overlay": ".pleo"}.get(source.format, "")
        suffix = ".plepatch" if "plepatch" in source.label else suffix
        made[source.label] = source.make(folder / f"source-{number}{suffix}", vocab, tokenizer)
    return made


def request(source: Source, path: Path, to: str, out: Path, tokenizer: Path, **options: Any) -> Any:
    """Return the request of a pair."""
    given = {"tokenizer": tokenizer} if source.options.get("tokenizer") else {}
    out = out.with_name(out.name + SUFFIXES.get(to, ""))
    return ConvertRequest(source=path, to=to, out=out, **given, **options)


def cell(source: Source, path: Path, to: str, folder: Path, tokenizer: Path) -> Cell:
    """Find out what convert does with a pair; nothing is written.

    Where it asks for another dtype or one layer, it is asked again with the first that it names.
    """
    options: dict[str, Any] = {}
    reason = ""
    for _ in range(3):
        try:
            convert(request(source, path, to, folder / "out", tokenizer, dry_run=True, **options))
            return Cell(options=options)
        except EngramError as error:
            text, hint = error.message, error.hint or ""
            reason = reason or text.replace(str(path), "the source").replace(str(folder), "")
        dtype = re.search(r"--dtype (\w+)", hint)
        if dtype is not None and "dtype" not in options:
            options["dtype"] = dtype[1]
        elif "--layers" in hint and "layers" not in options:
            first = re.search(r"layers? (\d+)", text)
            options["layers"] = (int(first[1]) if first else 1,)
        elif "--patch CKPT" in hint and "patch" not in options:
            options["patch"] = _model(folder, tokenizer)
        elif "--rows" in hint and "rows" not in options:
            options["rows"] = (0, 8)
        else:
            reason = text.replace(str(path), "the source").replace(str(folder), "")
            break
    return Cell(options={}, reason=reason)


# What a refusal's message says, and what the page calls it.
REASONS = {
    "values": r"holds no vectors",
    "same": r"already$",
    "width": r"values a row",
    "vocabulary": r"compressed ids have no token",
    "hash": r"hash|counts from 1",
}
MEANINGS = {
    "hash": "the format looks rows up by another hash, so that tokens would find other rows",
    "width": "the format stores blocks of 32 values, and rows have another width",
    "values": "the source holds no table of values: statistics count, and an overlay has some rows "
    "of a table that is elsewhere",
    "same": "the file is one already: copy it",
    "vocabulary": "an adapter of engram-peft leaves added tokens uncompressed, which these formats "
    "do not",
}


def reason_of(found: Cell) -> str:
    """Return the name of a refusal's reason. Raises StopIteration for a message without one."""
    return next(name for name, pattern in REASONS.items() if re.search(pattern, found.reason))


def matrix(cells: dict[tuple[str, str], Cell]) -> str:
    """Return the section of the page: a row a source, a column a target."""
    lines = [
        f"| from \\ `--to` | {' | '.join(ALL_TARGETS)} |",
        f"| --- |{' --- |' * len(ALL_TARGETS)}",
    ]
    for source in SOURCES:
        row = [cells[source.label, to] for to in ALL_TARGETS]
        texts = [f"no: {reason_of(each)}" if each.reason else _given(each) for each in row]
        lines.append(f"| {source.label} | {' | '.join(texts)} |")
    lines += ["", *(f"- **no: {name}**: {meaning}." for name, meaning in MEANINGS.items())]
    return "\n".join(lines)


def _given(found: Cell) -> str:
    return " ".join(f"`--{name}`" for name in found.options) or "yes"


def all_cells(paths: dict[str, Path], folder: Path, tokenizer: Path) -> dict[tuple[str, str], Cell]:
    """Return the cell of every pair, by the source's label and the target."""
    return {
        (source.label, to): cell(source, paths[source.label], to, folder, tokenizer)
        for source in SOURCES
        for to in ALL_TARGETS
    }


def page(cells: dict[tuple[str, str], Cell]) -> str:
    """Return the page with the matrix of these cells in it."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{matrix(cells)}\n\n{END}{after}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    from small_tokenizers import byte_level_tokenizer

    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        byte_level_tokenizer().save(str(here / "tokenizer.json"))
        words = compress_vocab(here / "tokenizer.json")
        (here / "s").mkdir()
        paths = make_sources(here / "s", words, here / "tokenizer.json")
        found = all_cells(paths, here, here / "tokenizer.json")
    for (label, to), each in found.items():
        print(f"{label} -> {to}: {each.text} {each.reason}")
    PAGE.write_text(page(found), encoding="utf-8")
