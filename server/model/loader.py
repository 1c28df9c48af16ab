"""Loads the base model: weights, quantization, attention seam, and the facts that adapters are checked against."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from adapters.base import BaseSpec
from adapters.errors import BaseModelError
from adapters.fingerprint import base_fingerprint
from server.config import EngineConfig
from server.errors import EngineStartError
from server.model.architecture import ENCODER_DECODERS, check_architecture, check_code
from server.model.experts import expert_shapes, is_router, router_modules, router_shapes
from server.model.families import patch_attention, prepare_loading
from server.model.quantization import choose_quantization, prepare_quantized
from server.model.weights import linear_weight, weight_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """The resident base: an unmodified transformers model that attends through the paged cache.

    ``quantization`` is how its weights are kept, by the name that ``--quantize`` has for it.
    """

    model: PreTrainedModel
    quantization: str
    dtype: torch.dtype
    device: torch.device
    fingerprint: str
    eos_token_ids: list[int]
    max_model_len: int

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, quantization constants included."""
        return weight_bytes(self.model)


def load_base(config: EngineConfig) -> LoadedBase:
    """Load ``config.model``. Raises EngineStartError in plain words when it cannot be served."""
    path = Path(config.model)
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    try:
        fingerprint = base_fingerprint(path)
        check_code(path, config.trust_remote_code)
        hf_config = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        check_architecture(hf_config)
        quantization, options = choose_quantization(config.quantize, hf_config)
        model = _load(path, config, hf_config, options, dtype=dtype, device=device)
    except (BaseModelError, OSError, ValueError, KeyError) as error:
        raise EngineStartError(f"cannot load the base model in {path}: {error}") from error
    limit = int(getattr(hf_config, "max_position_embeddings", 0) or 2048)
    if config.max_model_len > limit and hf_config.model_type not in ENCODER_DECODERS:  # T5's positions are relative
        raise EngineStartError(f"--max-model-len {config.max_model_len} exceeds the base's {limit} positions")
    length = config.max_model_len or limit
    return LoadedBase(model, quantization, dtype, device, fingerprint, _eos_token_ids(model), length)


def pick_device(name: str) -> torch.device:
    """The device meant by ``--device``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute type meant by ``--dtype``: auto is bf16 where the device multiplies it natively, else fp32.

    A CPU without AVX512-BF16 or AMX runs bf16 products about five times slower than fp32 ones.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def _load(
    path: Path,
    config: EngineConfig,
    hf_config: Any,
    quantization: BitsAndBytesConfig | None,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> PreTrainedModel:
    options: dict[str, Any] = {"quantization_config": quantization} if quantization is not None else {}
    auto = AutoModelForSeq2SeqLM if hf_config.model_type in ENCODER_DECODERS else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(
        path,
        config=hf_config,
        dtype=dtype,
        device_map={"": device},
        attn_implementation=prepare_loading(hf_config),
        trust_remote_code=config.trust_remote_code,
        use_safetensors=True,
        **options,
    )
    prepare_quantized(model, dtype)
    patch_attention(model)
    return model.eval().requires_grad_(False)


def _eos_token_ids(model: PreTrainedModel) -> list[int]:
    found = model.generation_config.eos_token_id if model.generation_config is not None else None
    found = model.config.eos_token_id if found is None else found
    return [] if found is None else list(found) if isinstance(found, (list, tuple)) else [int(found)]


def adaptable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules that adapters can act on, by name: linear maps and norms outside of routed experts and routers.

    They see every row of the batch, the output head those whose logits are wanted.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if (isinstance(module, (nn.Linear, Conv1D)) or _is_norm(module))
        and not is_router(module)
        and ".experts." not in name
    }


def _is_norm(module: nn.Module) -> bool:
    """Architectures have norm classes of their own; all are named so, and have parameters [features]."""
    parameters = list(module.parameters())
    return "Norm" in type(module).__name__ and bool(parameters) and all(p.dim() == 1 for p in parameters)


def _is_turned(module: nn.Module) -> bool:
    """Whether a checkpoint stores the weight as [in_features, out_features]; quantizing turns it around."""
    return isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(out_features, in_features)."""
    if isinstance(module, Conv1D):
        return int(module.weight.shape[1]), int(module.weight.shape[0])
    assert isinstance(module, nn.Linear)
    return module.out_features, module.in_features


def stored_shape(module: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of a parameter before quantization, which also turns a Conv1D's weight around."""
    if name == "weight" and isinstance(module, nn.Linear):
        out, in_ = module.out_features, module.in_features
        return (in_, out) if _is_turned(module) else (out, in_)
    return tuple(module.get_parameter(name).shape)


def base_spec(base: LoadedBase, name: str, kv: tuple[int, int, int], template_sha256: str | None) -> BaseSpec:
    """What packages are checked against; ``kv`` is (layers, KV heads, head dimension)."""
    modules = adaptable_modules(base.model)
    linears = {name: module for name, module in modules.items() if not _is_norm(module)}
    routers = router_modules(base.model)
    embedding = base.model.get_input_embeddings()
    head = base.model.get_output_embeddings()
    names = {id(module): name for name, module in base.model.named_modules()}
    adapted = {**modules, names[id(embedding)]: embedding}
    return BaseSpec(
        name=name,
        fingerprint=base.fingerprint,
        num_layers=kv[0],
        num_kv_heads=kv[1],
        head_dim=kv[2],
        hidden_size=int(embedding.weight.shape[1]),
        vocab_size=int(embedding.weight.shape[0]),
        linears={n: linear_shape(m) for n, m in linears.items()},
        biases={
            n: m.get_parameter("bias").detach()
            for n, m in modules.items()
            if isinstance(getattr(m, "bias", None), Tensor)
        },
        parameters={f"{n}.{p}": stored_shape(m, p) for n, m in adapted.items() for p, _ in m.named_parameters()},
        experts=expert_shapes(base.model),
        routers=router_shapes(base.model),
        transposed=frozenset(n for n, m in linears.items() if _is_turned(m)),
        embedding=names[id(embedding)],
        embed_scale=float(getattr(embedding, "embed_scale", 1.0)),
        head=names[id(head)],
        tied=head.weight is embedding.weight,
        weight=lambda n: linear_weight({**adapted, **routers}[n]),
        chat_template_sha256=template_sha256,
    )
