"""Checks that every kind shares: the base the manifest names, and the shape of a tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adapters.base import BaseSpec
from adapters.configs.common import CAUSAL_LM, SEQ_2_SEQ_LM
from adapters.configs.prompt import PromptLearningConfig
from adapters.errors import BaseMismatchError, PackageError
from adapters.names import shown
from adapters.package import AdapterPackage


def check_base(package: AdapterPackage, base: BaseSpec) -> None:
    """BaseMismatchError when the package says that it was made for another base or chat template."""
    _check_task(package, base)
    manifest = package.manifest
    if manifest is None:
        return
    if manifest.base.fingerprint != base.fingerprint:
        raise BaseMismatchError(
            f"the adapter was made for the base {shown(manifest.base.name)} "
            f"(fingerprint {shown(manifest.base.fingerprint[:12])}), and this server serves {shown(base.name)} "
            f"(fingerprint {shown(base.fingerprint[:12])}); serve that base, or train the adapter on this one"
        )
    theirs, ours = manifest.chat_template_sha256, base.chat_template_sha256
    if theirs is not None and ours is not None and theirs != ours:
        raise BaseMismatchError(
            f"the adapter was trained with another chat template ({theirs[:12]}) than this server uses ({ours[:12]}) "
            f"for {shown(base.name)}; serve with the template it was trained with, or train it again"
        )


def expect_fractions(name: str, tensor: Tensor) -> None:
    """PackageError when a tensor of numbers holds integers."""
    if not tensor.is_floating_point():
        raise PackageError(f"tensor {shown(name)} holds integers; numbers with a fraction are expected")


def _check_task(package: AdapterPackage, base: BaseSpec) -> None:
    """The task says whether the adapter's base has an encoder; one without a task fits by its tensors or not."""
    task, wanted = package.config.task_type, SEQ_2_SEQ_LM if base.is_encoder_decoder else CAUSAL_LM
    if task is not None and task != wanted:
        what = {SEQ_2_SEQ_LM: "an encoder-decoder", CAUSAL_LM: "a decoder-only model"}
        raise BaseMismatchError(
            f"the adapter's task_type is {task}: it was made for {what[task]}, and this server serves "
            f"{shown(base.name)}, {what[wanted]}; serve the adapter's own base, or train it on this one"
        )


def stacks_of(config: PromptLearningConfig, base: BaseSpec) -> int:
    """How many stacks peft made virtual tokens for: both of an encoder-decoder unless told otherwise.

    Raises BaseMismatchError when the base has fewer.
    """
    stacks = config.num_transformer_submodules or (2 if base.is_encoder_decoder else 1)
    if stacks > 1 and not base.is_encoder_decoder:
        raise BaseMismatchError(
            f"the adapter was made for an encoder-decoder (num_transformer_submodules is {stacks}), and this server "
            f"serves {shown(base.name)}, a decoder-only model: serve that base, or train the adapter on this one"
        )
    return stacks


def expect_shape(name: str, tensor: Tensor, expected: tuple[int, ...], hint: str = "") -> None:
    """PackageError naming tensor, found and expected shape when they differ."""
    if tuple(tensor.shape) != expected:
        tail = f"; {hint}" if hint else ""
        raise PackageError(f"tensor {shown(name)} has shape {list(tensor.shape)}, expected {list(expected)}{tail}")


def only_prompt_embeddings(tensors: Mapping[str, Tensor]) -> Tensor:
    """The one tensor of a kind that stands before the prompt. PackageError when it is missing or has company."""
    for name in tensors:
        if name != "prompt_embeddings":
            raise PackageError(f"tensor {shown(name)} is unknown; this kind consists of 'prompt_embeddings' alone")
    if not tensors:
        raise PackageError("tensor 'prompt_embeddings' is missing")
    return tensors["prompt_embeddings"]


def expect_base_count(what: str, found: int | None, expected: int, base: BaseSpec) -> None:
    """BaseMismatchError when a count that peft recorded of the adapter's base differs from this base's."""
    if found is not None and found != expected:
        raise BaseMismatchError(
            f"the adapter was made for a base with {what} {found}; this server serves {shown(base.name)}, "
            f"whose {what} is {expected}: serve that base, or train the adapter on this one"
        )
