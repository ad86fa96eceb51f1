"""convert --to: hands the opened source to the writer of a format."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engram_cli.commands.artifact import find_artifact, require_sound
from engram_cli.commands.convert.bundle import TARGET as bundle_target
from engram_cli.commands.convert.command import ConvertResult, convert_table
from engram_cli.commands.output_address import at_address, is_address
from engram_cli.commands.requests.convert import ConvertRequest
from engram_cli.commands.requests.options import located
from engram_cli.errors import InputError, OutputError
from engram_cli.files import address_of
from engram_cli.formats import FORMATS, TARGETS
from engram_cli.formats.base import Change, Target, WriteOptions, require_agreement
from engram_cli.formats.bundle import BUNDLE as FOLDER
from engram_cli.formats.overlay import Overlay
from engram_cli.malloc import keep_freed
from engram_cli.outputs import check_name
from engram_cli.progress import SILENT, Progress
from engram_cli.registry import enumerated
from engram_cli.rows import DTYPES
from engram_cli.rows.source import RowSource
from engram_cli.rows.stored_as import kept_dtype
from engram_cli.rows.views import requantised, some_layers
from engram_cli.sizes import processors

BUNDLE = "bundle"  # a target that needs what attach knows of models, which formats do not


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What a writer wrote, or with `--check` or `--dry-run` would write.

    `source_dtype` and `dtype`: how the rows were stored, and are. `changes`: every key and tensor
    of a header, with what happens to it. `files`: those in `out`, `size` their bytes. `verified`:
    whether they were read again and compared with the source. `notes`: what is not in the files,
    and what is left to do.
    """

    source: Path
    source_format: str
    source_dtype: str | None
    dtype: str | None
    out: Path | None
    to: str
    dialect: str | None
    written: bool
    files: tuple[str, ...]
    size: int
    changes: tuple[Change, ...]
    verified: bool
    notes: tuple[str, ...]
    seconds: float = 0.0

    @property
    def is_change(self) -> bool:
        """Whether a header is not as it was."""
        return any(change.is_change for change in self.changes)


def convert(request: ConvertRequest, progress: Progress = SILENT) -> ConvertResult | WriteResult:
    """Write the rows of a source as a table of another dtype, or in another format.

    Raises InputError for what cannot be converted, ArtifactError for a source that is damaged,
    OutputError when something else is in the way, does not fit or cannot be written.
    """
    keep_freed()
    request = located(request)
    if request.to in (None, "table"):
        return convert_table(request, progress)
    if is_address(request.out):
        return _at_address(request, progress)
    begin = time.perf_counter()
    if request.to not in (BUNDLE, *TARGETS):
        is_read = request.to in FORMATS
        raise InputError(
            f"{request.to} is read, not written" if is_read else f"unknown format '{request.to}'",
            f"give --to table, {BUNDLE}, {TARGETS.choices()}",
        )
    target = bundle_target if request.to == BUNDLE else TARGETS.load(request.to)
    source = find_artifact(request.source, request.shape).open(tokenizer=request.tokenizer)
    check = request.check or request.dry_run
    if request.verify and not check:
        _require_sound(source, request, progress)
    out = request.out or request.source.with_name(f"new-{request.source.name}")
    check_name(out)
    options = WriteOptions(
        dialect=request.dialect,
        patch=request.patch,
        rows=request.rows,
        tokenizer=request.tokenizer,
        check=check,
        force=request.force,
        verify=request.verify,
        threads=request.threads or processors(),
        progress=progress,
    )
    chosen = _chosen(source, target, request, out, options)
    done = target.write(chosen, out, options)
    return WriteResult(
        source=request.source,
        source_format=source.format,
        source_dtype=source.dtype,
        dtype=chosen.dtype,
        out=request.out,
        to=request.to,
        dialect=done.dialect,
        written=not check,
        files=done.files,
        size=done.size,
        changes=done.changes,
        verified=done.verified,
        notes=done.notes,
        seconds=time.perf_counter() - begin,
    )


def _at_address(request: ConvertRequest, progress: Progress) -> ConvertResult | WriteResult:
    """Write a bundle to an address. Raises OutputError for the files of other programs."""
    assert request.out is not None
    if request.to != BUNDLE:
        raise OutputError(
            f"{address_of(request.out)} is an address, and {request.to} is written to a path",
            "give a path with --out, then upload what lies there",
        )
    dry = request.dry_run or request.check
    return at_address(convert, request, FOLDER, progress, folder=request.folder, dry_run=dry)


def _chosen(
    source: RowSource, target: Target, request: ConvertRequest, out: Path, options: WriteOptions
) -> RowSource:
    """Return what is to be written: the layers and the dtype that were asked for.

    Raises InputError for what the target cannot hold.
    """
    if request.rows is not None and not target.part_of_rows:
        raise InputError(
            f"--rows leaves out rows that tokens look up, and {request.to} has all of them",
            "leave it out; --layers chooses layers",
        )
    if request.layers is not None:
        source = some_layers(source, request.layers)
    if isinstance(source, Overlay) and target.part_of_rows and request.dtype is None:
        return source
    if source.dtype is None:
        raise InputError(f"{source.path} holds no vectors", "give a table or a checkpoint")
    dtype = request.dtype or source.dtype
    known = target.dtypes
    if known and dtype not in known and kept_dtype(dtype) not in known:
        written = [name for name in known if name in (*DTYPES, "q8_0")]  # others are read alone
        rather = f"give --dtype {enumerated(written, 'or')}"
        if request.dtype is None and not target.part_of_rows:
            _require_else(source, target, out, options, written)
        raise InputError(
            f"{source.path} has rows of {dtype}, which {request.to} does not hold"
            if request.dtype is None
            else f"{request.to} does not hold rows of {dtype}",
            f"{rather}, which rounds the values" if request.dtype is None else rather,
        )
    if request.dtype is None and request.scale is None:
        return source
    return requantised(source, dtype, request.scale)


def _require_else(
    source: RowSource, target: Target, out: Path, options: WriteOptions, written: Sequence[str]
) -> None:
    """Raise InputError where rows of another dtype would be refused too, for another reason."""
    dtype = next((name for name in written if name not in ("fp8", source.dtype)), None)
    if dtype is not None:  # the scale of fp8 would be computed from all rows
        target.write(requantised(source, dtype, None), out, replace(options, check=True))


def _require_sound(source: RowSource, request: ConvertRequest, progress: Progress) -> None:
    """Raise ArtifactError for a source that is damaged; a GGUF file's writer looks for itself."""
    hint = "--no-verify converts what is there"
    if not FORMATS.load(source.format).foreign:
        threads = request.threads or processors()
        require_sound(source, hint, threads=threads, progress=progress)
    elif request.to != "gguf":
        require_agreement(source, hint)
