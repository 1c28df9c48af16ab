"""A trained model as a base of its own: the directory that ``hotswap serve --model`` loads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from adapters.files import MANIFEST_FILE
from adapters.manifest import DataRef, Manifest, encode_manifest
from trainer.base_model import Base, load_tokenizer
from trainer.config.schema import TrainConfig
from trainer.data.templates import is_foreign, template_text
from trainer.export import make_manifest
from trainer.files import replacing

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model",
                    "chat_template*")  # fmt: skip


def export_base(
    model: Any, base: Base, config: TrainConfig, path: Path, *, data: DataRef, metrics: dict[str, float]
) -> None:
    """Write the fully trained ``model``, converted to the type that the base was saved in, to ``path``.

    ``hotswap.json`` beside the weights says what it was made of. The chat template is the one that it was trained with.
    All or nothing, in the place of an older one. Raises CheckpointError when it cannot be written.
    """
    manifest = make_manifest(base, config, data, metrics)
    if is_foreign(config.data, base.tokenizer):
        base.tokenizer.chat_template = template_text(config.data, base.tokenizer)
    save_base(model.base_model, base.path, base.tokenizer, path, manifest=manifest)


def save_base(
    model: Any, source: Path, tokenizer: Any, path: Path, *, manifest: Manifest, dtype: torch.dtype | None = None
) -> None:
    """Write ``model``, made from the base in ``source``, to ``path``, in ``dtype`` (that of ``source`` when None).

    Raises CheckpointError when it cannot be written; nothing is left behind then.
    """
    model.config.use_cache = getattr(AutoConfig.from_pretrained(source), "use_cache", True)  # training switched it off
    model.to(dtype or dtype_of(source))
    with replacing(path) as scratch:
        model.save_pretrained(scratch)
        for pattern in _TOKENIZER_FILES:
            for file in source.glob(pattern):
                shutil.copyfile(file, scratch / file.name)
        if _differs(load_tokenizer(source), tokenizer):
            tokenizer.save_pretrained(scratch)
        (scratch / MANIFEST_FILE).write_bytes(encode_manifest(manifest))


def dtype_of(source: Path) -> torch.dtype:
    """The type that the base in ``source`` was saved in."""
    dtype: torch.dtype | None = AutoConfig.from_pretrained(source).dtype
    return dtype or torch.float32


def _differs(before: Any, now: Any) -> bool:
    return bool(before.get_vocab() != now.get_vocab() or before.chat_template != now.chat_template)
