"""The loss over selected positions against transformers' own loss over all of them, for every method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer.support import make_config
from trainer.base_model import load_base
from trainer.data.batches import Collator
from trainer.data.encoding import IGNORED, Example
from trainer.loop.loss import LabelledHead, labelled_targets, row_losses, token_losses
from trainer.methods import apply_method, trainable_parameters

pytestmark = pytest.mark.numeric

EXAMPLES = [
    Example((5, 6, 7, 8, 9, 10), (IGNORED, IGNORED, 7, 8, IGNORED, 10)),
    Example((11, 12, 13), (IGNORED, IGNORED, 13)),
    Example((1, 2, 3, 4), (IGNORED,) * 4),
]


def gradients(loss: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    torch.autograd.backward(loss)
    return {name: p.grad.clone() for name, p in trainable_parameters(model).items() if p.grad is not None}


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_loss_and_gradients_equal_those_over_full_logits(tiny_base: Path, tmp_path: Path, method: str) -> None:
    config = make_config(tmp_path, tiny_base, f"method={method}")
    torch.manual_seed(0)
    model = apply_method(load_base(config), config.method)
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    head = LabelledHead(model)
    batch = Collator(0)(EXAMPLES)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    logits = head.logits(model, dict(inputs), batch["labels"])
    assert logits.shape == (4, 320)
    ours = token_losses(logits, batch["labels"]).mean()
    theirs = model(**inputs, labels=batch["labels"]).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    mine, wanted = gradients(ours, model), gradients(theirs, model)
    assert mine.keys() == wanted.keys()
    assert mine
    for name, gradient in wanted.items():
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6)


def test_the_head_is_untouched_outside_of_a_loss(tiny_base: Path, tmp_path: Path) -> None:
    model = load_base(make_config(tmp_path, tiny_base)).model
    LabelledHead(model)
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 320)


def test_models_that_give_full_logits_anyway_are_handled(tiny_base: Path, tmp_path: Path) -> None:
    model = load_base(make_config(tmp_path, tiny_base)).model
    batch = Collator(0)(EXAMPLES)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with_hook = LabelledHead(model).logits(model, dict(inputs), batch["labels"])
    for hook in list(model.get_output_embeddings()._forward_pre_hooks):
        del model.get_output_embeddings()._forward_pre_hooks[hook]
    without = LabelledHead(torch.nn.Identity()).logits(model, dict(inputs), batch["labels"])
    torch.testing.assert_close(with_hook, without)


def test_sums_by_row_count_only_labels() -> None:
    labels = Collator(0)(EXAMPLES)["labels"]
    assert labelled_targets(labels).tolist() == [7, 8, 10, 13]
    logits = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    sums, counts = row_losses(logits, labels)
    losses = token_losses(logits, labels)
    assert counts.tolist() == [3, 1, 0]
    torch.testing.assert_close(sums, torch.stack([losses[:3].sum(), losses[3], torch.zeros(())]))
