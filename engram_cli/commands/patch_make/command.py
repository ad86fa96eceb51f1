"""patch make: a checkpoint, its bundle and facts in; a patch of few, little read rows out.

Of the rows that the facts' n-grams read, those are chosen that move the facts most for each look-up
of the corpus. Gradient steps find their values, which are measured as the bundle stores them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engram_cli.commands.evaluate.held_out import HeldOut
from engram_cli.commands.evaluate.model import dtype_on, find_processes
from engram_cli.commands.load_model import load_model
from engram_cli.commands.lookup.rows import window_ngrams
from engram_cli.commands.patch_make.prepared import Prepared, prepare
from engram_cli.commands.patch_make.result import FactResult, Measured, PatchMakeResult, Predicted
from engram_cli.commands.patch_make.traffic import by_order, predict
from engram_cli.commands.requests.options import copied, located
from engram_cli.commands.requests.patch_make import PatchMakeRequest
from engram_cli.corpus.checks import needs_tokenizer
from engram_cli.corpus.encode import make_encoder
from engram_cli.errors import CorpusError, InputError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_rows import BundleRows
from engram_cli.hashing.hasher import StreamHasher
from engram_cli.numbers import count, counted
from engram_cli.outputs import prepare_output
from engram_cli.patches.making import make_patch
from engram_cli.patches.patch import Patch
from engram_cli.patches.patch_file import PATCH, write_patch
from engram_cli.progress import SILENT, Progress
from engram_cli.runtime import attach, detach, memories
from engram_cli.runtime.memory import Memory
from engram_cli.training.edits.choice import Candidates, ChosenRows, every_row, joined
from engram_cli.training.edits.divergence import EditReads, measure_divergence
from engram_cli.training.edits.influence import choose_rows
from engram_cli.training.edits.learning import FactTokens, Told, learn_facts, row_sizes, tell_facts
from engram_cli.training.edits.rows import RowValues, edited_rows, find_candidates, row_finder

_MARGIN = 1.0  # nats by which a target token shall be ahead: other kernels still say the target
_FLOOR = 1.0  # look-ups per million tokens below which rows compare by their gradients
_LOGITS = {"cpu": 2**28, "cuda": 2**31}  # bytes of the logits of one of two models


def make_patch_of_facts(request: PatchMakeRequest, progress: Progress = SILENT) -> PatchMakeResult:
    """Make and write a patch with which a checkpoint says the facts; measure what else it does.

    Raises InputError for facts that cannot be read or taught and for rows that cannot be changed,
    MismatchError for a tokenizer, statistics or text of another memory, CorpusError, TokenIdError,
    RuntimeAttachError, DependencyError, OutputError.
    """
    request = located(request)
    began = time.perf_counter()
    inputs = (request.checkpoint, request.bundle, request.edits, request.stats)
    prepare_output(request.out, PATCH, force=request.force, inputs=inputs)
    request = copied(request, progress)
    made = prepare(request, progress)
    run = _Run(request, made, progress)
    try:
        result = run.result()
    finally:
        run.close()
    return replace(result, seconds=time.perf_counter() - began)


class _Run:
    """The model with its memory, and what is found on the way to a patch."""

    def __init__(self, request: PatchMakeRequest, made: Prepared, progress: Progress) -> None:
        self._request, self._made, self._progress = request, made, progress
        self._device = find_processes(request.device).device
        dtype = dtype_on(self._device, request.dtype)
        self._model = load_model(request.checkpoint, dtype=dtype).to(self._device)
        self._model.eval().requires_grad_(False)
        if memories(self._model):  # of the checkpoint: another may be asked for
            detach(self._model)
        self._memory: Memory = attach(
            self._model,
            made.bundle.folder,
            rows_trainable=False,
            rows_device=_rows_device(made.bundle, self._device),
        )
        self._finder = row_finder(self._memory)
        self._dtype = dtype
        self._tokens = [
            FactTokens(ids=np.array(fact.ids, dtype=np.int64), first=fact.first)
            for fact in made.facts
        ]
        self._batch_tokens = self._most_tokens()

    def close(self) -> None:
        """Let go of the memory's files."""
        detach(self._model)

    def _most_tokens(self) -> int:
        """Return how many tokens a batch has."""
        vocabulary = len(self._model.get_input_embeddings().weight)
        most = _LOGITS["cpu" if self._device.type == "cpu" else "cuda"]
        return max(most // (vocabulary * self._dtype.itemsize), 1)

    def result(self) -> PatchMakeResult:
        """Choose rows, find their values, write the patch, measure it."""
        request, made, progress = self._request, self._made, self._progress
        hits_at = None if made.traffic is None else made.traffic.hits
        candidates = [
            find_candidates(self._memory, self._finder, fact.ids, hits_at) for fact in self._tokens
        ]
        chosen = self._choose(candidates)
        rows, every = joined(chosen), joined(map(every_row, candidates))
        predicted = self._predict(rows, every)
        progress.note(_announced(rows, every, predicted, len(made.facts)))
        before = self._tell()
        learned = learn_facts(
            self._model,
            self._memory,
            self._tokens,
            rows,
            row_sizes(self._memory, every),
            steps=request.steps,
            rate=request.rate,
            margin=_MARGIN,
            batch_tokens=self._batch_tokens,
            progress=progress,
        )
        patch = self._patch(learned.edits, predicted)
        self._require_change(patch, before)
        edits = self._stored(patch)
        with edited_rows(self._memory, edits):
            after = self._tell()
        write_patch(request.out, patch, force=request.force)
        return PatchMakeResult(
            checkpoint=request.checkpoint,
            bundle=made.bundle.folder,
            patch=request.out,
            digest=patch.digest,
            facts=tuple(self._facts(chosen, before, after)),
            exact_before=int(before.exact.sum()),
            exact_after=int(after.exact.sum()),
            rows=patch.rows,
            candidates=sum(map(len, every.values())),
            rows_by_order=by_order({n: own.ids for n, own in patch.layers.items()}, made.source),
            steps=learned.steps,
            most_steps=request.steps,
            predicted=predicted,
            measured=self._measure(edits),
            device=str(self._device),
            dtype=str(self._dtype).removeprefix("torch."),
            seconds=0.0,
        )

    def _choose(self, candidates: Sequence[Candidates]) -> Sequence[ChosenRows]:
        """Return the rows of each fact that are changed."""
        request, traffic = self._request, self._made.traffic
        tokens = 1 if traffic is None else traffic.tokens
        most = None if request.max_traffic is None else request.max_traffic * tokens / 1e6
        if request.rows_of_a_token is None:
            return [every_row(fact, most) for fact in candidates]
        return choose_rows(
            self._model,
            self._memory,
            self._tokens,
            candidates,
            request.rows_of_a_token,
            floor=max(_FLOOR * tokens / 1e6, 1.0),
            most_hits=most,
            batch_tokens=self._batch_tokens,
        )

    def _require_change(self, patch: Patch, before: Told) -> None:
        """Raise InputError for a patch without rows."""
        if patch.rows:
            return
        if before.sure.all():
            raise InputError(
                f"the model says all facts of {self._request.edits} already",
                "there is nothing to change: give other facts",
            )
        if self._request.max_traffic is not None:
            raise InputError(
                f"no row that moves a fact is read as little as --max-traffic "
                f"{self._request.max_traffic:g} asks",
                "give a larger limit",
            )
        raise InputError(
            f"the memory in {self._made.bundle.folder} moves none of the facts: its gates are "
            "untrained",
            "train it first (engram train CHECKPOINT TEXT --bundle BUNDLE --held-out TEXT)",
        )

    def _predict(
        self, rows: Mapping[int, NDArray[np.int64]], every: Mapping[int, NDArray[np.int64]]
    ) -> Predicted | None:
        made = self._made
        if made.traffic is None:
            return None
        own = set(_ngrams(made.source, self._tokens))
        return predict(made.traffic, rows, every, own, made.names, self._request.ngrams)

    def _tell(self) -> Told:
        return tell_facts(
            self._model, self._tokens, margin=_MARGIN, batch_tokens=self._batch_tokens
        )

    def _patch(self, edits: Mapping[int, RowValues], predicted: Predicted | None) -> Patch:
        """Return the patch, its values as the bundle stores rows."""
        about = {"facts": str(len(self._made.facts)), "edits": self._request.edits.name}
        if predicted is not None:
            about["lookups_per_million_tokens"] = f"{predicted.per_million:.6g}"
        changed = {
            layer: (own.rows.cpu().numpy(), own.values.cpu().numpy())
            for layer, own in edits.items()
        }
        description = self._request.description or f"facts of {self._request.edits.name}"
        return make_patch(self._made.source, changed, description=description, facts=about)

    def _stored(self, patch: Patch) -> dict[int, RowValues]:
        """Return the values as they come out of a patch."""
        found = {}
        for layer, own in patch.layers.items():
            values = np.empty((len(own), patch.dim), dtype=np.float32)
            patch.row_type.decode(own.rows, own.scales, values)
            found[layer] = RowValues(
                rows=torch.from_numpy(np.array(own.ids)).to(self._device),
                values=torch.from_numpy(values).to(self._device),
            )
        return found

    def _facts(
        self, chosen: Sequence[Mapping[int, NDArray[np.int64]]], before: Told, after: Told
    ) -> Iterator[FactResult]:
        traffic = self._made.traffic
        for place, fact in enumerate(self._made.facts):
            rows = chosen[place]
            yield FactResult(
                line=fact.line,
                prompt=fact.prompt,
                target=fact.target,
                tokens=len(fact.ids) - fact.first,
                rows=sum(map(len, rows.values())),
                hits=None if traffic is None else traffic.lookups(rows),
                exact_before=bool(before.exact[place]),
                exact_after=bool(after.exact[place]),
                loss_before=round(float(before.losses[place]), 4),
                loss_after=round(float(after.losses[place]), 4),
            )

    def _measure(self, edits: Mapping[int, RowValues]) -> Measured | None:
        """Return what the edits do to the held-out text, None without one."""
        made, request = self._made, self._request
        if made.text is None:
            return None
        encoder = None
        if needs_tokenizer(made.text.files, request.corpus):
            encoder = make_encoder(
                made.tokenizer, request.encoder, self._progress, size=made.text.size
            )
        bos = made.tokenizer.added_before()
        held_out = HeldOut(
            files=made.text.files,
            options=request.corpus,
            encoder=encoder,
            tokenizer=made.tokenizer,
            bos=bos[-1] if bos else None,
            max_tokens=request.max_tokens,
        )
        self._progress.start("held-out tokens", request.max_tokens, "tokens")
        try:
            found = measure_divergence(
                self._model,
                held_out.pieces(),
                lambda: edited_rows(self._memory, edits),
                EditReads(self._finder, self._memory, edits),
                context=made.context,
                batch_tokens=max(self._batch_tokens, made.context),
                advance=self._progress.advance,
            )
        finally:
            if encoder is not None:
                encoder.close()
        if not found.scored:
            raise CorpusError(
                "the held-out text has no token to predict",
                "give documents of two or more tokens",
            )
        return Measured(
            documents=found.documents,
            tokens=found.tokens,
            read=found.read,
            per_million=1e6 * found.lookups / found.tokens,
            divergence=found.divergence.mean,
            low=found.divergence.low,
            high=found.divergence.high,
            loss_change=found.change.mean,
            loss_low=found.change.low,
            loss_high=found.change.high,
        )


def _rows_device(bundle: Bundle, device: torch.device) -> torch.device:
    """Return where the rows lie: mapped on the host where they leave a GPU too little memory."""
    if device.type != "cuda":
        return torch.device("cpu")
    free = torch.cuda.mem_get_info(device)[0]
    return device if bundle.spec.table_bytes < free // 2 else torch.device("cpu")


def _ngrams(source: BundleRows, facts: Sequence[FactTokens]) -> Iterator[tuple[int, ...]]:
    """Yield the n-grams of facts whose rows may be changed, as compressed ids."""
    layout = source.layout
    for fact in facts:
        ids = fact.ids[:-1]
        window = StreamHasher(layout).push(ids, starts=np.arange(len(ids)) == 0)
        for order in layout.orders:
            yield from map(tuple, window_ngrams(window, layout, order).tolist())


def _announced(
    rows: Mapping[int, Any], every: Mapping[int, Any], predicted: Predicted | None, facts: int
) -> str:
    """Return what is going to change, and who reads it."""
    changed, of = (sum(map(len, each.values())) for each in (rows, every))
    said = f"changing {count(changed)} of the {count(of)} rows that {counted(facts, 'fact')} read"
    if predicted is None:
        return said
    return (
        f"{said}; predicted: {predicted.per_million:,.1f} look-ups per million tokens of the "
        f"corpus read them, of {predicted.candidates_per_million:,.1f} that read any"
    )
