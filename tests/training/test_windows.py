"""Packed files: documents come back as they were, windows are cuts of them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from engram_cli.errors import InputError
from engram_cli.table.inits.corpus.tokens import START
from engram_cli.training import windows
from engram_cli.training.windows import Windows, documents, pack

END = 1


def words_of(lengths: list[int], closed: tuple[int, ...] = ()) -> np.ndarray:
    """Words of documents of ids from 10 on; those in `closed` end with END themselves."""
    parts, at = [], 10
    for number, length in enumerate(lengths):
        ids = np.arange(at, at + length, dtype=np.uint32)
        at += length
        if number in closed:
            ids = np.append(ids, np.uint32(END))
        ids[0] += np.uint32(START)
        parts.append(ids.astype(np.uint32))
    return np.concatenate(parts)


@pytest.mark.parametrize("chunk", [4, 7, 2**20])
@pytest.mark.parametrize("closed", [(), (1,), (0, 1, 2, 3)])
def test_documents_are_ended_once(
    chunk: int, closed: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "CHUNK", chunk)
    lengths = [3, 8, 1, 4]
    path = tmp_path / "packed"
    pack(words_of(lengths, closed), path, END)
    found = [ids.tolist() for ids in documents(path, END, 4, 10**6, cut=8)]
    assert [len(each) for each in found] == lengths
    assert [token for each in found for token in each] == list(range(10, 26))
    bare = tmp_path / "bare"
    pack(words_of(lengths), bare, None)
    assert np.fromfile(bare, "<u4").tolist() == list(range(10, 26))
    assert [len(each) for each in documents(bare, None, 1, 10**6, cut=6)] == [6, 6, 4]


def test_few_tokens_are_of_many_documents(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    pack(words_of([9] * 100), path, END)
    found = list(documents(path, END, 100, 200, cut=8))
    assert len(found) == 25  # each 8 tokens long, spread over the file
    assert {len(each) for each in found} == {8}
    assert found[-1][0] > 800
    pack(words_of([900, 30, 900, 900]), path, END)
    found = list(documents(path, END, 4, 400, cut=8))
    assert [len(each) for each in found] == [100, 30, 100, 100]


def test_windows_are_cuts_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    pack(words_of([3, 8, 1, 4]), path, END)
    data = pickle.loads(pickle.dumps(Windows(path, 6, apart=END)))
    ids = torch.cat([data[place]["input_ids"] for place in range(len(data))])
    assert ids.tolist() == np.fromfile(path, "<u4")[:18].tolist()
    # 10 11 12 1 13 14 | 15 16 17 18 19 20 | 1 21 1 22 23 24
    places = [data[place]["position_ids"].tolist() for place in range(3)]
    assert places == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 1, 0, 1, 2]]
    assert "position_ids" not in Windows(path, 6)[0]
    few = Windows(path, 2, most=3)
    assert [few[place]["input_ids"][0].item() for place in range(3)] == [10, 15, 1]
    with pytest.raises(IndexError):
        few[3]
    with pytest.raises(InputError, match="20 tokens do not fill"):
        Windows(path, 21)
