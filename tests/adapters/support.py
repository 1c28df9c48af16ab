"""What the tests of adapters/ share: the spec of a base, packages made by hand, and a stock model that runs ops."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from adapters.base_spec import BaseSpec
from adapters.batch.reference import apply_reference
from adapters.errors import AdapterError
from adapters.ops import Adapter, Op
from adapters.package.manifest import BaseRef, DataRef, Losses, Manifest
from bases.fingerprint import base_fingerprint, template_sha256
from tests.factory import CHAT_TEMPLATE, load
from tests.oracle import task_of
from tests.own_formats import apply_own, is_own

LORA_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj"],
}
SMALL_SPEC = BaseSpec(
    name="small",
    fingerprint="f" * 64,
    num_layers=2,
    num_kv_heads=2,
    head_dim=4,
    hidden_size=16,
    vocab_size=32,
    linears={f"model.layers.{i}.{name}": (8, 16) for i in range(2) for name in ("attn.q_proj", "attn.v_proj")},
    biases={"model.layers.0.attn.q_proj": torch.ones(8), "model.norm": torch.zeros(16)},
    chat_template_sha256="a" * 64,
)

MANIFEST = Manifest(
    kind="lora",
    base=BaseRef("smollm2", "f" * 64),
    created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    chat_template_sha256="a" * 64,
    special_tokens={"eos_token": "<|im_end|>", "additional_special_tokens": ["<a>"]},
    data=DataRef("b" * 64, 480),
    seed=7,
    versions={"torch": "2"},
    metrics={"eval_loss": 0.5},
    losses=Losses([(1, 2.5), (2, 1.0)], [(2, 1.25)]),
    training={"method": "lora", "r": 4, "targets": ["q_proj"], "rate": 1e-3, "patterns": {"a": 1}},
)


def lora_tensors(r: int = 4, layers: int = 2, name: str = "attn.q_proj") -> dict[str, Tensor]:
    """Sound LoRA tensors for SMALL_SPEC."""
    out: dict[str, Tensor] = {}
    for i in range(layers):
        key = f"base_model.model.model.layers.{i}.{name}"
        out[f"{key}.lora_A.weight"] = torch.randn(r, 16)
        out[f"{key}.lora_B.weight"] = torch.randn(8, r)
    return out


def write_raw(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a package without any of our checks; returns ``path``."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(dict(config)))
    save_file(dict(tensors), path / "adapter_model.safetensors")
    return path


def raw_safetensors(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def refusal(call: Callable[[], object]) -> str:
    """The message of the AdapterError that ``call`` raises, empty when it raises none. Other errors pass through."""
    try:
        call()
    except AdapterError as error:
        return str(error)
    return ""


def spec_of(directory: Path) -> BaseSpec:
    """The spec of a saved base, read from the stock model."""
    model = load_model(directory)
    config = model.config
    linears: dict[str, nn.Module] = {}
    biases: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            linears[name] = module
        if isinstance(getattr(module, "bias", None), nn.Parameter):
            biases[name] = module.bias.detach()

    def weight(name: str) -> Tensor:
        module = model.get_submodule(name)
        found: Tensor = module.weight.detach()
        return found.T if isinstance(module, Conv1D) else found

    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return BaseSpec(
        name=directory.name,
        fingerprint=base_fingerprint(directory),
        num_layers=config.num_hidden_layers,
        num_kv_heads=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        linears={name: (weight(name).shape[0], weight(name).shape[1]) for name in linears},
        biases=biases,
        parameters={name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)},
        transposed=frozenset(name for name, module in linears.items() if isinstance(module, Conv1D)),
        embedding=next(n for n, m in model.named_modules() if m is model.get_input_embeddings()),
        embed_scale=float(getattr(model.get_input_embeddings(), "embed_scale", 1.0)),
        head="lm_head",
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        weight=weight,
        chat_template_sha256=template_sha256(CHAT_TEMPLATE),
    )


def load_model(directory: Path) -> Any:
    """The stock transformers model, fp32, ready to evaluate."""
    return load(directory).eval()


def peft_logits(base: Path, adapter: Path, input_ids: Tensor) -> Tensor:
    """PEFT's own answer. Shape: input_ids [n]; result [n, vocab_size]."""
    from peft import PeftModel

    stock = load_model(base)
    model = (apply_own(stock, adapter) if is_own(adapter) else PeftModel.from_pretrained(stock, adapter)).eval()
    with torch.no_grad():
        logits: Tensor = model(input_ids[None], **task_of(model)).logits[0]
    return logits[-len(input_ids) :]


class StockSite:
    """The stock module, for ops that compute with other parameters."""

    def __init__(self, module: nn.Module) -> None:
        self._module = copy.deepcopy(module)
        if isinstance(module, nn.Embedding):
            self._module.__dict__["padding_idx"] = None  # may lie beyond a table of few rows

    def call(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = functional_call(self._module, dict(parameters), (x,))
        return y


def bind_reference(module: nn.Module, ops: Sequence[Op]) -> None:
    """Let ``module`` run ``ops`` on every row, by their specification."""
    base, site = module.forward, StockSite(module)

    def forward(x: Tensor) -> Tensor:
        if isinstance(module, nn.Embedding):
            size = module.num_embeddings
            rows = apply_reference(
                lambda ids: base(ids[:, 0].clamp(0, size - 1)), x.reshape(-1, 1), [ops] * x.numel(), site
            )
            return rows.view(*x.shape, -1)
        rows = apply_reference(base, x.reshape(-1, x.shape[-1]), [ops] * x.shape[:-1].numel(), site)
        return rows.view(*x.shape[:-1], -1)

    module.forward = forward


def op_logits(base: Path, adapter: Adapter, input_ids: Tensor) -> Tensor:
    """The stock model with the ops of ``adapter`` hooked in. Shapes as in ``peft_logits``."""
    model = load_model(base)
    for name, ops in adapter.ops.items():
        bind_reference(model.get_submodule(name), ops)
    embeds = model.get_input_embeddings()(input_ids)
    cache = None
    if adapter.prompt is not None:
        embeds = torch.cat([adapter.prompt.embeds, embeds])
    if adapter.prefix is not None:
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(adapter.prefix.keys, adapter.prefix.values, strict=True)):
            cache.update(keys.transpose(0, 1)[None], values.transpose(0, 1)[None], layer)
    with torch.no_grad():
        logits: Tensor = model(inputs_embeds=embeds[None], past_key_values=cache).logits[0]
    return logits[-len(input_ids) :]
