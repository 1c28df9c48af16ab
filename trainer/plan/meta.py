"""Models without weights: the real classes and the real methods on torch's meta device, which knows shapes alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.fx.experimental._config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from trainer.added_tokens import TrainedToken
from trainer.base_model import Base
from trainer.config.methods import trains_weights
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError, first_line
from trainer.methods import apply_method, trainable_parameters
from trainer.plan.quantized import tensor_bytes, weight_bytes

_STEPS = 1000  # AdaLoRA wants to know; no size depends on it
# Choosing by a mask takes everything: what a mask holds is not known.
choose_all = torch.fx.experimental._config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
READ_SCALAR = torch.ops.aten._local_scalar_dense.default


class ScalarsAreZero(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reading a number out of a meta tensor gives 0 instead of an error.

    transformers asks whether a mask is all true (no: it shall be built), and BOFT indexes with such numbers.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, unless it reads a scalar that is not there."""
        if func is READ_SCALAR and args[0].is_meta:
            return 0
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Planned:
    """A method on a base, both without real weights.

    ``base_parameters`` and ``base_bytes`` are the base's before the method came; ``weights`` are the bytes under which
    it is held, quantized or not.
    """

    base: Base
    model: Any
    base_parameters: int
    base_bytes: int
    weights: int

    @property
    def trainable(self) -> int:
        """How many parameters training changes."""
        return sum(parameter.numel() for parameter in trainable_parameters(self.model).values())

    @property
    def parameters(self) -> int:
        """All parameters, the method's own included."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def percent(self) -> float:
        """``trainable`` in percent of ``parameters``."""
        return 100 * self.trainable / self.parameters


class Vocabulary:
    """Stands for the tokenizer of a shape, of which methods need the size only."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


@contextmanager
def without_weights() -> Iterator[None]:
    """Tensors made inside have shapes and no numbers."""
    with torch.device("meta"), choose_all, ScalarsAreZero():  # type: ignore[no-untyped-call]
        yield


@dataclass(frozen=True)
class Blueprint:
    """What a base is built from, anew for every method, because methods change it.

    ``dtype`` is the one that computes. ``tokenizer`` is None for a shape; ``tokens`` are added ones; ``amend`` adds
    modules that the configuration has no word for.
    """

    name: str
    config: Any
    dtype: torch.dtype
    tokenizer: Any = None
    tokens: tuple[TrainedToken, ...] = ()
    amend: Callable[[Any], None] | None = None

    def build(self, dtype: torch.dtype) -> Base:
        """The base in ``dtype``, frozen like a loaded one. ConfigError when transformers cannot build it."""
        try:
            with without_weights():
                config = copy.deepcopy(self.config)  # prefix tuning writes its attention into it
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        except (ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
            raise ConfigError(f"base: no model can be built from the configuration of {self.name}: {reason}") from error
        if self.amend:
            self.amend(model)
        model.requires_grad_(False)
        model.config.use_cache = False
        return Base(
            name=self.name,
            path=Path(),
            fingerprint="",
            model=model,
            tokenizer=self.tokenizer or Vocabulary(model.get_input_embeddings().num_embeddings),
            end_ids=(0,),
            pad_id=0,
            dtype=dtype,
            tokens=self.tokens,
        )


def plan_method(blueprint: Blueprint, config: TrainConfig, dtype: torch.dtype | None = None) -> Planned:
    """``config``'s method on a base of ``blueprint``, by the trainer's own code. Raises ConfigError.

    Weights are in ``dtype``; None means as training holds them: those that it changes in float32.
    """
    held = torch.float32 if trains_weights(config.method) else blueprint.dtype
    base = blueprint.build(dtype or held)
    parameters, size = sum(parameter.numel() for parameter in base.model.parameters()), tensor_bytes(base.model)
    weights = weight_bytes(base.model, config.training.quantize)
    with without_weights():
        model = apply_method(base, _without_texts(config.method), _STEPS)
    return Planned(base, model, parameters, size, weights)


def _without_texts(method: Any) -> Any:
    """A shape has no tokenizer for the text that a prompt starts from; the text decides no size."""
    return msgspec.structs.replace(method, init_text=None) if getattr(method, "init_text", None) else method
