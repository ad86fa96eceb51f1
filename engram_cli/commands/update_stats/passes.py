"""The corpora that a change of statistics counts: what is added, what is removed, what remains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engram_cli.commands.geometry import Geometry
from engram_cli.commands.hash_stats import prepare
from engram_cli.commands.requests.update_stats import UpdateStatsRequest
from engram_cli.corpus.stamps import Stamps, check_companions
from engram_cli.engines.base import ENGINES
from engram_cli.engines.counting import Counted, Running, Work, count, resume_folder
from engram_cli.files import sha256_bytes
from engram_cli.hashing.schemes import SCHEMES, takes_raw_ids
from engram_cli.progress import Progress
from engram_cli.stats.counting.checkpoint import remove_checkpoint
from engram_cli.stats.partial import read_partials
from engram_cli.stats.sampling.text_ngrams import EXACT_OF
from engram_cli.stats.statistics.sources import read_sources
from engram_cli.stats.stats_io import Statistics

ADD, REMOVE, RECOUNT = "add", "remove", "recount"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A corpus to count, with everything settled."""

    request: UpdateStatsRequest
    work: Work
    running: Running
    stamps: Stamps | None

    def count(self, progress: Progress) -> Counted:
        """Count it. Raises as `count` does, CorpusError if a file changed meanwhile."""
        opened = ENGINES.load(self.request.engine)
        threads = self.work.reading.threads
        with opened(self.request.ray_address, threads, progress) as engine:
            counted = count(engine, self.work, self.running, progress)
        check_companions(self.work.plan.files, self.request.corpus, self.stamps)
        return counted


def find_passes(
    request: UpdateStatsRequest, before: Statistics, vocab: Path, out: Path, progress: Progress
) -> dict[str, Pass]:
    """Return what is to be counted, in the order of counting: small corpora first."""
    layout, found = before.layout, {}
    chosen = {ADD: request.add, REMOVE: request.remove, RECOUNT: request.sources}
    raw = takes_raw_ids(layout.scheme)
    geometry = Geometry(
        scheme=layout.scheme if layout.scheme in SCHEMES else None,
        vocab_size=layout.vocab_size if raw else None,
        eos_id=layout.eos_id,
    )
    for name, sources in chosen.items():
        if not sources:
            continue
        own = replace(
            _as_counted(request, before, name),
            geometry=geometry,
            sources=sources,
            join_documents=before.joined,
        )
        place = _pass_place(out, name)
        work, running, stamps = prepare(own, vocab, place, progress, layout)
        found[name] = Pass(request=own, work=work, running=running, stamps=stamps)
    return found


def _as_counted(request: UpdateStatsRequest, before: Statistics, name: str) -> UpdateStatsRequest:
    """Return the request with the options that the statistics were counted with.

    Only sections that the result will have are collected.
    """
    about = before.document.get("partials") or {"of": []}
    read_partials(before.path, about, only="")  # checks what is said of them
    kept = set(about["of"])
    exact = any(each.startswith(EXACT_OF) for each in kept)
    sections: dict[str, Any] = {
        "exact": exact,
        "growth": "growth" in kept,
        "locality": "locality" in kept,
        "compare_uncompressed": "uncompressed" in kept,
        "group_by": _grouping(before) if "sources" in kept else None,
        "holdout": held_out_share(before) if "locality" in kept else None,
    }
    if name == RECOUNT:
        asked = {key: getattr(request, key) or value for key, value in sections.items()}
        return replace(request, **asked)
    if request.remove or request.sources:  # all others will not be in the result
        sections = dict.fromkeys(sections) | {"exact": exact and not request.sources}
        sections |= {"growth": False, "locality": False, "compare_uncompressed": False}
    return replace(request, sample_size=before.samples()[0].size, **sections)


def _grouping(before: Statistics) -> str:
    about = before.document["partials"]
    return read_sources(before.layout, read_partials(before.path, about, "sources")["sources"]).by


def held_out_share(before: Statistics) -> float | None:
    """Return the share of the corpus that was held out, None for nothing."""
    about = before.document.get("partials")
    found = read_partials(before.path, about, "locality").get("locality", {})
    share = found.get("holdout/share")
    return None if share is None else float(share[0])


def change_digest(passes: Mapping[str, Pass]) -> str | None:
    """Return the digest of a change; None where a corpus cannot be read twice."""
    known = {name: each.running.fingerprint for name, each in passes.items()}
    if None in known.values():
        return None
    return sha256_bytes(json.dumps(known, sort_keys=True).encode())


def clear_checkpoints(out: Path) -> None:
    """Remove the checkpoints of all passes, and the note of a finished change."""
    for name in (ADD, REMOVE, RECOUNT):
        remove_checkpoint(resume_folder(_pass_place(out, name)))
    remove_checkpoint(resume_folder(out))


def _pass_place(out: Path, name: str) -> Path:
    """Return the path that names the checkpoints of a pass."""
    return out.with_name(f"{out.name}.{name}")
