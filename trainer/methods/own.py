"""Methods that peft does not have: bottleneck adapters, Freeze, and full fine-tuning.

The first two are exported in formats of our own, a fully trained base as a new base (``trainer.export.result``).
"""

from __future__ import annotations

import difflib
import re
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from bases.model import layer_count, output_head
from trainer.base_model import Base
from trainer.config.methods import BottleneckMethod, FreezeMethod, FullMethod
from trainer.errors import ConfigError
from trainer.methods.own_model import OwnModel, task_of
from trainer.methods.token_rows import initial_rows

# The linear maps that end the attention part, and those that end the feed-forward part, as architectures name them.
_ATTENTION_ENDS = (
    *("o_proj", "out_proj", "attn.c_proj", "self_attention.dense", "attention.dense", "self_attn.dense"),
    *("SelfAttention.o", "EncDecAttention.o"),
)
_FEED_FORWARD_ENDS = ("down_proj", "mlp.c_proj", "fc2", "dense_4h_to_h", "fc_out", "mlp.fc2", "w2", "wo")
_INDEX = re.compile(r"\.(\d+)\.")
_ACTIVATIONS: dict[str, type[nn.Module] | Any] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
INITIAL_STD = 0.02


class BottleneckModule(nn.Module):
    """``y + up(activation(down(y)))``, beginning as the identity."""

    def __init__(self, width: int, size: int, activation: str, like: Tensor) -> None:
        super().__init__()
        self.down = nn.Linear(width, size, device=like.device)
        self.up = nn.Linear(size, width, device=like.device)
        self.activation = _ACTIVATIONS[activation]()
        nn.init.normal_(self.down.weight, std=INITIAL_STD)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, y: Tensor) -> Tensor:
        """Shape: [..., width] both ways; computed in float32, given back as it came."""
        update: Tensor = self.up(self.activation(self.down(y.float())))
        return y + update.to(y.dtype)


class BottleneckModel(OwnModel):
    """Bottlenecks on the outputs of ``modules``."""

    def __init__(self, base: Base, method: BottleneckMethod, modules: list[str]) -> None:
        config = {
            "peft_type": "BOTTLENECK",
            "task_type": task_of(base),
            "base_model_name_or_path": base.name,
            "bottleneck_size": method.bottleneck_size,
            "activation": method.activation,
            "layout": method.layout,
            "target_modules": modules,
        }
        super().__init__(base.model, config)
        self.names = modules
        width = base.model.get_input_embeddings().weight
        self.bottlenecks = nn.ModuleList(
            BottleneckModule(_width(base.model, name), method.bottleneck_size, method.activation, width)
            for name in modules
        )
        for name, bottleneck in zip(modules, self.bottlenecks, strict=True):
            base.model.get_submodule(name).register_forward_hook(lambda _module, _args, y, b=bottleneck: b(y))

    @override
    def adapter_tensors(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for name, bottleneck in zip(self.names, self.bottlenecks, strict=True):
            for part in ("down", "up"):
                linear = bottleneck.get_submodule(part)
                for leaf in ("weight", "bias"):
                    out[f"base_model.model.{name}.bottleneck_{part}.{leaf}"] = linear.get_parameter(leaf)
        return out


class FreezeModel(OwnModel):
    """The base with some of its own parameters trainable."""

    def __init__(self, base: Base, config: dict[str, Any], names: list[str]) -> None:
        super().__init__(base.model, config)
        self.names = names
        for name in names:
            base.model.get_parameter(name).requires_grad_(True)

    @override
    def adapter_tensors(self) -> dict[str, Tensor]:
        return {f"base_model.model.{name}": self.base_model.get_parameter(name) for name in self.names}


def apply_bottleneck(base: Base, method: BottleneckMethod) -> BottleneckModel:
    """Bottlenecks where ``method`` says. ConfigError when the base has no such modules."""
    wanted = tuple(method.target_modules or _ends(method.layout))
    modules = [name for name, _ in base.model.named_modules() if _matches(name, wanted)]
    if not modules:
        raise ConfigError(
            "method.target_modules: the modules that end this base's layers are not known by name; "
            "list the linear maps after which a bottleneck shall stand"
        )
    return BottleneckModel(base, method, modules)


def apply_freeze(base: Base, method: FreezeMethod) -> FreezeModel:
    """The last layers trainable. ConfigError when they are quantized, or not there."""
    count = layer_count(base.model.config)
    if method.layers > count:
        raise ConfigError(f"method.layers: the base has {count} layers, {method.layers} cannot be trained")
    if method.layers and getattr(base.model.config, "num_decoder_layers", count) != count:
        raise ConfigError("method.layers: the base's two stacks differ in depth; set it to 0 and name method.modules")
    layers = list(range(count - method.layers, count))
    modules = [path for wanted in method.modules for path in _paths_of(base.model, wanted)]
    names = [name for name, _ in base.model.named_parameters() if _is_trained(name, layers, modules)]
    if not names:
        raise ConfigError("method.layers: give the number of last layers to train, or modules")
    if any(not base.model.get_parameter(name).is_floating_point() for name in names):
        raise ConfigError("training.quantize: quantized weights cannot be trained; freeze needs none")
    config = {
        "peft_type": "FREEZE",
        "task_type": task_of(base),
        "base_model_name_or_path": base.name,
        "layers": layers,
        "modules": modules,
    }
    return FreezeModel(base, config, names)


def _paths_of(model: nn.Module, wanted: str) -> list[str]:
    """The modules with parameters whose path is ``wanted`` or ends with it. ConfigError saying which there are."""
    paths = [name for name, module in model.named_modules() if any(True for _ in module.parameters())]
    found = [path for path in paths if f".{path}".endswith(f".{wanted}")]
    if found:
        return found
    layers = [path for path in paths if path.rpartition(".")[2].isdigit()]
    near = difflib.get_close_matches(wanted, paths, 1, 0.7)
    if layers and _INDEX.search(f".{wanted}."):
        known = f"its layers are {layers[0]} to {layers[-1]}"
    elif near:
        known = f"did you mean {near[0]}?"
    else:
        known = f"it has {', '.join(dict.fromkeys(path.rpartition('.')[2] for path in paths if path))}"
    raise ConfigError(f"method.modules: the base has no module {wanted!r} with parameters of its own; {known}")


def _ends(layout: str) -> tuple[str, ...]:
    return _FEED_FORWARD_ENDS if layout == "pfeiffer" else (*_ATTENTION_ENDS, *_FEED_FORWARD_ENDS)


def _matches(name: str, wanted: tuple[str, ...]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in wanted) and ".experts." not in name


def _width(model: nn.Module, name: str) -> int:
    module = model.get_submodule(name)
    return int(getattr(module, "out_features", None) or module.get_parameter("weight").shape[1])


def _is_trained(name: str, layers: list[int], modules: list[str]) -> bool:
    index = _INDEX.search(name)
    return (index is not None and int(index[1]) in layers) or any(name.startswith(f"{m}.") for m in modules)


class FullModel(OwnModel):
    """A base whose every parameter is trained."""

    def __init__(self, base: Any) -> None:
        super().__init__(base, {})
        base.requires_grad_(True)


def apply_full(base: Base, _method: FullMethod) -> FullModel:
    """Every parameter trainable, with rows of its own for added tokens. ConfigError for a quantized checkpoint."""
    if any(not parameter.is_floating_point() for parameter in base.model.parameters()):
        raise ConfigError("method: the base's checkpoint is quantized, so full fine-tuning cannot train its weights")
    if base.tokens:
        add_rows(base)
    return FullModel(base.model)


@torch.no_grad()
def add_rows(base: Base) -> None:
    """Let embedding and head have rows for the base's ``tokens``, where they do not; the head's bias begins as 0."""
    embedding, head = base.model.get_input_embeddings(), output_head(base.model)
    tables: list[Tensor] = [embedding.weight] if head.weight is embedding.weight else [embedding.weight, head.weight]
    rows = [initial_rows(base, table) for table in tables]
    size = max(token.id for token in base.tokens) + 1
    if size > len(embedding.weight):
        base.model.resize_token_embeddings(size, mean_resizing=False)
    ids = torch.tensor([token.id for token in base.tokens], device=rows[0].device)
    for module, new in zip((base.model.get_input_embeddings(), output_head(base.model)), rows, strict=False):
        module.weight[ids] = new.to(module.weight.dtype)
