"""A loaded base model, and what adapters must know of it: its modules, their shapes and weights."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from adapters.base_spec import BaseSpec
from bases.errors import BaseModelError
from bases.weights import linear_weight, weight_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def expert_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that hold a layer's experts, by name.

    They are those whose class takes part in transformers' ExpertsInterface, which tells how the weights lie.
    """
    return {name: module for name, module in model.named_modules() if hasattr(module, "has_post_expert_norm")}


def router_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that choose experts, by name. They are linear maps inside, and give choices beside logits."""
    return {name: module for name, module in model.named_modules() if is_router(module)}


def is_router(module: nn.Module) -> bool:
    """Whether a module chooses experts by a ``weight`` [num_experts, in_features], and by nothing but its input."""
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2 or "router" not in type(module).__name__.lower():
        return False
    return len(inspect.signature(type(module).forward).parameters) == 2  # itself and its input


def expert_shapes(model: nn.Module) -> dict[str, tuple[int, int, int]]:
    """(num_experts, in_features, out_features) of every parameter of experts, by name, in the modules' own order."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for name, module in expert_modules(model).items():
        for parameter, value in module.named_parameters(recurse=False):
            if value.dim() == 3:
                count, first, second = value.shape
                shapes[f"{name}.{parameter}"] = (
                    (count, first, second) if experts_are_transposed(module) else (count, second, first)
                )
    return shapes


def router_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(num_experts, in_features) of every router, by name."""
    weights = {name: module.get_parameter("weight") for name, module in router_modules(model).items()}
    return {name: (weight.shape[0], weight.shape[1]) for name, weight in weights.items()}


def experts_are_transposed(module: nn.Module) -> bool:
    """Whether weights are stored [num_experts, in_features, out_features]."""
    return bool(getattr(module, "is_transposed", False))


def layer_count(config: Any) -> int:
    """How many layers the decoder of ``config`` has, as code of a base's own may call them otherwise."""
    found = (getattr(config.get_text_config(), name, None) for name in ("num_hidden_layers", "num_layers", "n_layer"))
    return int(next(count for count in found if count is not None))


def output_head(model: Any) -> Any:
    """The map of ``model`` from states to logits; code of a base's own may not say which that is.

    Raises BaseModelError where none can be told.
    """
    if (head := model.get_output_embeddings()) is not None:
        return head
    size = len(model.get_input_embeddings().weight)
    found = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == size]
    if not found:
        raise BaseModelError("its code has no linear map from states to the tokens of its embedding")
    return found[-1]


def decoder_start_id(model: Any) -> int:
    """The token that the decoder of the encoder-decoder ``model`` starts from."""
    start = getattr(model.generation_config, "decoder_start_token_id", None)
    start = getattr(model.config, "decoder_start_token_id", None) if start is None else start
    return int(model.config.pad_token_id if start is None else start)


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A base in memory: an unmodified transformers model, and what is to be known of it.

    ``quantization`` is how its weights are kept, by the name that settings have for it. ``end_ids`` are the tokens that
    end an output, the tokenizer's own first. ``chat_template_sha256`` is of the template that conversations are
    rendered with, None for plain prompts.
    """

    model: PreTrainedModel
    quantization: str
    dtype: torch.dtype
    device: torch.device
    fingerprint: str
    end_ids: tuple[int, ...]
    chat_template_sha256: str | None

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def decoder_start_id(self) -> int:
        """The token that the decoder of an encoder-decoder starts from."""
        return decoder_start_id(self.model)

    @property
    def max_positions(self) -> int:
        """Positions that a sequence may have, as far as the model's configuration says."""
        config = self.model.config  # ChatGLM's own calls them seq_length
        return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "seq_length", 0) or 2048)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, quantization constants included."""
        return weight_bytes(self.model)


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


def base_spec(base: LoadedBase, name: str, kv: tuple[int, int, int]) -> BaseSpec:
    """What packages are checked against; ``kv`` is (layers, KV heads, head dimension)."""
    modules = adaptable_modules(base.model)
    linears = {name: module for name, module in modules.items() if not _is_norm(module)}
    routers = router_modules(base.model)
    embedding = base.model.get_input_embeddings()
    head = output_head(base.model)
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
        interleaved=frozenset(
            f"{n}.gate_up_proj"
            for n, m in expert_modules(base.model).items()
            if not getattr(m, "is_concatenated", True)
        ),
        routers=router_shapes(base.model),
        transposed=frozenset(n for n, m in linears.items() if _is_turned(m)),
        embedding=names[id(embedding)],
        embed_scale=float(getattr(embedding, "embed_scale", 1.0)),
        head=names[id(head)],
        tied=head.weight is embedding.weight,
        weight=lambda n: linear_weight({**adapted, **routers}[n]),
        chat_template_sha256=base.chat_template_sha256,
    )
