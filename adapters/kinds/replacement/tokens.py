"""Single tokens with embeddings of their own: the kind, and ``trainable_token_indices`` beside another kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError, UnsupportedKindError
from adapters.kinds.config import TargetedConfig
from adapters.kinds.patterns import PatternMatcher
from adapters.kinds.replacement.config import TrainableTokensConfig
from adapters.kinds.saved_adapter import SavedAdapter, expect_shape, tensor_name
from adapters.ops import Adapter, Op
from adapters.ops.embedding import EmbedRows, HeadRows
from adapters.quoting import quote

_DELTA = "trainable_tokens_delta"  # peft's name; the rows themselves, no difference
OpsByModule = dict[str, tuple[Op, ...]]


def compile_tokens(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a trainable-tokens package.

    Semantics: the embeddings (and, where base ties them or they are targeted, head rows) of ``token_indices`` are rows
    of ``trainable_tokens_delta``.
    Shape: ``<module>.trainable_tokens_delta`` [number of tokens, hidden_size].
    """
    config = package.config
    assert isinstance(config, TrainableTokensConfig)
    targets = PatternMatcher(config).targets([*base.linears, base.embedding])
    wanted = dict.fromkeys(sorted({base.embedding} if targets is None else targets), config.token_indices)
    if not wanted:
        raise PackageError(
            f"adapter_config.json: target_modules matches neither the embedding nor the head of {quote(base.name)}; "
            "the adapter was made for another architecture"
        )
    ops, rest = _take(package.tensors, wanted, _DELTA, base)
    for name in rest:
        raise PackageError(f"tensor {quote(name)} is unknown: this kind holds base_model.model.<module>.{_DELTA}")
    return Adapter(config.KIND, ops)


def take_tokens(package: SavedAdapter, base: BaseSpec) -> tuple[SavedAdapter, OpsByModule]:
    """Split off what ``trainable_token_indices`` added to a package of another kind. Raises PackageError."""
    config = package.config
    if not config.trainable_token_indices:
        return package, {}
    wanted = _by_module(config.trainable_token_indices, base)
    both = {base.embedding, base.head}
    is_tying = isinstance(config, TargetedConfig) and config.ensure_weight_tying
    if is_tying and base.tied and both <= wanted.keys() and len({*map(tuple, wanted.values())}) > 1:
        raise PackageError(
            "adapter_config.json: trainable_token_indices names other tokens for the head than for the embedding, and "
            "ensure_weight_tying is set; peft refuses this too"
        )
    ops, rest = _take(package.tensors, wanted, f"token_adapter.{_DELTA}", base)
    return replace(package, tensors=rest), ops


def _by_module(indices: Sequence[int] | Mapping[str, Sequence[int]], base: BaseSpec) -> dict[str, Sequence[int]]:
    """Token ids by module; peft takes a name for every module whose path ends with it."""
    if not isinstance(indices, Mapping):
        return {base.embedding: indices}
    modules = {path.rpartition(".")[0] for path in base.parameters}
    wanted: dict[str, Sequence[int]] = {}
    for name, ids in indices.items():
        hits = {module for module in modules if name and module.endswith(name)}
        if len(hits) != 1 or not hits <= {base.embedding, base.head}:
            raise PackageError(
                f"adapter_config.json: trainable_token_indices names {quote(name)}, which is neither the embedding "
                f"({quote(base.embedding)}) nor the head ({quote(base.head)}) of the base {quote(base.name)}"
            )
        wanted[hits.pop()] = ids
    return wanted


def _take(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], parameter: str, base: BaseSpec
) -> tuple[OpsByModule, dict[str, Tensor]]:
    """Ops of the wanted tokens by module, and the tensors that are left.

    In a tied base the head's rows are the embedding's, and peft may save them there once more.
    """
    rest = dict(tensors)
    ops: OpsByModule = {}
    for module, ids in wanted.items():
        if module not in (base.embedding, base.head):
            raise UnsupportedKindError(
                f"trained tokens of {quote(module)} are not served; only those of the embedding and the head are"
            )
        name = tensor_name(module, parameter)
        if name not in rest:
            if module == base.head and base.tied and base.embedding in wanted and ids == wanted[base.embedding]:
                continue
            raise PackageError(f"tensor {quote(name)} is missing")
        ops[module] = (_rows(name, module, ids, rest.pop(name), base),)
    if base.tied and base.embedding in ops and base.head not in ops:
        (rows,) = ops[base.embedding]
        assert isinstance(rows, EmbedRows)
        _check_bias(base)
        _drop_copy(tensor_name(base.head, parameter), tensors[tensor_name(base.embedding, parameter)], rest)
        ops[base.head] = (HeadRows(rows.ids, rows.rows),)
    return ops, rest


def _rows(name: str, module: str, ids: Sequence[int], rows: Tensor, base: BaseSpec) -> Op:
    if len(set(ids)) != len(ids):
        raise PackageError(f"adapter_config.json names a token twice for {quote(name)}")
    if not ids or min(ids) < 0 or max(ids) >= 1 << 31:
        raise PackageError(f"adapter_config.json names no token, or a number that is none, for {quote(name)}")
    expect_shape(name, rows, (len(ids), base.hidden_size), "one row for each token that adapter_config.json names")
    order = torch.tensor(sorted(range(len(ids)), key=ids.__getitem__))
    sorted_ids = torch.tensor(sorted(ids), dtype=torch.long)
    if module == base.embedding:
        return EmbedRows(sorted_ids, rows.float()[order])
    _check_bias(base)
    return HeadRows(sorted_ids, rows.float()[order])


def _check_bias(base: BaseSpec) -> None:
    if base.head in base.biases:
        raise UnsupportedKindError(
            f"trained tokens of the output head are not served on {quote(base.name)}: its head has a bias, which peft "
            "drops for such adapters"
        )


def _drop_copy(name: str, rows: Tensor, rest: dict[str, Tensor]) -> None:
    if name in rest and not torch.equal(rest.pop(name), rows):
        raise PackageError(
            f"tensor {quote(name)} differs from the embedding's, and the base ties its head to its embedding; "
            "peft would use whichever it loads last"
        )
