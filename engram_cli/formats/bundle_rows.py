"""A bundle as a `RowSource`: its own shards, or the chunk files of the table that it refers to."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engram_cli.errors import InputError, MismatchError
from engram_cli.files import sha256_bytes
from engram_cli.formats import FORMATS
from engram_cli.formats.base import Checks, Facts, Format, hash_facts, patch_facts, token_fact
from engram_cli.formats.bundle import BUNDLE_NAME, Bundle, read_bundle, read_description
from engram_cli.formats.bundle_files import DESCRIPTION, REMAKE, ListedFiles
from engram_cli.formats.checkpoint_reference import CheckpointReference
from engram_cli.formats.zarr_table import verify_table
from engram_cli.numbers import counted
from engram_cli.rows.dtypes import physical_dtype
from engram_cli.rows.gather import FileArray, FileRows, HeldArray
from engram_cli.rows.source import HITS


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRows(FileRows):
    """The rows of an opened bundle."""

    bundle: Bundle


def bundle_rows(bundle: Bundle) -> BundleRows:
    """Return an opened bundle as a `RowSource`. Raises ArtifactError."""
    spec = bundle.spec
    parts: dict[tuple[int, str], FileArray] = {}
    for layer in spec.layers:
        for part in (*spec.parts, HITS) if bundle.has_hits else spec.parts:
            tensor = spec.tensor(layer, part)
            if isinstance(bundle.reference, CheckpointReference):
                held = bundle.reference.held(layer, part)
                if held is not None:
                    parts[layer, part] = HeldArray(held)
                    continue
            spans, dtype = bundle.spans(layer, part), physical_dtype(tensor.dtype)
            parts[layer, part] = FileArray(spans, dtype, tensor.shape[1:], REMAKE)
    return BundleRows(
        format="bundle",
        path=bundle.folder,
        layout=spec.layout,
        layers=spec.layers,
        dim=spec.dim,
        dtype=spec.dtype,
        digest=sha256_bytes((bundle.folder / DESCRIPTION).read_bytes()),
        parts=parts,
        bundle=bundle,
    )


def _recognise(path: Path) -> Path | None:
    for folder in (path, path / BUNDLE_NAME):
        if (folder / DESCRIPTION).is_file():
            return folder
    return None


def _facts(source: BundleRows) -> Facts:
    bundle, spec = source.bundle, source.bundle.spec
    rows = sum(spec.rows(layer) for layer in spec.layers)
    layers = ", ".join(
        f"{layer} in decoder layer {spec.index(layer)}, counted from 0" for layer in spec.layers
    )
    dense = sum(array.size for own in bundle.dense.values() for array in own.values())
    held = "" if bundle.table is None else f" of the table {bundle.table}"
    if isinstance(bundle.reference, CheckpointReference):
        place = bundle.reference.folder(bundle.folder)
        held = f" of the {bundle.reference.format} checkpoint {place}"
    shards = sum(shard.part != HITS for shard in bundle.shards)
    return [
        *hash_facts(spec.layout),
        ("layers", layers),
        ("rows", f"{rows:,} of {spec.dim} x {spec.dtype}, {counted(shards, 'file')}{held}"),
        ("parameters", f"{rows * spec.dim:,} in rows, {dense:,} in dense weights"),
        ("model", f"{spec.model_type}, {spec.num_layers} layers of {spec.hidden_size}"),
        ("row hits", "kept for every row" if bundle.has_hits else "none"),
        *patch_facts(read_description(bundle.folder)),
        token_fact(spec.layout, spec.row_bytes),
    ]


def _check(path: Path, checks: Checks) -> BundleRows | None:
    """Read every file that the description lists and compare its digest; then those of a table
    that it refers to, of which `read_bundle` has seen that it is the one."""
    listed = ListedFiles(path, read_description(path))
    checks.files, checks.stored_bytes = len(listed.names), sum(map(listed.size, listed.names))
    checks.progress.start("verify", checks.stored_bytes, "bytes")
    problems = []
    with ThreadPoolExecutor(checks.threads) as pool:
        for name, problem in zip(listed.names, pool.map(listed.problem, listed.names), strict=True):
            checks.progress.advance(listed.size(name))
            problems += [] if problem is None else [problem]
    checks.take("digests", problems)
    if problems:
        checks.not_checked.append("headers and layout: the files were changed or damaged")
        return None
    try:
        bundle = read_bundle(path)
    except (InputError, MismatchError) as error:  # of the table that it refers to
        checks.problems.append(error.message)
        checks.not_checked.append(f"the rows: {error.hint}")
        return None
    checks.checked.append("headers")
    if bundle.table is not None:
        found = verify_table(bundle.table, threads=checks.threads, progress=checks.progress)
        checks.add("the table", found, "the table's ")
    if isinstance(bundle.reference, CheckpointReference):
        _check_checkpoint(bundle, bundle.reference, checks)
    return bundle_rows(bundle)


def _check_checkpoint(bundle: Bundle, reference: CheckpointReference, checks: Checks) -> None:
    """Verify the checkpoint that a bundle refers to, as its own format does."""
    own = Checks(threads=checks.threads, progress=checks.progress)
    place = Path(os.path.normpath(bundle.folder.resolve() / reference.path))
    FORMATS.load(reference.format).verify(place, own)
    checks.add("the checkpoint", own, "the checkpoint's ")


FORMAT = Format(
    name="bundle",
    recognise=_recognise,
    open=lambda path: bundle_rows(read_bundle(path)),
    facts=_facts,
    shows_digest=False,
    check=_check,
)
