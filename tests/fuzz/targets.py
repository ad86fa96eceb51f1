"""What is damaged and read: good artifacts of every kind, and the readers of their files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from commands.made import Made, make
from corpus.written import VARIANTS, Corpus, Variant
from fuzz.foreign import foreign_artifacts
from fuzz.forged import Forge, forge_bundle, forge_checkpoint, forge_stats, forge_table, forge_vocab
from safetensors.numpy import save_file
from small_tokenizers import PROSE, byte_level_tokenizer
from table.tables import counted, mapped_layout, table_spec

from engram_cli.commands.attach.command import AttachRequest, attach_checkpoint
from engram_cli.commands.build_table import BuildTableRequest, build_table
from engram_cli.commands.checkpoint import read_model_shape
from engram_cli.commands.convert.command import ConvertRequest, convert_table
from engram_cli.commands.geometry import Geometry
from engram_cli.commands.inspect.command import InspectRequest, inspect
from engram_cli.commands.lookup.command import VECTORS, LookupRequest, _header, lookup
from engram_cli.commands.merge_stats import MergeStatsRequest, merge_stats
from engram_cli.commands.plan.command import PlanRequest, plan
from engram_cli.commands.plan.file import is_plan, read_plan
from engram_cli.commands.report import ReportRequest, write_report
from engram_cli.commands.verify.command import VerifyRequest, verify
from engram_cli.commands.workspace import read_config
from engram_cli.corpus.base import CorpusOptions, ReadPosition
from engram_cli.corpus.checks import needs_tokenizer
from engram_cli.corpus.encode import make_encoder
from engram_cli.corpus.sources import find_sources
from engram_cli.corpus.stream import TokenStream
from engram_cli.errors import EngramError
from engram_cli.formats.bundle import read_bundle
from engram_cli.formats.embeddings import find_embeddings
from engram_cli.progress import SILENT
from engram_cli.stats.collector_set import make_collectors
from engram_cli.stats.counting.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from engram_cli.stats.counting.counters import Counter
from engram_cli.stats.statistic import CollectorOptions
from engram_cli.stats.stats_io import read_stats
from engram_cli.table.build import build_store, partial_folder
from engram_cli.table.inits.corpus.tokens import TokenWriter
from engram_cli.table.journal import filled
from engram_cli.table.store import open_table
from engram_cli.vocab.compress import compress_vocab
from engram_cli.vocab.parquet import read_map, read_vocab
from engram_cli.vocab.tokenizer import load_tokenizer

Read = Callable[[Path], object]


@dataclass(frozen=True)
class Target:
    """`files` of the folder `base` are damaged; `read` is given a copy of it. `forge` makes digests
    right again where it can, so that what lies behind them is reached."""

    name: str
    base: Path
    files: tuple[str, ...]
    read: Read
    forge: Forge | None = None


def make_targets(folder: Path) -> list[Target]:
    """Write the artifacts into a folder, and list what is read of them."""
    tokenizer = folder / "tokenizer.json"
    byte_level_tokenizer().save(str(tokenizer))
    made = make(folder / "made", tokenizer, compress_vocab(tokenizer))
    attach_checkpoint(
        AttachRequest(
            checkpoint=made.bundle.parent,
            table=made.table,
            out=made.folder / "referring",
            reference=True,
        )
    )
    plan(_plan_request(made.folder))
    return [
        *_tables(made),
        *_bundles(made),
        *_statistics(made),
        *_vocabularies(made),
        *_half_built(folder / "half"),
        *_checkpoints(folder, made),
        *_corpora(folder / "corpora", tokenizer),
        *(
            Target(name, base, _files(base, base), read)
            for name, base, read in foreign_artifacts(folder / "foreign", tokenizer)
        ),
    ]


def _tables(made: Made) -> Iterator[Target]:
    name = made.table.name
    files = _files(made.folder, made.table)

    def rows(here: Path) -> None:
        table = open_table(here / name)
        for layer in table.layout.layer_ids:
            table.rows(layer, [0, table.layout.layer(layer).rows - 1])
            table.hits(layer)

    def look(here: Path) -> None:
        inspect(InspectRequest(path=here / name, folder=here, threads=1, report=here / "page.html"))

    def ask(here: Path) -> None:
        lookup(LookupRequest(path=here / name, text="an Apple fell", folder=here))

    def converted(here: Path) -> None:
        request = ConvertRequest(source=here / name, dtype="int8", out=here / "c.zarr", threads=1)
        convert_table(request)

    def attached(here: Path) -> None:
        attach_checkpoint(
            AttachRequest(checkpoint=here / "ckpt", table=here / name, out=here / "attached")
        )

    readers: dict[str, Read] = {
        "open": rows,
        "verify": lambda here: verify(VerifyRequest(path=here / name, folder=here, threads=1)),
        "inspect": look,
        "lookup": ask,
        "convert": converted,
        "attach": attached,
    }
    for what, read in readers.items():
        yield Target(f"table {what}", made.folder, files, read, forge_table(name))


def _bundles(made: Made) -> Iterator[Target]:
    for place in ("ckpt/engram", "referring"):
        files = _files(made.folder, made.folder / place)

        def opened(here: Path, place: str = place) -> None:
            bundle = read_bundle(here / place)
            for layer in bundle.spec.layers:
                bundle.maps(layer)[0][0].sum()
                if bundle.has_hits:
                    bundle.hits(layer)

        def verified(here: Path, place: str = place) -> None:
            verify(VerifyRequest(path=here / place, folder=here, threads=1))

        def look(here: Path, place: str = place) -> None:
            inspect(InspectRequest(path=here / place, folder=here, threads=1))

        readers: dict[str, Read] = {"open": opened, "verify": verified, "inspect": look}
        for what, read in readers.items():
            yield Target(f"{place} {what}", made.folder, files, read, forge_bundle(place))


def _statistics(made: Made) -> Iterator[Target]:
    name = made.stats.name
    files = _files(made.folder, made.stats)
    other = made.folder.parent / "other-stats"
    shutil.copytree(made.stats, other)

    def opened(here: Path) -> None:
        statistics = read_stats(here / name)
        with suppress(EngramError):
            statistics.counts()
        statistics.partials()

    def merged(here: Path) -> None:
        parts = (here / name, other)
        merge_stats(MergeStatsRequest(parts=parts, out=here / "whole", vocab=here / "none"))

    def built(here: Path) -> None:
        build_table(
            BuildTableRequest(
                vocab=here / "engram-vocab.parquet",
                stats=here / name,
                out=here / "built.zarr",
                dim=4,
                threads=1,
            )
        )

    readers: dict[str, Read] = {
        "open": opened,
        "verify": lambda here: verify(VerifyRequest(path=here / name, folder=here, threads=1)),
        "report": lambda here: write_report(
            ReportRequest(stats=here / name, out=here / "page.html")
        ),
        "merge": merged,
        "inspect": lambda here: inspect(InspectRequest(path=here / name, folder=here, threads=1)),
        "lookup": lambda here: lookup(LookupRequest(path=here / name, text="apple", folder=here)),
        "build": built,
        "plan": lambda here: plan(_plan_request(here)),
    }
    for what, read in readers.items():
        yield Target(f"statistics {what}", made.folder, files, read, forge_stats(name))


def _vocabularies(made: Made) -> Iterator[Target]:
    name = made.vocab.name

    def read(here: Path) -> None:
        read_map(here / name)
        read_vocab(here / name)
        verify(VerifyRequest(path=here / name, folder=here, tokenizer=here / "tokenizer.json"))

    def planned(here: Path) -> None:
        if is_plan(here / "plan.json"):
            found = read_plan(here / "plan.json")
            request = BuildTableRequest(
                geometry=found.geometry,
                vocab=here / name,
                dim=found.dim,
                dtype=found.dtype,
                fingerprint=found.fingerprint,
                out=here / "planned.zarr",
                dry_run=True,
            )
            build_table(request)

    def tokenizer(here: Path) -> None:
        found = load_tokenizer(here / "tokenizer.json")
        compress_vocab(found.path)
        found.encode_batch(["An apple"])

    def model(here: Path) -> None:
        read_model_shape(here / "ckpt")

    config = made.folder / "engram.toml"
    config.write_text(
        '[layout]\nlayers = [1, 2]\nheads = 4\n[hash-stats]\nexact = true\nout = "x"\n'
    )
    vectors = made.folder / "vectors.npy"
    vectors.write_bytes(_header((3, 8)) + np.ones((3, 8), dtype=np.float32).tobytes())
    yield Target("vocabulary", made.folder, (name,), read, forge_vocab(name))
    yield Target("plan", made.folder, ("plan.json",), planned)
    yield Target("tokenizer", made.folder, ("tokenizer.json",), tokenizer)
    yield Target("config", made.folder, ("ckpt/config.json",), model)
    yield Target("toml", made.folder, ("engram.toml",), lambda h: read_config(h / "engram.toml"))
    yield Target(
        "vectors", made.folder, ("vectors.npy",), lambda h: VECTORS.problem(h / "vectors.npy")
    )


def _half_built(folder: Path) -> Iterator[Target]:
    """A table that was interrupted after some chunks, its journal and its lock."""
    folder.mkdir()
    out = folder / "t.zarr"

    def interrupted(layer: int) -> np.ndarray:
        raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):  # when all rows are written
        build_store(table_spec(tokens=5), out, hits=interrupted, threads=1)
    journal = partial_folder(out) / "build.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:6]))
    (folder / "t.zarr.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    inside = _files(folder, partial_folder(out))
    assert any(name.endswith(".jsonl") for name in inside), inside

    def resumed(here: Path) -> None:
        (here / "t.zarr.lock").unlink(missing_ok=True)
        filled(partial_folder(here / "t.zarr"))
        build_store(table_spec(tokens=5), here / "t.zarr", hits=counted, threads=1)

    def locked(here: Path) -> None:
        build_store(table_spec(tokens=5), here / "t.zarr", hits=counted, threads=1)

    yield Target("journal", folder, inside, resumed)
    yield Target("lock", folder, ("t.zarr.lock",), locked)


def _checkpoints(folder: Path, made: Made) -> Iterator[Target]:
    """A count and a token file that were interrupted, and a model's embeddings."""
    here = folder / "resume"
    layout = mapped_layout()
    options = CollectorOptions(growth=True, locality=True, compare_uncompressed=True, holdout=0.1)

    def counter() -> Counter:
        collectors = make_collectors(options, layout, None, 1024)
        return Counter(layout, 1024, collectors.collectors)

    state = counter().state()
    write_checkpoint(
        here,
        "asked",
        Checkpoint(read_position=ReadPosition(), size=9, tokens=4, encoder=None, state=state),
    )

    def restored(here: Path) -> None:
        found = read_checkpoint(here, "asked")
        if found is not None:
            counter().restore(found.state)

    yield Target("checkpoint", here, _files(here, here), restored, forge_checkpoint)

    tokens = folder / "tokens"
    writer = TokenWriter(tokens, "asked")
    writer.write((piece for piece in ()), None)
    files = _files(tokens, tokens)
    if any(name.endswith(".json") for name in files):
        yield Target("token file", tokens, files, lambda h: TokenWriter(h, "asked"))

    model = folder / "model"
    model.mkdir()
    save_file({"model.embed_tokens.weight": np.ones((9, 4), np.float32)}, model / "a.safetensors")
    index = {"weight_map": {"model.embed_tokens.weight": "a.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))

    def embeddings(here: Path) -> None:
        found = find_embeddings(here, "output")
        found.read(0, min(found.tokens, 4))
        found.map()

    yield Target("embeddings", model, _files(model, model), embeddings)


def _corpora(folder: Path, tokenizer: Path) -> Iterator[Target]:
    """A corpus in every variant of every format."""
    loaded = load_tokenizer(tokenizer)
    texts = [text + "~" for text in PROSE]
    ids = [list(map(int, loaded.encode(text))) for text in texts]
    corpora = {
        "after": Corpus(texts=texts, ids=ids, mark=ids[0][-1]),
        "before": Corpus(texts=texts, ids=[own[-1:] + own[:-1] for own in ids], mark=ids[0][-1]),
    }
    for name, variant in VARIANTS.items():
        here = folder / name
        here.mkdir(parents=True)
        corpus = corpora[variant.marks or "after"]
        given = variant.write(here, corpus)
        options = _options(variant, corpus)

        def read(here: Path, given: list[str] = given, options: CorpusOptions = options) -> None:
            files = find_sources([here / name for name in given], options).files
            text = needs_tokenizer(files, options)
            encoder = make_encoder(loaded, "tokenizers", SILENT, size=None) if text else None
            try:
                for _ in TokenStream(files, options, encoder).blocks():
                    pass
            finally:
                if encoder is not None:
                    encoder.close()

        yield Target(f"corpus {name}", here, _files(here, here), read)


def _options(variant: Variant, corpus: Corpus) -> CorpusOptions:
    mark = {"document_end_id": corpus.mark} if variant.marks else {}
    return CorpusOptions(**variant.options | mark)


def _plan_request(folder: Path) -> PlanRequest:
    return PlanRequest(
        geometry=Geometry(),
        stats=folder / "engram-stats",
        vocab=folder / "engram-vocab.parquet",
        dim=4,
        out=folder / "plan.json",
        force=True,
    )


def _files(folder: Path, inside: Path) -> tuple[str, ...]:
    found = sorted(path for path in inside.rglob("*") if path.is_file())
    return tuple(path.relative_to(folder).as_posix() for path in found)


def chosen(targets: list[Target], names: list[str]) -> list[Target]:
    """The targets whose name holds one of `names`; all without any."""
    return [t for t in targets if not names or any(name in t.name for name in names)]
