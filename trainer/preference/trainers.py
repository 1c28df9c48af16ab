"""trl's DPO and KTO trainers with our policy, reference, checkpoints and account of tokens.

Their configurations are made from our arguments.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from typing_extensions import override

from trainer.base_model import Base
from trainer.config.preference import DpoPreference, KtoPreference
from trainer.loop.checkpoint import WholeCheckpoints
from trainer.loop.finite import FiniteTraining
from trainer.preference.policy import PolicyModel, Table


def as_config(kind: type[Any], arguments: TrainingArguments, **settings: Any) -> Any:
    """``arguments`` as the configuration class ``kind`` of trl, with ``settings`` of its own.

    Every one of transformers' arguments is handed on as it stands: trl's own defaults turn on bfloat16 and gradient
    checkpointing wherever it runs.
    """
    names = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    config = kind(**{name: getattr(arguments, name) for name in names} | settings)
    config._n_gpu = min(arguments.n_gpu, 1)  # as make_arguments
    return config


class HotswapCheckpoints(FiniteTraining, WholeCheckpoints):
    """What every trainer of trl does our way. To be mixed in before trl's class; set ``identity`` before training."""

    tokens_seen = 0  # in this process; padding not counted

    @property
    @override
    def trained(self) -> Any:
        model = super().trained
        return model.model if isinstance(model, PolicyModel) else model

    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """Not written: packages have manifests."""

    def _send_telemetry(self) -> None:
        """Not sent."""


class _WithReference(HotswapCheckpoints):
    """Trains a PolicyModel on rows that are tokenised and have the reference's log-probabilities already."""

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        if self.model.training:
            self.tokens_seen += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def _prepare_dataset(self, dataset: Dataset, *_args: Any, **_kwargs: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_args: Any, **_kwargs: Any) -> Dataset:
        return dataset


class HotswapDPOTrainer(_WithReference, DPOTrainer):  # type: ignore[misc]
    """DPO of a PolicyModel."""


class HotswapKTOTrainer(_WithReference, KTOTrainer):  # type: ignore[misc]
    """KTO of a PolicyModel."""


@dataclass(frozen=True, eq=False)
class TrainerInputs:
    """What every trainer is made of. ``train`` and ``validation`` are tables of ``trainer.preference.policy``."""

    model: Any
    base: Base
    arguments: TrainingArguments
    train: Table
    validation: Table
    callbacks: Sequence[TrainerCallback] = ()


def dpo_trainer(inputs: TrainerInputs, preference: DpoPreference) -> Any:
    """A trainer on tables of ``pair_table``."""
    losses: list[str] = [preference.loss_type]
    weights = [1.0]
    if preference.rpo_alpha:
        losses, weights = [*losses, "sft"], [*weights, preference.rpo_alpha]
    config = as_config(
        DPOConfig,
        inputs.arguments,
        beta=preference.beta,
        loss_type=losses,
        loss_weights=weights,
        label_smoothing=preference.label_smoothing,
        ld_alpha=preference.ld_alpha,
        **_common(preference.disable_dropout),
    )
    return _made(HotswapDPOTrainer, inputs, config)


def kto_trainer(inputs: TrainerInputs, preference: KtoPreference) -> Any:
    """A trainer on tables of ``judged_table``."""
    config = as_config(
        KTOConfig,
        inputs.arguments,
        beta=preference.beta,
        loss_type=preference.loss_type,
        desirable_weight=preference.desirable_weight,
        undesirable_weight=preference.undesirable_weight,
        train_sampling_strategy="sequential",
        **_common(preference.disable_dropout),
    )
    return _made(HotswapKTOTrainer, inputs, config)


def _common(disable_dropout: bool) -> dict[str, Any]:
    return {
        "max_length": None,  # rows are cut or left out before
        "precompute_ref_log_probs": True,
        "disable_dropout": disable_dropout,
        "router_aux_loss_coef": 0.0,
        "prediction_loss_only": True,
    }


def _made(kind: Any, inputs: TrainerInputs, config: Any) -> Any:
    policy = PolicyModel(inputs.model, inputs.base)
    trainer = kind(
        model=policy,
        args=config,
        train_dataset=Dataset.from_list(inputs.train),
        eval_dataset=Dataset.from_list(inputs.validation) if inputs.validation else None,
        processing_class=padded(inputs.base),
        callbacks=list(inputs.callbacks),
    )
    del policy.forward  # trl's head around ours
    return trainer


def padded(base: Base) -> Any:
    """A copy of the tokenizer that pads as we do; trl would change the original, which the package describes."""
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(base.pad_id)
    return tokenizer
