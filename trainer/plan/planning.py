"""Plans: of one configuration on its base, or of the methods worth comparing on a shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import torch

from bases.architecture import read_config
from bases.compute import dtype_name, resolve_dtype
from bases.finding import resolve_base
from bases.tokenizer import load_tokenizer
from trainer.added_tokens import TrainedToken, add_tokens
from trainer.base_model import device, fitted, load_vocabulary, trained_dtype
from trainer.config.methods import AdaLoraMethod, FullMethod, LoraMethod, Method, PrefixMethod
from trainer.config.schema import TrainConfig
from trainer.data.training_data import load_data
from trainer.errors import ConfigError
from trainer.methods import adapter_of, trainable_parameters
from trainer.methods.cached_prefix import kv_shape
from trainer.methods.own import FullModel
from trainer.plan.memory import BatchShape, Memory, estimate
from trainer.plan.meta import Blueprint, PlannedMethod, plan_method, without_weights
from trainer.plan.model_presets import ModelPreset
from trainer.plan.reading import Reading, ReadWorkload, sampling
from trainer.plan.timing import Timing, Workload, measure
from trainer.pooling.package import packaged
from trainer.pooling.pooled_data import PooledData, load_pooled_data

PRESET_DTYPE = torch.bfloat16  # of a shape's weights unless training.dtype says otherwise
Quantize = Literal["none", "nf4"]
# What the plan of one method is compared with: label, method, quantization of the base.
COMPARED: tuple[tuple[str, Method, Quantize], ...] = (
    ("full", FullMethod(), "none"),
    ("LoRA r=8", LoraMethod(), "none"),
    ("QLoRA nf4 r=8", LoraMethod(), "nf4"),
    ("prefix 16", PrefixMethod(projection=False), "none"),
)


@dataclass(frozen=True)
class MethodRow:
    """One method of a comparison: its settings, or why it cannot be trained here."""

    label: str
    settings: str
    trainable: int = 0
    percent: float = 0.0
    memory: Memory | None = None
    refused: str | None = None


@dataclass(frozen=True)
class ServingCost:
    """Bytes in the server: a token of the base's KV cache, and the adapter's package (None for a new base)."""

    kv_per_token: int
    adapter: int | None


@dataclass(frozen=True)
class Plan:
    """One run planned. ``other`` is the memory with gradient checkpointing the other way round, None where
    that cannot be."""

    base: str
    dtype: str
    config: TrainConfig
    base_parameters: int
    trainable: int
    percent: float
    batch: BatchShape
    memory: Memory
    other: Memory | None
    compared: tuple[MethodRow, ...]
    serving: ServingCost
    timing: Timing | None = None


@dataclass(frozen=True)
class PresetPlan:
    """The methods worth comparing on a shape."""

    base: str
    summary: str
    dtype: str
    base_parameters: int
    config: TrainConfig
    batch: BatchShape
    rows: tuple[MethodRow, ...]


def plan_run(config: TrainConfig, steps: int) -> Plan:
    """The plan of the run of ``config``, ``steps`` of its steps measured. Raises TrainerError, BaseModelError."""
    if config.preference:
        raise ConfigError("preference: plan knows supervised runs only; plan the same run without this section")
    config = fitted(config)
    path = resolve_base(config.base)
    tokenizer, end_ids = load_vocabulary(config)
    plain = load_tokenizer(path, config.trust_remote_code)
    tokens = add_tokens(plain, config.added_tokens or ())
    dtype = trained_dtype(config.training.dtype)
    trusted = config.trust_remote_code
    blueprint = Blueprint(path.name, read_config(path, trusted), dtype, plain, tokens, trust_remote_code=trusted)
    if config.reading:
        return _plan_reading(
            blueprint, config, load_pooled_data(config.data, config.reading, plain, config.training.seed), steps
        )
    data = load_data(config.data, tokenizer, end_ids, config.training.seed)
    work = Workload(config, data)
    plan = _plan(blueprint, config, work.largest_batch())
    return dataclasses.replace(plan, timing=measure(config, data, work, steps)) if steps else plan


def _plan_reading(blueprint: Blueprint, config: TrainConfig, data: PooledData, steps: int) -> Plan:
    work = ReadWorkload(config, data)
    blueprint = dataclasses.replace(blueprint, reading=Reading.of(config, data, work))
    plan = _plan(blueprint, config, work.largest_batch())
    return dataclasses.replace(plan, timing=measure(config, data, work, steps, sampling(data))) if steps else plan


def plan_preset(shape: ModelPreset, config: TrainConfig) -> Plan:
    """The plan of the method of ``config`` on ``shape``; no weights and no data are needed. Raises ConfigError."""
    if config.reading:
        raise ConfigError(
            "task: a shape has no data, which says what is read and how many labels there are; plan the run's own file"
        )
    return _plan(_blueprint(shape, config), config, _batch(config))


def compare_methods(shape: ModelPreset, configs: Sequence[tuple[str, str, TrainConfig]]) -> PresetPlan:
    """Methods on ``shape``, each with a label, its settings in words and a configuration."""
    rows = [_row(_blueprint(shape, config), config, _batch(config), label, words) for label, words, config in configs]
    config = configs[0][2]
    dtype = _blueprint(shape, config).dtype
    return PresetPlan(
        shape.name, shape.summary, dtype_name(dtype), shape.parameters, config, _batch(config), tuple(rows)
    )


def _plan(blueprint: Blueprint, config: TrainConfig, batch: BatchShape) -> Plan:
    planned = plan_method(blueprint, config)
    serving = _serving(planned, config)
    memory = estimate(blueprint, config, batch)
    turned = msgspec.structs.replace(config.training, gradient_checkpointing=not config.training.gradient_checkpointing)
    other = _estimate_if_possible(blueprint, msgspec.structs.replace(config, training=turned), batch)
    return Plan(
        base=blueprint.name,
        dtype=dtype_name(blueprint.dtype),
        config=config,
        base_parameters=planned.base_parameters,
        trainable=planned.trainable,
        percent=planned.percent,
        batch=batch,
        memory=memory,
        other=other,
        compared=_compared(blueprint, config, batch),
        serving=serving,
    )


def _estimate_if_possible(blueprint: Blueprint, config: TrainConfig, batch: BatchShape) -> Memory | None:
    try:
        return estimate(blueprint, config, batch)
    except ConfigError:
        return None


def _compared(blueprint: Blueprint, config: TrainConfig, batch: BatchShape) -> tuple[MethodRow, ...]:
    rows = []
    for label, method, quantize in COMPARED:
        training = msgspec.structs.replace(config.training, quantize=quantize)
        other = msgspec.structs.replace(config, method=method, training=training)
        rows.append(_row(blueprint, other, batch, label, ""))
    return tuple(rows)


def _row(blueprint: Blueprint, config: TrainConfig, batch: BatchShape, label: str, words: str) -> MethodRow:
    try:
        planned = plan_method(blueprint, config)
        memory = estimate(blueprint, config, batch)
    except ConfigError as error:
        return MethodRow(label, words, refused=str(error))
    return MethodRow(label, words, planned.trainable, planned.percent, memory)


def _serving(planned: PlannedMethod, config: TrainConfig) -> ServingCost:
    layers, heads, width = kv_shape(planned.base)
    kv_per_token = 2 * layers * heads * width * planned.base.dtype.itemsize
    if isinstance(planned.model, FullModel):
        return ServingCost(kv_per_token, None)
    method = config.method
    if isinstance(method, AdaLoraMethod):  # which components are left is learned; their number is not
        held = sum(value.numel() * value.element_size() for value in trainable_parameters(planned.model).values())
        return ServingCost(kv_per_token, held * method.target_r // method.init_r)
    with without_weights():
        _, saved = packaged(planned.model, config.reading) if config.reading else adapter_of(planned.model)
        tensors = saved.values()
    return ServingCost(kv_per_token, sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def _blueprint(shape: ModelPreset, config: TrainConfig) -> Blueprint:
    dtype = PRESET_DTYPE if config.training.dtype == "auto" else resolve_dtype(config.training.dtype, device())
    vocabulary = shape.settings["vocab_size"]
    texts = enumerate(config.added_tokens or ())
    tokens = tuple(TrainedToken(vocabulary + i, text, pieces=(0,), is_new=True) for i, text in texts)
    return Blueprint(shape.name, shape.config(), dtype, tokens=tokens, amend=shape.amend)


def _batch(config: TrainConfig) -> BatchShape:
    """The worst: rows as long as they may be, every token learned."""
    return BatchShape(config.training.batch_size, config.data.max_length, config.data.max_length)
