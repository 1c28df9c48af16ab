"""Packed training against unpacked: the same loss and gradients; refused where it would not be so."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.bounds import bound
from tests.factory import make_base
from tests.trainer.every_method import METHODS
from tests.trainer.support import make_config
from trainer.base_model import load_base
from trainer.config.loading import load_config
from trainer.data.batches import Collator, PackedCollator
from trainer.data.encoding import IGNORED, Example
from trainer.errors import ConfigError
from trainer.loop.loss import LabelledHead, token_losses
from trainer.loop.packed_attention import _find_blocks, check_packing, use_packed_attention
from trainer.loop.records import METRICS_FILE, read_metrics
from trainer.methods import apply_method, trainable_parameters
from trainer.run import train

pytestmark = pytest.mark.numeric

EXAMPLES = [
    Example((5, 6, 7, 8, 9, 10), (IGNORED, IGNORED, 7, 8, IGNORED, 10)),
    Example((11, 12, 13), (IGNORED, IGNORED, 13)),
    Example((1, 2, 3, 4), (IGNORED, 2, 3, 4)),
]
WITHOUT_GROUPS: dict[str, Any] = {"num_key_value_heads": None, "head_dim": None}
BASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt_neox": WITHOUT_GROUPS,
    "gpt2": WITHOUT_GROUPS,
    "mistral": {"sliding_window": 4},
    "gemma2": {},
}
KINDS = ("lora", "dora", "ia3", "oft", "ln_tuning", "bottleneck", "freeze")


@pytest.fixture(scope="module", params=list(BASES))
def base_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, model_type=request.param, **BASES[request.param])


def loss_and_gradients(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    labels = batch.pop("labels")
    batch.pop("num_tokens", None)
    loss = token_losses(LabelledHead(model).logits(model, batch, labels), labels).mean()
    torch.autograd.backward(loss)
    return loss.detach(), {
        name: p.grad.clone() for name, p in trainable_parameters(model).items() if p.grad is not None
    }


def assert_equal_to_unpacked(model: Any) -> None:
    loss, gradients = loss_and_gradients(model, PackedCollator(0)([(EXAMPLES[0], EXAMPLES[2]), (EXAMPLES[1],)]))
    alone_loss, alone = loss_and_gradients(model, Collator(0)(EXAMPLES))
    torch.testing.assert_close(loss, alone_loss, rtol=1e-6, atol=1e-6)
    assert gradients.keys() == alone.keys()
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    assert largest > 1e-3
    # eighteen sums one after another as in logits (tests.bounds), and as many on the way back; what cancels in a small
    # gradient comes from the large ones
    rounding = bound(torch.float32, length=128, depth=36, scale=largest)
    for name, gradient in alone.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=rounding)


def test_loss_and_gradients_equal_unpacked_for_every_weight(base_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_path).eval()  # without dropout
    check_packing(model, model.config.vocab_size)
    assert_equal_to_unpacked(model)
    use_packed_attention(model)
    check_packing(model, model.config.vocab_size)
    assert_equal_to_unpacked(model)


def test_examples_are_computed_one_by_one_where_that_is_the_same(tiny_base: Path) -> None:
    """By the masked attention that transformers would use, which must not be asked."""
    rows = [(EXAMPLES[0], EXAMPLES[2]), (EXAMPLES[1], EXAMPLES[1])]
    batch = {name: value for name, value in PackedCollator(0)(rows).items() if name.endswith("_ids")}
    masked = AutoModelForCausalLM.from_pretrained(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    use_packed_attention(model)
    assert model.config._attn_implementation == "hotswap_packed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.loop.packed_attention.sdpa_attention_forward", None)
        logits = model(**batch, use_cache=False).logits
    real = torch.ones(batch["input_ids"].shape, dtype=torch.bool)
    real[1, 6:] = False
    torch.testing.assert_close(logits[real], masked(**batch, use_cache=False).logits[real], rtol=1e-5, atol=1e-5)


def test_what_blocks_cannot_do_is_left_to_transformers(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_base(tmp_path, model_type="mistral", sliding_window=4))
    use_packed_attention(model)
    long, short = PackedCollator(0)([(EXAMPLES[0], EXAMPLES[2])]), PackedCollator(0)([(EXAMPLES[1], EXAMPLES[2])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.loop.packed_attention.sdpa_attention_forward", None)
        model(input_ids=short["input_ids"], position_ids=short["position_ids"], use_cache=False)
        with pytest.raises(TypeError, match="not callable"):
            model(input_ids=long["input_ids"], position_ids=long["position_ids"], use_cache=False)


def test_blocks_of_any_lengths_cover_every_place_once() -> None:
    rng = random.Random(0)
    for _ in range(50):
        lengths = [[rng.randrange(1, 40) for _ in range(rng.randrange(1, 9))] for _ in range(2)]
        width = max(map(sum, lengths))
        rows = [[*row, width - sum(row)] for row in lengths]
        position_ids = torch.stack([torch.cat([torch.arange(count) for count in row]) for row in rows])
        blocks = _find_blocks(position_ids)
        assert blocks is not None
        places = torch.cat([places[real] for places, real in blocks.groups])
        assert places[blocks.order].tolist() == list(range(2 * width))
        for group, real in blocks.groups:
            assert real.sum(1).min() * 1.3 >= real.shape[1]
            assert (position_ids.flatten()[group][real] == torch.arange(real.shape[1]).expand_as(real)[real]).all()
    assert _find_blocks(torch.arange(7).repeat(2, 1)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_equal_unpacked_for_every_kind(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    method = [setting for setting in METHODS[kind] if not setting.startswith("learning_rate")]
    config = make_config(tmp_path, tiny_base, *method, "packing=true")
    torch.manual_seed(0)
    base = load_base(config)
    model = apply_method(base, config.method)
    use_packed_attention(base.model)
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    check_packing(model, 320)
    assert_equal_to_unpacked(model)


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("bloom", {**WITHOUT_GROUPS, "intermediate_size": None, "max_position_embeddings": None}),  # attends across
        ("falcon", WITHOUT_GROUPS),  # too
        ("mamba", {**WITHOUT_GROUPS, "num_attention_heads": None}),  # its state goes on
    ],
)
@pytest.mark.filterwarnings("ignore")  # mamba's kernels are not installed
def test_bases_whose_examples_would_see_each_other_are_refused(
    model_type: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_base(tmp_path, model_type=model_type, **settings))
    with pytest.raises(ConfigError, match=r"training\.packing: .* set it to false"):
        check_packing(model, 320)


class Continuing(torch.nn.Module):
    """Keeps examples apart, but numbers all tokens of a row through."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.inner = AutoModelForCausalLM.from_pretrained(base)
        self.device = self.inner.device

    def forward(self, input_ids: Tensor, position_ids: Tensor, **options: Any) -> Any:
        length = input_ids.shape[1]
        block = (position_ids == 0).cumsum(1)
        seen = (block[:, :, None] == block[:, None]) & torch.ones(length, length).tril().bool()
        return self.inner(input_ids=input_ids, attention_mask=seen[:, None], **options)


def test_positions_that_do_not_restart_are_found(tmp_path: Path) -> None:
    model = Continuing(make_base(tmp_path, model_type="gpt2", **WITHOUT_GROUPS))  # rotary ones would be as good shifted
    with pytest.raises(ConfigError, match=r"training\.packing: .* disturb each other"):
        check_packing(model, 320)


@pytest.mark.parametrize("kind", ["prefix", "prompt", "p_tuning"])
def test_kinds_with_virtual_tokens_are_refused(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"training.packing: {kind} stands before a whole row"):
        make_config(tmp_path, tiny_base, f"method={kind}", "packing=true")


def losses(run: Path) -> list[float]:
    return [entry["loss"] for entry in read_metrics(run / METRICS_FILE) if "loss" in entry]


def test_a_packed_run_learns_and_resumes_to_the_same_losses(tiny_base: Path, tmp_path: Path) -> None:
    settings = ["packing=true", "max_length=100", "batch_size=2", "max_steps=24", "save_steps=9", "keep_checkpoints=9"]
    settings.append("learning_rate=2e-2")
    whole = train(make_config(tmp_path / "a", tiny_base, *settings))
    assert losses(whole.output)[-1] < losses(whole.output)[0] / 4
    again = train(make_config(tmp_path / "b", tiny_base, *settings))
    assert losses(again.output) == losses(whole.output)
    for step in (18, 24):
        for file in (again.output / f"checkpoint-{step}").glob("*"):
            file.unlink()
    resumed = train(make_config(tmp_path / "b", tiny_base, *settings), resume=True)
    assert losses(resumed.output) == losses(whole.output)
    assert whole.metrics["validation_loss"] == resumed.metrics["validation_loss"]


def test_auto_packs_where_that_is_exact(tiny_base: Path, tmp_path: Path) -> None:
    settings = ("max_length=100", "batch_size=2", "max_steps=2", "save_steps=1", "eval_steps=1")
    packed = train(make_config(tmp_path / "a", tiny_base, *settings, "packing=true"))
    auto = make_config(tmp_path / "b", tiny_base, *settings, "packing=auto")
    chosen = train(auto)
    assert losses(chosen.output) == losses(packed.output)
    assert load_config(chosen.output / "config.yaml", (), {}).training.packing is True
    shutil.rmtree(chosen.output / "checkpoint-2")
    assert losses(train(auto, resume=True).output) == losses(packed.output)
    bloom = {**WITHOUT_GROUPS, "intermediate_size": None, "max_position_embeddings": None}
    leaking = make_base(tmp_path / "base", model_type="bloom", **bloom)
    alone = train(make_config(tmp_path / "c", leaking, *settings, "packing=auto", "target_modules=[query_key_value]"))
    assert load_config(alone.output / "config.yaml", (), {}).training.packing is False
