"""Loads the model of a checkpoint with transformers, from local safetensors files alone."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engram_cli.errors import DependencyError, InputError
from engram_cli.formats.bundle import BUNDLE_NAME
from engram_cli.formats.checkpoint_reference import refers_to_itself, without_own_table


def check_checkpoint(folder: Path) -> None:
    """Raise InputError for a folder that holds no checkpoint."""
    if not folder.is_dir():
        raise InputError(f"no checkpoint at {folder}", "give a model's folder")
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is not a checkpoint: it has no config.json",
            "give the folder of a Hugging Face checkpoint",
        )


def require_packages(*names: str, user: str = "running the model") -> None:
    """Raise DependencyError for packages of the extra `train` that `user` needs and lacks."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"{user} needs {', '.join(missing)}",
            "python -m pip install 'engram-tables[train]'",
        )


def load_model(checkpoint: Path, **options: Any) -> Any:
    """Return the causal language model in a folder; `options` are those of `from_pretrained`.

    A model whose own table the bundle in the folder refers to is loaded without that table.

    Raises DependencyError without torch or transformers, InputError for one that cannot be loaded.
    """
    require_packages("torch", "transformers")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    try:
        if refers_to_itself(checkpoint, checkpoint / BUNDLE_NAME):
            config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
            options = {"config": without_own_table(config), **options}
        return AutoModelForCausalLM.from_pretrained(
            checkpoint,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot load the model in {checkpoint}: {reason}",
            "give the folder of a Hugging Face checkpoint with safetensors weights",
        ) from None
