"""Merges an adapter into the weights of its base: ``merge``. Always at full precision, never into quantized weights."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
import torch
from peft import PeftConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor

from adapters.errors import BaseMismatchError
from adapters.kinds.config import CONFIG_FILE
from adapters.package.added_tokens import read_added_tokens
from adapters.package.golden import read_golden
from adapters.package.manifest import BaseRef, Manifest
from adapters.package.reading import AdapterPackage, read_package
from bases.architecture import check_code
from bases.compute import dtype_name
from bases.finding import resolve_base
from bases.fingerprint import base_fingerprint, template_sha256
from bases.model import output_head
from bases.tokenizer import load_tokenizer
from trainer.base_model import load_model
from trainer.errors import CheckpointError, ConfigError, first_line
from trainer.export.result import GOLDEN_PROMPTS, RECORDED_PACKAGES, dtype_of, golden_logits, save_base
from trainer.files import SERVED_TEMPLATE
from trainer.loop.output import package_versions

TOLERANCE = 1e-3  # of the spread of the logits, in float32: only the order of sums differs
_OURS = ("trainable_token_indices",)  # written into the tables already; for most kinds no key of peft's
_PREFIX = "base_model.model."
_TOKEN_ROWS = ".token_adapter.trainable_tokens_delta"
_BEFORE_PROMPT = "it stands before the prompt and changes no weights; serve it as an adapter"
_UNMERGEABLE = {
    "PREFIX_TUNING": _BEFORE_PROMPT,
    "PROMPT_TUNING": _BEFORE_PROMPT,
    "P_TUNING": _BEFORE_PROMPT,
    "MULTITASK_PROMPT_TUNING": _BEFORE_PROMPT,
    "CPT": _BEFORE_PROMPT,
    "CARTRIDGE": _BEFORE_PROMPT,
    "BOTTLENECK": "its networks are not linear, so no weights of the base can hold them; serve it as an adapter",
}


@dataclass(frozen=True)
class Merged:
    """A merged base. Differences of logits are the largest, as shares of their spread, from base and adapter apart.

    ``exact`` in float32; ``saved`` after rounding to ``dtype``, in which the base was written.
    """

    path: Path
    exact: float
    saved: float
    dtype: str


def merge(
    package: Path,
    output: Path,
    base: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    *,
    trust_remote_code: bool = False,
) -> Merged:
    """Write the base of ``package`` with the adapter in its weights to ``output``, all or nothing.

    ``base`` where the package does not say it; ``dtype`` auto is the base's own. Raises ConfigError for adapters that
    cannot be merged, BaseModelError, AdapterError, CheckpointError.
    """
    if output.exists() and not overwrite:
        raise CheckpointError(f"{output} exists already; give another directory, or --overwrite")
    adapter = read_package(package)
    kind = adapter.config.peft_type
    if kind in _UNMERGEABLE:
        raise ConfigError(f"a {adapter.config.KIND} adapter cannot be merged: {_UNMERGEABLE[kind]}")
    source, reference = _find_base(adapter, base)
    check_code(source, trust_remote_code)
    tokenizer = _tokenizer(adapter, load_tokenizer(source, trust_remote_code))
    model = load_model(source, torch.float32, "none", trust_remote_code=trust_remote_code)
    if getattr(model, "is_quantized", False):
        raise ConfigError(f"the base in {source} is quantized; merge into its full-precision form (--base)")
    saved_dtype = dtype_of(source) if dtype == "auto" else getattr(torch, dtype)
    rest = _write_token_rows(model, adapter)
    prompts = _prompts(adapter, tokenizer)
    before, model = _merged(model, adapter, rest, prompts)
    exact = _distance(before, _logits(model, prompts))
    if not exact <= TOLERANCE:
        raise ConfigError(
            f"this {adapter.config.KIND} adapter cannot be merged: the merged weights answer otherwise, by {exact:.2g} "
            "of the spread of the logits; serve it as an adapter"
        )
    rounded = _distance(before, _logits(model.to(saved_dtype).float(), prompts))
    manifest = _manifest(adapter, reference)
    save_base(model, source, tokenizer, output, manifest=manifest, dtype=saved_dtype)
    return Merged(output, exact, rounded, dtype_name(saved_dtype))


def _find_base(adapter: AdapterPackage, base: str | None) -> tuple[Path, BaseRef]:
    manifest = adapter.manifest
    spec = base or (manifest.base.name if manifest else None)
    if not spec:
        raise ConfigError("the package does not say which base it was trained on; give it with --base")
    path = resolve_base(spec)
    fingerprint = base_fingerprint(path)
    if manifest and manifest.base.fingerprint != fingerprint:
        raise BaseMismatchError(
            f"the adapter was trained on {manifest.base.name} ({manifest.base.fingerprint[:12]}), and {spec} is "
            f"another base ({fingerprint[:12]}); give the right one with --base"
        )
    return path, BaseRef(path.name if Path(spec).is_absolute() else spec, fingerprint)


def _tokenizer(adapter: AdapterPackage, tokenizer: Any) -> Any:
    """The base's ``tokenizer``, with the adapter's added tokens and the chat template that it was trained with."""
    manifest = adapter.manifest
    for token in read_added_tokens(adapter.path, tuple(manifest.added_tokens) if manifest else ()):
        if token.content not in tokenizer.get_vocab():
            options = {
                key: value for key, value in msgspec.structs.asdict(token).items() if key not in ("id", "content")
            }
            tokenizer.add_tokens([tokenizers.AddedToken(token.content, **options)])
        if tokenizer.convert_tokens_to_ids(token.content) != token.id:
            raise BaseMismatchError(f"the added token {token.content!r} has another number in the base's tokenizer")
    wanted = manifest.chat_template_sha256 if manifest else None
    if wanted and template_sha256(tokenizer.chat_template or "") != wanted:
        beside = adapter.path.parent / SERVED_TEMPLATE
        text = beside.read_text(encoding="utf-8") if beside.is_file() else ""
        if template_sha256(text) != wanted:
            raise ConfigError(
                f"the adapter was trained with another chat template than the base's; put it into {beside}"
            )
        tokenizer.chat_template = text
    return tokenizer


@torch.no_grad()
def _write_token_rows(model: Any, adapter: AdapterPackage) -> dict[str, Tensor]:
    """Put rows of single tokens into the tables of ``model``, which grow for new ones; returns the other tensors."""
    indices = getattr(adapter.config, "trainable_token_indices", None)
    if not indices:
        return dict(adapter.tensors)
    rows = {name: tensor for name, tensor in adapter.tensors.items() if name.endswith(_TOKEN_ROWS)}
    listed = list(indices.values()) if isinstance(indices, Mapping) else [indices]
    is_tied = output_head(model).weight is model.get_input_embeddings().weight
    if is_tied and (len(set(map(tuple, listed))) > 1 or _is_head_alone(model, indices)):
        raise ConfigError(
            "this adapter cannot be merged: it has other rows of tokens for the head than for the embedding, which "
            "are one in its base"
        )
    size = max(map(max, listed)) + 1
    if size > len(model.get_input_embeddings().weight):
        model.resize_token_embeddings(size, mean_resizing=False)
    for name, tensor in rows.items():
        path = name.removeprefix(_PREFIX).removesuffix(_TOKEN_ROWS)
        ids = indices if not isinstance(indices, Mapping) else next(v for k, v in indices.items() if path.endswith(k))
        model.get_submodule(path).weight[torch.tensor(list(ids))] = tensor.float()
    return {name: tensor for name, tensor in adapter.tensors.items() if name not in rows}


def _is_head_alone(model: Any, indices: Any) -> bool:
    names = {id(module): name for name, module in model.named_modules()}
    embedding = names[id(model.get_input_embeddings())]
    return isinstance(indices, Mapping) and not any(embedding.endswith(key) for key in indices)


def _merged(
    model: Any, adapter: AdapterPackage, tensors: Mapping[str, Tensor], prompts: list[list[int]]
) -> tuple[list[Tensor], Any]:
    """Logits of ``model`` with the adapter beside it, and the model with the adapter in it."""
    if adapter.config.peft_type == "FREEZE":
        with torch.no_grad():
            for name, tensor in tensors.items():
                model.get_parameter(name.removeprefix(_PREFIX)).copy_(tensor)
        return _logits(model, prompts), model
    raw = json.loads((adapter.path / CONFIG_FILE).read_text(encoding="utf-8"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of keys that are ours, and of tied weights: the logits are compared
            config = PeftConfig.from_peft_type(**{key: value for key, value in raw.items() if key not in _OURS})
            wrapped = PeftModel(model, config)
            result = set_peft_model_state_dict(wrapped, dict(tensors))
            if result.unexpected_keys:
                raise ConfigError(f"peft does not know the tensor {result.unexpected_keys[0]!r} of this adapter")
            before = _logits(wrapped, prompts)
            return before, wrapped.merge_and_unload(safe_merge=True)
    except (NotImplementedError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise ConfigError(f"this {adapter.config.KIND} adapter cannot be merged: {reason}") from error


def _prompts(adapter: AdapterPackage, tokenizer: Any) -> list[list[int]]:
    recorded = [golden.input_ids.tolist() for golden in read_golden(adapter.path)]
    return recorded or [tokenizer(text).input_ids for text in GOLDEN_PROMPTS]


def _logits(model: Any, prompts: list[list[int]]) -> list[Tensor]:
    return [golden.logits for golden in golden_logits(model.eval(), prompts)]


def _distance(before: list[Tensor], after: list[Tensor]) -> float:
    return max(float((a - b).abs().max() / b.std()) for a, b in zip(after, before, strict=True))


def _manifest(adapter: AdapterPackage, base: BaseRef) -> Manifest:
    """Where the merged base came from; figures are the adapter's."""
    made = adapter.manifest
    return Manifest(
        kind="merged",
        base=base,
        created=datetime.now(UTC),
        chat_template_sha256=made.chat_template_sha256 if made else None,
        data=made.data if made else None,
        seed=made.seed if made else None,
        versions=package_versions(RECORDED_PACKAGES),
        metrics=made.metrics if made else {},
        training={**(made.training if made else {}), "adapter": adapter.config.KIND, "adapter_digest": adapter.digest},
    )
