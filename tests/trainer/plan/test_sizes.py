from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from trainer.loop.trainer import transformers_name
from trainer.plan.sizes import state_bytes


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(*shape)) for shape in ((96, 64), (10, 7), (33,))]


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd", "adamw_8bit", "lion_8bit"])
def test_the_state_is_what_the_real_optimizer_holds_after_a_step(name: str, tmp_path: object) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), optim=transformers_name(name, on_cpu=True), use_cpu=True)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    values = parameters()
    optimizer = kind(values, **settings)
    for value in values:
        value.grad = torch.ones_like(value)
    optimizer.step()
    tables = {"qmap1", "qmap2"}  # shared by all parameters
    held = sum(
        tensor.numel() * tensor.element_size()
        for state in optimizer.state.values()
        for key, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and tensor.dim() > 0 and key not in tables
    )
    assert state_bytes(values, name) == held
