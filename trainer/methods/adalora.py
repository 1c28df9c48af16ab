"""AdaLoRA (https://arxiv.org/abs/2303.10512): peft's modules and rank allocator, in step with our training loop.

peft adds its regulariser to a loss that the model computes itself; ours is computed outside of it. ``Dynamics`` is what
any method does beside following the gradient: a penalty, work after every step, state of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor

from trainer.base_model import Base
from trainer.config.methods import AdaLoraMethod
from trainer.errors import ConfigError
from trainer.methods.peft_kinds import wrap

_ANY_STEPS = 1000  # of a model whose parameters are only counted
_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # peft's names of its moving averages, by parameter
_PATTERN = "rank_pattern"


def apply_adalora(base: Base, method: AdaLoraMethod, steps: int | None = None) -> Any:
    """The base with a fresh AdaLoRA adapter for a run of ``steps``. ConfigError when it does not fit base or run."""
    total = _ANY_STEPS if steps is None else steps
    tinit, tfinal = _steps(method.tinit, total), _steps(method.tfinal, total)
    if method.target_r >= method.init_r:
        raise ConfigError(f"method.target_r: {method.target_r} must be below init_r, which is {method.init_r}")
    if total - tfinal < max(2, tinit + 1):
        raise ConfigError(
            f"method.tinit, method.tfinal: {tinit} first and {tfinal} last steps leave none of {total} in which ranks "
            "can shrink; lower them, or train for longer"
        )
    config = AdaLoraConfig(
        init_r=method.init_r,
        target_r=method.target_r,
        tinit=tinit,
        tfinal=tfinal,
        deltaT=method.delta_t or max(1, total // 100),
        total_step=total,
        lora_alpha=method.alpha,
        beta1=method.beta1,
        beta2=method.beta2,
        orth_reg_weight=method.orth_reg_weight,
        lora_dropout=method.dropout,
        target_modules=method.target_modules,
    )
    return wrap(base, config)


class AdaLoraDynamics:
    """AdaLoRA's part in the training loop, beside the gradient steps. Its state goes into checkpoints."""

    def __init__(self, model: PeftModel) -> None:
        assert isinstance(model.base_model, AdaLoraModel)
        self._tuner: Any = model.base_model
        self._config: Any = model.active_peft_config

    def penalty(self) -> Tensor:
        """``orth_reg_weight`` times the mean over all factors of ``||P.T P - I||`` (Frobenius), as in peft.

        A scalar whose gradient is added to that of the mean loss.
        """
        norms = []
        for name, parameter in self._tuner.model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                gram = parameter @ parameter.T if "lora_A" in name else parameter.T @ parameter
                norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), device=gram.device)))
        weight: float = self._config.orth_reg_weight
        return weight * torch.stack(norms).mean()

    def after_step(self, step: int) -> None:
        """Weigh the components by the gradients of ``step`` (from 1), which must still be there, and mask the rest."""
        self._tuner.update_and_allocate(step)

    def state(self) -> dict[str, Tensor]:
        """What later steps depend on beside the parameters: the allocator's moving averages, and what it has masked."""
        allocator = self._tuner.rankallocator
        out = {f"{score}/{name}": t for score in _SCORES for name, t in getattr(allocator, score).items()}
        kept = self._config.rank_pattern or {}
        return out | {f"{_PATTERN}/{name}": torch.tensor(mask) for name, mask in kept.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Be as when ``state`` was taken."""
        found: dict[str, dict[str, Tensor]] = {kind: {} for kind in (*_SCORES, _PATTERN)}
        for path, tensor in state.items():
            kind, _, name = path.partition("/")
            found[kind][name] = tensor
        for score in _SCORES:
            own = {name: tensor.to(self._tuner.model.device) for name, tensor in found[score].items()}
            setattr(self._tuner.rankallocator, score, own)
        self._config.rank_pattern = {name: mask.tolist() for name, mask in found[_PATTERN].items()} or None


@contextmanager
def pruned(model: PeftModel) -> Iterator[None]:
    """Let peft save only the components that are not zero: the others add nothing.

    Between two allocations a masked component may have grown again, so what the allocator said last is not asked.
    """
    config: Any = model.active_peft_config
    before = config.rank_pattern
    named = model.base_model.model.named_parameters()
    config.rank_pattern = {name: (p != 0).flatten().tolist() for name, p in named if "lora_E." in name}
    try:
        yield
    finally:
        config.rank_pattern = before


def _steps(value: float, total: int) -> int:
    return int(value * total) if value < 1 else int(value)


def dynamics_of(model: Any) -> AdaLoraDynamics | None:
    """The dynamics of the method in ``model``, or in the one that it has a head around; None for most."""
    model = getattr(model, "adapted", model)
    if isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel):
        return AdaLoraDynamics(model)
    return None
