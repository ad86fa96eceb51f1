"""What counting a part of a corpus leaves behind: counts, and the partials of all collectors.

Partials merge in any order and grouping into that of the whole corpus, to the bit. They travel as
named arrays, between the workers of an engine or through statistics folders.

In a folder, short arrays lie in one safetensors file. Long ones (counters, the n-grams of exact
counting) lie in a Zarr group, compressed. docs/reference/statistics-format.md describes both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from engram_cli.errors import ArtifactError
from engram_cli.files import sha256_bytes
from engram_cli.hashing.layout import HashLayout
from engram_cli.stats.arrays import REMAKE, read_array, write_arrays
from engram_cli.stats.collector import CollectorPartial
from engram_cli.stats.collector_set import read_collected
from engram_cli.stats.sampling.samples import samples_of, samples_state
from engram_cli.stats.state import State, nested, part_of, scalar, take, take_scalar
from engram_cli.stats.totals import Counts

SHORT, LONG = "partials.safetensors", "partials.zarr"
LONG_FROM = 2**20  # entries
MOST_BYTES = 2**31  # of the short arrays together
_DTYPES = ("uint8", "uint32", "uint64", "int32", "int64", "float64")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Partial:
    """The `counts`, and what each collector found, by its name."""

    counts: Counts
    collected: Mapping[str, CollectorPartial]

    def merge(self, other: Partial) -> Partial:
        """Return that of both parts; what only one of them has is left out.

        Raises MismatchError for parts counted in two ways, TooManySources.
        """
        return Partial(
            counts=self.counts.merge(other.counts),
            collected={
                name: partial.merge(other.collected[name])
                for name, partial in self.collected.items()
                if name in other.collected
            },
        )

    def results(self) -> dict[str, object]:
        """Return the results of the collectors, by statistic; some have none."""
        found = {name: partial.result(self.counts) for name, partial in self.collected.items()}
        return {name: result for name, result in found.items() if result is not None}

    def states(self) -> dict[str, State]:
        """Return what the collectors found as named arrays, by collector."""
        return {name: partial.state() for name, partial in self.collected.items()}

    def state(self) -> State:
        """Return all of it as named arrays, without the layout; it may share memory."""
        counts = self.counts
        hits = {str(layer): hits for layer, hits in counts.hits.items()}
        own = {
            "tokens": scalar(counts.tokens),
            "documents": scalar(counts.documents),
            "joined": scalar(counts.joined),
        }
        return own | nested(
            hits=hits, samples=samples_state(counts.samples), collected=nested(**self.states())
        )


def read_partial(layout: HashLayout, state: State) -> Partial:
    """Return the partial in a `state`. Raises ArtifactError for an unsound one."""
    tokens = take_scalar(state, "tokens")
    found = part_of(state, "collected")
    ids = range(layout.compressed_size)
    return Partial(
        counts=Counts(
            layout=layout,
            tokens=tokens,
            documents=take_scalar(state, "documents"),
            joined=bool(take_scalar(state, "joined", 0, 1)),
            hits={
                entry.layer: take(state, f"hits/{entry.layer}", "uint32", (entry.rows,))
                for entry in layout.layers
            },
            samples=samples_of(part_of(state, "samples"), layout.orders, ids, tokens),
        ),
        collected=read_collected(
            layout,
            {name: part_of(found, name) for name in dict.fromkeys(n.split("/")[0] for n in found)},
        ),
    )


def write_partials(
    folder: Path, partials: Mapping[str, State]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write partials into a folder.

    Returns the entry of stats.json about them, and the digests of the long arrays.
    """
    if not partials:
        return {"of": []}, {}
    state = nested(**partials)
    long = {name: array for name, array in state.items() if array.size >= LONG_FROM}
    short = {name: np.ascontiguousarray(array) for name, array in state.items() if name not in long}
    raw = safetensors.numpy.save(short)
    (folder / SHORT).write_bytes(raw)
    flat = {flat_name(name): array for name, array in long.items()}
    digests = write_arrays(folder / LONG, flat) if flat else {}
    return {
        "of": sorted(partials),
        "digest": sha256_bytes(raw),
        "long": {name: [array.dtype.name, len(array)] for name, array in sorted(long.items())},
    }, digests


def read_partials(folder: Path, about: Any, only: str | None = None) -> dict[str, State]:
    """Read the partials that stats.json names; none in a folder of an older version.

    `only`: the name of the one to read. Raises ArtifactError. The values of the arrays are checked
    where they are absorbed.
    """
    if about is None or about == {"of": []}:
        return {}
    path = folder / SHORT
    wrong = ArtifactError(f"{folder / 'stats.json'}: 'partials' is wrong", REMAKE)
    if not isinstance(about, dict) or about.keys() != {"of", "digest", "long"}:
        raise wrong
    names, long = about["of"], about["long"]
    if not isinstance(names, list) or not isinstance(long, dict):
        raise wrong
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ArtifactError(f"{path} is too large", REMAKE)
        raw = path.read_bytes()
        state: State = dict(safetensors.numpy.load(raw))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", REMAKE) from None
    if sha256_bytes(raw) != about["digest"]:
        raise ArtifactError(f"{path} has another digest than stats.json says", REMAKE)
    if not all(isinstance(name, str) for name in names):
        raise wrong
    if only is not None:
        names = [name for name in names if name == only]
        long = {name: entry for name, entry in long.items() if name.startswith(f"{only}/")}
    for name, entry in long.items():
        sound = isinstance(entry, list) and len(entry) == 2 and entry[0] in _DTYPES
        if not sound or type(entry[1]) is not int or not 0 <= entry[1] < 2**40:
            raise wrong
        state[name] = read_array(folder / LONG, flat_name(name), (entry[1],), np.dtype(entry[0]))
    return {name: part_of(state, name) for name in names}


def flat_name(name: str) -> str:
    """Return the name of an array in the Zarr group, which has no groups inside."""
    return name.replace("/", ".")
