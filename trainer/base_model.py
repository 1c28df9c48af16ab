"""Loads the base model that adapters are trained on, quantized or not. Knows nothing of adapters or rows."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from bases.architecture import check_code, is_encoder_decoder
from bases.compute import is_out_of_memory, resolve_dtype
from bases.end_tokens import end_token_ids
from bases.errors import BaseModelError
from bases.finding import resolve_base
from bases.fingerprint import base_fingerprint, template_sha256
from bases.model import LoadedBase
from bases.quantization import quantization_of
from bases.tokenizer import load_tokenizer
from trainer.added_tokens import TrainedToken, add_tokens
from trainer.config.data import DataConfig
from trainer.config.methods import trains_weights
from trainer.config.rules import broken_rules
from trainer.config.schema import DIVIDED, TrainConfig
from trainer.data.batches import NO_SOURCE, Collator, Seq2SeqCollator
from trainer.data.rendering import BASE, NONE, template_text
from trainer.errors import ConfigError, DataError, first_line


@dataclass(frozen=True, eq=False)
class Base(LoadedBase):
    """A loaded base and how its text is written.

    ``tokens`` are those whose embeddings are trained, by id; the tokenizer has them, the model's tables may not.
    """

    name: str
    path: Path
    tokenizer: Any
    pad_id: int
    tokens: tuple[TrainedToken, ...] = ()

    def collator(self) -> Collator | Seq2SeqCollator:
        """What makes batches of examples for the model."""
        return Seq2SeqCollator(self.pad_id, self.decoder_start_id) if self.is_encoder_decoder else Collator(self.pad_id)


def fitted(config: TrainConfig) -> TrainConfig:
    """``config`` as its base wants it: an encoder-decoder writes one answer, to a prompt without a template of its own.

    Raises ConfigError for what such a base cannot do, BaseModelError for a base that cannot be trained at all.
    """
    path = resolve_base(config.base)
    check_code(path, config.trust_remote_code)
    if not is_encoder_decoder(path):
        return config
    _check_encoder_decoder(config)
    data = msgspec.structs.replace(config.data, learn="last_answer")
    if data.template == BASE and not load_tokenizer(path, config.trust_remote_code).chat_template:
        data = msgspec.structs.replace(data, template=NONE)  # as such a base is served
    config = msgspec.structs.replace(config, data=data)
    for problem in broken_rules(config):
        raise ConfigError(problem)
    return config


def _check_encoder_decoder(config: TrainConfig) -> None:
    base = "the base is an encoder-decoder"
    if config.preference:
        raise ConfigError(f"preference: {base}, which is trained on prompts and answers only; leave this section out")
    if config.reading:
        raise ConfigError(f"task: {base}, and texts are read by decoders only; take another base")
    if config.training.packing:
        raise ConfigError(f"training.packing: {base}, whose rows have two parts; set it to false")
    if config.added_tokens:
        raise ConfigError(f"added_tokens: {base}, whose one embedding serves two stacks; leave them out")
    if config.data.learn == "everything":
        raise ConfigError(f"data.learn: {base}, which reads the prompt and cannot learn it; set it to last_answer")
    if config.data.shape == "text":
        raise ConfigError(f"data.shape: {NO_SOURCE}")


def load_base(config: TrainConfig) -> Base:
    """Load the base that ``config`` names. Raises BaseModelError saying what to do, ConfigError for added tokens."""
    path = resolve_base(config.base)
    fingerprint = base_fingerprint(path)
    tokenizer, end_ids, tokens = _vocabulary(path, config)
    template = _template(config.data, tokenizer)
    dtype = torch.float32 if trains_weights(config.method) else trained_dtype(config.training.dtype)
    where = torch.device("cpu") if config.training.strategy in DIVIDED else device()  # divided before it is moved
    model = load_model(path, dtype, config.training.quantize, where, config.trust_remote_code)
    return Base(
        model=model,
        quantization=quantization_of(model),
        dtype=dtype,
        device=where,
        fingerprint=fingerprint,
        end_ids=end_ids,
        chat_template_sha256=template_sha256(template) if template else None,
        name=path.name if Path(config.base).is_absolute() else config.base,  # packages name no folders of this machine
        path=path,
        tokenizer=tokenizer,
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_ids[0],
        tokens=tokens,
    )


def load_vocabulary(config: TrainConfig) -> tuple[Any, tuple[int, ...]]:
    """Tokenizer and ``end_ids`` of the base that ``config`` names, as load_base gives them; loads no weights."""
    return _vocabulary(resolve_base(config.base), config)[:2]


def _vocabulary(path: Path, config: TrainConfig) -> tuple[Any, tuple[int, ...], tuple[TrainedToken, ...]]:
    tokenizer = load_tokenizer(path, config.trust_remote_code)
    end_ids = end_token_ids(path, tokenizer, _template(config.data, tokenizer))
    if not end_ids:
        raise BaseModelError("the base says no end-of-text token (eos_token), so answers could never end")
    return tokenizer, end_ids, add_tokens(tokenizer, config.added_tokens or ())


def _template(config: DataConfig, tokenizer: Any) -> str | None:
    """What conversations are rendered with; None for plain prompts, and where rendering will say what is wrong."""
    try:
        return template_text(config, tokenizer)
    except DataError:
        return None


def load_model(
    path: Path, dtype: torch.dtype, quantize: str, on: torch.device | None = None, trust_remote_code: bool = False
) -> Any:
    """The language model in ``path``, frozen, on the device that trains or ``on``. Raises BaseModelError."""
    from bases import loader  # a second of imports, which a vocabulary needs none of

    try:
        model = loader.load_model(
            path,
            dtype=dtype,
            device=on or device(),
            quantize=quantize,
            trust_remote_code=trust_remote_code,
            for_training=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            smaller = "" if quantize == "nf4" else f"quantize=nf4 (now {quantize}) where the method allows it, or "
            raise BaseModelError(f"out of memory while {path} was loaded: take {smaller}a smaller base") from error
        raise BaseModelError(f"the base model in {path} cannot be loaded: {first_line(error)}") from error
    model.requires_grad_(False)
    model.config.use_cache = False
    return model


def trained_dtype(name: str) -> torch.dtype:
    """The compute type of training that ``name`` means on this machine. float16 is for CUDA devices; a CPU has auto."""
    on = device()
    return resolve_dtype("auto" if name == "float16" and on.type == "cpu" else name, on)


def device() -> torch.device:
    """The device on which this process trains: the CUDA device of its number, or the CPU."""
    return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")


def local_rank() -> int:
    """The number of this process among those that train together on this machine, as torchrun says it."""
    return int(os.environ.get("LOCAL_RANK", "0"))
