"""Checks that several formats make: keys of a config, token ids, and dtypes of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engram_cli.formats.model_folder import Check, compared
from engram_cli.vocab.lookup import VocabMap
from engram_cli.vocab.tokenizer import load_tokenizer

ALL_THERE = "all there"
_DEAD = ("image_token_id", "video_token_id", "audio_token_id")
_SHOWN = 4
_E4M3, _E8M0 = "float8_e4m3fn", "float8_e8m0fnu"


def there(missing: Iterable[str], name: str) -> Check:
    """Return whether nothing is missing, by the names of what is."""
    lost = list(missing)
    shown = ", ".join(lost[:_SHOWN])
    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
    return compared(name, f"missing: {shown}{more}" if lost else ALL_THERE, ALL_THERE)


def token_id(name: str, token: object, size: object, vocab: VocabMap | None = None) -> Check:
    """Return whether a token id is below the number of ids, and one of the tokenizer's tokens."""
    if not _is_count(token):
        return Check(name=name, result="undecided", found="none named", expected="a token id")
    known = size if vocab is None else len(vocab.lookup)
    expected = "a token id" if not _is_count(known) else f"a token below {known:,}"
    if not isinstance(known, int) or not isinstance(token, int):
        return Check(name=name, result="undecided", found=f"{token}", expected=expected)
    is_token = token < known and (vocab is None or vocab.lookup[token] >= 0)
    found = f"{token}"
    if vocab is not None and is_token:
        found += f", compressed {vocab.lookup[token]}"
    return Check(name=name, result="ok" if is_token else "differs", found=found, expected=expected)


def token_count(size: object, tokenizer: Path | None) -> Check:
    """Return whether a model of raw ids has a row of its embedding for each id of a tokenizer.

    It may have more, so that its matrices have handy sizes. The tokenizer next to a checkpoint is
    not loaded, since no row depends on it. Raises VocabularyError for a damaged one.
    """
    ids = None
    if tokenizer is not None:
        ids = int(load_tokenizer(tokenizer).backend.get_vocab_size(with_added_tokens=True))
    fits = ids <= size if ids is not None and isinstance(size, int) else None
    return Check(
        name="token ids",
        result="undecided" if fits is None else "ok" if fits else "differs",
        found=f"{size:,}" if isinstance(size, int) else "unknown",
        expected="not known: give --tokenizer" if ids is None else f"{ids:,} or more",
    )


def dead_tokens(
    config: Mapping[str, Any], size: object, vocab: VocabMap | None = None
) -> list[Check]:
    """Return whether the tokens that block look-backs are tokens; undecided where none is named."""
    named = [key for key in _DEAD if config.get(key) is not None]
    if not named:
        none = "none named"
        return [Check(name="dead tokens", result="undecided", found=none, expected=_DEAD[0])]
    many = len(named) > 1
    return [
        token_id(f"dead tokens, {key}" if many else "dead tokens", config[key], size, vocab)
        for key in named
    ]


def float8_dtypes(config: Mapping[str, Any], label: str, dtypes: Mapping[str, str]) -> Check:
    """Compare the dtypes of tensors, by what they are, with the quantisation config.

    Without one the tensors are plain floats. With quant_method fp8, weights are float8 e4m3, and
    scales float8 e8m0 where `scale_fmt` is ue8m0, float32 or bfloat16 where it is another.
    """
    quantised = config.get("quantization_config")
    name = f"{label}: dtypes"
    found = ", ".join(f"{what} {dtype}" for what, dtype in dtypes.items())
    if not isinstance(quantised, Mapping):
        plain = {dtype for dtype in dtypes.values() if dtype.startswith(("bfloat", "float"))}
        is_plain = not any(dtype.startswith("float8") for dtype in plain)
        return Check(
            name=name,
            result="ok" if is_plain else "undecided",
            found=found,
            expected="plain floats" if is_plain else "no quantization_config says",
        )
    if quantised.get("quant_method") != "fp8":
        method = str(quantised.get("quant_method"))[:32]
        return Check(name=name, result="undecided", found=found, expected=f"by {method}")
    told = quantised.get("scale_fmt")
    scale: tuple[str, ...] = (_E8M0,) if told == "ue8m0" else ("float32", "bfloat16")
    scale += () if told is not None else (_E8M0,)
    wrong = [
        what
        for what, dtype in dtypes.items()
        if dtype not in (scale if "scale" in what else (_E4M3,))
    ]
    expected = f"weights {_E4M3}, scales {' or '.join(scale)}"
    return Check(name=name, result="differs" if wrong else "ok", found=found, expected=expected)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
