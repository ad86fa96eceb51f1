"""Writes and reads a statistics folder: the counts of a corpus and the results from them.

docs/reference/statistics-format.md describes it. What is read back is untrusted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import ArtifactError, EngramError, IncompleteError, InputError, MismatchError
from engram_cli.files import canonical_json, read_json, sha256_bytes
from engram_cli.hashing.layout import HashLayout
from engram_cli.outputs import Kind, Listing, new_folder
from engram_cli.remote.path import readable_path
from engram_cli.stats import DOCUMENT
from engram_cli.stats.arrays import (
    META,
    REMAKE,
    array_digest,
    chunk_files,
    read_array,
    write_arrays,
)
from engram_cli.stats.partial import LONG, SHORT, flat_name, read_partials, write_partials
from engram_cli.stats.sampling.distinct import NgramSample
from engram_cli.stats.sampling.occurrences import Occurrences, OccurrenceSample, read_occurrences
from engram_cli.stats.sampling.samples import read_samples, sample_digest, write_samples
from engram_cli.stats.state import State, nested
from engram_cli.stats.totals import FULL, Counts
from engram_cli.typed_json import as_json
from engram_cli.version import __version__

FORMAT = "engram-stats"
VERSION = 1
COUNTERS, SAMPLE = "counters.zarr", "sample.parquet"
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
        """Return uint32[rows]: how often each row of `layer` was looked up.

        Raises LayoutError for an unknown layer, ArtifactError when counters are missing or changed.
        """
        entry = self.layout.layer(layer)
        hits = np.asarray(
            read_array(self.path / COUNTERS, str(layer), (entry.rows,), np.dtype(np.uint32))
        )
        hits = np.require(hits, np.uint32, ("C", "W"))
        for column, (begin, modulus) in enumerate(zip(entry.offsets, entry.moduli, strict=True)):
            own = hits[begin : begin + modulus]
            total = int(own.sum(dtype=np.uint64))
            if total != self.tokens and not (total < self.tokens and np.any(own == FULL)):
                raise ArtifactError(
                    f"{self.path / COUNTERS}: the hits of layer {layer}, column {column} sum to "
                    f"{total:,}, not to the {self.tokens:,} tokens",
                    REMAKE,
                )
        self._check_digest(f"{COUNTERS}/{layer}", array_digest(hits))
        return hits

    def _check_digest(self, name: str, digest: str) -> None:
        """Check the digest of an array in stats.json; folders of earlier versions have none."""
        if self.document.get("arrays", {}).get(name, digest) != digest:
            raise ArtifactError(f"{self.path / name} was changed after it was written", REMAKE)

    def samples(self) -> tuple[NgramSample, ...]:
        """Return the n-gram sample of each order. Raises ArtifactError."""
        ids = range(self.layout.compressed_size)
        samples = read_samples(
            self.path / SAMPLE, self.document["samples"], self.layout.orders, ids, self.tokens
        )
        for sample in samples:
            self._check_digest(f"{SAMPLE}/{sample.order}", sample_digest(sample))
        return samples

    def partials(self) -> dict[str, State]:
        """Return what the results of collectors come from, by collector. Raises ArtifactError."""
        partials = read_partials(self.path, self.document.get("partials"))
        for name, array in nested(**partials).items():
            self._check_digest(f"{LONG}/{flat_name(name)}", array_digest(array))
        return partials

    def occurrences(self) -> OccurrenceSample | None:
        """Return the sample of positions; None in a folder of an earlier version.

        Raises ArtifactError.
        """
        about, name = self.document.get("partials"), Occurrences.name
        state = read_partials(self.path, about, only=name).get(name)
        return None if state is None else read_occurrences(self.layout, state)

    def counts(self) -> Counts:
        """Return all that was counted, to be merged with other counts. Raises ArtifactError."""
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
    results: Callable[[], Mapping[str, object]],
    path: Path,
    *,
    corpus: Mapping[str, int] | None = None,
    partials: Mapping[str, State] | None = None,
    texts: Callable[[], Mapping[int, str] | None] = lambda: None,
    force: bool = False,
    finished: Callable[[str], None] = lambda _: None,
) -> Mapping[str, object]:
    """Write a statistics folder, whole or not at all; return the results. Raises OutputError.

    `results` gives the typed results of statistics, by their keys in stats.json; counters and
    samples are written meanwhile. `corpus`: numbers of the corpus itself to keep, such as its files
    and bytes. `partials`: what the results come from, for merging. `texts` gives those of all
    compressed ids in the samples, None where no vocabulary is there. The same arguments give the
    same bytes. `finished` is called with the digest before the folder is in place.
    """
    with new_folder(path, STATISTICS_FOLDER, force=force) as part:
        counters = {str(layer): hits for layer, hits in counts.hits.items()}
        lookup = {} if counts.layout.lookup is None else {"lookup": counts.layout.lookup}
        rows = {name: f"row_{name}" for name in counters}
        meanings = {name: f"look-ups of each row of layer {name}" for name in counters}
        with ThreadPoolExecutor(2) as pool:
            writing = pool.submit(
                write_arrays,
                part / COUNTERS,
                counters | lookup,
                rows | {"lookup": "token_id"},
                meanings | {"lookup": "compressed id of each token id, -1 for none"},
            )
            sampling = pool.submit(_write_samples, counts.samples, part / SAMPLE, texts)
            found = results()
            about, stored = write_partials(part, partials or {})
            digests = {f"{COUNTERS}/{name}": value for name, value in writing.result().items()}
            digests |= sampling.result()
        digests |= {f"{LONG}/{name}": digest for name, digest in stored.items()}
        document = {
            "format": FORMAT,
            "version": VERSION,
            "tool_version": __version__,
            "complete": True,
            "corpus": dict(corpus or {}),
            **figures_document(counts, found),
            "partials": about,
            "arrays": digests,
        }
        document["digest"] = _digest(document)
        (part / DOCUMENT).write_bytes(canonical_json(document))
        finished(str(document["digest"]))
    return found


def _write_samples(
    samples: tuple[NgramSample, ...], path: Path, texts: Callable[[], Mapping[int, str] | None]
) -> dict[str, str]:
    """Write the samples; return the digest of each, by its name in stats.json."""
    write_samples(samples, path, texts())
    return {f"{SAMPLE}/{sample.order}": sample_digest(sample) for sample in samples}


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


def _listing(path: Path) -> Listing | None:
    """Return the files of a finished statistics folder; a chunk of zeros has no file."""
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


STATISTICS_FOLDER = Kind(name="statistics folder", listing=_listing, last=DOCUMENT)


def read_stats(path: str | Path) -> Statistics:
    """Open a statistics folder.

    Raises InputError when there is none, IncompleteError for an unfinished one, ArtifactError for
    a damaged one.
    """
    path = readable_path(path)
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
        raise ArtifactError(f"{name} is not a stats.json of engram", REMAKE)
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
    """Return the digest of a stats.json without its own, as it is read back."""
    said = {key: value for key, value in document.items() if key != "digest"}
    return sha256_bytes(canonical_json(json.loads(canonical_json(said))))
