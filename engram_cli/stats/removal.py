"""Takes documents out of the statistics of a corpus that they were part of.

Sums are subtracted: hits, tokens, documents, and the counts of n-grams. Of the n-grams with the
smallest hashes all counts are known, so those that are left are the sample of the remaining corpus,
of a smaller size. All other partials say which document came first, or where a position was. They
do not say what comes next once that is gone, so they are left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engram_cli.errors import InputError, MismatchError
from engram_cli.stats.names import Names
from engram_cli.stats.partial import Partial
from engram_cli.stats.sampling.distinct import LEAST_SAMPLE, NgramSample, lowest
from engram_cli.stats.sampling.known import places_in
from engram_cli.stats.sampling.text_ngrams import AllNgrams
from engram_cli.stats.totals import FULL, Counts

_AS_COUNTED = (
    "give the documents as they were counted: the same texts, tokenizer, --field and "
    "--document-separator"
)
_RECOUNT = "count the remaining corpus again: engram hash-stats CORPUS"


class NeverCounted(InputError):
    """The documents to remove are not all in the statistics."""


class FullCounters(InputError):
    """A row to subtract from has a full counter: how often it was looked up is not known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Remainder:
    """What is left: the `partial` of the remaining corpus, and the names of partials that are not
    in it because they cannot be subtracted."""

    partial: Partial
    left_out: tuple[str, ...]


def remove(whole: Partial, gone: Partial, names: Names) -> Remainder:
    """Return the partial of a corpus without some of its documents; `names` is for messages.

    The result equals counting the remaining corpus with the sample size that is left, to the bit,
    for all that it holds. Raises NeverCounted where `gone` is not part of `whole`, FullCounters,
    MismatchError for another layout, InputError where too little is left of a sample.
    """
    counts, removed = whole.counts, gone.counts
    if counts.layout.fingerprint != removed.layout.fingerprint or counts.joined != removed.joined:
        raise MismatchError(
            "counts of two layouts cannot be subtracted",
            "count the documents with the vocabulary and geometry of the statistics",
        )
    if counts.joined:
        raise InputError(
            "documents that were joined cannot be removed: their n-grams cross into others",
            f"{_RECOUNT} --join-documents",
        )
    every = {
        name: AllNgrams(sample=_complete(_subtracted(found.sample, other.sample, names)))
        for name, found in whole.collected.items()
        if isinstance(found, AllNgrams) and isinstance(other := gone.collected.get(name), AllNgrams)
    }
    pairs = list(zip(counts.samples, removed.samples, strict=True))
    if len(every) == len(pairs):  # all n-grams are known, and so is the sample of any size
        known = sorted((found.sample for found in every.values()), key=lambda each: each.order)
        samples = [_cut(each, own.size) for each, (own, _) in zip(known, pairs, strict=True)]
    else:
        samples = [_subtracted(one, two, names) for one, two in pairs]
    size = min(each.size for each in samples)
    if size < LEAST_SAMPLE:
        raise InputError(f"only {size} n-grams of the sample are left", _RECOUNT)
    rest = Counts(
        layout=counts.layout,
        hits={layer: _hits_left(counts, removed, layer) for layer in counts.hits},
        tokens=_less(counts.tokens, removed.tokens, "token"),
        documents=_less(counts.documents, removed.documents, "document"),
        joined=False,
        samples=tuple(_cut(each, size) for each in samples),
    )
    if not rest.tokens:
        raise InputError("no token would be left", "remove the statistics folder itself")
    return Remainder(
        partial=Partial(counts=rest, collected=every),
        left_out=tuple(sorted(whole.collected.keys() - every.keys())),
    )


def _subtracted(whole: NgramSample, gone: NgramSample, names: Names) -> NgramSample:
    """Return what is left of a sample; `size` is as many n-grams as are certainly known.

    An n-gram that is gone altogether makes the sample smaller: which one follows in its place is
    not known. The first hash behind the sample is known only if it is in no document that is gone.
    """
    below = len(gone.hashes)
    if not whole.exact:
        below = int(np.searchsorted(gone.hashes, np.uint64(whole.threshold)))
    hashes, tokens = gone.hashes[:below], gone.tokens[:below]
    places = places_in(whole, hashes)
    counted = np.zeros(below, dtype=np.uint64)
    counted[places >= 0] = whole.counts[places[places >= 0]]
    over = np.flatnonzero(gone.counts[:below] > counted)
    if len(over):
        at = int(over[0])
        raise NeverCounted(
            f"the {whole.order}-gram {names.ngram(tokens[at])!r} occurs "
            f"{int(gone.counts[at]):,} times in the documents to remove, and "
            f"{int(counted[at]):,} times in the statistics",
            _AS_COUNTED,
        )
    if gone.threshold < whole.threshold:
        raise NeverCounted(
            f"the documents to remove have more {whole.order}-grams than the statistics",
            _AS_COUNTED,
        )
    left = whole.counts.copy()
    left[places] -= gone.counts[:below]
    keep = left > 0
    rest = replace(whole, hashes=whole.hashes[keep], counts=left[keep], tokens=whole.tokens[keep])
    if whole.exact:
        return rest
    follows = gone.threshold != whole.threshold and not (
        below < len(gone.hashes) and int(gone.hashes[below]) == whole.threshold
    )
    return _cut(rest, max(len(rest.hashes) - (not follows), 0))


def _cut(sample: NgramSample, size: int) -> NgramSample:
    """Return the first `size` n-grams of a sample, as a sample of that size."""
    return lowest(sample.order, size, sample.threshold, sample.hashes, sample.counts, sample.tokens)


def _complete(sample: NgramSample) -> NgramSample:
    return replace(sample, size=max(len(sample.hashes), 1))


def _hits_left(whole: Counts, gone: Counts, layer: int) -> NDArray[np.uint32]:
    """Return uint32[rows]: the hits of a layer without those of what is gone."""
    own, less = whole.hits[layer], gone.hits[layer]
    for wrong, error in ((less > own, NeverCounted), ((own == FULL) & (less > 0), FullCounters)):
        if not wrong.any():
            continue
        row = int(np.argmax(wrong))
        if error is NeverCounted:
            raise NeverCounted(
                f"row {row:,} of layer {layer} has {int(less[row]):,} hits of the documents to "
                f"remove, and {int(own[row]):,} in the statistics",
                _AS_COUNTED,
            )
        raise FullCounters(
            f"row {row:,} of layer {layer} has a full counter, of which nothing can be subtracted",
            _RECOUNT,
        )
    return own - less


def _less(whole: int, gone: int, unit: str) -> int:
    if gone > whole:
        raise NeverCounted(
            f"the documents to remove have {gone:,} {unit}s, the statistics {whole:,}", _AS_COUNTED
        )
    return whole - gone
