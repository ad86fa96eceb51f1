"""Whether a checkpoint has a memory already: a bundle for it would then be the second one."""

from __future__ import annotations

from pathlib import Path

from engram_cli.errors import EngramError, MismatchError
from engram_cli.files import read_json
from engram_cli.formats.checkpoint import named_as_saved, named_in_config, named_in_layers
from engram_cli.rows.safetensors import checkpoint_files


def check_first_memory(checkpoint: Path) -> None:
    """Raises MismatchError for a checkpoint with Engram layers, or with a memory in its weights.

    Reads config.json, and the index or the headers of the weights; those that cannot be read here
    show nothing.
    """
    found = named_in_config(read_json(checkpoint / "config.json", "a checkpoint's config"))
    if found is not None:
        raise _second(checkpoint, f"has Engram layers of its own (config.json: {found})")
    try:
        names = sorted(checkpoint_files(checkpoint))
    except EngramError:
        return
    own, saved = named_in_layers(names), named_as_saved(names)
    if own is not None:
        raise _second(checkpoint, f"has Engram layers of its own (tensor {own})")
    if saved is not None:
        raise MismatchError(
            f"the weights of {checkpoint} already contain a memory (tensor {saved})",
            "save that memory with save_engram(model, folder) while it is attached, or attach a "
            "new one with --force",
        )


def _second(checkpoint: Path, what: str) -> MismatchError:
    hint = "a bundle would be a second memory: give --force if that is meant"
    return MismatchError(f"{checkpoint} {what}", hint)
