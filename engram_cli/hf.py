"""Makes `from_pretrained` attach the memories that a model was saved with.

    import engram_cli.hf
    model = AutoModelForCausalLM.from_pretrained("ckpt")  # with the memory in ckpt/engram

No code of the checkpoint is run: the bundles next to the model's files are attached as
`engram_cli.runtime.attach` does. It works for models and adapters, in a folder or on the Hub.
`enable(placement="host")` passes options on to attach; `disable()` ends it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from engram_cli.formats.bundle import BUNDLE_NAME, saved_bundles
from engram_cli.formats.bundle_files import DESCRIPTION
from engram_cli.formats.checkpoint_reference import refers_to_itself, without_own_table
from engram_cli.runtime import attach
from engram_cli.runtime.carried import memories
from engram_cli.runtime.hub import local_checkpoint
from engram_cli.runtime.library_hooks import when_imported, wrap_method

# Arguments of from_pretrained that say where the Hub keeps a model.
_PLACE = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_options: dict[str, Any] = {}
_active = False


def enable(**options: Any) -> None:
    """Attach what a checkpoint holds from now on; `options` are those of `attach`."""
    global _active
    _active = True
    _options.clear()
    _options.update(options)
    when_imported("transformers.modeling_utils", _watch_models)
    when_imported("transformers.integrations.peft", _watch_adapters)
    when_imported("peft.peft_model", _watch_peft)


def disable() -> None:
    """Leave `from_pretrained` as it was."""
    global _active
    _active = False


def _watch_models(module: ModuleType) -> None:
    wrap_method(module.PreTrainedModel, "from_pretrained", _model_from_pretrained)


def _watch_adapters(module: ModuleType) -> None:
    wrap_method(module.PeftAdapterMixin, "load_adapter", _load_adapter)


def _watch_peft(module: ModuleType) -> None:
    wrap_method(module.PeftModel, "from_pretrained", _adapter_from_pretrained)


def _model_from_pretrained(
    original: Callable[..., Any], owner: Any, path: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """`PreTrainedModel.from_pretrained`, then the bundles of the checkpoint."""
    place = {name: kwargs[name] for name in (*_PLACE, "subfolder") if name in kwargs}
    if _active and isinstance(path, str | os.PathLike) and os.path.isdir(path):
        folder = Path(path) / str(place.get("subfolder") or "")
        if refers_to_itself(folder, folder / BUNDLE_NAME):  # its own table comes with the memory
            config = kwargs.get("config")
            if config is None or isinstance(config, str | os.PathLike):
                config = owner.config_class.from_pretrained(config or path, **place)
            kwargs["config"] = without_own_table(config)
    result = original(owner, path, *args, **kwargs)
    _attach_found(result[0] if isinstance(result, tuple) else result, path, place)
    return result


def _load_adapter(
    original: Callable[..., Any], model: Any, peft_model_id: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """`load_adapter` of transformers, after the bundles next to the adapter."""
    place = {**(kwargs.get("adapter_kwargs") or {}), **kwargs}
    _attach_found(model, peft_model_id, {n: place[n] for n in _PLACE if n in place})
    return original(model, peft_model_id, *args, **kwargs)


def _adapter_from_pretrained(
    original: Callable[..., Any], owner: type, model: Any, model_id: Any, *args: Any, **kwargs: Any
) -> Any:
    """`PeftModel.from_pretrained`, after the bundles next to the adapter."""
    _attach_found(model, model_id, {name: kwargs[name] for name in _PLACE if name in kwargs})
    return original(owner, model, model_id, *args, **kwargs)


def _attach_found(model: Any, path: Any, place: dict[str, Any]) -> None:
    """Attach the bundles of a checkpoint to a model that carries no memory yet."""
    if not _active or not isinstance(path, str | os.PathLike) or memories(model):
        return
    subfolder = str(place.pop("subfolder", None) or "")
    if os.path.isdir(path):
        folder = Path(path) / subfolder
    elif _has_bundle(str(path), subfolder, place):
        folder = local_checkpoint(str(path), subfolder=subfolder, **place)
    else:
        return
    if saved_bundles(folder):
        attach(model, folder, **_options)


def _has_bundle(repo: str, subfolder: str, place: dict[str, Any]) -> bool:
    """Return whether a model on the Hub, or in its cache, has a bundle."""
    from transformers.utils.hub import cached_file

    found = cached_file(
        repo,
        f"{subfolder}/{BUNDLE_NAME}/{DESCRIPTION}".lstrip("/"),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **place,
    )
    return found is not None


enable()
