"""Checks the files of a corpus before they are read, and says what the user should know of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from engram_cli.corpus.base import NO_LABEL, CorpusFile, CorpusOptions
from engram_cli.corpus.readers import READERS
from engram_cli.errors import CorpusError, InputError
from engram_cli.progress import SILENT, Progress
from engram_cli.registry import enumerated

_PATIENCE = 10_000  # documents without the field until the user is told
_SHOWN = 8  # fields that a hint names


def needs_tokenizer(files: Sequence[CorpusFile], options: CorpusOptions) -> bool:
    """Return whether some file holds texts. Raises CorpusError for one that cannot be read."""
    return any(READERS.load(file.format).gives_text(file, options) for file in files)


def remarks(files: Sequence[CorpusFile], options: CorpusOptions) -> list[str]:
    """Return what the user should know about how files will be read, each once."""
    heard = Counter(READERS.load(file.format).remark(file, options) for file in files)
    return [
        f"{count} {text if count > 1 else text.replace(' files', ' file', 1)}"
        for text, count in heard.items()
        if text is not None
    ]


def idle_options(files: Sequence[CorpusFile], given: Sequence[str]) -> list[str]:
    """Return a remark for each of the `given` fields of `CorpusOptions` that no file uses."""
    formats = sorted({file.format for file in files})
    used = {name for each in formats for name in READERS.load(each).uses}
    return [
        f"--{name.replace('_', '-')} has no effect: the corpus is {', '.join(formats)}"
        for name in given
        if name not in used
    ]


def check_labelled(files: Iterable[CorpusFile], options: CorpusOptions) -> None:
    """Raise InputError naming the first file whose documents have no fields to be labelled by."""
    grouped = enumerated(name for name in READERS if READERS.load(name).labels)
    for file in files:
        if options.label is not None and not READERS.load(file.format).labels:
            raise InputError(
                f"{file.name} cannot be grouped by '{options.label}': {file.format} has no fields",
                f"group {grouped} by a field, others by file or folder",
            )


def check_field(
    files: Sequence[CorpusFile], options: CorpusOptions, progress: Progress = SILENT
) -> None:
    """Raise CorpusError when no document has the field to be labelled by.

    Reads up to the first that has it. Files with a schema are checked when a column is chosen, and
    what comes through a pipe is checked afterwards, by `check_names`.
    """
    field = options.label
    if field is None or not files:
        return
    seen: dict[str, None] = {}
    met = 0
    for file in files:
        look = READERS.load(file.format).fields_until
        if look is None or (file.path is None and file.url is None):
            return
        for names in look(file, options, field):
            if names is None:
                return
            seen |= dict.fromkeys(names)
            met += 1
            if met == _PATIENCE:
                progress.note(
                    f"the first {met:,} documents have no field '{field}': looking in the others"
                )
    if met:
        raise _no_field(field, seen)


def check_names(names: Sequence[str], files: Iterable[CorpusFile], options: CorpusOptions) -> None:
    """Raise CorpusError when what came through a pipe had no labels; `names`: those counted."""
    piped = any(file.path is None and file.url is None for file in files)
    if options.label is not None and piped and list(names) == [NO_LABEL]:
        raise _no_field(options.label, ())


def _no_field(field: str, seen: Iterable[str]) -> CorpusError:
    known = list(seen)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    hint = f"their fields: {', '.join(known[:_SHOWN])}{more}" if known else "check its spelling"
    return CorpusError(f"no document has a field '{field}' to group by", hint)
