"""Writes and reads a statistics folder: the counts of a corpus and the figures from them.

docs/reference/statistics-format.md describes it. A folder is written whole or not
at all. What is read back is untrusted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, IncompleteError, InputError, MismatchError
from engram_cli.files import canonical_json, local_path, read_json, sha256_bytes
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import Kind, Listing, new_folder
from engram_cli.stats import kernels
from engram_cli.stats.arrays import (
    META,
    REMAKE,
    array_digest,
    chunk_files,
    read_array,
    write_arrays,
)
from engram_cli.stats.distinct import MOST_SAMPLE, NgramSample
from engram_cli.stats.occurrences import Occurrences, OccurrenceSample, occurrences_of
from engram_cli.stats.partial_files import (
    LONG,
    SHORT,
    flat_name,
    read_partials,
    write_partials,
)
from engram_cli.stats.samples import sound_sample
from engram_cli.stats.state import State, nested
from engram_cli.stats.totals import Counts
from engram_cli.typed_json import as_json
from engram_cli.version import __version__

FORMAT = "engram-stats"
VERSION = 1
DOCUMENT, COUNTERS, SAMPLE = "stats.json", "counters.zarr", "sample.parquet"
FIXED_KEYS = frozenset(
    (
        *("format", "version", "tool_version", "complete", "layout", "fingerprint", "tokens"),
        *("documents", "join_documents", "corpus", "samples", "partials"),
        *("arrays", "digest"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """A statistics folder: `layout` bound to its vocabulary map, `document` the stats.json."""

    path: Path
    layout: HashLayout
    tokens: int
    documents: int
    document: dict[str, Any] = field(repr=False)

    @property
    def joined(self) -> bool:
        """Whether the documents were hashed as one stream."""
        return bool(self.document["join_documents"])

    def hits(self, layer: int) -> NDArray[np.uint32]:
        """uint32[rows]: how often each row of `layer` was looked up.

        Raises LayoutError for an unknown layer, ArtifactError when counters are missing or changed.
        """
        entry = self.layout.layer(layer)
        hits = np.asarray(
            read_array(self.path / COUNTERS, str(layer), (entry.rows,), np.dtype(np.uint32))
        )
        hits = np.require(hits, np.uint32, ("C", "W"))
        for column, (begin, modulus) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
            sums = np.zeros(6, dtype=np.uint64)
            kernels.sum_column(hits[begin : begin + modulus], sums)
            _, _, full, total, _, _ = map(int, sums)
            if total != self.tokens and not (full and total < self.tokens):
                raise ArtifactError(
                    f"{self.path / COUNTERS}: the hits of layer {layer}, column {column} sum to "
                    f"{total:,}, not to the {self.tokens:,} tokens",
                    REMAKE,
                )
        self.check_digest(f"{COUNTERS}/{layer}", hits)
        return hits

    def check_digest(self, name: str, values: NDArray[Any]) -> None:
        """Raises ArtifactError where stats.json has another digest of an array; folders of earlier
        versions have none."""
        known = self.document.get("arrays", {})
        if name in known and known[name] != array_digest(values):
            raise ArtifactError(f"{self.path / name} was changed after it was written", REMAKE)

    def samples(self) -> tuple[NgramSample, ...]:
        """The n-gram sample of each order. Raises ArtifactError."""
        return _read_samples(self)

    def partials(self) -> dict[str, State]:
        """What the sections come from, by collector. Raises ArtifactError."""
        partials = read_partials(self.path, self.document.get("partials"))
        for name, array in nested(**partials).items():
            self.check_digest(f"{LONG}/{flat_name(name)}", array)
        return partials

    def occurrences(self) -> OccurrenceSample | None:
        """The sample of positions; None in a folder of an earlier version. Raises ArtifactError."""
        about, name = self.document.get("partials"), Occurrences.name
        state = read_partials(self.path, about, only=name).get(name)
        ids = range(self.layout.compressed_size)
        return None if state is None else occurrences_of(state, self.layout.max_order, ids)

    def counts(self) -> Counts:
        """All that was counted, to be merged with other counts. Raises ArtifactError."""
        return Counts(
            layout=self.layout,
            tokens=self.tokens,
            documents=self.documents,
            joined=self.joined,
            hits={layer: self.hits(layer) for layer in self.layout.layer_ids},
            samples=self.samples(),
        )


def write_stats(
    counts: Counts,
    results: Mapping[str, object],
    path: Path,
    *,
    corpus: Mapping[str, int] | None = None,
    partials: Mapping[str, State] | None = None,
    force: bool = False,
    finished: Callable[[str], None] = lambda _: None,
) -> None:
    """Write a statistics folder, whole or not at all. Raises OutputError.

    `results`: the typed results of statistics, by their keys in stats.json. `corpus`: numbers of
    the corpus itself to keep, such as its files and bytes. `partials`: what the results come from,
    for merging. The same arguments give the same bytes. `finished` is called with the digest before
    the folder is in place.
    """
    with new_folder(path, STATISTICS, force=force) as part:
        counters = {str(layer): hits for layer, hits in counts.hits.items()}
        lookup = {} if counts.layout.lookup is None else {"lookup": counts.layout.lookup}
        stored = write_arrays(part / COUNTERS, counters | lookup)
        digests = {f"{COUNTERS}/{name}": digest for name, digest in stored.items()}
        _write_samples(counts.samples, part / SAMPLE)
        digests |= {f"{SAMPLE}/{s.order}": sample_digest(s) for s in counts.samples}
        about, stored = write_partials(part, partials or {})
        digests |= {f"{LONG}/{name}": digest for name, digest in stored.items()}
        document = {
            "format": FORMAT,
            "version": VERSION,
            "tool_version": __version__,
            "complete": True,
            "corpus": dict(corpus or {}),
            **figures_document(counts, results),
            "partials": about,
            "arrays": digests,
        }
        document["digest"] = _digest(document)
        (part / DOCUMENT).write_bytes(canonical_json(document))
        finished(str(document["digest"]))


def figures_document(counts: Counts, results: Mapping[str, object]) -> dict[str, Any]:
    """Return the keys of stats.json that follow from what was counted, as plain JSON."""
    fixed = {
        "layout": counts.layout.to_json(),
        "fingerprint": counts.layout.fingerprint,
        "tokens": counts.tokens,
        "documents": counts.documents,
        "join_documents": counts.joined,
        "samples": [
            {"order": s.order, "size": s.size, "threshold": str(s.threshold)}
            for s in counts.samples
        ],
    }
    if clash := fixed.keys() & results.keys():
        raise ValueError(f"statistics named as other keys: {', '.join(sorted(clash))}")
    return fixed | {key: as_json(result) for key, result in results.items()}


def sample_digest(sample: NgramSample) -> str:
    """The digest of a sample: of its hashes, counts and tokens, whatever wrote the Parquet file."""
    digests = [array_digest(own) for own in (sample.hashes, sample.counts, sample.tokens)]
    return sha256_bytes("".join(digests).encode())


def is_stats(path: Path) -> bool:
    """Whether `path` is a statistics folder, finished or not."""
    return (path / DOCUMENT).is_file() and (path / COUNTERS).is_dir()


def _listing(path: Path) -> Listing | None:
    """The files of a finished statistics folder; a chunk of zeros has no file."""
    try:
        document = read_json(path / DOCUMENT, "the statistics of a corpus")
        if document["format"] != FORMAT or document["complete"] is not True:
            return None
        layout = document["layout"]
        counted = [str(int(entry["layer"])) for entry in layout["layers"]]
        counted += ["lookup"] if layout.get("vocab_digest") is not None else []
        about = document.get("partials") or {"of": []}
        long = sorted(flat_name(str(name)) for name in about.get("long", ()))
        needed = {DOCUMENT, SAMPLE} | ({SHORT} if about["of"] else set())
        optional: set[str] = set()
        for group, names in ((COUNTERS, counted), (LONG, long)):
            if names:
                needed |= {f"{group}/{META}", *(f"{group}/{name}/{META}" for name in names)}
                optional.update(*(chunk_files(path, group, name) for name in names))
    except (EngramError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
        return None
    return Listing(frozenset(needed), frozenset(optional))


STATISTICS = Kind(name="statistics folder", listing=_listing)


def read_stats(path: str | Path) -> Statistics:
    """Open a statistics folder.

    Raises InputError when there is none, IncompleteError for an unfinished one, ArtifactError for
    a damaged one.
    """
    path = local_path(path)
    if not path.is_dir():
        raise InputError(f"no statistics folder at {path}", "run first: engram hash-stats CORPUS")
    if not (path / DOCUMENT).is_file():
        if not any((path / name).exists() for name in (COUNTERS, SAMPLE)):
            raise InputError(
                f"{path} is no statistics folder: it has no {DOCUMENT}",
                "give a folder that engram hash-stats wrote",
            )
        raise IncompleteError(f"{path} has no {DOCUMENT}: it was never finished", REMAKE)
    document = read_json(path / DOCUMENT, "the statistics of a corpus")
    _check_document(path, document)
    try:
        layout = _bound(HashLayout.from_json(document["layout"]), path / COUNTERS)
    except ArtifactError:
        raise
    except EngramError as error:
        raise ArtifactError(f"{path}: {error.message}", REMAKE) from None
    if layout.fingerprint != document["fingerprint"]:
        raise ArtifactError(f"{path / DOCUMENT}: its fingerprint is another layout's", REMAKE)
    return Statistics(
        path=path,
        layout=layout,
        tokens=document["tokens"],
        documents=document["documents"],
        document=document,
    )


def _bound(layout: HashLayout, counters: Path) -> HashLayout:
    """Return the layout with the vocabulary map stored next to the hits. Raises ArtifactError."""
    if layout.vocab_digest is None:
        return layout
    lookup = np.asarray(read_array(counters, "lookup", None, np.dtype(np.int32)))
    try:
        return layout.bind(lookup)
    except MismatchError:
        raise ArtifactError(
            f"{counters / 'lookup'} is damaged: it is not the look-up that was hashed with", REMAKE
        ) from None


def _check_document(path: Path, document: dict[str, Any]) -> None:
    name = path / DOCUMENT
    if document.get("format") != FORMAT:
        raise ArtifactError(f"{name} holds no statistics of ours", REMAKE)
    version = document.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ArtifactError(f"{name} was written by a newer version ({version})", "upgrade engram")
    if document.get("complete") is not True:
        raise IncompleteError(f"{name} says that it is not complete", REMAKE)
    kinds: dict[str, type] = {"tokens": int, "documents": int, "join_documents": bool}
    kinds |= {"fingerprint": str, "layout": dict, "samples": list, "orders": list, "columns": list}
    kinds |= {"arrays": dict} if "arrays" in document else {}
    for key, kind in kinds.items():
        value = document.get(key)
        if not isinstance(value, kind) or (isinstance(value, int) and not 0 <= value < 2**63):
            raise ArtifactError(f"{name}: '{key}' is missing or wrong", REMAKE)
    if "digest" in document and not _is_as_written(document):
        raise ArtifactError(f"{name} was changed: it has another digest than it says", REMAKE)


def _is_as_written(document: dict[str, Any]) -> bool:
    try:
        return bool(document["digest"] == _digest(document))
    except (ValueError, RecursionError):  # halves of surrogate pairs, lists in lists without end
        return False


def _digest(document: Mapping[str, Any]) -> str:
    """That of all that a stats.json says but its own digest, as it is read back."""
    said = {key: value for key, value in document.items() if key != "digest"}
    return sha256_bytes(canonical_json(json.loads(canonical_json(said))))


def _write_samples(samples: Sequence[NgramSample], path: Path) -> None:
    lengths = np.concatenate([np.full(len(s.hashes), s.order, np.int32) for s in samples])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = np.concatenate([s.tokens.reshape(-1) for s in samples])
    table = pa.table(
        {
            "order": lengths,
            "hash": np.concatenate([s.hashes for s in samples]),
            "count": np.concatenate([s.counts for s in samples]),
            "tokens": pa.ListArray.from_arrays(offsets, tokens),
        }
    )
    pq.write_table(table, path, compression="zstd")


def _most_entries(metadata: pq.FileMetaData) -> int:
    """The entries of the longest column of a Parquet file, as its footer says."""
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = ([group.column(i).num_values for i in range(group.num_columns)] for group in groups)
    return sum(max(values, default=0) for values in columns)


def _read_samples(statistics: Statistics) -> tuple[NgramSample, ...]:
    path = statistics.path / SAMPLE
    try:
        with path.open("rb") as raw, pq.ParquetFile(raw) as file:
            entries = MOST_SAMPLE * sum(statistics.layout.orders)
            if _most_entries(file.metadata) > entries:
                raise ValueError(f"it has more than {entries:,} entries")
            table = file.read(columns=["order", "hash", "count", "tokens"])
        table.validate(full=True)
        orders = table["order"].to_numpy()
        hashes = table["hash"].to_numpy().astype(np.uint64, casting="safe")
        counts = table["count"].to_numpy().astype(np.uint64, casting="safe")
        samples = []
        for entry, order in zip(
            statistics.document["samples"], statistics.layout.orders, strict=True
        ):
            own = np.flatnonzero(orders == order)
            tokens = table["tokens"].take(own).combine_chunks().flatten().to_numpy()
            samples.append(
                NgramSample(
                    order=order,
                    size=int(entry["size"]),
                    threshold=int(entry["threshold"]),
                    hashes=hashes[own],
                    counts=counts[own],
                    tokens=tokens.astype(np.int32, casting="safe").reshape(len(own), order),
                )
            )
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ArtifactError(f"{path} cannot be read as a sample: {reason}", REMAKE) from None
    ids = range(statistics.layout.compressed_size)
    for sample in samples:
        if not sound_sample(sample, ids, statistics.tokens):
            raise ArtifactError(f"{path}: the sample of {sample.order}-grams was changed", REMAKE)
        known = statistics.document.get("arrays", {})
        if known.get(f"{SAMPLE}/{sample.order}", "") not in ("", sample_digest(sample)):
            raise ArtifactError(
                f"{path}: the sample of {sample.order}-grams was changed after it was written",
                REMAKE,
            )
    return tuple(samples)
