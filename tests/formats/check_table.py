"""Which checks verify makes of which format, and the page that says so.

    python tests/formats/check_table.py

writes the table into docs/reference/checks.md, from what verify says of a small checkpoint of each
format, with a tokenizer and without. test_check_table.py fails while the page is another.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.command import verify
from engram_cli.vocab.compress import CompressedVocab, compress_vocab

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "checks.md"
BEGIN, END = (
    "<!-- checks: written by tests/formats/check_table.py -->",
    "<!-- end of the checks -->",
)
FORMATS = {
    "V4.1": "DeepSeek-V4.1 folder",
    "Qwen4-Exp": "Qwen4-Exp folder (fp8)",
    "LongCat": "LongCat folder",
    "GGUF, V4.1": "GGUF of V4.1",
    "GGUF, Qwen": "GGUF of Qwen4-Exp",
    "demo": "state dict of the demo",
    "engram-peft": "engram-peft adapter",
    "EngramDB": "EngramDB Store-I",
    "overlay": "overlay (.pleo)",
}
# What is checked, and the names of the checks that say so, without the layer.
ITEMS = {
    "number of rows": r"rows|rows of the (config|keys)|rows, shape|tables|table: shape",
    "moduli": r"moduli|ngram_heads_vocab_sizes|rows of each head|table: shape",
    "offsets": r"offsets|ngram_heads_offsets",
    "multipliers": r"multipliers|layer_multipliers",
    "pad or EOS token": r"pad token|EOS token|compressed pad id",
    "dead tokens": r"dead tokens.*",
    "token map or ids": r"token map|token ids",
    "compressed size": r"compressed size",
    "shapes of rows and scales": r"(rows|scales), shape|values a row|table: shape|scales|module|"
    r"shards are equally wide",
    "tensors of the module": r"module.*|wkv.*|[qk]_weight.*|projections|projection: shape",
    "dtypes": r"dtypes|encoding",
    "keys": r"config keys|keys of ple|constants in the file|version|format of the manifest",
    "layers": r"layers|layers with rows|decoder layer|orders and heads",
    "files and tensors": r"files and tensors of the index|missing parts|shards|number of shards",
    "sizes of files": r"sizes of the (files read|shards)|short parts|bytes of the file",
    "NaN and infinity": r"values",
    "stretches of zeros": r"zero rows",
    "scales, or largest value": r"scales|sizes",
    "items at the limit": r"items at the limit",
    "rows that are there twice": r"repeated rows|row numbers",
    "order of the shards": r"order of the shards",
}


def table(paths: dict[str, Path], tokenizer: Path) -> str:
    """Return the table: a row for each thing that is checked, a column for each format."""
    columns = {name: results(paths[label], tokenizer) for name, label in FORMATS.items()}
    lines = [f"| checked | {' | '.join(FORMATS)} |", "| --- |" + " --- |" * len(FORMATS)]
    for item, pattern in ITEMS.items():
        cells = [_cell(found, re.compile(pattern)) for found in columns.values()]
        lines.append(f"| {item} | {' | '.join(cells)} |")
    return "\n".join(lines)


def results(path: Path, tokenizer: Path) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """Return the results of checks by name, without numbers: without and with a tokenizer."""
    found = []
    for given in (None, tokenizer):
        result = verify(VerifyRequest(path=path, folder=path.parent, tokenizer=given, full=True))
        own: dict[str, set[str]] = {}
        for check in result.checks:
            plain = re.sub(r"^layer \d+: |, from \d+ on$", "", check.name)
            own.setdefault(re.sub(r" \d+", "", plain), set()).add(check.result)
        for name in result.checked:
            own.setdefault(name, set()).add("ok")
        found.append(own)
    return found[0], found[1]


def _cell(found: tuple[dict[str, set[str]], dict[str, set[str]]], pattern: re.Pattern[str]) -> str:
    decided = [
        any(said - {"undecided"} for name, said in own.items() if pattern.fullmatch(name))
        for own in found
    ]
    if decided[0]:
        return "yes"
    if decided[1]:
        return "`--tokenizer`"
    return "shown" if any(pattern.fullmatch(name) for name in found[0]) else "-"


def page(paths: dict[str, Path], tokenizer: Path) -> str:
    """Return the page with the table of now."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(paths, tokenizer)}\n\n{END}{after}"


def made(folder: Path, vocab: CompressedVocab, tokenizer: Path) -> dict[str, Path]:
    """Make a small checkpoint of each format; the tokenizer lies next to none of them."""
    from formats.matrix import make_sources

    paths = make_sources(folder, vocab, tokenizer)
    for path in paths.values():
        if path.is_dir():
            (path / "tokenizer.json").unlink(missing_ok=True)
    return paths


def main() -> None:
    """Write the page."""
    sys.path.insert(0, str(ROOT / "tests"))
    from small_tokenizers import byte_level_tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = folder / "given" / "tokenizer.json"
        tokenizer.parent.mkdir()
        byte_level_tokenizer().save(str(tokenizer))
        PAGE.write_text(
            page(made(folder, compress_vocab(tokenizer), tokenizer), tokenizer), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
