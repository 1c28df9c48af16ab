"""The estimate of memory against what torch's allocator really gave out while the real loop trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PrinterCallback

from tests.factory import make_base
from tests.trainer.plan.support import blueprint_of, most_allocated
from tests.trainer.support import make_config
from trainer.base_model import load_base, load_model
from trainer.config.schema import TrainConfig
from trainer.data.encoding import IGNORED, Example
from trainer.data.training_data import TrainingData
from trainer.loop.checkpoint import identity_of
from trainer.loop.trainer import AdapterTrainer, make_arguments
from trainer.methods import apply_method
from trainer.plan.memory import BatchShape, Memory, estimate
from trainer.plan.sizes import linear_bytes, predicted_weight_bytes

ROWS, LENGTH, LABELLED = 4, 96, 40
NEAR = 0.02  # of the allocator's peak; the real one also holds a few small tensors of the loop


def examples() -> tuple[Example, ...]:
    """One batch, whose rows differ in length so that there is padding to mask."""
    found = []
    for row in range(ROWS):
        ids = tuple(3 + i % 200 for i in range(LENGTH - row))
        found.append(Example(ids, (*[IGNORED] * (len(ids) - LABELLED), *ids[-LABELLED:])))
    return tuple(found)


def allocated(config: TrainConfig) -> int:
    """The most bytes that training ``config`` held beside the loaded model, by torch's own account."""
    base = load_base(config)
    data = TrainingData(train=examples(), validation=(), questions=(), sha256="")
    model = apply_method(base, config.method, 3)
    trainer = AdapterTrainer(
        model, make_arguments(config, ROWS), data, base, config=config, identity=identity_of(config, "", "")
    )
    trainer.remove_callback(PrinterCallback)
    return most_allocated(trainer.train)


def estimated(config: TrainConfig, base: Path) -> Memory:
    return estimate(blueprint_of(base), config, BatchShape(ROWS, LENGTH, LABELLED))


@pytest.mark.parametrize(
    "settings",
    [
        "method=lora",
        "method=lora gradient_checkpointing=true",
        "method=lora use_dora=true",
        "method=lora quantize=nf4",
        "method=lora quantize=int8",
        "method=lora optimizer=adafactor",
        "method=prefix",
        "method=prefix gradient_checkpointing=true",
        "method=p_tuning",
        "method=ia3",
        "method=bottleneck",
        "method=freeze layers=1",
        "method=full",
    ],
)
def test_the_peak_is_what_the_allocator_gives_out(settings: str, tiny_base: Path, tmp_path: Path) -> None:
    steps = ["validation=0", "eval_steps=null", "save_steps=8", "max_steps=3", "dtype=float32"]
    config = make_config(tmp_path, tiny_base, *steps, *settings.split())
    memory = estimated(config, tiny_base)
    real = allocated(config)
    assert memory.peak - memory.weights - memory.adapter == pytest.approx(real, rel=NEAR)


def test_checkpointing_keeps_the_inputs_of_layers_alone(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", num_hidden_layers=6)
    kept = estimated(make_config(tmp_path, base, "gradient_checkpointing=true"), base).activations
    layer_input = ROWS * LENGTH * 64 * 4
    assert 6 * layer_input <= kept < 10 * layer_input
    assert estimated(make_config(tmp_path, base), base).activations > 4 * kept


def test_full_fine_tuning_takes_four_times_the_weights(tiny_base: Path, tmp_path: Path) -> None:
    memory = estimated(make_config(tmp_path, tiny_base, "method=full"), tiny_base)
    parameters = sum(p.numel() for p in load_model(tiny_base, torch.float32, "none").parameters())
    assert (memory.gradients, memory.optimizer) == (4 * parameters, 8 * parameters)
    assert memory.states == pytest.approx(4 * memory.weights, rel=1e-3)


def test_the_head_sees_labelled_tokens_only(tiny_base: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, tiny_base, "method=lora")
    few = estimate(blueprint_of(tiny_base), config, BatchShape(ROWS, LENGTH, 4))
    many = estimate(blueprint_of(tiny_base), config, BatchShape(ROWS, LENGTH, 40))
    assert many.logits > 8 * few.logits
    assert many.activations < 1.1 * few.activations


@pytest.mark.parametrize("quantize", ["none", "int8", "nf4", "nf4-dq", "fp4", "fp4-dq"])
def test_weights_are_counted_as_bitsandbytes_holds_them(quantize: str, tiny_base: Path) -> None:
    """Every storage of the really loaded base, statistics and tables included."""
    model = load_model(tiny_base, torch.float32, quantize)
    tensors = [*model.parameters(), *model.buffers()]
    for parameter in list(tensors):
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code]
            tensors += [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        if getattr(parameter, "SCB", None) is not None:
            tensors.append(parameter.SCB)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    planned = blueprint_of(tiny_base).build(torch.float32).model
    assert predicted_weight_bytes(planned, quantize) == sum(storages.values())


def test_sizes_of_a_quantized_map_by_hand() -> None:
    # 576 x 1536 weights: 13,824 blocks of 64; 54 blocks of 256 scales
    assert linear_bytes(576 * 1536, 576, "int8") == 884_736 + 2_304
    assert linear_bytes(576 * 1536, 576, "nf4") == 442_368 + 55_296 + 64
    assert linear_bytes(576 * 1536, 576, "nf4-dq") == 442_368 + 13_824 + 216 + 64 + 1_024 + 4
