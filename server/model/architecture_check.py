"""Whether an architecture can be served, before it is loaded and after, and what each of its attention layers stores.

Configs name head counts and sizes differently, and some models store keys and values of different size. So one token
is run through the model. Architectures that no test has seen also run a short prompt, alone as transformers does it
and then packed beside another one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from bases.architecture import ENCODER_DECODERS, model_class
from bases.compute import dtype_name
from bases.model import LoadedBase, layer_count
from server.errors import EngineStartError
from server.model.adapter_pool import AdapterPool
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.layout import assemble
from server.model.prepared import ROUNDING, distance
from server.model.step import PrefillPart, Step, computing

_LAYER_TYPES = ("full_attention", "sliding_attention")
_SENSES = re.compile("vision|image|video|vq|audio|speech|codec")
_STATEFUL = (nn.Conv1d, nn.Conv2d, nn.RNNBase)


def check_architecture(hf_config: Any) -> None:
    """EngineStartError for architectures that are no plain decoder of text, nor a served encoder-decoder."""
    model_type = hf_config.model_type
    if model_type in ENCODER_DECODERS:
        return
    if getattr(hf_config, "is_encoder_decoder", False):
        raise EngineStartError(
            f"{model_type} is an encoder-decoder model of a family that is not served; served are "
            f"{', '.join(ENCODER_DECODERS)}"
        )
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(hf_config, "is_decoder", False):
        raise EngineStartError(
            f"{model_type} is an encoder: it reads a text in both directions, and no text can be gone on with. Serve a "
            "decoder-only base; it gives embeddings, and with adapters trained on it (task: embedding, classification "
            "or regression) classes and scores"
        )
    reads_all = getattr(hf_config, "use_bidirectional_attention", None)  # of Gemma 4's "vision" it is of images alone
    if not getattr(hf_config, "is_causal", True) or reads_all in (True, "all"):
        raise EngineStartError(
            f"this {model_type} reads a text in both directions (its config.json says so, as that of an embedding "
            "model), and only decoders are served: their tokens see what is before them. Serve a decoder-only base"
        )
    senses = [name.removesuffix("_config") for name in hf_config.sub_configs if _SENSES.search(name)]
    if senses:
        raise EngineStartError(
            f"{model_type} is a model of more than text ({', '.join(senses)}), which is not served; serve a text model "
            "of the same family"
        )
    is_known = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not is_known and model_class(hf_config).__name__ not in (getattr(hf_config, "auto_map", None) or {}):
        raise EngineStartError(f"{model_type} is no language model that writes text; serve a causal language model")


def problem_with_layers(model: PreTrainedModel) -> str | None:
    """Why a model that no test has seen cannot be served, as far as its layers tell without running it."""
    for name, module in model.named_modules():
        if isinstance(module, _STATEFUL):
            return f"the layer {name} ({type(module).__name__}) carries state from token to token"
    types = getattr(model.config.get_text_config(), "layer_types", None) or []
    if unknown := sorted(set(types) - set(_LAYER_TYPES)):
        return f"it has layers of the type {unknown[0]}; served are {' and '.join(_LAYER_TYPES)}"
    windows = {getattr(m, "layer_idx", None) for m in model.modules() if getattr(m, "sliding_window", None)}
    for layer, kind in enumerate(types):
        if kind == "sliding_attention" and layer not in windows:
            return f"layer {layer} attends within a window, which it does not tell the attention function"
    return None


_PROMPT, _NEIGHBOUR = [5, 23, 7, 101, 64, 11, 42, 3, 77], [90, 4, 55, 31, 8, 19, 63]


class _Recorder:
    """Stands in for the cache: keeps what is written and gives it back."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        self.stored[layer] = (key, value)

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self.stored[layer]
        return key.transpose(0, 1)[None], value.transpose(0, 1)[None]


def probe_layers(base: LoadedBase) -> list[LayerShape]:
    """What each layer stores. Raises EngineStartError when a layer does not attend through our function."""
    recorder = _Recorder()
    slots = torch.zeros(1, dtype=torch.long, device=base.device)
    part = PrefillPart(row=0, count=1, start=0, slots=slots[None])
    step = Step(cast(KVCache, recorder), slots, None, [part], [], [], {})
    try:
        with torch.inference_mode(), computing(step):
            base.model(input_ids=slots[None], position_ids=slots[None], use_cache=False)
    except Exception as error:
        raise _unserved(base, f"it fails on a single token ({type(error).__name__}: {error})") from error
    layers = layer_count(base.model.config)
    if sorted(recorder.stored) != list(range(layers)):
        raise _unserved(
            base, f"{len(recorder.stored)} of its {layers} layers attend through transformers' AttentionInterface"
        )
    shapes = (recorder.stored[i] for i in range(layers))
    return [LayerShape(key.shape[1], key.shape[2], value.shape[2]) for key, value in shapes]


def check_untested(base: LoadedBase, layers: Sequence[LayerShape]) -> None:
    """EngineStartError for an architecture that no test has seen, unless it proves to be served right.

    Its layers must be of known types, and a prompt in pieces beside another must give the logits that transformers
    gives it alone. It does not where rows reach each other by other ways than attention, where a mask is needed that
    the paged cache does not know, or where positions are not those told.
    """
    problem = problem_with_layers(base.model)
    if problem is not None:
        raise _unserved(base, problem)
    try:
        want = _alone(base)
        got = _in_pieces(base, KVCache(layers, 2, 16, base.dtype, base.device))
    except Exception as error:
        raise _unserved(base, f"it fails on a short prompt ({type(error).__name__}: {error})") from error
    measured = distance(got.float(), want[[3, 7, 8]].float())
    # what kernels differ by; a row that sees its neighbour is off by its spread
    if not measured <= ROUNDING[dtype_name(base.dtype)]:
        raise _unserved(
            base, f"a short prompt beside another gives other logits than alone (off by {measured:.2g} of their spread)"
        )


@torch.inference_mode()
def _alone(base: LoadedBase) -> Tensor:
    """Logits [len(_PROMPT), vocab_size] of the unmodified model."""
    config = base.model.config
    ours, config._attn_implementation = config._attn_implementation, "eager"
    try:
        logits: Tensor = base.model(input_ids=torch.tensor([_PROMPT], device=base.device), use_cache=False).logits[0]
    finally:
        config._attn_implementation = ours
    return logits


@torch.inference_mode()
def _in_pieces(base: LoadedBase, cache: KVCache) -> Tensor:
    """Logits at three positions of the prompt: the ends of two chunks and of one decode."""
    found = []
    for start, stop in ((0, 4), (4, 8), (8, 9)):
        rows = [SequenceInput(None, _PROMPT[start:stop], start, [1], [stop - start - 1])]
        if start == 0:
            rows.insert(0, SequenceInput(None, _NEIGHBOUR, 0, [0], [0]))
        batch = assemble(ModelInput(rows), cache, AdapterPool(), base.device)
        with computing(batch.step):
            output = base.model(input_ids=batch.input_ids[None], position_ids=batch.positions[None], use_cache=False)
        found.append(output.logits[0, -1])
    return torch.stack(found)


def _unserved(base: LoadedBase, why: str) -> EngineStartError:
    return EngineStartError(
        f"the architecture {base.model.config.model_type} cannot be served: {why}; serve one of those in "
        "docs/families.md, or another whose layers all attend through transformers' AttentionInterface"
    )
