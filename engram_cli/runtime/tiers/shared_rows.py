"""Which rows on the host are shared by the processes of a machine, and from where they are read.

A layer whose records lie in a file as they are is read from that file, which all processes map.
Any other layer becomes a shared copy (`shared_copy`) of its records.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engram_cli.errors import ArtifactError
from engram_cli.files import canonical_json, sha256_bytes
from engram_cli.formats.bundle import Bundle
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.formats.bundle_spec import ROWS, SCALES
from engram_cli.patches.replaced import replaced_digest
from engram_cli.rows.dtypes import RECORD_ALIGNMENT
from engram_cli.rows.safetensors import TensorPlace, TensorSpec
from engram_cli.rows.source import Span
from engram_cli.runtime.tiers.records import READ_HINT, record_layout
from engram_cli.shared_copy import Contents, check_room, held_bytes

LOCAL_PROCESSES = "LOCAL_WORLD_SIZE"  # torchrun sets it: processes on this machine


def shares_by_default() -> bool:
    """Whether several processes were started on this machine together, as torchrun does it."""
    count = os.environ.get(LOCAL_PROCESSES, "")
    return sys.platform == "linux" and count.isdecimal() and int(count) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedHostRows:
    """The shared rows of a bundle: `copies` of layers, and `mapped_bytes` of others in files."""

    copies: Sequence[Contents]
    mapped_bytes: int

    @classmethod
    def of_bundle(cls, bundle: Bundle, *, gpu: bool) -> SharedHostRows:
        """Say what is shared of a bundle whose rows a `gpu` reads, or none does."""
        mapped = [] if gpu else [layer for layer in bundle.spec.layers if in_file(bundle, layer)]
        copies = [contents(bundle, each) for each in bundle.spec.layers if each not in mapped]
        size = record_layout(bundle.spec).record_bytes
        return cls(
            copies=copies, mapped_bytes=sum(bundle.spec.rows(layer) * size for layer in mapped)
        )

    def held_bytes(self) -> int:
        """Return how many bytes need no more memory: they are there, or in files."""
        return self.mapped_bytes + held_bytes(self.copies)

    def check_room(self) -> None:
        """Raise InputError if copies that are not there yet do not fit in shared memory."""
        check_room(self.copies)


def contents(bundle: Bundle, layer: int) -> Contents:
    """Return what tells a layer's copy from others: its layout, the files of its rows, and patches.

    A file is known by its place on its disk, its size and the times of its last change. Raises
    ArtifactError for a file that is missing.
    """
    spec = bundle.spec
    size = record_layout(spec).record_bytes
    about: dict[str, object] = {
        "layout": spec.layout.fingerprint,
        "layer": layer,
        "dtype": spec.dtype,
        "dim": spec.dim,
        "rows": spec.rows(layer),
        "record_bytes": size,
        "source": _source(bundle, layer),
    }
    if layer in bundle.patched:
        about["patched"] = replaced_digest({layer: bundle.patched[layer]})
    return Contents(about=about, size=spec.rows(layer) * size)


def _source(bundle: Bundle, layer: int) -> str:
    """Return a digest of the files of a layer, and of the description, which has their digests."""
    parts: list[object] = [
        [part, *_stamp(span.file), span.begin, span.first, span.rows, span.stride]
        for part in (ROWS, SCALES)
        if part in bundle.spec.parts
        for span in bundle.spans(layer, part)
    ]
    description = bundle.folder / DESCRIPTION
    if description.is_file():
        parts.append(sha256_bytes(description.read_bytes()))
    return sha256_bytes(canonical_json(parts))


def _stamp(path: Path) -> list[int]:
    try:
        about = path.stat()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}", READ_HINT) from None
    return [
        *(about.st_dev, about.st_ino, about.st_size),
        *(about.st_mtime_ns, about.st_ctime_ns),
    ]


def in_file(bundle: Bundle, layer: int) -> tuple[Path, TensorPlace] | None:
    """Return the file that holds a layer's records as they are, and where; None if none does."""
    spec, layout = bundle.spec, record_layout(bundle.spec)
    rows = bundle.spans(layer, ROWS)
    if len(rows) != 1 or rows[0].begin % RECORD_ALIGNMENT:
        return None
    if not _follows(rows[0], layout.row_bytes, layout.record_bytes):
        return None
    if layout.scale_bytes:
        scales = bundle.spans(layer, SCALES)
        if len(scales) != 1 or not _follows(scales[0], layout.scale_bytes, layout.record_bytes):
            return None
        begin = rows[0].begin + layout.scale_begin
        if (scales[0].file, scales[0].begin) != (rows[0].file, begin):
            return None
    shape = (spec.rows(layer), layout.record_bytes)
    # The padding of the last record may lie behind the end of the file.
    if rows[0].begin + shape[0] * shape[1] > rows[0].file.stat().st_size:
        return None
    place = TensorPlace(
        spec=TensorSpec(name="records", dtype="uint8", shape=shape), begin=rows[0].begin
    )
    return rows[0].file, place


def _follows(span: Span, width: int, record_bytes: int) -> bool:
    return (span.stride or width) == record_bytes
