"""Of which architecture a base is, as its config.json says, and which of transformers' classes loads it.

Code that comes beside a base is imported, and so run, only where the caller trusts it; never after a question on stdin.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from bases.errors import BaseModelError, UntrustedCodeError

ENCODER_DECODERS = ("t5", "mt5")  # that are served, and trained
_OWN_CLASSES = (AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModel)  # ChatGLM names its decoder by all of them


def read_config(path: Path, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of the base in ``path``. Raises UntrustedCodeError and BaseModelError."""
    check_code(path, trust_remote_code)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, SyntaxError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise BaseModelError(f"the configuration of the base in {path} cannot be read: {why}") from error


def check_code(path: Path, trust_remote_code: bool) -> None:
    """UntrustedCodeError for a base that needs code of its own without ``trust_remote_code``, or that nobody knows.

    transformers would ask on stdin, or name classes that say nothing to an operator.
    """
    raw = _raw_config(path)
    model_type = raw.get("model_type")
    if model_type is None or model_type in CONFIG_MAPPING:
        return
    if not raw.get("auto_map"):
        raise UntrustedCodeError(
            f"the base model in {path} is of the architecture {model_type}, which this version of transformers does "
            "not know; update transformers, or take another base"
        )
    if not trust_remote_code:
        raise UntrustedCodeError(
            f"the base model in {path} is of the architecture {model_type}, which comes as code beside its weights; "
            "read that code, and if you trust it, start with --trust-remote-code"
        )


def is_encoder_decoder(path: Path) -> bool:
    """Whether an encoder reads the prompt of the base in ``path``, and a decoder writes.

    Raises BaseModelError for one of a family that is not served.
    """
    raw = _raw_config(path)
    model_type = raw.get("model_type")
    if raw.get("is_encoder_decoder") and model_type not in ENCODER_DECODERS:
        raise BaseModelError(
            f"{model_type} is an encoder-decoder model of a family that is not served; served are "
            f"{', '.join(ENCODER_DECODERS)}"
        )
    return model_type in ENCODER_DECODERS


def model_class(config: Any) -> Any:
    """The class of transformers that loads the language model of ``config``."""
    if config.model_type in ENCODER_DECODERS:
        return AutoModelForSeq2SeqLM
    own = getattr(config, "auto_map", None) or {}
    return next((one for one in _OWN_CLASSES if one.__name__ in own), AutoModelForCausalLM)


@contextmanager
def older_code(config: Any) -> Iterator[None]:
    """Lets a model of a base's own code be made within that was written for transformers 4.

    ChatGLM's reads a length to generate from its configuration, and does not end its construction by post_init.
    """
    name = model_class(config).__name__
    if not has_own_code(config) or name not in config.auto_map:
        yield
        return
    own = get_class_from_dynamic_module(config.auto_map[name], config.name_or_path)
    if not hasattr(own, "all_tied_weights_keys"):
        own.all_tied_weights_keys = {}
    lacks = not hasattr(config, "max_length")  # which a configuration may not be saved with
    if lacks:
        type(config).max_length = 20
    try:
        yield
    finally:
        if lacks:
            del type(config).max_length


def has_own_code(thing: Any) -> bool:
    """Whether the class of a model or configuration came as code beside a base's weights."""
    return type(thing).__module__.startswith("transformers_modules.")


def _raw_config(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseModelError(f"the configuration of the base in {path} cannot be read: {error}") from error
    return raw if isinstance(raw, dict) else {}
