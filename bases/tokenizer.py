"""Reads the tokenizer of a base. Imports no torch, nor does reading one of the generic class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bases.errors import BaseModelError, UntrustedCodeError

_GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_FAST, _CONFIG = "tokenizer.json", "tokenizer_config.json"


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """transformers' fast tokenizer in ``path``. Raises BaseModelError when there is none.

    A class that comes as code beside it is run only with ``trust_remote_code``.
    """
    try:
        tokenizer = _read(path, trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise UntrustedCodeError(
                f"the tokenizer in {path} comes as code beside it; read that code, and if you trust it, start with "
                "--trust-remote-code"
            ) from error
        raise BaseModelError(f"the tokenizer in {path} cannot be read: {error}") from error
    if not tokenizer.is_fast:
        raise BaseModelError(f"the tokenizer in {path} has no fast version (tokenizer.json); convert it first")
    return tokenizer


def find_tokenizer(path: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in ``path``; None for a base without one, which can only be given token ids."""
    return load_tokenizer(path, trust_remote_code) if any((path / name).exists() for name in (_FAST, _CONFIG)) else None


def _read(path: Path, trust_remote_code: bool) -> Any:
    file = path / _CONFIG
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if config.get("tokenizer_class") in _GENERIC_CLASSES and (path / _FAST).is_file():
        from transformers import PreTrainedTokenizerFast  # AutoTokenizer imports torch

        return PreTrainedTokenizerFast.from_pretrained(path)
    from transformers import AutoTokenizer

    options = _saved_backend(path, config) if trust_remote_code else {}
    return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)


def _saved_backend(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What gives a fast class of the base's own the tokenizer that is saved for it.

    transformers would build one of the saved vocabulary alone, without merges, pre-tokenizer and decoder.
    """
    own = (config.get("auto_map") or {}).get("AutoTokenizer")
    if not isinstance(own, list) or not own[-1] or not (path / _FAST).is_file():
        return {}
    from tokenizers import Tokenizer

    return {"tokenizer_object": Tokenizer.from_file(str(path / _FAST))}
