"""The head that an adapter for classes brings, taken out of its package; and the names of adapters of a backbone."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.config import FEATURE_EXTRACTION, PREFIX, SEQ_CLS, TOKEN_CLS, AdapterConfig, TargetedConfig
from adapters.kinds.head_names import head_parameter, without_head
from adapters.kinds.saved_adapter import OTHER_BASE, SavedAdapter, expect_fractions, expect_shape
from adapters.ops.adapter import Head
from adapters.quoting import quote


def take_head(package: SavedAdapter, base: BaseSpec) -> tuple[SavedAdapter, Head | None]:
    """Split a package into its head and the rest; no head unless its task has one. Raises PackageError.

    Names of an adapter of the backbone alone become those of the model with its output head.
    """
    if package.config.task_type == FEATURE_EXTRACTION or _is_of_backbone(package, base):
        return _with_backbone(package, base), None
    if package.config.task_type not in (SEQ_CLS, TOKEN_CLS):
        return package, None
    found: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in package.tensors.items():
        parameter = head_parameter(name)
        if parameter is None:
            rest[name] = tensor
        elif parameter in ("weight", "bias"):
            expect_fractions(name, tensor)
            if parameter in found and not torch.equal(found[parameter], tensor):
                raise PackageError(f"tensor {quote(name)}: the package holds another head as well")
            found[parameter] = tensor
        elif parameter:
            raise PackageError(
                f"tensor {quote(name)} is of a head of several parts; only a head that is one linear map is served"
            )
    if "weight" not in found:
        raise PackageError("the head's weight (base_model.model.score.weight) is missing")
    weight, bias = found["weight"], found.get("bias")
    expect_shape("score.weight", weight, (weight.shape[0], base.hidden_size), OTHER_BASE)
    if bias is not None:
        expect_shape("score.bias", bias, (weight.shape[0],))
    head = Head(weight.float(), None if bias is None else bias.float())
    return replace(package, tensors=rest, config=_without_head(package)), head


def _without_head(package: SavedAdapter) -> AdapterConfig:
    config = package.config
    if not isinstance(config, TargetedConfig) or not config.modules_to_save:
        return config
    return msgspec.structs.replace(config, modules_to_save=without_head(config.modules_to_save) or None)


def _is_of_backbone(package: SavedAdapter, base: BaseSpec) -> bool:
    """Whether a package that names no task begins no name as the model with its output head does.

    sentence-transformers writes those: what it adapts is a backbone.
    """
    if package.config.task_type is not None or base.is_encoder_decoder:
        return False
    top = {name.partition(".")[0] for name in (*base.linears, base.embedding)}
    named = [name.removeprefix(PREFIX) for name in package.tensors if name.startswith(PREFIX)]
    return bool(named) and not any(name.partition(".")[0] in top for name in named)


def _with_backbone(package: SavedAdapter, base: BaseSpec) -> SavedAdapter:
    """As peft would have named the tensors with the output head around: the backbone is one module there."""
    around = f"{base.embedding.partition('.')[0]}."
    tensors = {
        f"{PREFIX}{around}{name.removeprefix(PREFIX)}"
        if name.startswith(PREFIX) and not name.startswith(f"{PREFIX}{around}")
        else name: tensor
        for name, tensor in package.tensors.items()
    }
    return replace(package, tensors=tensors)
