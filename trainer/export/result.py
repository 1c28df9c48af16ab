"""What a run ends in: an adapter's package, or a base of its own after full fine-tuning.

A package is plain peft files with a manifest and golden logits; a base is the directory that ``hotswap serve --model``
loads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate.utils import extract_model_from_parallel

from adapters.errors import AdapterError
from adapters.package.added_tokens import AddedToken
from adapters.package.files import MANIFEST_FILE
from adapters.package.golden import GoldenLogits
from adapters.package.manifest import BaseRef, DataRef, Losses, Manifest, encode_manifest
from adapters.package.writing import write_package
from bases.architecture import has_own_code
from bases.compute import dtype_name
from bases.model import decoder_start_id
from bases.tokenizer import load_tokenizer
from trainer.base_model import Base
from trainer.config.methods import FullMethod
from trainer.config.preference import summary_of
from trainer.config.schema import TrainConfig
from trainer.data.encoding import Encoder
from trainer.data.messages import Message
from trainer.data.rendering import PlainRenderer, is_foreign, make_renderer, template_name, template_text
from trainer.errors import TrainingError
from trainer.files import PACKAGE_DIR, SERVED_TEMPLATE, replacing, write_json
from trainer.loop.checkpoint import checkpoints, load_parameters, losses_of
from trainer.loop.output import package_versions, result_directory
from trainer.loop.records import METRICS_FILE, loss_curves, read_metrics
from trainer.methods import adapter_of

# Not rows of the training data: packages travel further than data may.
GOLDEN_PROMPTS = (
    "Hello! What can you do?",
    "On 7 March 2021 we met at 18:45 in room B-12.",
    'Repeat this list: {"name": "Ada", "tags": ["x", "y"], "count": 3}',
)
LOSS_POINTS = 200  # of a curve: enough for any picture of it
RECORDED_PACKAGES = ("hotswap", "torch", "transformers", "peft", "bitsandbytes")


def export_adapter(
    model: Any, base: Base, config: TrainConfig, path: Path, *, data: DataRef, metrics: dict[str, float]
) -> None:
    """Write the adapter of ``model`` as a package to ``path``, all or nothing, in the place of an older one.

    Raises TrainingError when the adapter is not sound, for instance not finite.
    """
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False).eval()  # recorded without mixed precision
    manifest = make_manifest(base, config, data, metrics)
    golden = golden_logits(model, golden_prompt_ids(base, config))
    adapter, tensors = adapter_of(model)
    try:
        write_package(path, adapter, tensors, manifest, golden, replace=True)
    except AdapterError as error:
        raise TrainingError(f"the trained adapter cannot be packaged: {error}") from error
    if is_foreign(config.data, base.tokenizer):
        served = template_text(config.data, base.tokenizer)
        (path.parent / SERVED_TEMPLATE).write_text(str(served), encoding="utf-8")


def make_manifest(base: Base, config: TrainConfig, data: DataRef, metrics: dict[str, float]) -> Manifest:
    """The manifest of an adapter made by ``config``."""
    return Manifest(
        kind=config.method.KIND,
        base=BaseRef(base.name, base.fingerprint),
        created=datetime.now(UTC),
        chat_template_sha256=base.chat_template_sha256,
        special_tokens=_special_tokens(base.tokenizer),
        added_tokens=[AddedToken(id=token.id, content=token.text) for token in base.tokens if token.is_new],
        data=data,
        seed=config.training.seed,
        versions=package_versions(RECORDED_PACKAGES),
        metrics=metrics,
        losses=_losses(Path(config.output)),
        training=_summary(config, base),
    )


def _losses(run: Path) -> Losses | None:
    """What the run of a folder has recorded; None without that."""
    train, validation = loss_curves(read_metrics(run / METRICS_FILE), LOSS_POINTS)
    return Losses(train, validation) if train or validation else None


def golden_prompt_ids(base: Base, config: TrainConfig) -> list[list[int]]:
    """Token ids of GOLDEN_PROMPTS, as a server would tokenise them."""
    has_template = base.chat_template_sha256 is not None  # rows of plain text need none
    renderer = make_renderer(config.data, base.tokenizer) if has_template else PlainRenderer(config.data)
    encoder = Encoder(base.tokenizer, base.end_ids, config.data.max_length, "drop")
    return [encoder.prompt_ids(renderer.prompt([Message("user", text)])) for text in GOLDEN_PROMPTS]


@torch.no_grad()
def golden_logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[GoldenLogits]:
    """The logits of the last position of each prompt, which an encoder-decoder reads and is made to repeat."""
    golden = []
    for ids in prompts:
        input_ids = torch.tensor([list(ids)], device=model.device)
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        if model.config.is_encoder_decoder:
            start = input_ids.new_tensor([[decoder_start_id(model)]])
            inputs["decoder_input_ids"] = torch.cat([start, input_ids[:, :-1]], 1)
        out = model(**inputs, use_cache=False)
        golden.append(GoldenLogits(input_ids[0].cpu(), out.logits[0, -1].float().cpu()))
    return golden


def _special_tokens(tokenizer: Any) -> dict[str, str | list[str]]:
    out: dict[str, str | list[str]] = {}
    for role, token in tokenizer.special_tokens_map.items():
        out[role] = [str(one) for one in token] if isinstance(token, list) else str(token)
    return out


def _summary(config: TrainConfig, base: Base) -> dict[str, Any]:
    """The settings that people ask about; paths stay at home."""
    training: dict[str, Any] = msgspec.to_builtins(config.training)
    training = {key: value for key, value in training.items() if value is not None and key != "threads"}
    training["dtype"] = dtype_name(base.dtype)
    training["template"] = template_name(config.data)
    training["max_length"] = config.data.max_length
    if config.preference:
        training |= summary_of(config.preference)
    if config.reading:
        training["task"] = config.reading.KIND
    return training


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
    before = _config(source)
    model.config.use_cache = before.get("use_cache", True)  # training switched it off
    model.to(dtype or dtype_of(source))
    own_code = has_own_code(model)
    with replacing(path) as scratch:
        model.save_pretrained(scratch)
        for pattern in (*_TOKENIZER_FILES, *(["*.py"] if own_code else [])):
            for file in source.glob(pattern):
                shutil.copyfile(file, scratch / file.name)
        if own_code:  # transformers leaves it out for classes that were not registered
            write_json(scratch / "config.json", {**_config(scratch), "auto_map": before["auto_map"]})
        if _differs(load_tokenizer(source, own_code), tokenizer):
            tokenizer.save_pretrained(scratch)
        (scratch / MANIFEST_FILE).write_bytes(encode_manifest(manifest))


def dtype_of(source: Path) -> torch.dtype:
    """The type that the base in ``source`` was saved in."""
    config = _config(source)
    dtype: torch.dtype = getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
    return dtype


def _config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config


def _differs(before: Any, now: Any) -> bool:
    return bool(before.get_vocab() != now.get_vocab() or before.chat_template != now.chat_template)


def export_result(model: Any, base: Base, config: TrainConfig, *, data: DataRef, metrics: dict[str, float]) -> Path:
    """Write what ``model`` has learned into the output of ``config``, all or nothing; returns where it is.

    Raises TrainingError or CheckpointError.
    """
    path = Path(config.output) / result_directory(config)
    if isinstance(config.method, FullMethod):
        export_base(model, base, config, path, data=data, metrics=metrics)
        return path
    export_adapter(model, base, config, path, data=data, metrics=metrics)
    if config.training.package_checkpoints:
        _package_checkpoints(model, base, config, data)
    return path


def _package_checkpoints(model: Any, base: Base, config: TrainConfig, data: DataRef) -> None:
    """A package in each checkpoint that is kept. ``model`` is then as the last of them left it."""
    for checkpoint in checkpoints(Path(config.output)):
        load_parameters(extract_model_from_parallel(model, keep_fp32_wrapper=False), checkpoint)
        export_adapter(model, base, config, checkpoint / PACKAGE_DIR, data=data, metrics=losses_of(checkpoint))
