"""A corpus to be counted or filled from."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_tokenizers import PROSE
from stats.truth import layout_of

from engram_cli.corpus.base import CorpusOptions
from engram_cli.corpus.partitions import plan_partitions
from engram_cli.corpus.sources import find_sources
from engram_cli.engines.base import Reading
from engram_cli.engines.counting import Work
from engram_cli.stats.collector_set import sources_of
from engram_cli.stats.statistic import CollectorOptions
from engram_cli.vocab.tokenizer import load_tokenizer

TEXTS = [f"{at} " + PROSE[at % len(PROSE)] * (6 + at % 5) for at in range(10)]
COLLECTORS = CollectorOptions(exact=True, group_by="file", locality=True, holdout=0.2)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Work:
    """Ten files of text in as many partitions, or fewer."""
    folder = tmp_path_factory.mktemp("corpus")
    for at, text in enumerate(TEXTS):
        (folder / f"{at:02}.txt").write_text(text, encoding="utf-8")
    (folder / "empty.txt").touch()
    tokenizer = load_tokenizer(tokenizer_file)
    options = CorpusOptions()
    plan = plan_partitions(find_sources([folder], options).files, options, 1024)
    layout = layout_of(
        moduli=(1009, 1013, 1019, 1021), heads=2, size=max(tokenizer.spellings()) + 1
    )
    return Work(
        plan=plan,
        reading=Reading(layout=layout, options=options, tokenizer=tokenizer, encoder="auto"),
        collector_options=COLLECTORS,
        source_of=sources_of(plan.files, "file"),
        sample_size=64,
        join_documents=True,
    )
