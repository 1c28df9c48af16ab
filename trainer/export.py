"""The trained adapter as a package: plain peft files, with a manifest and golden logits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
from accelerate.utils import extract_model_from_parallel

from adapters.added_tokens import AddedToken
from adapters.errors import AdapterError
from adapters.fingerprint import template_sha256
from adapters.golden import Probe
from adapters.manifest import BaseRef, DataRef, Manifest
from adapters.package import write_package
from trainer.base_model import Base
from trainer.config.preference import summary_of
from trainer.config.schema import TrainConfig
from trainer.data.conversations import Message
from trainer.data.examples import Encoder
from trainer.data.rendering import make_renderer
from trainer.data.templates import is_foreign, template_name, template_text
from trainer.errors import TrainingError
from trainer.methods import adapter_of
from trainer.run_files import SERVED_TEMPLATE

# Not rows of the training data: packages travel further than data may.
PROBES = (
    "Hello! What can you do?",
    "On 7 March 2021 we met at 18:45 in room B-12.",
    'Repeat this list: {"name": "Ada", "tags": ["x", "y"], "count": 3}',
)
_PACKAGES = ("hotswap", "torch", "transformers", "peft", "bitsandbytes")


def export_adapter(
    model: Any, base: Base, config: TrainConfig, path: Path, *, data: DataRef, metrics: dict[str, float]
) -> None:
    """Write the adapter of ``model`` as a package to ``path``, all or nothing, in the place of an older one.

    Raises TrainingError when the adapter is not sound, for instance not finite.
    """
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False).eval()  # recorded without mixed precision
    manifest = make_manifest(base, config, data, metrics)
    golden = golden_logits(model, probe_ids(base, config))
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
    template = template_text(config.data, base.tokenizer)
    return Manifest(
        kind=config.method.KIND,
        base=BaseRef(base.name, base.fingerprint),
        created=datetime.now(UTC),
        chat_template_sha256=template_sha256(template) if template else None,
        special_tokens=_special_tokens(base.tokenizer),
        added_tokens=[AddedToken(id=token.id, content=token.text) for token in base.tokens if token.is_new],
        data=data,
        seed=config.training.seed,
        versions=versions(),
        metrics=metrics,
        training=_summary(config, base),
    )


def versions() -> dict[str, str]:
    """The versions of what computed the result."""
    return {name: version(name) for name in _PACKAGES}


def probe_ids(base: Base, config: TrainConfig) -> list[list[int]]:
    """Token ids of the probe prompts, as a server would tokenise them."""
    renderer = make_renderer(config.data, base.tokenizer)
    encoder = Encoder(base.tokenizer, base.end_ids, config.data.max_length, "drop")
    return [encoder.prompt_ids(renderer.prompt([Message("user", text)])) for text in PROBES]


@torch.no_grad()
def golden_logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[Probe]:
    """The logits of the last position of each prompt."""
    probes = []
    for ids in prompts:
        input_ids = torch.tensor([list(ids)], device=model.device)
        out = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False)
        probes.append(Probe(input_ids[0].cpu(), out.logits[0, -1].float().cpu()))
    return probes


def _special_tokens(tokenizer: Any) -> dict[str, str | list[str]]:
    out: dict[str, str | list[str]] = {}
    for role, token in tokenizer.special_tokens_map.items():
        out[role] = [str(one) for one in token] if isinstance(token, list) else str(token)
    return out


def _summary(config: TrainConfig, base: Base) -> dict[str, Any]:
    """The settings that people ask about; paths stay at home."""
    training: dict[str, Any] = msgspec.to_builtins(config.training)
    training = {key: value for key, value in training.items() if value is not None and key != "threads"}
    training["dtype"] = str(base.dtype).removeprefix("torch.")
    training["template"] = template_name(config.data)
    training["max_length"] = config.data.max_length
    if config.preference:
        training |= summary_of(config.preference)
    return training
