"""What an artifact says of itself, for people: facts, and digests with what they must match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_cli.commands.artifact import Companions
from engram_cli.errors import EngramError
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_spec import HITS
from engram_cli.hashing.layout import HashLayout, short
from engram_cli.stats.stats_io import Statistics
from engram_cli.table.attributes import PARTIAL_SUFFIX
from engram_cli.table.journal import filled
from engram_cli.table.store import TableStore
from engram_cli.vocab.parquet import read_about, read_map


@dataclass(frozen=True, slots=True, kw_only=True)
class Digest:
    """A digest, what else must have it, and whether that is so where it lies at hand."""

    name: str
    value: str
    must_match: str
    matches: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an artifact says of itself."""

    facts: tuple[tuple[str, str], ...]
    digests: tuple[Digest, ...]
    files: int
    stored_bytes: int


def about_table(table: TableStore, companions: Companions) -> About:
    """A finished table."""
    attributes = table.attributes
    counted = attributes["statistics"]
    init = _init(table.init, attributes["init"].get("parameters") or {})
    rows = sum(entry.rows for entry in table.layout.layers)
    facts = [
        *_hash_facts(table.layout),
        ("rows", f"{rows:,} of {table.dim} x {table.dtype}"),
        ("parameters", f"{rows * table.dim:,}"),
        ("init", init),
        *_converted(attributes.get("source")),
        ("row hits", "none" if counted is None else f"of {counted['tokens']:,} tokens"),
        ("filled", "whole: every chunk is on the manifest"),
        ("a token reads", _token_bytes(table.layout, table.row_type.row_bytes(table.dim))),
        ("made by", f"engram {attributes.get('tool_version')}"),
    ]
    files, size = _sizes(table.path)
    own = Digest(name="table", value=table.digest, must_match="names this content")
    return About(
        facts=tuple(facts),
        digests=(own, *_layout_digests(table.layout, companions)),
        files=files,
        stored_bytes=size,
    )


def _converted(source: Any) -> list[tuple[str, str]]:
    """What a table was converted from, where it was."""
    if not isinstance(source, Mapping):
        return []
    return [
        (
            "converted",
            f"from a table of {source.get('dtype')} with digest {short(str(source.get('digest')))}",
        )
    ]


def _init(name: str, parameters: Mapping[str, Any]) -> str:
    """What the rows were filled with: parameters by name, a corpus and its vectors in words."""
    vectors = parameters.get("embeddings")
    if not isinstance(vectors, Mapping):
        return ", ".join([name, *(f"{key} {value}" for key, value in parameters.items())])
    joined = ", joined to one stream" if parameters.get("join_documents") else ""
    source = f"embeddings {vectors.get('tensor')}"
    if vectors.get("kind") == "random":
        source = f"random vectors of std {vectors.get('std')}"
    return (
        f"{name} of {parameters.get('tokens'):,} tokens, {parameters.get('documents'):,} documents"
        f"{joined}; {source}, seed {vectors.get('seed')}"
    )


def about_half_built(path: Path) -> About:
    """A table that was never finished."""
    folder = path if path.exists() else path.with_name(path.name + PARTIAL_SUFFIX)
    chunks, size = filled(folder)
    facts = (
        ("filled", f"half-built: {chunks:,} chunks, {size:,} bytes are whole"),
        ("to go on", "run the same engram build-table again"),
    )
    return About(facts=facts, digests=(), files=chunks, stored_bytes=size)


def about_bundle(bundle: Bundle, companions: Companions) -> About:
    """A bundle next to a checkpoint."""
    spec = bundle.spec
    rows = sum(spec.rows(layer) for layer in spec.layers)
    layers = ", ".join(
        f"{layer} in decoder layer {spec.index(layer)}, counted from 0" for layer in spec.layers
    )
    dense = sum(array.size for own in bundle.dense.values() for array in own.values())
    held = "" if bundle.table is None else f" of the table {bundle.table}"
    shards = sum(shard.part != HITS for shard in bundle.shards)
    facts = [
        *_hash_facts(spec.layout),
        ("layers", layers),
        ("rows", f"{rows:,} of {spec.dim} x {spec.dtype}, {shards} files{held}"),
        ("parameters", f"{rows * spec.dim:,} in rows, {dense:,} in dense weights"),
        ("model", f"{spec.model_type}, {spec.num_layers} layers of {spec.hidden_size}"),
        ("row hits", "kept for every row" if bundle.has_hits else "none"),
        ("a token reads", _token_bytes(spec.layout, spec.row_bytes)),
    ]
    files, size = _sizes(bundle.folder)
    return About(
        facts=tuple(facts),
        digests=_layout_digests(spec.layout, companions),
        files=files,
        stored_bytes=size,
    )


def about_statistics(statistics: Statistics, companions: Companions) -> About:
    """A statistics folder."""
    document, layout = statistics.document, statistics.layout
    joined = ", joined to one stream" if statistics.joined else ""
    sections = sorted(
        set(document) & {"growth", "locality", "clean_heads", "sources", "uncompressed"}
    )
    facts = [
        *_hash_facts(layout),
        ("counted", f"{statistics.tokens:,} tokens, {statistics.documents:,} documents{joined}"),
        ("sections", ", ".join(sections) or "none"),
        ("made by", f"engram {document.get('tool_version')}"),
    ]
    facts += [
        (
            f"{entry['order']}-grams",
            f"{entry['distinct']:,.0f} distinct ones, "
            + ("counted" if entry["exact"] else f"± {entry['distinct_error']:,.0f}"),
        )
        for entry in document["orders"]
    ]
    files, size = _sizes(statistics.path)
    return About(
        facts=tuple(facts),
        digests=_layout_digests(layout, companions),
        files=files,
        stored_bytes=size,
    )


def about_vocabulary(path: Path) -> About:
    """A compressed vocabulary."""
    about, found = read_about(path), read_map(path)
    tokens = int((found.lookup >= 0).sum())
    facts = (
        ("token ids", f"{found.vocab_size:,}, {tokens:,} of them with a token"),
        ("compressed ids", f"{found.size:,} ({100 * (1 - found.size / tokens):.2f} % fewer)"),
        ("made from", str(about.get("source"))),
        ("made by", f"engram {about.get('tool_version')}"),
    )
    digests = (
        Digest(
            name="vocabulary",
            value=found.digest,
            must_match="layouts, statistics, tables and bundles made with it",
        ),
        Digest(
            name="tokenizer",
            value=str(about.get("tokenizer_digest")),
            must_match="SHA-256 of the tokenizer.json it was made from",
        ),
    )
    return About(facts=facts, digests=digests, files=1, stored_bytes=path.stat().st_size)


def _hash_facts(layout: HashLayout) -> list[tuple[str, str]]:
    orders = ", ".join(map(str, layout.orders))
    layers = ", ".join(map(str, layout.layer_ids))
    facts = [
        ("scheme", layout.scheme),
        ("geometry", f"orders {orders}, {layout.heads} heads, layers {layers}"),
        ("ids", f"{layout.vocab_size:,} -> {layout.compressed_size:,}"),
        ("before the start", _pad(layout)),
    ]
    if layout.eos_id is not None:
        facts.append(("EOS id", f"{layout.eos_id}, which no n-gram crosses"))
    return facts


def _pad(layout: HashLayout) -> str:
    """What the hash reads before a document, and which way it folds."""
    token = layout.parameters.get("pad_id")
    raw = "" if token is None else f", pad token {token}"
    return f"compressed id {layout.filler_id}{raw}; folded {layout.fold}"


def _layout_digests(layout: HashLayout, companions: Companions) -> tuple[Digest, ...]:
    """The digests of a layout, held against a vocabulary that lies at hand."""
    found = [
        Digest(
            name="layout",
            value=layout.fingerprint,
            must_match="statistics, tables and bundles that go together",
        )
    ]
    if layout.vocab_digest is not None:
        place = companions.vocabulary_place()
        matches = None
        try:
            if place is not None:
                matches = read_about(place).get("vocab_digest") == layout.vocab_digest
        except EngramError:
            matches = False
        where = "the vocabulary" if place is None else f"{place}"
        found.append(
            Digest(
                name="vocabulary",
                value=layout.vocab_digest,
                must_match=where,
                matches=matches,
            )
        )
    return tuple(found)


def _token_bytes(layout: HashLayout, of_row: int) -> str:
    count = len(layout.layers) * layout.columns
    return f"{count:,} rows, {count * of_row:,} bytes"


def _sizes(folder: Path) -> tuple[int, int]:
    files: Iterable[Path] = (file for file in folder.rglob("*") if file.is_file())
    sizes = [file.stat().st_size for file in files]
    return len(sizes), sum(sizes)
