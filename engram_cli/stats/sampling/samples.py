"""N-gram samples as named arrays and as a Parquet file; what is read back is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engram_cli.arrow import integers, numbers, strings
from engram_cli.errors import ArtifactError
from engram_cli.files import sha256_bytes
from engram_cli.remote.path import open_whole
from engram_cli.stats.arrays import REMAKE, array_digest
from engram_cli.stats.sampling.distinct import (
    EVERYTHING,
    LEAST_SAMPLE,
    MOST_SAMPLE,
    NgramSample,
    hash_ngrams,
)
from engram_cli.stats.state import State, check, numbered, part_of, scalar, take, take_scalar

IDS, _OLD_IDS = "compressed_ids", "tokens"  # the column of an n-gram; in earlier versions


def samples_state(samples: Sequence[NgramSample]) -> State:
    """Return the arrays of one sample for each order."""
    return numbered(
        [
            {
                "size": scalar(sample.size),
                "highest": scalar(sample.threshold - 1, np.uint64),
                "hashes": sample.hashes,
                "counts": sample.counts,
                "tokens": sample.tokens.reshape(-1),
            }
            for sample in samples
        ]
    )


def samples_of(
    state: State, orders: Sequence[int], ids: range, tokens: int
) -> tuple[NgramSample, ...]:
    """Return the samples of `orders`, of ids in `ids`, drawn from a corpus of `tokens` tokens.

    Raises ArtifactError for samples that no corpus of that size leaves.
    """
    samples = []
    for index, order in enumerate(orders):
        own = part_of(state, index)
        hashes = take(own, "hashes", np.uint64, (-1,))
        sample = NgramSample(
            order=order,
            size=take_scalar(own, "size", LEAST_SAMPLE, MOST_SAMPLE),
            threshold=take_scalar(own, "highest", 0, EVERYTHING - 1) + 1,
            hashes=hashes,
            counts=take(own, "counts", np.uint64, (len(hashes),)),
            tokens=take(own, "tokens", np.int32, (len(hashes) * order,)).reshape(-1, order),
        )
        check(_is_sound(sample, ids, tokens), f"{index}/hashes")
        samples.append(sample)
    return tuple(samples)


def merged(one: Sequence[NgramSample], two: Sequence[NgramSample]) -> tuple[NgramSample, ...]:
    """Return the samples of both corpora. Raises MismatchError."""
    return tuple(a.merge(b) for a, b in zip(one, two, strict=True))


def sample_digest(sample: NgramSample) -> str:
    """Return the digest of a sample, which does not depend on the writer of its Parquet file."""
    digests = [array_digest(own) for own in (sample.hashes, sample.counts, sample.tokens)]
    return sha256_bytes("".join(digests).encode())


def write_samples(
    samples: Sequence[NgramSample], path: Path, texts: Mapping[int, str] | None = None
) -> None:
    """Write samples as one Parquet file, a row for each n-gram.

    `texts`: of every compressed id in them; None leaves the text of the n-grams open.
    """
    lengths = np.concatenate([np.full(len(s.hashes), s.order, np.int32) for s in samples])
    offsets = numbers(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    tokens = np.concatenate([s.tokens.reshape(-1) for s in samples])
    text: Any = pa.nulls(len(lengths), pa.string())
    if texts is not None and len(tokens):
        text = _joined(offsets, tokens, texts)
    table = pa.table(
        {
            "order": numbers(lengths),
            "hash": numbers(np.concatenate([s.hashes for s in samples])),
            "count": numbers(np.concatenate([s.counts for s in samples])),
            IDS: pa.ListArray.from_arrays(offsets, numbers(tokens)),
            "text": text,
        }
    )
    # Hashes and texts hardly repeat: a dictionary of them takes as long as all the rest.
    repeated = ["order", "count", f"{IDS}.list.element"]
    pq.write_table(table, path, compression="zstd", use_dictionary=repeated)


def _joined(offsets: Any, tokens: NDArray[np.int32], texts: Mapping[int, str]) -> Any:
    """Return the texts of n-grams, those of their tokens with spaces between, as an Arrow array."""
    import pyarrow.compute as pc  # takes 20 ms, and reading needs none

    known = sorted(texts)
    place = np.zeros(known[-1] + 1, dtype=np.int32)
    place[known] = np.arange(len(known))
    each = strings([texts[token] for token in known]).take(numbers(place[tokens]))
    return pc.binary_join(pa.ListArray.from_arrays(offsets, each), strings([" "])[0])


def read_samples(
    path: Path, about: Sequence[Mapping[str, Any]], orders: Sequence[int], ids: range, tokens: int
) -> tuple[NgramSample, ...]:
    """Return the samples in a Parquet file, checked as in `samples_of`.

    `about`: the size and threshold of each, from stats.json. Raises ArtifactError.
    """
    try:
        with open_whole(path) as raw, pq.ParquetFile(raw) as file:
            ids_name = IDS if IDS in file.schema_arrow.names else _OLD_IDS
            if _most_entries(file.metadata) > MOST_SAMPLE * sum(orders):
                raise ValueError(f"it has more than {MOST_SAMPLE * sum(orders):,} entries")
            table = file.read(columns=["order", "hash", "count", ids_name])
        table.validate(full=True)
        order_of = integers(table["order"])
        lists = table[ids_name].combine_chunks()
        bounds = integers(pa.chunked_array([lists.offsets]))
        ids_of = integers(pa.chunked_array([lists.values]))[bounds[0] : bounds[-1]]
        states: list[State] = []
        for entry, order in zip(about, orders, strict=True):
            own = order_of == order
            states.append(
                {
                    "size": scalar(int(entry["size"])),
                    "highest": scalar(int(entry["threshold"]) - 1, np.uint64),
                    "hashes": integers(table["hash"])[own].astype(np.uint64, casting="safe"),
                    "counts": integers(table["count"])[own].astype(np.uint64, casting="safe"),
                    "tokens": ids_of[np.repeat(own, np.diff(bounds))].astype(
                        np.int32, casting="safe"
                    ),
                }
            )
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path} cannot be read as a sample: {reason}", REMAKE) from None
    try:
        return samples_of(numbered(states), orders, ids, tokens)
    except ArtifactError:
        raise ArtifactError(f"{path}: a sample was changed after it was written", REMAKE) from None


def _most_entries(metadata: pq.FileMetaData) -> int:
    """Return the entries of the longest column of a Parquet file, according to its footer."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = ([group.column(i).num_values for i in range(group.num_columns)] for group in groups)
    return sum(max(values, default=0) for values in columns)


def _is_sound(sample: NgramSample, ids: range, tokens: int) -> bool:
    """Return whether a corpus of `tokens` tokens, with ids in `ids`, may leave this sample."""
    hashes, found = sample.hashes, sample.tokens
    return (
        1 <= sample.threshold <= EVERYTHING
        and len(hashes) <= sample.size
        and (sample.exact or len(hashes) == sample.size)
        and bool(np.all(hashes[1:] > hashes[:-1]))
        and (len(hashes) == 0 or 0 < int(hashes[0]) <= int(hashes[-1]) < sample.threshold)
        and (len(hashes) == 0 or (int(found.min()) in ids and int(found.max()) in ids))
        and bool(np.array_equal(hash_ngrams(found), hashes))
        and int(sample.counts.sum()) <= tokens
    )
