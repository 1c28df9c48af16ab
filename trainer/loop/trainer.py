"""The training loop: transformers' Trainer with our loss, batches, optimizers, checkpoints and evaluation.

It does not know where data comes from, how progress is shown, or what becomes of the adapter.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerControl, TrainingArguments

from trainer.base_model import Base, device, trained_dtype
from trainer.config.methods import trains_weights
from trainer.config.rules import EPOCHS
from trainer.config.schema import ZERO, TrainConfig, TrainingConfig
from trainer.data.batches import (
    BLANK,
    ExampleDataset,
    FilledBatches,
    LengthBucketSampler,
    PackedCollator,
    PackedDataset,
    PackedSampler,
    Packing,
)
from trainer.data.disk import lengths_of
from trainer.data.training_data import TrainingData
from trainer.distributed import processes
from trainer.distributed.launch import process_count
from trainer.distributed.shards import is_sharded, load_state, save_state
from trainer.distributed.strategies import deepspeed_config
from trainer.loop.callbacks import DynamicsCallback
from trainer.loop.checkpoint import RunIdentity, WholeCheckpoints
from trainer.loop.finite import FiniteTraining
from trainer.loop.greedy import ScoredAnswers
from trainer.loop.loss import LabelledHead, row_losses, token_losses
from trainer.methods.adalora import dynamics_of

_NAMES = {
    "adamw": "adamw_torch",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "lion": "lion_32bit",
    "lion_8bit": "lion_8bit",
    "adafactor": "adafactor",
    "sgd": "sgd",
}


def transformers_name(optimizer: str, on_cpu: bool) -> str:
    """The name by which transformers knows ``optimizer``. On CPU there is nothing to page out to."""
    return _NAMES[optimizer.removeprefix("paged_") if on_cpu else optimizer]


def raise_rate_of_b(optimizer: torch.optim.Optimizer, model: torch.nn.Module, ratio: float) -> None:
    """Let LoRA's B learn ``ratio`` times as fast as the rest (LoRA+, Hayou et al. 2024), in groups of its own."""
    of_b = {id(value) for name, value in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name}
    for group in list(optimizer.param_groups):
        fast = [parameter for parameter in group["params"] if id(parameter) in of_b]
        if not fast:
            continue
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in of_b]
        settings: dict[str, Any] = {key: value for key, value in group.items() if key != "params"}
        optimizer.add_param_group({**settings, "params": fast, "lr": group["lr"] * ratio})


_PARTS = 5  # evaluations and checkpoints in a run that does not say how many


class MethodTrainer(FiniteTraining, WholeCheckpoints, Trainer):  # type: ignore[misc]
    """What every trainer of ours does: a method's own dynamics, its learning rates, and the count of tokens."""

    def __init__(self, model: Any, config: TrainConfig, identity: RunIdentity, **parts: Any) -> None:
        super().__init__(model=model, **parts)
        self._config = config.training
        self.identity = identity
        self._dynamics = dynamics_of(model)
        if self._dynamics:
            self.add_callback(DynamicsCallback(self._dynamics))
        self.tokens_seen = 0  # by all processes together; padding not counted
        self.model_accepts_loss_kwargs = True  # so that the labels of all accumulated batches are counted together
        self.loss_is_scaled_for_ga = True

    def mean_loss(self, losses: Tensor, num_items_in_batch: Tensor | int | None) -> Tensor:
        """The mean of ``losses`` over the whole accumulated batch of so many, this part's share of it."""
        count = num_items_in_batch if num_items_in_batch is not None else losses.numel()
        parts: int = self.accelerator.num_processes  # gradients are averaged over them, labels were summed
        total = losses.sum()
        if self._dynamics and self.model.training:  # its gradient alone: losses stay comparable between methods
            penalty = self._dynamics.penalty() * losses.numel()
            total = total + (penalty - penalty.detach())
        return total / count * parts

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Tensor | int | None]:
        """The batches of the next step and the number of their labels; their tokens are counted here."""
        batches, labels = super().get_batch_samples(*args, **kwargs)
        self.tokens_seen += processes.total(sum(map(_tokens_in, batches)))
        return batches, labels

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' optimizer, with LoRA+'s learning rates where they are asked for."""
        new = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if new and self._config.loraplus_lr_ratio:
            raise_rate_of_b(optimizer, model or self.model, self._config.loraplus_lr_ratio)
        return optimizer


class AdapterTrainer(MethodTrainer):
    """Trains the adapter of a peft model on examples."""

    def __init__(
        self,
        model: Any,
        arguments: TrainingArguments,
        data: TrainingData,
        base: Base,
        *,
        config: TrainConfig,
        identity: RunIdentity,
        packing: Packing | None = None,
        answers: ScoredAnswers | None = None,
    ) -> None:
        super().__init__(
            model,
            config,
            identity,
            args=arguments,
            data_collator=PackedCollator(base.pad_id) if packing else base.collator(),
            train_dataset=PackedDataset(data.train, packing) if packing else ExampleDataset(data.train, base.pad_id),
            eval_dataset=ExampleDataset(data.validation) if data.validation else None,
        )
        self.head = LabelledHead(model)
        self._answers = answers

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """The mean loss per label over the whole accumulated batch, this part's share of it."""
        labels = inputs.pop("labels")
        inputs.pop("num_tokens", None)
        losses = token_losses(self.head.logits(model, inputs, labels), labels, self._config.label_smoothing)
        return self.mean_loss(losses, num_items_in_batch)

    def evaluate(self, *_args: Any, **_kwargs: Any) -> dict[str, float]:
        """The validation loss, the mean over all labels whatever the batches, and the scores of answers."""
        self.model.eval()
        total, count = torch.zeros((), dtype=torch.float64), 0
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                inputs = self._prepare_inputs(batch)
                labels = inputs.pop("labels")
                inputs.pop("num_tokens", None)
                sums, counts = row_losses(self.head.logits(self.model_wrapped, inputs, labels), labels)
                sums, counts = self.accelerator.gather_for_metrics((sums, counts))
                total += sums.double().sum().cpu()
                count += int(counts.sum())
        metrics = {"eval_loss": float(total / count)}
        if self._answers and math.isfinite(metrics["eval_loss"]):
            metrics |= {f"eval_{name}": value for name, value in self._answers.of(self.model, self.head).items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        dataset = train_dataset or self.train_dataset
        batch = self.args.per_device_train_batch_size * self.args.world_size
        if isinstance(dataset, PackedDataset):
            packed = PackedSampler(dataset.packing, self.args.seed)
            return FilledBatches(packed, batch, filler=()) if self.args.world_size > 1 else packed
        single = LengthBucketSampler(lengths_of(dataset.examples), batch, self.args.seed)
        return FilledBatches(single, batch, filler=BLANK) if self.args.world_size > 1 else single

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if is_sharded(self.model):
            save_state(self, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint and is_sharded(self.model):
            load_state(self, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)


def make_arguments(config: TrainConfig, train_rows: int) -> TrainingArguments:
    """transformers' arguments for a run over ``train_rows`` examples."""
    training = config.training
    steps = total_steps(training, train_rows)
    evaluate, save = intervals(training, train_rows)
    validates = config.data.validation != 0 and evaluate > 0
    on_cpu = device().type == "cpu"
    arguments = TrainingArguments(
        output_dir=config.output,
        max_steps=steps,
        per_device_train_batch_size=training.batch_size // process_count(),
        per_device_eval_batch_size=training.batch_size // process_count(),
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type="constant_with_warmup" if training.scheduler == "constant" else training.scheduler,
        warmup_steps=training.warmup,
        max_grad_norm=training.max_grad_norm,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        optim=transformers_name(training.optimizer, on_cpu),
        neftune_noise_alpha=training.neftune_noise_alpha,
        seed=training.seed,
        use_cpu=on_cpu and training.strategy not in ZERO,  # accelerate knows DeepSpeed on accelerators only
        deepspeed=deepspeed_config(config),
        bf16=autocasts(config),
        fp16=trained_dtype(training.dtype) == torch.float16,  # its gradients need to be scaled, whatever is trained
        dataloader_pin_memory=not on_cpu,
        **_checkpointing(training.gradient_checkpointing),
        logging_strategy="steps",
        logging_steps=training.log_steps,
        logging_nan_inf_filter=False,  # it would hide a loss that is not finite; ours stops the run
        eval_strategy="steps" if validates else "no",
        eval_steps=evaluate or None,
        eval_on_start=validates and training.eval_at_start,
        save_strategy="steps" if save else "no",
        save_steps=save or 1,
        save_total_limit=training.keep_checkpoints,
        load_best_model_at_end=training.best_checkpoint,
        metric_for_best_model="loss" if training.best_checkpoint else None,
        greater_is_better=False if training.best_checkpoint else None,
        disable_tqdm=True,
        report_to=training.trackers or "none",
        ddp_find_unused_parameters=False,  # every method uses all that it trains in every step
        remove_unused_columns=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for torchrun, never for threads in one process
    return arguments


def autocasts(config: TrainConfig) -> bool:
    """Whether weights in float32 are trained with computation in bfloat16."""
    return trains_weights(config.method) and trained_dtype(config.training.dtype) == torch.bfloat16


def total_steps(training: TrainingConfig, train_rows: int) -> int:
    """Optimizer steps of the whole run."""
    return training.max_steps or max(1, math.ceil(training.epochs * _steps_of_epoch(training, train_rows)))


def intervals(training: TrainingConfig, train_rows: int) -> tuple[int, int]:
    """After how many optimizer steps to evaluate, and to save; 0 for never.

    Checkpoints come at evaluations wherever both go by epochs, so that the best of them is one that was saved.
    """
    steps = total_steps(training, train_rows)
    epoch = max(1, _steps_of_epoch(training, train_rows))
    evaluate = _interval(training.eval_steps, steps, epoch)
    by_epochs = [EPOCHS.fullmatch(str(every)) for every in (training.eval_steps, training.save_steps)]
    if by_epochs[0] and by_epochs[1]:
        often, seldom = (int(match[1] or 1) for match in by_epochs if match)
        if often % seldom == 0:
            return evaluate, evaluate * (often // seldom)
    save = evaluate or _interval(None, steps, epoch)
    return evaluate, save if training.save_steps is None else _interval(training.save_steps, steps, epoch)


def _interval(every: int | float | str | None, steps: int, epoch: int) -> int:
    """``every`` in optimizer steps of a run of ``steps``, ``epoch`` of which are an epoch."""
    if every is None:
        return math.ceil(steps / _PARTS)
    if isinstance(every, str):
        match = EPOCHS.fullmatch(every)
        return max(1, epoch // int(match[1] or 1)) if match else 0
    return every if isinstance(every, int) else math.ceil(every * steps)


def _steps_of_epoch(training: TrainingConfig, train_rows: int) -> int:
    return math.ceil(math.ceil(train_rows / training.batch_size) / training.gradient_accumulation)


def _tokens_in(batch: dict[str, Tensor]) -> int:
    """Tokens of a batch; a row of one token predicts nothing: it only fills the batch."""
    counts = batch["num_tokens"] if "num_tokens" in batch else batch["attention_mask"].sum(1)
    return int(counts[counts > 1].sum())


def _checkpointing(enabled: bool) -> dict[str, Any]:
    """Arguments for gradient checkpointing, which transformers renamed during version 5."""
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if enabled else {}
