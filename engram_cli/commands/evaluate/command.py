"""evaluate: a checkpoint with a memory and held-out text in; losses with and without it out.

All variants of the model read the same batches, in one pass over the text. Sums over documents and
over parts of the text are all that is kept, and a few passages for the page.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from engram_cli.commands.evaluate.held_out import HeldOut
from engram_cli.commands.evaluate.model import (
    Plan,
    Processes,
    find_processes,
    load_variants,
    plan_run,
    release,
)
from engram_cli.commands.evaluate.parts import (
    breakdowns_of,
    difference_of,
    position_partition,
    token_changes,
)
from engram_cli.commands.evaluate.passages import PassageKeeper, as_passages, best
from engram_cli.commands.evaluate.prepared import Prepared, prepare
from engram_cli.commands.evaluate.result import (
    EvaluateResult,
    GateStrength,
    TokenChange,
    VariantLoss,
)
from engram_cli.commands.requests.evaluation import EvaluateRequest
from engram_cli.commands.requests.options import copied, located
from engram_cli.corpus.checks import needs_tokenizer
from engram_cli.corpus.encode import make_encoder
from engram_cli.errors import CorpusError
from engram_cli.formats.bundle import Bundle
from engram_cli.progress import SILENT, Progress
from engram_cli.report.place import check_page
from engram_cli.runtime.evaluation.gates import GateMeter, shares_above
from engram_cli.runtime.evaluation.scoring import Pace, Scored, score
from engram_cli.runtime.evaluation.sums import LossSums, gathered
from engram_cli.runtime.evaluation.variants import (
    BARE,
    LORA,
    LORA_MEMORY,
    MEMORY,
    PATCHED,
    variants_of,
)
from engram_cli.runtime.evaluation.windows import cut_windows

_THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)
_CONTRASTS = (
    (MEMORY, BARE),
    (PATCHED, MEMORY),
    (LORA, BARE),
    (LORA_MEMORY, BARE),
    (LORA_MEMORY, LORA),
)
# Which parts of the text are shown: the memory alone, with patches, and on top of the adapter; the
# adapter where there is no memory.
_SHOWN = ((MEMORY, BARE), (PATCHED, MEMORY), (LORA_MEMORY, LORA))
_LN_2 = math.log(2.0)


def evaluate(request: EvaluateRequest, progress: Progress = SILENT) -> EvaluateResult:
    """Return the losses of a model over a held-out text, with its memory and without; write a page.

    In several processes, which torchrun or accelerate started, every process gets the result of the
    whole text, and the first writes the page. Raises InputError for what cannot be evaluated,
    CorpusError and TokenIdError naming the place in the text, MismatchError for a tokenizer or
    statistics of another memory, RuntimeAttachError, DependencyError, OutputError.
    """
    request = _checked(located(request))
    processes = find_processes(request.device)
    progress = progress if processes.first else SILENT
    began = time.perf_counter()
    request = copied(request, progress)
    made = prepare(request, progress)
    plan = plan_run(request, made.bundle, processes, made.shape)
    progress.note(str(plan))
    model = load_variants(request, made.bundle, made.patches, plan, processes)
    try:
        run = _Run(request, made, plan, processes, model, progress)
        run.score()
    finally:
        release(model)
    result = replace(run.result(), seconds=time.perf_counter() - began)
    if request.report is not None and processes.first:
        from engram_cli.commands.evaluate.page import write_evaluation

        write_evaluation(result, request.report, force=request.force)
    return result


def _checked(request: EvaluateRequest) -> EvaluateRequest:
    """Return the request, whose page may be written. Raises OutputError."""
    if request.report is not None:
        check_page(
            request.report,
            request.force,
            option="--report",
            inputs=(request.checkpoint, request.bundle, request.lora, request.tokenizer),
        )
    return request


class _Run:
    """One pass over the text: all that is summed, and the result that follows from it."""

    def __init__(
        self,
        request: EvaluateRequest,
        made: Prepared,
        plan: Plan,
        processes: Processes,
        model: Any,
        progress: Progress,
    ) -> None:
        self._request, self._made, self._plan = request, made, plan
        self._processes, self._model, self._progress = processes, model, progress
        self._variants = variants_of(model)
        self._contrasts = [each for each in _CONTRASTS if set(each) <= set(self._variants)]
        knowledge = made.knowledge
        partitions = () if knowledge is None else knowledge.partitions
        self._sums = LossSums(
            self._variants,
            (*partitions, position_partition(plan.context)),
            vocabulary=made.shape.vocab_size or len(model.get_input_embeddings().weight),
        )
        self._meter = GateMeter(model)
        self._pace = Pace()
        shown = request.report is not None and self._contrasts
        self._passages = PassageKeeper(*self._contrasts[0]) if shown else None
        self._excerpts: list[Any] = []

    def score(self) -> None:
        """Read the text. Raises CorpusError for a text without a token to score."""
        own, made, rank = self._request, self._made, self._processes
        encoder = None
        if needs_tokenizer(made.sources.files, own.corpus):
            assert made.tokenizer is not None
            size = made.sources.size
            encoder = make_encoder(made.tokenizer, own.encoder, self._progress, size=size)
        held_out = HeldOut(
            files=made.sources.files,
            options=own.corpus,
            encoder=encoder,
            tokenizer=made.tokenizer,
            bos=made.bos,
            max_documents=own.max_documents,
            max_tokens=own.max_tokens,
        )
        pieces = held_out.pieces(rank.rank, rank.world)
        windows = cut_windows(pieces, self._plan.context, self._plan.stride)
        self._progress.start("held-out tokens", own.max_tokens, "tokens")
        try:
            for item in score(
                self._model,
                windows,
                self._variants,
                batch_tokens=self._plan.batch_tokens,
                gates=self._meter if self._meter.keys else None,
                pace=self._pace,
                advance=lambda tokens: self._progress.advance(tokens * rank.world),
            ):
                self._sums.add(item)
                if self._passages is not None and isinstance(item, Scored):
                    self._passages.add(item)
        finally:
            if encoder is not None:
                encoder.close()
        self._gather()
        if not self._sums.whole.tokens:
            raise CorpusError(
                "the held-out text has no token to predict",
                "give documents of two or more tokens",
            )

    def _gather(self) -> None:
        """Add up what all processes found; each then has it all."""
        self._excerpts = [] if self._passages is None else self._passages.kept
        if self._processes.world == 1:
            return
        self._sums.reduce(self._processes.device)
        every = gathered((self._excerpts, self._pace, self._meter.counted))
        self._excerpts = best(excerpt for theirs, _, _ in every for excerpt in theirs)
        self._pace = Pace.together([pace for _, pace, _ in every])
        self._meter.set_counted([counted for _, _, counted in every])

    def result(self) -> EvaluateResult:
        """Return all that was found."""
        request, made, sums, whole = self._request, self._made, self._sums, self._sums.whole
        tokenizer = made.tokenizer
        gaining: tuple[TokenChange, ...] = ()
        losing: tuple[TokenChange, ...] = ()
        if self._contrasts:
            gaining, losing = token_changes(sums, self._contrasts[0], self._texts)
        means = {name: whole.loss(name) for name in self._variants}
        orders = () if made.knowledge is None or made.bundle is None else _orders(made.bundle)
        shown = [each for each in self._contrasts if each in _SHOWN]
        return EvaluateResult(
            checkpoint=request.checkpoint,
            bundle=None if made.bundle is None else made.bundle.folder,
            patches=tuple(request.patch),
            adapter=request.lora,
            statistics=made.statistics,
            exact=made.knowledge is not None and made.knowledge.exact,
            documents=sums.documents,
            tokens=sums.tokens,
            scored=whole.tokens,
            bytes=sums.bytes,
            context=self._plan.context,
            stride=self._plan.stride,
            bos=made.bos,
            device=str(self._processes.device),
            dtype=str(self._plan.dtype).removeprefix("torch."),
            processes=self._processes.world,
            bare=means[BARE],
            memory=means.get(MEMORY),
            patched=means.get(PATCHED),
            lora=means.get(LORA),
            lora_memory=means.get(LORA_MEMORY),
            losses=tuple(self._loss(name) for name in self._variants),
            differences=tuple(difference_of(whole, each) for each in self._contrasts),
            breakdowns=tuple(breakdowns_of(sums, shown or self._contrasts, orders)),
            gates=tuple(self._gates()),
            gaining=gaining,
            losing=losing,
            passages=tuple(as_passages(self._excerpts, tokenizer)),
            seconds=0.0,
            report=request.report,
            process=self._processes.rank,
        )

    def _loss(self, name: str) -> VariantLoss:
        whole, size = self._sums.whole, self._sums.bytes
        found = whole.interval(name)
        return VariantLoss(
            variant=name,
            loss=found.mean,
            error=found.error,
            perplexity=math.exp(min(found.mean, 700.0)),
            bits_per_byte=found.mean * whole.tokens / _LN_2 / size if size else None,
            tokens_per_second=self._pace.tokens_per_second(name),
        )

    def _gates(self) -> list[GateStrength]:
        meter, found = self._meter, []
        for index, key in enumerate(meter.keys):
            bins, tokens = meter.bins[index], int(meter.positions[index])
            above = shares_above(bins, _THRESHOLDS)
            found.append(
                GateStrength(
                    memory=key.memory,
                    layer=key.layer,
                    decoder_layer=key.decoder_layer,
                    tokens=tokens,
                    mean=float(meter.sums[index, 0]) / max(int(bins.sum()), 1),
                    above={f"{each:g}": own for each, own in zip(_THRESHOLDS, above, strict=True)},
                    added=float(meter.sums[index, 1]) / max(tokens, 1),
                )
            )
        return found

    def _texts(self, ids: list[int]) -> list[str]:
        tokenizer = self._made.tokenizer
        return [str(each) for each in ids] if tokenizer is None else tokenizer.decode_each(ids)


def _orders(bundle: Bundle) -> tuple[int, ...]:
    return bundle.spec.layout.orders
