"""The requests of `engram patch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from engram_cli.commands.requests.options import (
    TOKENIZER_FILES,
    Force,
    Option,
    Request,
    Rule,
    Threads,
    revision_of,
)

_PATCHES = "Patches, in the order in which they are applied: .patch.safetensors, .pleo, .plepatch."
AnyBase = Annotated[
    bool, Option("Replace the rows whatever they are: patches may be made for another artifact.")
]
Layer = Annotated[
    int | None, Option("Layer of an overlay that does not say of which it is.", least=0)
]
Tokenizer = Annotated[
    Path | None,
    Option(
        "Tokenizer of another program's checkpoint (that in its folder).",
        reads="ranges",
        files=TOKENIZER_FILES,
    ),
]
FORCE_WITHOUT_OUT = Rule(
    lambda request: request.force and request.out is None,
    "--force without --out",
    "it replaces an output; in place, rows are replaced anyway",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyPatchRequest(Request):
    """Patches for a table or bundle. `out`: a copy to write; None patches it in place."""

    RULES = (FORCE_WITHOUT_OUT,)

    path: Annotated[Path, Option("Table, or bundle or checkpoint folder with one.", argument=True)]
    patches: Annotated[tuple[str | Path, ...], Option(_PATCHES, argument=True, reads="ranges")]
    out: Annotated[
        Path | None,
        Option("Where to write a patched copy (none: the rows are replaced in place).", short="-o"),
    ] = None
    any_base: AnyBase = False
    layer: Layer = None
    threads: Threads = None
    force: Force = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoPatchRequest(Request):
    """Which patch of a table or bundle to undo; the last one where `patch` is None."""

    RULES = (
        Rule(
            lambda request: request.all and request.patch is not None,
            "a patch and --all",
            "give one of them",
        ),
    )

    path: Annotated[Path, Option("Table, or bundle or checkpoint folder with one.", argument=True)]
    patch: Annotated[
        str | None,
        Option("Number or digest of the patch, as engram patch list has it.", argument=True),
    ] = None
    all: Annotated[bool, Option("Undo all patches that were applied in place.")] = False
    threads: Threads = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPatchesRequest(Request):
    """A table or bundle whose patches are listed."""

    path: Annotated[Path, Option("Table, or bundle or checkpoint folder with one.", argument=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPatchesRequest(Request):
    """Patches to look at together on a base. `out`: one patch that does what they do."""

    RULES = (FORCE_WITHOUT_OUT,)

    path: Annotated[
        Path, Option("Table, bundle or checkpoint with rows.", argument=True, reads="ranges")
    ]
    patches: Annotated[tuple[str | Path, ...], Option(_PATCHES, argument=True, reads="ranges")]
    revision: Annotated[str | None, revision_of("path", "the base")] = None
    out: Annotated[
        Path | None,
        Option(
            "Where to write one patch that does what they do: .patch.safetensors, .pleo or "
            ".plepatch (none).",
            short="-o",
        ),
    ] = None
    description: Annotated[
        str | None, Option("Description of the patch that is written (theirs).")
    ] = None
    any_base: AnyBase = False
    layer: Layer = None
    tokenizer: Tokenizer = None
    force: Force = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowPatchRequest(Request):
    """A patch to describe; with a `base`, what it changes there."""

    patch: Annotated[
        Path,
        Option("Patch: .patch.safetensors, .pleo or .plepatch.", argument=True, reads="ranges"),
    ]
    revision: Annotated[str | None, revision_of("patch", "the patch")] = None
    base: Annotated[
        Path | None,
        Option("Table, bundle or checkpoint to compare it with (none).", reads="ranges"),
    ] = None
    layer: Layer = None
    tokenizer: Tokenizer = None
