"""The requests: light, checked field by field, and in step with what they name."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from typer.testing import CliRunner

from engram_cli.commands.geometry import PRESETS
from engram_cli.commands.requests import convert, corpus, plan, reading, tables
from engram_cli.commands.requests.options import Group, Here, Option, Request, Rule, build, declared
from engram_cli.commands.workspace import Workspace
from engram_cli.corpus.base import IDS_DTYPES, Errors
from engram_cli.corpus.encode import ENCODERS
from engram_cli.corpus.partitions import LEAST_BYTES, PARTITION_BYTES
from engram_cli.corpus.readers import READERS
from engram_cli.engines.base import ENGINES
from engram_cli.errors import InputError
from engram_cli.formats import TARGETS
from engram_cli.formats.module_spec import FRESH_KINDS, INIT_GATES, INIT_VALUES
from engram_cli.hashing.schemes import SCHEMES
from engram_cli.rows import DTYPES
from engram_cli.stats.sampling.distinct import DEFAULT_SAMPLE, LEAST_SAMPLE, MOST_SAMPLE
from engram_cli.stats.statistics.sources import GROUPINGS
from engram_cli.table.inits import INITS
from engram_cli.table.inits.corpus.filled import LEAST_MEMORY, CorpusFill
from engram_cli.table.planning.placement import HARDWARE

REQUESTS = [
    *(corpus.CompressVocabRequest, corpus.HashStatsRequest),
    *(plan.PlanRequest, tables.BuildTableRequest, convert.ConvertRequest, tables.AttachRequest),
    *(reading.InspectRequest, reading.LookupRequest, reading.VerifyRequest),
    reading.GoldenRequest,
    *(reading.ReportRequest, reading.TraceRequest, reading.DemoRequest),
]


def option(request: type, name: str) -> Option:
    return next(each.option for each in declared(request) if each.name == name)


def test_requests_import_nothing_heavy() -> None:
    modules = ["numpy", "numba", "zarr", "pyarrow", "torch", "tokenizers", "typer", "rich"]
    code = (
        "import sys; from engram_cli.commands.requests import corpus, reading, tables\n"
        f"print([name for name in {modules!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_request_repeats_is_what_its_stage_says() -> None:
    """A request may not import the stages, which are slow to load."""
    counting = corpus.HashStatsRequest
    assert option(counting, "engine").known == tuple(ENGINES)
    assert counting(sources=("a",)).sample_size == DEFAULT_SAMPLE
    sample = option(counting, "sample_size")
    assert (sample.least, sample.most) == (LEAST_SAMPLE, MOST_SAMPLE)
    assert counting(sources=("a",)).partition_size == PARTITION_BYTES
    assert option(counting, "partition_size").least == LEAST_BYTES
    assert option(tables.AttachRequest, "init_value").known == INIT_VALUES
    assert option(tables.AttachRequest, "init_gate").known == INIT_GATES
    assert option(counting, "errors").known == get_args(Errors)
    assert option(tables.BuildTableRequest, "memory").least == LEAST_MEMORY
    of_a_corpus = {n for n in INITS if getattr(INITS.load(n), "func", None) is CorpusFill}
    assert of_a_corpus == set(tables.CORPUS_INITS)


@pytest.mark.parametrize(
    ("request_", "name", "choices"),
    [
        (tables.AttachRequest, "module", FRESH_KINDS),
        (tables.BuildTableRequest, "dtype", DTYPES),
        (tables.BuildTableRequest, "init", INITS),
        (convert.ConvertRequest, "dtype", DTYPES),
        (convert.ConvertRequest, "to", TARGETS),
        (plan.PlanRequest, "dtype", DTYPES),
        (plan.PlanRequest, "hardware", HARDWARE),
        (tables.BuildTableRequest, "preset", PRESETS),
        (tables.BuildTableRequest, "scheme", SCHEMES),
        (corpus.HashStatsRequest, "encoder", ENCODERS),
        (corpus.HashStatsRequest, "engine", ENGINES),
        (corpus.HashStatsRequest, "format", READERS),
        (corpus.HashStatsRequest, "group_by", GROUPINGS),
        (corpus.HashStatsRequest, "ids_dtype", IDS_DTYPES),
    ],
)
def test_help_lists_every_choice(request_: type, name: str, choices: Iterable[str]) -> None:
    words = re.findall(r"[\w.-]*\w", option(request_, name).help)
    assert not set(choices) - set(words)


@pytest.mark.parametrize("name", ["vocab", "force", "orders", "format", "engine"])
def test_an_option_reads_the_same_in_every_command(name: str) -> None:
    found = [each for request in REQUESTS for each in declared(request) if each.name == name]
    assert len(found) > 1
    assert len({(each.option.help, each.panel, each.option.metavar) for each in found}) == 1


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.__name__)
def test_help_texts_are_printed_as_written(request_: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are text, which rich would read as markup."""
    from engram_cli.cli.app import app

    monkeypatch.setenv("COLUMNS", "800")
    command = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", request_.__name__.removesuffix("Request"))
    done = CliRunner().invoke(app, [command.lower(), "--help"])
    printed = " ".join(done.stdout.split())
    for each in {each.name: each for each in declared(request_)}.values():
        assert " ".join(each.option.help.split()) in printed


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner(Request):
    """A group that becomes a text."""

    left: Annotated[int, Option("Left.", least=2, most=5)] = 3

    def resolved(self, given: dict[str, Any]) -> str | None:
        return f"{self.left} of {given['right']}" if given["right"] else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer(Request):
    """A request of the tests."""

    right: Annotated[tuple[str, ...], Option("Right.")] = ()
    kind: Annotated[str, Option("Kind.", name="sort", known=("a", "b"))] = "a"
    made: Annotated[str, Group(Inner)] = "nothing"
    here: Here = field(default_factory=Workspace)

    RULES = (Rule(lambda own: len(own.right) > 2, "{0.right[2]} is too many", "give {0.kind}"),)


def test_options_become_a_request() -> None:
    assert [each.name for each in declared(Outer)] == ["right", "sort", "left", "workspace"]
    given = {"right": ["x"], "sort": None, "left": 4, "workspace": Path("there")}
    made = build(Outer, given)
    assert made == Outer(right=("x",), made="4 of ['x']", here=Workspace(Path("there")))
    assert build(Outer, {**given, "right": None}).made == "nothing"


@pytest.mark.parametrize(
    ("request_", "values", "message"),
    [
        (Outer, {"kind": "c"}, "unknown sort 'c' - known: a, b"),
        (Outer, {"right": ("x", "y", "z"), "kind": "b"}, "z is too many - give b"),
        (Inner, {"left": 1}, "--left 1 - give 2 or more"),
        (Inner, {"left": 6}, "--left 6 - give 5 or less"),
    ],
)
def test_what_cannot_be_is_refused(request_: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        request_(**values)
    assert str(refused.value) == message
