"""The evidence of patches.py on a CPU: of the text that reads changed rows, a sample is run.

    python tests/benchmarks/quality/patches_sampled.py CHECKPOINT DATA OUT --bundle BUNDLE

The held-out texts are cut into windows of --window tokens. A window in which nothing reads a
changed row keeps its predictions, so its divergence is exactly 0. Of the others, at most --windows
are drawn and run; their mean stands for all of them, with the interval of that draw. The divergence
is divided by the tokens of the whole text. `starts` is the share of the look-ups at the first
tokens of windows, whose n-grams reach before the window: a corpus has fewer of those.

Parts: facts taught one by one, by chosen rows, random rows and all rows, with the rank correlation
of predicted look-ups and divergence; and facts taught together by several numbers of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from patches import Part, Run, spearman
from patches_model import ORDERS, TEXTS, arguments_parser
from torch import Tensor

from engram_cli.training.edits.rows import RowValues

BATCH, DRAWS = 4, 4000


def main() -> None:
    parser = arguments_parser(__doc__)
    parser.add_argument("--window", type=int, default=128, help="tokens")
    parser.add_argument("--windows", type=int, default=48, help="run of each text for an edit")
    parser.add_argument("--single-windows", type=int, default=16, help="for a fact taught alone")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    Sampled(arguments).run()


class Sampled(Run):
    """A run that measures divergences on a sample of the windows that read a changed row."""

    def prepare(self) -> None:
        """Prepare the run, and find the rows that the held-out texts read."""
        super().prepare()
        self.kept: dict[tuple[str, int], Tensor] = {}
        draw = np.random.default_rng(3)
        self.windows: dict[str, NDArray[np.int64]] = {}
        self.reads: dict[str, NDArray[np.int32]] = {}
        for name in TEXTS:
            ids, width = self.texts[name], self.arguments.window
            lines = ids[: len(ids) // width * width].reshape(-1, width).astype(np.int64)
            # In a random order, so that the first windows that read a row are a random sample.
            self.windows[name] = lines = lines[draw.permutation(len(lines))]
            parts = torch.from_numpy(lines).split(256)
            found = [self.finder.find(part).to(torch.int32).numpy() for part in parts]
            self.reads[name] = np.concatenate(found)

    def parts(self) -> list[Part]:
        """Return what is to be done, the most wanted first."""
        arguments = self.arguments
        counts = [int(each) for each in arguments.rows.split(",")]
        rates = [float(each) for each in arguments.lora_rates.split(",")]
        return [
            *((self.singly, given) for given in ((counts[0],), (None,), (counts[0], self.drawn))),
            (self.correlate, ()),
            (self.chosen, (counts[0],)),
            (self.all_rows, ()),
            (self.at_random, (counts[0],)),
            *((part, (count,)) for count in counts[1:] for part in (self.chosen, self.at_random)),
            *((self.by_lora, (rate, arguments.lora_rank)) for rate in rates),
            *((self.by_gradient, (count,)) for count in counts),
        ]

    def correlate(self) -> None:
        """Compare prediction and measurement over all edits of one fact, with an interval."""
        lines = [
            {**line, "name": each["name"]}
            for each in self.found
            if each["kind"] == "singly"
            for line in each["lines"]
        ]
        facts = sorted({line["fact"] for line in lines})
        by_fact = {fact: [line for line in lines if line["fact"] == fact] for fact in facts}
        draw = np.random.default_rng(4)
        drawn = [
            spearman([line for fact in draw.choice(facts, len(facts)) for line in by_fact[fact]],
                     "predicted", "kl")
            for _ in range(DRAWS)
        ]  # fmt: skip
        low, high = np.quantile([each for each in drawn if each is not None], (0.025, 0.975))
        self.note(
            "correlation",
            edits=len(lines),
            facts=len(facts),
            unread=sum(line["lookups"] == 0 for line in lines),
            spearman=spearman(lines, "predicted", "kl"),
            low=round(float(low), 4),
            high=round(float(high), 4),
            spearman_lookups=spearman(lines, "predicted", "lookups"),
        )

    def divergence(
        self,
        changed: Callable[[], Any],
        edits: Mapping[int, RowValues] | None,
        tokens: int | None = None,
        texts: Sequence[str] = TEXTS,
    ) -> dict[str, Any]:
        """Return the KL divergence on each text, with the interval of the draw of its windows."""
        arguments = self.arguments
        most = arguments.windows if tokens is None else arguments.single_windows
        found: dict[str, Any] = {}
        for name in texts:
            read = self.read(name, edits)
            met = np.flatnonzero(read.any(axis=1))
            taken = met[:most]
            sums = np.array(
                [
                    each
                    for begin in range(0, len(taken), BATCH)
                    for each in self.moved(name, taken[begin : begin + BATCH], read, changed)
                ]
            ).reshape(-1, 2)
            share = len(met) / (len(read) * (read.shape[1] - 1))
            kl, loss = share * sums.mean(axis=0) if len(sums) else (0.0, 0.0)
            error = 0.0
            if 1 < len(taken) < len(met):
                left = 1 - len(taken) / len(met)
                error = share * float(sums[:, 0].std(ddof=1)) * (left / len(taken)) ** 0.5
            found[name] = {
                "kl": float(kl),
                "low": float(kl - 1.96 * error),
                "high": float(kl + 1.96 * error),
                "loss": float(loss),
                "lookups": 1e6 * float(read.sum()) / read.size if edits is not None else 0.0,
                "read": float((read > 0).mean()),
                "starts": float(read[:, : max(ORDERS) - 1].sum() / max(read.sum(), 1)),
                "windows": len(taken),
                "of": len(met),
            }
        return found

    def read(self, name: str, edits: Mapping[int, RowValues] | None) -> NDArray[np.int64]:
        """Return how often each token of a text reads a changed row, int64[windows, tokens]."""
        if edits is None:
            return np.ones(self.windows[name].shape, dtype=np.int64)
        found = np.zeros(self.windows[name].shape, dtype=np.int64)
        for layer, place in self.memory.places.items():
            if layer in edits:
                is_changed = np.zeros(self.memory.spec.layout.layer(layer).rows, dtype=np.bool_)
                is_changed[edits[layer].rows.cpu().numpy()] = True
                found += is_changed[self.reads[name][:, place]].sum(axis=-1)
        return found

    def moved(
        self,
        name: str,
        lines: NDArray[np.int64],
        read: NDArray[np.int64],
        changed: Callable[[], Any],
    ) -> Iterator[tuple[float, float]]:
        """Yield the sums over each window: of the divergence, and of the change of the loss."""
        ids = torch.from_numpy(self.windows[name][lines]).to(self.device)
        with torch.no_grad():
            if any((name, line) not in self.kept for line in lines.tolist()):
                for line, own in zip(lines.tolist(), self.hidden(ids), strict=True):
                    self.kept[name, line] = own
            with changed():
                after = self.hidden(ids)
            for at, line in enumerate(lines.tolist()):
                first = int(np.flatnonzero(read[line])[0])
                own = (states[first:-1] for states in (self.kept[name, line], after[at]))
                old, new = (F.log_softmax(self.model.lm_head(each).float(), dim=-1) for each in own)
                moved = new - old
                kl = (old.exp() * (torch.expm1(moved) - moved)).sum()
                change = -moved.gather(1, ids[at, first + 1 :, None]).sum()
                yield float(kl), float(change)

    def hidden(self, ids: Tensor) -> Tensor:
        """Return the states [windows, tokens, width] from which the model predicts."""
        given = {"use_cache": False, "output_hidden_states": True, "logits_to_keep": 1}
        return self.model(input_ids=ids, **given).hidden_states[-1].float()


if __name__ == "__main__":
    main()
