"""A configuration proposed for data, a base and a method: its lengths, rows and steps decide the values.

``hotswap init`` writes it. Knows neither questions nor answers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from bases.architecture import read_config
from bases.errors import BaseModelError
from bases.finding import resolve_base
from trainer.base_model import fitted, load_vocabulary
from trainer.config.data import DataConfig
from trainer.config.schema import TrainConfig
from trainer.config.task import EmbeddingTask
from trainer.config.yaml_text import write
from trainer.data.data_report import check_data_set, report_text
from trainer.data.sources import find_train_source
from trainer.errors import DataError
from trainer.loop.session import context_of
from trainer.loop.trainer import total_steps
from trainer.pooling.pooled_data import load_pooled_data
from trainer.preference.preference_data import load_preference_data
from trainer.preference.preference_report import check_preferences, report_lines

_STEPS = 300  # of a run that is long enough to learn a task and short enough to try
_BATCHES = ((200, 4), (2000, 8), (math.inf, 16))  # rows below which a step has so many
_TOKENS_AT_ONCE = 8192  # in a batch; more rows are accumulated
_LONGEST = 1 << 20  # tokens of a row, where the base names no positions
_FEW = 20  # rows of which none is held back
_MANY = 5000  # rows above which a count is enough to validate on
_COLUMNS = (("dpo", {"chosen", "rejected"}), ("kto", {"completion", "label"}))
_OF_TASKS = (
    *(("token-classification", {"tokens", tags}) for tags in ("tags", "ner_tags")),
    ("token-classification", {"text", "entities"}),
    ("embedding", {"anchor", "positive"}),
)


@dataclass(frozen=True)
class Look:
    """What the data of a run is: ``rows`` to train on, the ``length`` in tokens that holds them, and a report."""

    rows: int
    length: int
    text: str


def preference_of(config: TrainConfig) -> str | None:
    """The kind of preference training that the columns of the first row are for. Raises DataError."""
    return next((kind for kind, needed in _COLUMNS if needed <= _columns(config)), None)


def task_of(config: TrainConfig) -> str | None:
    """The task that the columns of the first row are for and that no answers could be. Raises DataError."""
    return next((kind for kind, needed in _OF_TASKS if needed <= _columns(config)), None)


def _columns(config: TrainConfig) -> set[str]:
    return set(next(iter(find_train_source(config.data).rows())).values)


def look(config: TrainConfig) -> Look:
    """Read the data of ``config`` as training would. Raises DataError where it cannot be trained on."""
    config = fitted(config)
    tokenizer, end_ids = load_vocabulary(config)
    long = msgspec.structs.replace(config.data, max_length=max(8, room(config) or _LONGEST))
    config = msgspec.structs.replace(config, data=long)
    if config.preference:
        data = load_preference_data(config, tokenizer, end_ids)
        found = check_preferences(config, data)
        longest = found.prompts.max + max([one.max for one in found.answers.values()], default=0)
        return Look(found.train, _rounded(longest), "\n".join(report_lines(found)))
    if config.reading:
        texts = load_pooled_data(config.data, config.reading, tokenizer, config.training.seed)
        return Look(len(texts.train), _rounded(texts.longest), "\n".join(texts.notes))
    report = check_data_set(config, tokenizer, end_ids)
    if report.error or not report.suggested_max_length:
        raise DataError(report.error or "there is nothing to train on")
    return Look(report.train, report.suggested_max_length, report_text(report))


def _rounded(length: int) -> int:
    return -(-length // 64) * 64


def room(config: TrainConfig) -> int | None:
    """Tokens that a row may have beside the method's virtual ones; None where the base names no positions."""
    try:
        return context_of(read_config(resolve_base(config.base), config.trust_remote_code), config)
    except BaseModelError:
        return None


def proposal(config: TrainConfig, seen: Look) -> dict[str, dict[str, Any]]:
    """Values for the run of ``config`` on data like ``seen``, by section and key."""
    wanted = next(size for rows, size in _BATCHES if seen.rows < rows)
    most = room(config)
    length = min(seen.length, most) if most else seen.length
    batch = 1 << max(0, min(wanted, _TOKENS_AT_ONCE // length).bit_length() - 1)
    epochs = 1 if config.preference else max(1, min(5, math.ceil(_STEPS * wanted / max(1, seen.rows))))
    validation = 0 if seen.rows < _FEW else 500 if seen.rows > _MANY else 0.1
    scale = config.preference.LEARNING_RATE_SCALE if config.preference else 1.0
    training = {
        "learning_rate": config.method.default_learning_rate * scale,
        "epochs": epochs,
        "batch_size": max(batch, 2) if config.preference or isinstance(config.task, EmbeddingTask) else batch,
        "gradient_accumulation": max(1, wanted // batch),
        "warmup": 0.05,
    }
    if validation:
        training["best_checkpoint"] = True
    return {"data": {"validation": validation, "max_length": max(8, length)}, "training": training}


def as_yaml(config: TrainConfig, seen: Look, name: str) -> str:
    """``config`` as the file ``name`` for people: what differs from the defaults, what they may change, and why."""
    training = config.training
    rows = training.batch_size * training.gradient_accumulation
    enough = config.data.max_length >= seen.length
    held = "hold (nearly) all rows" if enough else "would hold (nearly) all rows; the base has no more room"
    comments = {
        "base": "the model that learns; its server is started with the same",
        "data.path": f"{seen.rows:,} rows to train on, when this was written",
        "data.validation": "a share or a count of rows to measure on, never trained on",
        "data.max_length": f"tokens; {seen.length} {held}; longer ones are dropped (data.too_long)",
        "method.type": "hotswap methods lists all, and their settings",
        "task.type": "what is made of texts, instead of answers",
        "training.learning_rate": f"the preset of {config.method.KIND}; hotswap sweep measures what yours needs",
        "training.epochs": f"{total_steps(training, seen.rows):,} steps",
        "training.batch_size": "rows at once: what memory depends on",
        "training.gradient_accumulation": f"{rows} rows a step",
        "training.warmup": "of the steps",
        "training.best_checkpoint": "export the one of the lowest validation loss",
        "training.gradient_checkpointing": "slower, in much less memory",
    }
    values: dict[str, Any] = msgspec.to_builtins(config)
    task = type(config.task)() if config.task else None
    plain = TrainConfig(output="", data=DataConfig(path=""), method=type(config.method)(), task=task)
    return f"# Train with: hotswap train {name}\n" + "".join(_lines(values, msgspec.to_builtins(plain), comments, ""))


def _lines(values: Mapping[str, Any], usual: Mapping[str, Any], comments: Mapping[str, str], key: str) -> Iterator[str]:
    pad = "  " * key.count(".")
    for name, value in values.items():
        full, default = key + name, usual.get(name)
        if isinstance(value, dict) and (isinstance(default, dict) or name == "preference") and value:
            inside = "".join(_lines(value, default or {}, comments, f"{full}."))
            yield f"{pad}{name}:\n{inside}" if inside else ""
        elif value not in (default, [], None) or (full in comments and value is not False):
            text = textwrap.indent(write({name: value}), pad)
            comment = f"  # {comments[full]}" if full in comments and text.count("\n") == 1 else ""
            yield f"{text.rstrip()}{comment}\n"
