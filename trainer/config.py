"""The typed configuration of one training run. Knows neither files nor the command line (``trainer.config_file``)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from adapters.base import DEFAULT_BASE
from trainer.method_config import LoraMethod, Method, Positive, PositiveFloat


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which columns of the data hold what. With ``messages`` the other three are not read."""

    prompt: str = "prompt"
    response: str = "response"
    system: str | None = None
    messages: str | None = None


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The training data.

    ``validation`` is a share of the rows to hold back (0.1), a count of rows (50), or a file; 0 for none.
    ``template`` is ``chat`` (the base's chat template) or ``none`` (prompt and response joined as they are).
    ``too_long`` says what becomes of rows above ``max_length`` tokens: ``drop`` them, or cut the start or the end off.
    """

    path: str
    validation: Annotated[float, Meta(ge=0)] | str = 0.1
    format: Literal["auto", "jsonl", "csv"] = "auto"
    columns: Columns = msgspec.field(default_factory=Columns)
    template: Literal["chat", "none"] = "chat"
    system_prompt: str | None = None
    max_length: Annotated[int, Meta(ge=8)] = 1024
    too_long: Literal["drop", "cut_start", "cut_end"] = "drop"


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train. None means: the method's preset for ``learning_rate``, a fifth of the run for the step counts.

    ``max_steps`` overrides ``epochs``. ``warmup`` below 1 is a share of the steps, otherwise a number of steps.
    ``dtype`` auto is bfloat16 where the hardware multiplies it natively, else float32. ``exact_match_rows`` validation
    rows are answered greedily at the end and compared with their responses.
    """

    learning_rate: PositiveFloat | None = None
    epochs: PositiveFloat = 3.0
    max_steps: Positive | None = None
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    warmup: Annotated[float, Meta(ge=0)] = 0.0
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: PositiveFloat = 1.0
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    log_steps: Positive = 1
    eval_steps: Positive | None = None
    save_steps: Positive | None = None
    keep_checkpoints: Positive = 2
    best_checkpoint: bool = False
    exact_match_rows: Annotated[int, Meta(ge=0)] = 0
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    quantize: Literal["none", "nf4", "nf4-dq", "fp4", "fp4-dq", "int8"] = "none"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    threads: Positive | None = None


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run: it is written beside the results and reproduces them."""

    output: str
    data: DataConfig
    base: str = DEFAULT_BASE
    method: Method = msgspec.field(default_factory=LoraMethod)
    training: TrainingConfig = msgspec.field(default_factory=TrainingConfig)
