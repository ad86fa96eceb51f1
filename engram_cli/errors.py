"""The errors a user can meet, each with a message (what, where) and a hint (how to fix it).

EngramError                      exit 2
|- InputError                    something handed to us cannot be used: a path, a flag, a value
|  |- VocabularyError            a tokenizer or a compressed vocabulary
|  |- CorpusError                a corpus file, a document, a record
|  |  `- UndecodableError        text that is not UTF-8: --errors replace reads it
|  |- TokenIdError               a token id outside the vocabulary, or in a hole of it
|  `- LayoutError                a geometry or a layout that cannot be hashed with
|- ArtifactError                 a file written by engram that is damaged or from a newer version
|  `- IncompleteError            a build that never finished
|- SourceError                   a file behind an address that cannot be reached or read
|- MismatchError                 two artifacts that do not belong together
|- OutputError                   a result that cannot be written: it exists, the disk is full
|- DependencyError               an optional package is missing
|- EngineError                   a cluster cannot be reached, or gives up
|- RuntimeAttachError            a model that a bundle cannot be attached to as asked
`- CheckFailed                   exit 1: the command worked, and what it checked is not so
"""

from __future__ import annotations

_MOST_MESSAGE = 1000  # characters


class EngramError(Exception):
    """An error with one line on what went wrong and one line on how to fix it."""

    exit_code = 2

    def __init__(self, message: str, hint: str) -> None:
        if len(message) > _MOST_MESSAGE:  # it quotes a file of unknown origin
            message = f"{message[: _MOST_MESSAGE // 2]} ... {message[-_MOST_MESSAGE // 2 :]}"
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} - {self.hint}"

    def __reduce__(self) -> tuple[type[EngramError], tuple[str, str]]:
        """Errors travel between processes."""
        return type(self), (self.message, self.hint)


class InputError(EngramError):
    """Something handed to us cannot be used."""


class VocabularyError(InputError):
    """A tokenizer or a compressed vocabulary cannot be used."""


class CorpusError(InputError):
    """A corpus file, a document or a record cannot be read."""


class UndecodableError(CorpusError):
    """Text of a corpus is not UTF-8; with `errors="replace"` it can be read."""


class TokenIdError(InputError):
    """A token id lies outside the vocabulary, or in a hole of it."""


class LayoutError(InputError):
    """A geometry or a layout cannot be hashed with."""


class ArtifactError(EngramError):
    """A file written by engram is damaged, or was written by a newer version."""


class IncompleteError(ArtifactError):
    """A build never finished, so its result is not opened."""


class SourceError(EngramError):
    """A file behind an address cannot be reached, may not be read, or changes meanwhile."""


class MismatchError(EngramError):
    """Two artifacts do not belong together."""


class OutputError(EngramError):
    """A result cannot be written."""


class DependencyError(EngramError):
    """An optional package is missing."""


class EngineError(EngramError):
    """A cluster cannot be reached, or gave up."""


class RuntimeAttachError(EngramError):
    """A bundle cannot be attached to this model as asked."""


class CheckFailed(EngramError):
    """The command worked, and what it checked is not so."""

    exit_code = 1
