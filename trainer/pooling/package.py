"""The package of an adapter that reads: peft's files, with the head among the modules that peft saves whole.

What its outputs mean stands in the manifest, and in a config.json beside it for those who load it with transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from adapters.kinds.config import CONFIG_FILE, PREFIX
from adapters.package.files import GOLDEN_FILE, MANIFEST_FILE, WEIGHTS_FILE
from adapters.package.golden import GoldenLogits, encode_golden
from adapters.package.manifest import DataRef, Manifest, PooledRef, encode_manifest
from trainer.base_model import Base
from trainer.config.schema import TrainConfig
from trainer.config.task import EmbeddingTask, ReadingTask
from trainer.data.encoding import without_row_limit
from trainer.data.messages import Message
from trainer.errors import TrainingError
from trainer.export.result import GOLDEN_PROMPTS, golden_logits, make_manifest
from trainer.files import replacing, write_json
from trainer.loop.output import result_directory
from trainer.methods import adapter_of
from trainer.pooling.examples import TextEncoder
from trainer.pooling.labels import LabelSet
from trainer.pooling.model import HeadPooling, PooledModel
from trainer.pooling.pooled_data import PooledData

MODEL_CONFIG_FILE = "config.json"


def pooled_ref(task: ReadingTask, labels: LabelSet | None, pooling: HeadPooling) -> PooledRef:
    """What an adapter of ``task`` answers."""
    if isinstance(task, EmbeddingTask) and pooling != "all":
        return PooledRef(pooling=pooling)
    if labels is None:
        return PooledRef(problem_type="regression")
    several = labels.several
    return PooledRef(
        labels=list(labels.names),
        problem_type="multi_label_classification" if several else "single_label_classification",
    )


def export_pooled(  # noqa: PLR0917 - all that a package tells of
    model: PooledModel, base: Base, config: TrainConfig, task: ReadingTask, data: PooledData, metrics: dict[str, float]
) -> Path:
    """Write ``model`` into the output of ``config``, all or nothing, in the place of an older one; returns where.

    Raises TrainingError when it is not finite.
    """
    adapter, tensors = packaged(model, task)
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise TrainingError("the trained adapter is not finite; lower training.learning_rate")
    pooled = pooled_ref(task, data.labels, model.pooling)
    manifest = make_manifest(base, config, DataRef(sha256=data.sha256, rows=len(data.train)), metrics)
    template = manifest.chat_template_sha256 if data.is_chat else None
    manifest = msgspec.structs.replace(manifest, pooled=pooled, chat_template_sha256=template)
    golden = golden_outputs(model, base, config, data)
    path = Path(config.output) / result_directory(config)
    with replacing(path) as scratch:
        _write(scratch, adapter, tensors, manifest)
        (scratch / GOLDEN_FILE).write_bytes(encode_golden(golden))
        if not isinstance(task, EmbeddingTask):
            write_json(scratch / MODEL_CONFIG_FILE, model_config(base, pooled))
    return path


@torch.no_grad()
def golden_outputs(model: PooledModel, base: Base, config: TrainConfig, data: PooledData) -> list[GoldenLogits]:
    """What the head gives for a few texts (of tokens, for the last one of each), which a server verifies that it gives.

    Of an adapter without a head the logits of the base's: its hidden states are what vectors are made of.
    """
    model.eval()
    texts = TextEncoder(without_row_limit(config.data), base.tokenizer)
    given = [(Message("user", text),) if data.is_chat else text for text in GOLDEN_PROMPTS]
    prompts = [list(texts.text(text)) for text in given]
    if model.score is None:
        model.close()
        return golden_logits(model.adapted, prompts)
    golden = []
    for ids in prompts:
        input_ids = torch.tensor([ids], device=model.device)
        out = model(input_ids, torch.ones_like(input_ids))[0]
        golden.append(GoldenLogits(input_ids[0].cpu(), (out if out.dim() == 1 else out[-1]).cpu()))
    return golden


def packaged(model: PooledModel, task: ReadingTask) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of ``model`` as peft saves those of ``task``."""
    config, tensors = adapter_of(model.adapted)
    config = {**config, "task_type": task.PEFT_TASK}
    if model.score is None:
        return _of_backbone(model, config, tensors)
    is_prompt = not any(name.startswith(PREFIX) for name in tensors)  # peft wraps no module then
    head = f"{PREFIX.removesuffix('model.') if is_prompt else PREFIX}{model.head_name}"
    tensors |= {f"{head}.{name}": parameter for name, parameter in model.score.named_parameters()}
    if "modules_to_save" in config:
        config["modules_to_save"] = [*(config["modules_to_save"] or ()), model.head_name]
    return config, tensors


def _of_backbone(
    model: PooledModel, config: dict[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """peft adapts the backbone alone (AutoModel), whose modules are named without what stands around it."""
    around = f"{model.backbone}."
    short = {
        f"{PREFIX}{name.removeprefix(PREFIX).removeprefix(around)}" if name.startswith(PREFIX) else name: tensor
        for name, tensor in tensors.items()
    }
    for key in ("target_modules", "feedforward_modules", "modules_to_save"):
        if isinstance(config.get(key), (list, set, tuple)):
            config[key] = [name.removeprefix(around) for name in config[key]]
    return config, short


def model_config(base: Base, pooled: PooledRef) -> dict[str, Any]:
    """The base's config.json with what the head gives: AutoConfig reads it, and so do models for classes."""
    config = json.loads((base.path / MODEL_CONFIG_FILE).read_text(encoding="utf-8"))
    names = pooled.labels or ["LABEL_0"]
    return {
        **config,
        "architectures": None,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "problem_type": pooled.problem_type,
        "pad_token_id": base.pad_id,
    }


def _write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], manifest: Manifest) -> None:
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(dict(config), indent=2, sort_keys=True, default=sorted)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(manifest))
    save_file(own, folder / WEIGHTS_FILE, metadata={"format": "pt"})
