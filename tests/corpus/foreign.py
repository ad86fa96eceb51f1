"""Writes a corpus with the tool that a format is of: tool and folder in.

`python foreign.py all FOLDER` wrote what `foreign.zip` holds, with megatron-core 0.16.1, datatrove
0.10.1, mosaicml-streaming 0.13.0, datasets 5.2.0 and llm.c's data_common.py (LLMC names it).
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np

DOCUMENTS = [[5, 6, 2], [7, 2], [300, 8, 9, 2]]
TEXTS = ["one", "", "drei é"]


def streaming(folder: Path) -> None:
    from streaming.base.format.mds.writer import MDSWriter

    for name, columns, compression in (
        ("ndarray", {"id": "int", "tokens": "ndarray"}, None),
        ("uint32", {"tokens": "ndarray:uint32", "id": "int"}, None),
        ("text", {"text": "str", "meta": "json"}, "zstd:7"),
        ("gz", {"text": "str"}, "gz"),
        ("bytes", {"tokens": "bytes"}, "bz2:9"),
    ):
        kind = {"ndarray": np.int32, "uint32": np.uint32}.get(name, np.int64)
        with MDSWriter(
            out=str(folder / name), columns=columns, compression=compression, size_limit=120
        ) as out:
            for number, (ids, text) in enumerate(zip(DOCUMENTS, TEXTS, strict=True)):
                array = np.array(ids, kind)
                value = array.tobytes() if name == "bytes" else array
                whole = {"id": number, "tokens": value, "text": text, "meta": {"n": number}}
                out.write({column: whole[column] for column in columns})


def megatron(folder: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    for name, kind in (("uint16", np.uint16), ("int32", np.int32)):
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=kind)
        for ids in DOCUMENTS:
            builder.add_item(torch.tensor(ids[:1]))
            builder.add_item(torch.tensor(ids[1:]))
            builder.end_document()
        builder.finalize(str(folder / f"{name}.idx"))


def datatrove(folder: Path) -> None:
    from datatrove.pipeline.tokens.tokenizer import TokenizedFile

    for width in (2, 4):
        file = TokenizedFile(str(folder), f"{width}.ds", token_size=width, save_final_metadata=True)
        for ids in DOCUMENTS:
            file.write(ids, None)
        file.close()


def datasets(folder: Path) -> None:
    from datasets import Dataset, DatasetDict

    ids = Dataset.from_dict({"input_ids": DOCUMENTS, "n": [1, 2, 3]})
    ids.save_to_disk(str(folder / "ids"), num_shards=2)
    ids.to_parquet(str(folder / "ids.parquet"))
    split = Dataset.from_dict({"text": TEXTS})
    DatasetDict({"train": split}).save_to_disk(str(folder / "text"))


def llmc(folder: Path) -> None:
    write = runpy.run_path(os.environ["LLMC"])["write_datafile"]
    flat = [2, *(token for ids in DOCUMENTS for token in ids)][:-1]  # its mark stands before
    for model in ("gpt-2", "llama-3"):
        write(str(folder / f"{model}.bin"), flat, model)


TOOLS = {each.__name__: each for each in (streaming, megatron, datatrove, datasets, llmc)}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for name in TOOLS if sys.argv[1] == "all" else sys.argv[1:2]:
        place = Path(sys.argv[2], name)
        place.mkdir(parents=True)
        TOOLS[name](place)
    print(json.dumps(None))
