"""The typed configuration of one training run. Knows neither files nor command line (``trainer.config.loading``)."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bases.finding import DEFAULT_BASE
from bases.names import Quantization, TrainedDtype
from trainer.config.data import DataConfig
from trainer.config.methods import LoraMethod, Method, Positive, PositiveFloat, Share
from trainer.config.preference import Preference
from trainer.config.task import GenerationTask, ReadingTask, Task

Scheduler = Literal["linear", "cosine", "constant", "cosine_with_restarts", "polynomial", "inverse_sqrt"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "lion", "lion_8bit", "adafactor", "sgd"]
Strategy = Literal["ddp", "fsdp", "zero1", "zero2", "zero3"]
Every = Positive | Annotated[float, Meta(gt=0, lt=1)] | str | None
ZERO: tuple[Strategy, ...] = ("zero1", "zero2", "zero3")
DIVIDED: tuple[Strategy, ...] = ("fsdp", "zero3")  # no process has the whole model


class TrainingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train. None means: the method's preset for ``learning_rate``, a fifth of the run for the step counts.

    ``max_steps`` overrides ``epochs``. ``warmup`` below 1 is a share of the steps, otherwise a number of steps.
    ``loraplus_lr_ratio`` multiplies the learning rate of LoRA's B (LoRA+). ``neftune_noise_alpha`` adds noise to the
    embeddings (NEFTune). ``early_stopping`` is the number of evaluations without an improvement of more than
    ``early_stopping_min_delta`` after which training ends; the best checkpoint is then the one that is exported.
    ``tensorboard`` writes OUTPUT/tensorboard; ``trackers`` are names that transformers knows, such as wandb.
    ``dtype`` auto is bfloat16 where the hardware multiplies it natively, else float32. ``exact_match_rows`` validation
    rows are answered greedily at the end and compared with their responses. ``generate_rows`` validation rows are
    answered so at each evaluation, in at most ``generate_max_tokens`` (None: half as many again as the longest response
    has), and scored by ``generate_metrics``, names of trainer.evaluation. ``packing`` puts several examples into
    one row of data.max_length tokens, auto where that is exact; batch_size counts rows. ``eval_steps`` and
    ``save_steps`` are a number of steps, a share of the run below 1, ``epoch``, ``epoch/4`` (four times an epoch) or
    ``no``; ``eval_at_start`` also evaluates what the run begins with. ``package_checkpoints``: at the end each
    checkpoint that is kept gets a package of its own, CHECKPOINT/adapter. ``strategy`` is what several processes
    (--nproc) have of the model: ddp copies it to each, fsdp divides it among them, zero1 to zero3 are DeepSpeed's;
    batch_size is that of all processes together.
    """

    learning_rate: PositiveFloat | None = None
    epochs: PositiveFloat = 3.0
    max_steps: Positive | None = None
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    warmup: Annotated[float, Meta(ge=0)] = 0.0
    scheduler: Scheduler = "linear"
    optimizer: Optimizer = "adamw"
    loraplus_lr_ratio: PositiveFloat | None = None
    neftune_noise_alpha: PositiveFloat | None = None
    label_smoothing: Share = 0.0
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    log_steps: Positive = 1
    eval_steps: Every = None
    eval_at_start: bool = False
    save_steps: Every = None
    keep_checkpoints: Positive = 2
    package_checkpoints: bool = False
    best_checkpoint: bool = False
    early_stopping: Positive | None = None
    early_stopping_min_delta: Annotated[float, Meta(ge=0)] = 0.0
    tensorboard: bool = False
    trackers: list[str] = []
    exact_match_rows: Annotated[int, Meta(ge=0)] = 0
    generate_rows: Annotated[int, Meta(ge=0)] = 0
    generate_metrics: list[str] = msgspec.field(default_factory=lambda: ["bleu4", "rouge1", "rouge2", "rougeL"])
    generate_max_tokens: Positive | None = None
    seed: Annotated[int, Meta(ge=0, lt=2**32)] = 0
    quantize: Quantization = "none"
    dtype: TrainedDtype = "auto"
    gradient_checkpointing: bool = False
    packing: bool | Literal["auto"] = False
    threads: Positive | None = None
    strategy: Strategy = "ddp"


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run: it is written beside the results and reproduces them.

    ``added_tokens`` are texts that become one token each, with trained embeddings; those that the base has already are
    trained as they are. None: those of data.recipe. ``start_from`` is the package of an adapter of the same method, or
    the checkpoint of a run, with which training begins; None: a fresh adapter. ``trust_remote_code`` lets code that
    comes with the base run.
    """

    output: str
    data: DataConfig
    base: str = DEFAULT_BASE
    method: Method = msgspec.field(default_factory=LoraMethod)
    training: TrainingConfig = msgspec.field(default_factory=TrainingConfig)
    preference: Preference | None = None
    task: Task | None = None
    added_tokens: list[str] | None = None
    start_from: str | None = None
    trust_remote_code: bool = False

    @property
    def reading(self) -> ReadingTask | None:
        """The task of an adapter that reads texts and writes none."""
        return None if isinstance(self.task, GenerationTask) else self.task


class StartConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this start of a run treats what its output holds: no part of the run, and not written beside its results.

    ``resume``: go on from the last checkpoint in the output, or from this one, or the last one in this folder of a run.
    ``overwrite``: start anew where there is a run; ``resume`` goes before it.
    """

    resume: bool | str = False
    overwrite: bool = False
