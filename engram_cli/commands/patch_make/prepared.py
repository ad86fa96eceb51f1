"""What patch make checks and opens before it loads the model."""

from __future__ import annotations

from dataclasses import dataclass

from engram_cli.commands.artifact import Companions
from engram_cli.commands.checkpoint import read_model_shape
from engram_cli.commands.load_model import check_checkpoint
from engram_cli.commands.patch_make.facts import Fact, read_facts, run_together
from engram_cli.commands.patch_make.traffic import Traffic, find_traffic, require_traffic
from engram_cli.commands.requests.patch_make import PatchMakeRequest
from engram_cli.commands.trace import check_tokenizer
from engram_cli.corpus.checks import remarks
from engram_cli.corpus.encode import check_encoder
from engram_cli.corpus.sources import Sources, find_sources
from engram_cli.formats.bundle import BUNDLE_NAME, Bundle, bundle_folder, read_bundle
from engram_cli.formats.bundle_rows import BundleRows, bundle_rows
from engram_cli.numbers import count, counted
from engram_cli.progress import Progress
from engram_cli.stats.names import Names
from engram_cli.vocab.tokenizer import TokenizerFile, load_tokenizer

_CONTEXT = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is settled before the model is loaded."""

    bundle: Bundle
    source: BundleRows
    tokenizer: TokenizerFile
    facts: tuple[Fact, ...]
    traffic: Traffic | None
    names: Names
    text: Sources | None
    context: int


def prepare(request: PatchMakeRequest, progress: Progress) -> Prepared:
    """Check what is asked for and open what is read, but not the model."""
    check_checkpoint(request.checkpoint)
    check_encoder(request.encoder)
    shape = read_model_shape(request.checkpoint)
    place = bundle_folder(request.bundle or request.checkpoint / BUNDLE_NAME)
    bundle = read_bundle(place, verify=request.verify)
    source = bundle_rows(bundle)
    tokenizer = load_tokenizer(request.tokenizer or request.checkpoint, progress)
    check_tokenizer(bundle.folder, tokenizer)
    facts = read_facts(request.edits, tokenizer, shape.positions)
    together = run_together(facts)
    if together:
        progress.note(
            f"{counted(together, 'target')} of {count(len(facts))} begin without a space after the "
            "prompt's last word, and are taken so"
        )
    text = None
    if request.held_out:
        text = find_sources(request.held_out, request.corpus)
        for remark in remarks(text.files, request.corpus):
            progress.note(remark)
    companions = Companions(
        artifact=bundle.folder, folder=request.workspace.folder, stats=request.stats
    )
    traffic = find_traffic(source, companions, progress)
    require_traffic(traffic, request.max_traffic)
    if traffic is None:
        progress.note(
            "how often a corpus reads rows is not known (--stats): those are changed that move "
            "the facts most"
        )
    layout = source.layout
    return Prepared(
        bundle=bundle,
        source=source,
        tokenizer=tokenizer,
        facts=facts,
        traffic=traffic,
        names=Names(layout, companions.vocabulary(layout, progress)),
        text=text,
        context=min(_CONTEXT, shape.positions or _CONTEXT),
    )
