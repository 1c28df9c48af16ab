"""Plans as text and as plain data for JSON. Megabytes are 10^6 bytes, gigabytes 10^9, GiB 2^30."""

from __future__ import annotations

from typing import Any

import msgspec

from trainer.plan.memory import BatchShape, Memory
from trainer.plan.planning import MethodRow, Plan, PresetPlan, ServingCost
from trainer.plan.timing import Timing
from trainer.tables import aligned

_PARTS = (
    ("weights", "the base's weights"),
    ("adapter", "the method's own"),
    ("gradients", "gradients"),
    ("optimizer", "optimizer state"),
    ("activations", "activations kept for backward"),
    ("logits", "the head's logits and their loss"),
)


def run_text(plan: Plan) -> str:
    """The plan of one run."""
    parts = [_headline(plan), _memory(plan), _comparison(plan), _serving(plan.serving)]
    return "\n\n".join([*parts, _time(plan.timing)] if plan.timing else parts)


def preset_text(plan: PresetPlan) -> str:
    """The methods on a shape, a line each."""
    rows = [row for row in plan.rows if row.memory]
    table = aligned(
        ("method", "trainable", "% of all", "states", "peak", "settings"),
        [
            (
                row.label,
                f"{row.trainable:,}",
                percent(row.percent),
                gigabytes(row.memory.states),
                gigabytes(row.memory.peak),
                row.settings,
            )
            for row in rows
            if row.memory
        ],
        left=(0, 5),
    )
    refused = [f"{row.label}: {row.refused}" for row in plan.rows if row.refused]
    return "\n".join(
        [
            f"{plan.base}: {plan.base_parameters:,} parameters, {_base_words(plan.dtype, plan.config)}",
            plan.summary,
            f"memory of training on batches of {_batch_words(plan.batch, plan.config)}",
            "",
            table,
            *(["", *refused] if refused else []),
            "",
            "states: weights, gradients and optimizer; peak: with activations and logits; more of one method: --method",
        ]
    )


def run_data(plan: Plan) -> dict[str, Any]:
    """The plan of one run as plain data; memory in bytes, times in seconds."""
    return {
        "base": plan.base,
        "base_parameters": plan.base_parameters,
        "dtype": plan.dtype,
        "quantize": plan.config.training.quantize,
        "method": msgspec.to_builtins(plan.config.method),
        "trainable": plan.trainable,
        "percent": plan.percent,
        "batch": _fields(plan.batch),
        "gradient_checkpointing": plan.config.training.gradient_checkpointing,
        "memory": _memory_data(plan.memory),
        "memory_with_checkpointing_the_other_way": _memory_data(plan.other) if plan.other else None,
        "compared": [_row_data(row) for row in plan.compared],
        "serving": _fields(plan.serving),
        "timing": {**_fields(plan.timing), "seconds": plan.timing.seconds} if plan.timing else None,
    }


def preset_data(plan: PresetPlan) -> dict[str, Any]:
    """The methods on a shape as plain data; memory in bytes."""
    return {
        "base": plan.base,
        "base_parameters": plan.base_parameters,
        "dtype": plan.dtype,
        "batch": _fields(plan.batch),
        "methods": [_row_data(row) for row in plan.rows],
    }


def percent(share: float) -> str:
    """A percentage with the digits that matter: 0.0586, 16.10, 100."""
    return f"{share:.4f}" if share < 1 else f"{share:.2f}"


def gigabytes(size: float) -> str:
    """Bytes in words: 269.0 MB, 12.51 GB."""
    return f"{size / 1e9:,.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:,.1f} MB"


def duration(seconds: float) -> str:
    """Seconds in words: 42 s, 3 min 20 s, 5 h 10 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _headline(plan: Plan) -> str:
    method = plan.config.method.KIND
    learned = f"{plan.config.reading.KIND} of {method}" if plan.config.reading else method
    return (
        f"{learned} on {plan.base}: {plan.trainable:,} of {plan.base_parameters:,} parameters "
        f"trainable ({percent(plan.percent)} %), {_base_words(plan.dtype, plan.config)}"
    )


def _memory(plan: Plan) -> str:
    on = plan.config.training.gradient_checkpointing
    memories = [memory for memory in (plan.memory, plan.other) if memory]
    parts = (*_PARTS, ("working", "working memory; minus: never at once"), ("peak", "peak"))
    rows = [(words, *(_both(getattr(memory, name)) for memory in memories)) for name, words in parts]
    header = ("memory", f"checkpointing {'on' if on else 'off'}", f"{'off' if on else 'on'}")[: len(memories) + 1]
    return f"on batches of {_batch_words(plan.batch, plan.config)}\n{aligned(header, rows)}"


def _comparison(plan: Plan) -> str:
    """Weights, gradients and moments of full fine-tuning are four times its weights; what others save of that."""
    whole = next((row.memory.weights for row in plan.compared if row.memory), None)
    rows = []
    for row in plan.compared:
        memory = row.memory
        if memory is None or whole is None:
            rows.append((row.label, *["-"] * 6))
            continue
        sizes = (memory.weights + memory.adapter, memory.gradients, memory.optimizer, memory.states)
        rows.append((row.label, *map(gigabytes, sizes), f"{memory.states / whole:.2f}x", gigabytes(memory.peak)))
    header = ("compared", "weights", "gradients", "optimizer", "together", "of the first weights", "peak")
    return aligned(header, rows)


def _serving(serving: ServingCost) -> str:
    kv = f"serving: {serving.kv_per_token:,} bytes of KV cache a token"
    return f"{kv}, a package of {gigabytes(serving.adapter)}" if serving.adapter is not None else f"{kv}, a new base"


def _time(timing: Timing) -> str:
    count = timing.evaluations
    evaluations = f"; of it {duration(timing.evaluation_seconds)} for {count} evaluations" if count else ""
    return (
        f"time: {duration(timing.seconds)} ({duration(timing.fastest)} to {duration(timing.slowest)}) for "
        f"{timing.steps:,} steps over {timing.tokens:,} tokens, {timing.tokens_per_second:,.0f} tokens/s{evaluations}\n"
        f"measured: {timing.measured_steps} steps in {duration(timing.measured_seconds)}, peak memory "
        f"{timing.peak_memory_mb:,.0f} MB of the whole process"
    )


def _base_words(dtype: str, config: Any) -> str:
    quantize = config.training.quantize
    return dtype if quantize == "none" else f"{quantize}, computed in {dtype}"


def _batch_words(batch: BatchShape, config: Any) -> str:
    steps = config.training.gradient_accumulation
    more = f", {steps} batches a step" if steps > 1 else ""
    if config.reading:
        return f"{batch.rows} texts of {batch.length} tokens{more}, {config.training.optimizer}"
    return (
        f"{batch.rows} x {batch.length} tokens, {batch.labelled} of each row learned{more}, {config.training.optimizer}"
    )


def _both(size: int) -> str:
    return f"{size / 1e6:,.1f} MB {size / 2**30:7.2f} GiB"


def _fields(value: Any) -> dict[str, Any]:
    data: dict[str, Any] = msgspec.to_builtins(value)
    return data


def _memory_data(memory: Memory) -> dict[str, int]:
    return {**_fields(memory), "working": memory.working, "states": memory.states}


def _row_data(row: MethodRow) -> dict[str, Any]:
    return {**_fields(row), "memory": _memory_data(row.memory) if row.memory else None}
