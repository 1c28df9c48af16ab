"""Models without weights: the real classes and the real methods on torch's meta device, which knows shapes alone.

``MemoryTracker`` follows what their computations would allocate and when, and what lives at the peak. Every operation
that the real step would run is run here too, on shapes. So nothing has to be known of architectures and methods: what
autograd keeps for backward, what gradient checkpointing drops, what an adapter casts, all of it happens.
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
import torch.fx.experimental._config
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bases.architecture import model_class, older_code
from trainer.added_tokens import TrainedToken
from trainer.base_model import Base
from trainer.config.methods import trains_weights
from trainer.config.schema import TrainConfig
from trainer.errors import ConfigError, first_line
from trainer.methods import apply_method, trainable_parameters
from trainer.plan.sizes import predicted_weight_bytes, tensor_bytes

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
class PlannedMethod:
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


class SizedVocabulary:
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


class Reads(Protocol):
    """What of a run that reads is not the method's."""

    def model(self, adapted: Any, base: Base) -> Any:
        """The model that is trained. Raises ConfigError."""

    def losses(self, model: Any) -> Tensor:
        """The losses of the largest batch."""


@dataclass(frozen=True)
class Blueprint:
    """What a base is built from, anew for every method, because methods change it.

    ``dtype`` is the one that computes. ``tokenizer`` is None for a shape; ``tokens`` are added ones; ``amend`` adds
    modules that the configuration has no word for. ``reading`` is what a run that reads is given behind the method.
    """

    name: str
    config: Any
    dtype: torch.dtype
    tokenizer: Any = None
    tokens: tuple[TrainedToken, ...] = ()
    amend: Callable[[Any], None] | None = None
    trust_remote_code: bool = False
    reading: Reads | None = None

    def build(self, dtype: torch.dtype) -> Base:
        """The base in ``dtype``, frozen like a loaded one. ConfigError when transformers cannot build it."""
        try:
            with without_weights(), older_code(self.config):
                config = copy.deepcopy(self.config)  # prefix tuning writes its attention into it
                made = model_class(config)
                model = made.from_config(config, dtype=dtype, trust_remote_code=self.trust_remote_code)
        except (ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
            raise ConfigError(f"base: no model can be built from the configuration of {self.name}: {reason}") from error
        if self.amend:
            self.amend(model)
        model.requires_grad_(False)
        model.config.use_cache = False
        return Base(
            model=model,
            quantization="none",
            dtype=dtype,
            device=torch.device("meta"),
            fingerprint="",
            end_ids=(0,),
            chat_template_sha256=None,
            name=self.name,
            path=Path(),
            tokenizer=self.tokenizer or SizedVocabulary(model.get_input_embeddings().num_embeddings),
            pad_id=0,
            tokens=self.tokens,
        )


def plan_method(blueprint: Blueprint, config: TrainConfig, dtype: torch.dtype | None = None) -> PlannedMethod:
    """``config``'s method on a base of ``blueprint``, by the trainer's own code. Raises ConfigError.

    Weights are in ``dtype``; None means as training holds them: those that it changes in float32.
    """
    held = torch.float32 if trains_weights(config.method) else blueprint.dtype
    base = blueprint.build(dtype or held)
    parameters, size = sum(parameter.numel() for parameter in base.model.parameters()), tensor_bytes(base.model)
    weights = predicted_weight_bytes(base.model, config.training.quantize)
    with without_weights():
        model = apply_method(base, _without_texts(config.method), _STEPS)
        if blueprint.reading is not None:
            model = blueprint.reading.model(model, base)
    return PlannedMethod(base, model, parameters, size, weights)


def _without_texts(method: Any) -> Any:
    """A shape has no tokenizer for the text that a prompt starts from; the text decides no size."""
    return msgspec.structs.replace(method, init_text=None) if getattr(method, "init_text", None) else method


class MemoryTracker(ScalarsAreZero):  # type: ignore[no-untyped-call]
    """Counts the bytes of meta tensors made inside, by the ``phase`` in which they were made.

    ``known`` tensors were there before and are not counted. ``live`` is what is held now and ``most`` the most that was
    held of each phase, ``peak`` the most of all together. Tensors on the CPU (labels, indices) may meet meta tensors;
    they are small and not counted.
    """

    def __init__(self, known: Iterable[Tensor], phase: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = phase
        self.live: Counter[str] = Counter()
        self.peak = 0
        self.most: Counter[str] = Counter()
        self._total = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        for tensor in known:
            storage = tensor.untyped_storage()
            self._seen[id(storage)] = weakref.ref(storage)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and count what it allocates."""
        try:
            out = super().__torch_dispatch__(func, types, args, kwargs)
        except RuntimeError:  # a label or an index on the CPU met a meta tensor, which is no error on a real device
            out = super().__torch_dispatch__(func, types, *tree_map_only(Tensor, _to_meta, (args, kwargs or {})))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value.is_meta:
                self._count(value)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key not in self._seen:
            size, phase = storage.nbytes(), self.phase
            self._seen[key] = weakref.ref(storage, lambda _gone: self._release(key, size, phase))
            self.live[phase] += size
            self._total += size
            self.peak = max(self.peak, self._total)
            self.most[phase] = max(self.most[phase], self.live[phase])

    def _release(self, key: int, size: int, phase: str) -> None:
        del self._seen[key]
        self.live[phase] -= size
        self._total -= size


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as real devices run it: without the matrix of all pairs, which the meta device would write out.

    The function itself is replaced, because a TorchFunctionMode does not reach layers that are recomputed in backward.
    """
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def _attention(  # noqa: PLR0917 - the signature is torch's
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """As torch's kernels for the CPU: a mask of booleans becomes one of floats for every layer, and is kept."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    if attn_mask is not None and attn_mask.requires_grad:  # a trained bias: torch writes the matrix of pairs out too
        scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        return F.dropout((scores + attn_mask).softmax(-1), dropout_p) @ value
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]
    return out


def _to_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta or tensor.dim() == 0 else torch.empty_like(tensor, device="meta")
