"""What evaluate checks and opens before it loads the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.artifact import Companions, counted_by
from engram_cli.commands.checkpoint import ModelShape, read_model_shape
from engram_cli.commands.evaluate.known_ngrams import CorpusKnowledge
from engram_cli.commands.evaluate.model import check_adapter
from engram_cli.commands.load_model import check_checkpoint
from engram_cli.commands.requests.evaluation import AUTO, NO_BOS, EvaluateRequest
from engram_cli.commands.trace import check_tokenizer
from engram_cli.corpus.checks import needs_tokenizer, remarks
from engram_cli.corpus.encode import check_encoder
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.errors import InputError
from engram_cli.formats.bundle import BUNDLE_NAME, Bundle, bundle_folder, read_bundle
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.formats.bundle_patches import patched_bundle
from engram_cli.formats.bundle_rows import bundle_rows
from engram_cli.formats.overlay_patch import open_patch
from engram_cli.patches.patch import Patch
from engram_cli.progress import Progress
from engram_cli.vocab.tokenizer import TokenizerFile, find_tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is settled before the model is loaded."""

    sources: Sources
    bundle: Bundle | None
    patches: tuple[Patch, ...]
    shape: ModelShape
    tokenizer: TokenizerFile | None
    bos: int | None
    knowledge: CorpusKnowledge | None
    statistics: Path | None


def prepare(request: EvaluateRequest, progress: Progress) -> Prepared:
    """Check what is asked for and open what is read, but not the model."""
    check_checkpoint(request.checkpoint)
    check_adapter(request.lora)
    check_encoder(request.encoder)
    shape = read_model_shape(request.checkpoint)
    bundle = _find_bundle(request)
    if bundle is None:
        progress.note(f"no memory: there is no bundle in {request.checkpoint / BUNDLE_NAME}")
    sources = find_sources(request.sources, request.corpus)
    text = needs_tokenizer(sources.files, request.corpus)
    for remark in remarks(sources.files, request.corpus):
        progress.note(remark)
    tokenizer = _find_tokenizer(request, text, progress)
    if bundle is not None and tokenizer is not None:
        check_tokenizer(bundle.folder, tokenizer)
    knowledge, statistics = None, None
    patches: tuple[Patch, ...] = ()
    if bundle is not None:
        patches = _open_patches(request, bundle, progress)
        knowledge, statistics = _find_knowledge(request, bundle, progress)
    elif request.stats is not None or request.patch or request.verify:
        given = "--patch" if request.patch else "--verify" if request.verify else "--stats"
        raise InputError(f"{given} without a memory", "give its bundle with --bundle")
    bos = _find_bos(request, tokenizer if text else None, shape)
    if bos is not None:
        progress.note(f"each document begins with token {bos}")
    return Prepared(
        sources=sources,
        bundle=bundle,
        patches=patches,
        shape=shape,
        tokenizer=tokenizer,
        bos=bos,
        knowledge=knowledge,
        statistics=statistics,
    )


def _find_bundle(request: EvaluateRequest) -> Bundle | None:
    """Return the bundle that was named, or the checkpoint's; None where it has none."""
    if request.bundle is not None:
        return read_bundle(bundle_folder(request.bundle), verify=request.verify)
    own = request.checkpoint / BUNDLE_NAME
    return read_bundle(own, verify=request.verify) if (own / DESCRIPTION).exists() else None


def _open_patches(
    request: EvaluateRequest, bundle: Bundle, progress: Progress
) -> tuple[Patch, ...]:
    """Return the patches, which fit the bundle. Raises as `open_patch` and `stack_patches`."""
    if not request.patch:
        return ()
    patches = [open_patch(each, bundle_rows(bundle)) for each in request.patch]
    _, stack = patched_bundle(bundle, patches, any_base=request.any_base)
    for line in stack.lines():
        progress.note(line)
    return stack.patches


def _find_tokenizer(
    request: EvaluateRequest, needed: bool, progress: Progress
) -> TokenizerFile | None:
    """Return the tokenizer; None where the text is token ids and the checkpoint has none."""
    place = request.tokenizer or request.checkpoint
    if needed or request.tokenizer is not None or (place / "tokenizer.json").is_file():
        return load_tokenizer(find_tokenizer(place), progress)
    return None


def _find_knowledge(
    request: EvaluateRequest, bundle: Bundle, progress: Progress
) -> tuple[CorpusKnowledge | None, Path | None]:
    """Return what tells which n-grams the memory's corpus has, and where that is from."""
    source, layout = bundle_rows(bundle), bundle.spec.layout
    companions = Companions(
        artifact=bundle.folder, folder=request.workspace.folder, stats=request.stats
    )
    statistics = companions.statistics(layout, progress)
    counted = counted_by(source, statistics)
    if counted is None:
        progress.note(
            "which n-grams the memory's corpus has is not known: the bundle holds no hits, and "
            "there are no statistics (--stats)"
        )
        return None, None

    def hits_at(layer: int, rows: Any) -> Any:
        return counted.hits_at(layer, rows.reshape(-1)).reshape(rows.shape)

    samples = () if statistics is None else statistics.samples()
    found = CorpusKnowledge(layout, bundle.spec.layers, hits_at, samples)
    return found, counted.path if statistics is None else statistics.path


def _find_bos(
    request: EvaluateRequest, tokenizer: TokenizerFile | None, shape: ModelShape
) -> int | None:
    """Return the token to put before each document. Raises InputError for one that is not there."""
    if request.bos == AUTO:
        added = () if tokenizer is None else tokenizer.added_before()
        return added[-1] if added else None
    if request.bos == NO_BOS:
        return None
    token = int(request.bos)
    if shape.vocab_size is not None and token >= shape.vocab_size:
        raise InputError(
            f"--bos {token}: the model has {shape.vocab_size:,} token ids",
            f"give 0 to {shape.vocab_size - 1}",
        )
    return token
