"""Runs the model on one step's batch. Owned by the stepping thread; only ``prepare`` may be called from others."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from adapters.batch.low_rank import with_factors_together
from adapters.combining import Member, combine
from adapters.compiling import compile_package
from adapters.ops import Adapter
from adapters.package.added_tokens import read_added_tokens, unnamed_rows
from adapters.package.golden import read_golden
from adapters.package.manifest import Manifest
from adapters.package.reading import AdapterPackage, read_package
from bases.architecture import has_own_code
from bases.compute import describe_kernels, dtype_name, uses_kernels
from bases.model import LoadedBase, base_spec
from hotkernels import native
from server.adapter_key import AdapterKey
from server.config import EngineConfig
from server.errors import EngineStartError
from server.memory import free_unused
from server.model.adapter_pool import AdapterPool
from server.model.forward import DecoderForward, Forward
from server.model.host_tier import HostTier
from server.model.inputs import ModelInput
from server.model.kv_cache import KVCache, LayerShape, common_head_dim
from server.model.loader import load_base
from server.model.outputs import ModelOutput
from server.model.own_code import OwnCodeForward, paged_problem
from server.model.prepared import PreparedAdapter, make_verification_plan
from server.model.seq2seq.encoder_decoder import Seq2SeqForward
from server.model.shared_content import SharedContent

logger = logging.getLogger(__name__)


class ModelRunner:
    """The resident base, its KV cache and its adapters."""

    def __init__(self, base: LoadedBase, config: EngineConfig) -> None:
        self._base = base
        self._forward = _make_forward(base, config)
        layers = self._forward.layers()
        self._cache = _make_cache(layers, base, config)
        kv = (len(layers), layers[0].num_heads, common_head_dim(layers))
        spec = self._forward.spec(base_spec(base, Path(config.model).name, kv))
        self.spec = replace(spec, adapter_templates=config.adapter_templates)
        self._forward.adapt(self.spec)
        self._pool = AdapterPool(self.spec.linears)
        self._shared = SharedContent()
        self.host = _make_host_tier(base, config)
        self.block_size = config.block_size
        self.max_model_len = min(config.max_model_len or base.max_positions, self._cache.num_blocks * config.block_size)

    @property
    def base_fingerprint(self) -> str:
        """Identifies the weights of the base."""
        return self._base.fingerprint

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.spec.vocab_size

    @property
    def eos_token_ids(self) -> list[int]:
        """Tokens that end an output."""
        return list(self._base.end_ids)

    @property
    def start_ids(self) -> list[int]:
        """Tokens that the decoder starts from after the encoder has read the prompt; none without an encoder."""
        return self._forward.start_ids

    @property
    def has_exact_rows(self) -> bool:
        """Whether a row's logits are the same to the last bit whatever is computed with it, in whatever pieces."""
        return self._forward.has_exact_rows and self._cache.is_read_in_place

    @property
    def hidden_size(self) -> int:
        """Of the hidden states that ``compute`` gives; 0 where this base gives none."""
        return self._forward.hidden_size

    @property
    def embedding_size(self) -> int:
        """Of embeddings that may stand in the place of tokens; 0 where this base takes none."""
        return self._forward.embedding_size

    @property
    def num_blocks(self) -> int:
        """KV blocks in all."""
        return self._cache.num_blocks

    @property
    def dtype(self) -> str:
        """Type that products are computed in."""
        return dtype_name(self._base.dtype)

    @property
    def kernels(self) -> str:
        """Which kernels compute, in a few words."""
        return describe_kernels(self._base.device, self._base.dtype)

    @property
    def kv_dtype(self) -> str:
        """Type that keys and values are kept in."""
        return dtype_name(self._cache.stored)

    @property
    def quantization(self) -> str:
        """How the base's weights are kept, by the name that --quantize has for it."""
        return self._base.quantization

    @property
    def device(self) -> str:
        """Where the model lies."""
        return str(self._base.device)

    @property
    def how(self) -> str:
        """All that decides what an adapter answers on this base, beside its content."""
        parts = (
            version("hotswap"), self.base_fingerprint, self.quantization, self.dtype, self.kernels, self.kv_dtype,
            self.device, str(self.max_model_len), str(self.spec.adapter_templates),
        )  # fmt: skip
        return " ".join(parts)

    @property
    def base_bytes(self) -> int:
        """Bytes of the base's weights."""
        return self._base.nbytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of the KV cache."""
        return self._cache.nbytes

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the resident adapters."""
        return self._pool.nbytes

    def prepare(self, path: Path, digest: str = "") -> PreparedAdapter:
        """Read, check and place a package; safe off-thread. Raises AdapterError.

        What is on the host of the content ``digest`` is taken from there instead.
        """
        found = self.host.get(digest) if self.host is not None and digest else None
        checked = found or self._read(path)
        started = time.monotonic()
        adapter, shared = self._shared.place(checked.adapter, self._place)
        adapter = with_factors_together(adapter)
        seconds = {} if found else checked.seconds
        return replace(checked, adapter=adapter, shared=shared, seconds={**seconds, "copy": time.monotonic() - started})

    def combine(self, members: Sequence[Member]) -> PreparedAdapter:
        """The weighted sum of prepared adapters, as one; safe off-thread. Raises UnsupportedKindError.

        It is not verified: its members were.
        """
        started = time.monotonic()
        adapter = with_factors_together(combine(members).map(self._place))
        return PreparedAdapter(adapter, {"combine": time.monotonic() - started})

    def _read(self, path: Path) -> PreparedAdapter:
        """The package in ``path``, checked, its tensors on the CPU; they stay there where that is not the device."""
        times = [time.monotonic()]
        package = read_package(path)
        times.append(time.monotonic())
        adapter = compile_package(package, self.spec)
        times.append(time.monotonic())
        stages = zip(("read", "validate"), times, times[1:], strict=False)
        seconds = {stage: end - start for stage, start, end in stages}
        golden = read_golden(path, of_head=adapter.head is not None)
        plan = make_verification_plan(golden, package.manifest, self.quantization, self.dtype, self.kv_dtype)
        warnings = [*_template_warnings(package.manifest), *self._vocabulary_warnings(package, adapter)]
        prepared = PreparedAdapter(adapter, seconds, warnings=warnings, plan=plan, digest=package.digest)
        return prepared if self.host is None else self.host.put(package.digest, prepared)

    def _vocabulary_warnings(self, package: AdapterPackage, adapter: Adapter) -> list[str]:
        """Rows of new tokens that nothing names: what they were trained on can be neither written nor read."""
        if adapter.vocab_size is None or adapter.vocab_size <= self.spec.vocab_size:
            return []
        named = tuple(package.manifest.added_tokens) if package.manifest is not None else ()
        warning = unnamed_rows(read_added_tokens(package.path, named), self.spec.vocab_size, adapter.vocab_size)
        return [warning] if warning else []

    def _place(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the base's device, in its compute type unless it holds indices, or fewer bits than that."""
        is_small = not tensor.is_floating_point() or self._base.dtype == torch.float32
        return tensor.to(self._base.device, tensor.dtype if is_small else self._base.dtype)

    def weight(self, adapter: Adapter) -> int:
        """Bytes that installing an adapter adds."""
        return self._pool.weight(adapter)

    def install(self, key: AdapterKey, adapter: Adapter) -> None:
        """Make a prepared adapter available to the next step."""
        self._pool.add(key, adapter)

    def remove(self, key: AdapterKey) -> None:
        """Drop an adapter that no sequence uses."""
        self._pool.remove(key)

    def write_prefix(self, key: AdapterKey, block_table: list[int]) -> None:
        """Fill ``block_table`` with the KV of a prefix adapter's virtual tokens."""
        prefix = self._pool[key].prefix
        assert prefix is not None, f"{key} is not a prefix adapter"
        blocks = torch.tensor(block_table, dtype=torch.long, device=self._base.device)
        slots = blocks[:, None] * self.block_size + torch.arange(self.block_size, device=self._base.device)
        self._cache.write_prefix(prefix, slots.flatten()[: prefix.keys.shape[1]])

    @torch.inference_mode()
    def compute(self, inputs: ModelInput) -> ModelOutput:
        """Compute one step; logits [n, vocab_size] in fp32, in the order of the sequences' ``logits_at``."""
        self._cache.copy_blocks(inputs.copies)
        logits, hidden = self._forward.execute(inputs, self._cache, self._pool)
        return ModelOutput(logits.float(), hidden)

    def execute(self, inputs: ModelInput) -> Tensor:
        """The logits of ``compute`` alone."""
        return self.compute(inputs).logits

    def warm_up(self) -> None:
        """Run one prefill and one decode, so that kernels are chosen and weights packed before the first request."""
        for inputs in self._forward.warm_up_inputs(self.block_size):
            self.execute(inputs)


def load_runner(config: EngineConfig) -> ModelRunner:
    """Load the base and everything around it. Raises EngineStartError in plain words."""
    if config.threads:
        torch.set_num_threads(config.threads)
        native.set_num_threads(config.threads)
    started = time.monotonic()
    runner = ModelRunner(load_base(config), config)
    runner.warm_up()
    free_unused()
    logger.info(
        "base resident: %.0f MB as %s, computed in %s on %s; kernels: %s; KV cache %.0f MB of %s; %.1f s",
        runner.base_bytes / 1e6, runner.quantization, runner.dtype, runner.device, runner.kernels,
        runner.kv_bytes / 1e6, runner.kv_dtype, time.monotonic() - started,
    )  # fmt: skip
    return runner


def _make_forward(base: LoadedBase, config: EngineConfig) -> Forward:
    if base.is_encoder_decoder:
        return Seq2SeqForward(base)
    if has_own_code(base.model) and (problem := paged_problem(base)):
        logger.info("not through the paged cache: %s", problem)
        return OwnCodeForward(base)
    return DecoderForward(base, config.forward)


def _make_host_tier(base: LoadedBase, config: EngineConfig) -> HostTier | None:
    """None where the host's memory is the device's."""
    if base.device.type == "cpu":
        return None
    return HostTier(int(config.max_host_adapter_gb * 1e9), pinned=base.device.type == "cuda")


def _make_cache(layers: list[LayerShape], base: LoadedBase, config: EngineConfig) -> KVCache:
    budget, stored = int(config.kv_cache_gb * 1e9), _stored_dtype(config, base)
    num_blocks = KVCache.num_blocks_for(layers, budget, config.block_size, stored)
    if num_blocks < 2:
        raise EngineStartError(f"--kv-cache-gb {config.kv_cache_gb} holds {num_blocks} blocks; raise it")
    return KVCache(layers, num_blocks, config.block_size, base.dtype, base.device, stored)


def _stored_dtype(config: EngineConfig, base: LoadedBase) -> torch.dtype:
    """``auto`` is as computed, but float16 where native kernels read the keys over a base that is rounded itself."""
    if config.kv_dtype == "auto":
        is_rounded = base.quantization != "none" and uses_kernels(base.device, base.dtype)
        return torch.float16 if is_rounded else base.dtype
    dtype = getattr(torch, config.kv_dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _template_warnings(manifest: Manifest | None) -> list[str]:
    """A chat request to an adapter of plain prompts is answered, but not as it was trained."""
    if manifest is None or manifest.training.get("template") != "none":
        return []
    return ["the adapter was trained on plain prompts, without a chat template: ask it at /v1/completions"]
