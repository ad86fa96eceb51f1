"""Gathers rows out of files behind addresses: ranges of nearby rows, several of them in flight."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError
from engram_cli.remote.path import RemotePath, is_remote, read_ranges
from engram_cli.remote.session import GAP_BYTES, RANGE_BYTES
from engram_cli.rows.source import Span

__all__ = ["RANGE_BYTES", "take_distant"]


def take_distant(
    spans: Sequence[Span],
    row_bytes: int,
    ids: NDArray[np.int64],
    out: NDArray[Any],
    hint: str,
) -> None:
    """Read the rows at `ids` int64[n], each once, into `out` [n, ...], contiguous.

    `hint`: what to do about a file that is too short. Raises ArtifactError, SourceError.
    """
    if not len(ids):
        return
    wanted, place = np.unique(ids, return_inverse=True)
    rows = np.empty((len(wanted), row_bytes), dtype=np.uint8)
    groups = _groups(spans, row_bytes, wanted)
    ranges: list[tuple[RemotePath, int, int]] = []
    for span, _, begins in groups:
        assert is_remote(span.file)  # all spans of an array are of one source
        ranges.append((span.file, int(begins[0]), int(begins[-1]) + row_bytes))
    try:
        for index, raw in read_ranges(ranges):
            (path, begin, end), (_, first, begins) = ranges[index], groups[index]
            if len(raw) != end - begin:
                raise ArtifactError(f"{path} ends too early", hint)
            windows = np.lib.stride_tricks.sliding_window_view(
                np.frombuffer(raw, np.uint8), row_bytes
            )
            rows[first : first + len(begins)] = windows[begins - begin]
    except OSError as error:
        raise ArtifactError(f"{error.filename} cannot be read: {error.strerror}", hint) from None
    out.reshape(len(ids), -1).view(np.uint8)[:] = rows[place]


def _groups(
    spans: Sequence[Span], row_bytes: int, wanted: NDArray[np.int64]
) -> list[tuple[Span, int, NDArray[np.int64]]]:
    """Return the rows that one range reads together: their span, the first's index, their bytes.

    Rows with a gap of at most GAP_BYTES between them are read together, up to RANGE_BYTES.
    """
    groups = []
    firsts = [span.first for span in spans]
    begin = 0
    while begin < len(wanted):
        span = spans[bisect_right(firsts, int(wanted[begin])) - 1]
        end = int(np.searchsorted(wanted, span.first + span.rows))
        stride = span.stride or row_bytes
        begins = span.begin + (wanted[begin:end] - span.first) * stride
        cut = 0
        for index in range(1, len(begins) + 1):
            whole = index == len(begins)
            if not whole:
                gap = begins[index] - begins[index - 1] - row_bytes
                whole = gap > GAP_BYTES or begins[index] + row_bytes - begins[cut] > RANGE_BYTES
            if whole:
                groups.append((span, begin + cut, begins[cut:index]))
                cut = index
        begin = end
    return groups
