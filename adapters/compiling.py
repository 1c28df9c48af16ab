"""A package to the ops that it is at a base: the base it names checked, its kind compiled, its vocabulary counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.checkpoints import checkpoint
from adapters.errors import BaseMismatchError, UnsupportedKindError
from adapters.kinds.config import FEATURE_EXTRACTION, SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS
from adapters.kinds.heads import take_head
from adapters.kinds.registry import KINDS
from adapters.kinds.replacement.modules_to_save import take_saved_modules
from adapters.kinds.replacement.tokens import take_tokens
from adapters.kinds.replacement.vocabulary import with_sizes, with_vocabulary
from adapters.ops import Adapter, LowRank, Op
from adapters.package.chat_template import read_chat
from adapters.package.reading import AdapterPackage
from adapters.quoting import quote


def compile_package(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """The ops of ``package``, checked against ``base``, on the CPU; in float32 but for factors (``as_saved``).

    Raises BaseMismatchError when the package was made for another base or chat template, PackageError when a tensor is
    missing, unknown or has another shape than the base asks for, UnsupportedKindError for tensors of other kinds.
    """
    check_base(package, base)
    without_head, head = take_head(package, base)
    saved = take_saved_modules(without_head, base)
    rest, rows = take_tokens(saved.rest, base)
    compiler = KINDS[package.config.peft_type].load_compiler()
    adapter = compiler(rest, with_sizes(base, saved.sizes) if rest.config.WIDENS else base)
    ops: dict[str, tuple[Op, ...]] = {}
    for part in (saved.ops, rows, adapter.ops):  # what peft wraps comes before what it adds
        for module, listed in part.items():
            ops[module] = (*ops.get(module, ()), *listed)
    halves = {tensor.dtype for tensor in package.tensors.values()} & {torch.bfloat16, torch.float16}
    return as_saved(with_vocabulary(replace(adapter, ops=ops, head=head), saved.sizes, base), halves)


def as_saved(adapter: Adapter, halves: Iterable[torch.dtype]) -> Adapter:
    """Factors of low-rank updates in those of the ``halves`` that hold their numbers exactly.

    As they do where they were saved so and their scale is a power of two. A product reads them as they are, and its
    time is that of reading.
    """
    done: dict[int, Tensor] = {}

    def narrowed(tensor: Tensor) -> Tensor:
        checkpoint()
        if id(tensor) not in done:
            found = (half for dtype in halves if torch.equal((half := tensor.to(dtype)).float(), tensor))
            done[id(tensor)] = next(found, tensor)
        return done[id(tensor)]

    ops = {
        module: tuple(op.map(narrowed) if type(op) is LowRank else op for op in listed)
        for module, listed in adapter.ops.items()
    }
    return replace(adapter, ops=ops)


def check_base(package: AdapterPackage, base: BaseSpec) -> None:
    """BaseMismatchError when the package says that it was made for another base or chat template."""
    _check_task(package, base)
    manifest = package.manifest
    if manifest is None:
        return
    if manifest.base.fingerprint != base.fingerprint:
        raise BaseMismatchError(
            f"the adapter was made for the base {quote(manifest.base.name)} "
            f"(fingerprint {quote(manifest.base.fingerprint[:12])}), and this server serves {quote(base.name)} "
            f"(fingerprint {quote(base.fingerprint[:12])}); serve that base, or train the adapter on this one"
        )
    theirs, ours = manifest.chat_template_sha256, base.chat_template_sha256
    if theirs != ours and base.adapter_templates and theirs == read_chat(package.path).template_sha256:
        return
    if theirs is not None and ours is not None and theirs != ours:
        raise BaseMismatchError(
            f"the adapter was trained with another chat template ({theirs[:12]}) than this server uses ({ours[:12]}) "
            f"for {quote(base.name)}; serve with the template it was trained with (--chat-template, or in the package "
            "and --adapter-templates), or train it again"
        )


def _check_task(package: AdapterPackage, base: BaseSpec) -> None:
    """The task says whether the adapter's base has an encoder; one without a task fits by its tensors or not."""
    task, of_both = package.config.task_type, package.config.task_type == SEQ_2_SEQ_LM
    if base.is_encoder_decoder and task in (SEQ_CLS, TOKEN_CLS, FEATURE_EXTRACTION):
        raise UnsupportedKindError(
            f"the adapter's task_type is {task}, and this server serves {quote(base.name)}, an encoder-decoder, of "
            "which neither embeddings nor heads of adapters are served; train it on a decoder-only base"
        )
    if task is not None and of_both != base.is_encoder_decoder:
        theirs, ours = ("an encoder-decoder", "a decoder-only model")[:: 1 if of_both else -1]
        raise BaseMismatchError(
            f"the adapter's task_type is {task}: it was made for {theirs}, and this server serves "
            f"{quote(base.name)}, {ours}; serve the adapter's own base, or train it on this one"
        )
