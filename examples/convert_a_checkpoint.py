"""A checkpoint of another program is checked, and its table converted to another format.

    python examples/convert_a_checkpoint.py DeepSeek-V4.1-Flash gguf table.gguf

The source may be a folder, a GGUF file, org/name of the Hugging Face Hub, or an address: then only
the headers and the table are read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from engram_cli import ConvertRequest, InspectRequest, convert, inspect


def main(source: Path, to: str, out: Path, dtype: str | None, tokenizer: Path | None) -> None:
    """Print what the checkpoint is and which checks fail, then convert it."""
    found = inspect(InspectRequest(path=source, tokenizer=tokenizer))
    print(f"{found.path}: {found.format}, {found.files} files, {found.stored_bytes:,} bytes")
    for layer in found.layers:
        print(f"  layer {layer.layer}: {layer.rows:,} rows of {layer.width} x {layer.dtype}")
    wrong = [check for check in found.checks if check.result == "differs"]
    for check in wrong:
        print(f"  {check.name}: {check.found}, expected {check.expected}")
    if wrong:
        raise SystemExit(1)

    made = convert(ConvertRequest(source=source, to=to, out=out, dtype=dtype, tokenizer=tokenizer))
    print(f"{out} in {made.seconds:.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("to")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype")
    parser.add_argument("--tokenizer", type=Path)
    main(**vars(parser.parse_args()))
