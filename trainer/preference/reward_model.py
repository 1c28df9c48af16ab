"""A LoRA with a head that scores answers, trained on pairs by trl, and saved as peft saves sequence classification.

``OUTPUT/reward_model`` loads with transformers' AutoModelForSequenceClassification (num_labels 1) and peft. It gives
scores, not text: the server takes adapters that generate and refuses it by its task type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from adapters.manifest import encode_manifest
from trainer.base_model import Base
from trainer.errors import TrainingError
from trainer.files import replacing
from trainer.methods import adapter_of
from trainer.preference.wrapped import WrappedModel

HEAD = "score"
_CONFIG, _WEIGHTS, _MANIFEST = "adapter_config.json", "adapter_model.safetensors", "hotswap.json"


class RewardModel(WrappedModel):
    """Scores of whole conversations: ``score(hidden state of the last token)``, as transformers' classifiers do."""

    def __init__(self, model: Any, base: Base) -> None:
        super().__init__(model, base)
        self.config.num_labels = 1
        self.score = nn.Linear(self.config.hidden_size, 1, bias=False, device=base.model.device)
        nn.init.normal_(self.score.weight, std=getattr(self.config, "initializer_range", 0.02))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SequenceClassifierOutputWithPast:
        """Logits [batch, 1] of ``input_ids`` [batch, length], padded on the right."""
        backbone = self.model.get_base_model().base_model  # LoRA's modules are inside of it
        hidden = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]
        return SequenceClassifierOutputWithPast(logits=self.score(last.float()))


def save_reward_model(model: RewardModel, path: Path, manifest: Any) -> None:
    """Write ``model`` to ``path`` in the place of an older one, all or nothing. TrainingError when it is not finite."""
    config, tensors = adapter_of(model.model)
    tensors = {**tensors, f"base_model.model.{HEAD}.weight": model.score.weight}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise TrainingError("the trained reward model is not finite; lower training.learning_rate")
    config = {**config, "task_type": "SEQ_CLS", "modules_to_save": [HEAD]}
    with replacing(path) as scratch:
        (scratch / _CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
        (scratch / _MANIFEST).write_bytes(encode_manifest(manifest))
        save_file(tensors, scratch / _WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def scores_of(model: RewardModel, rows: list[list[int]], pad_id: int, batch_size: int) -> list[float]:
    """The score of each row of token ids."""
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = [0.0] * len(rows)
    for at in range(0, len(order), batch_size):
        indices = order[at : at + batch_size]
        longest = len(rows[indices[-1]])
        ids = torch.tensor([rows[i] + [pad_id] * (longest - len(rows[i])) for i in indices], device=model.device)
        mask = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in indices], device=model.device)
        for i, score in zip(indices, model(ids, mask).logits[:, 0].tolist(), strict=True):
            out[i] = score
    return out
