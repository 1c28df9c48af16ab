"""Runs T5's stacks: the encoder over the prompts that are new in a step, then the decoder over its new tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapters.base import BaseSpec
from server.errors import EngineStartError
from server.model.adapted import adapt_embedding, adapt_module
from server.model.inputs import ModelInput, SequenceInput
from server.model.kv_cache import KVCache, LayerShape
from server.model.loader import LoadedBase, adaptable_modules
from server.model.pool import AdapterPool
from server.model.seq2seq.attention import bind_attention, layer_shapes, write_source
from server.model.seq2seq.step import Pass, decoder_pass, encoder_pass
from server.model.step import computing


class Seq2SeqForward:
    """An encoder-decoder base; see ``server.model.forward.Forward``."""

    def __init__(self, base: LoadedBase) -> None:
        if base.dtype == torch.float16:
            raise EngineStartError(
                f"--dtype float16: {base.model.config.model_type} was trained in bfloat16 and overflows in float16 "
                "(transformers keeps parts of it in float32 then); use --dtype bfloat16 or float32"
            )
        self._model, self._device = base.model, base.device
        start = getattr(base.model.generation_config, "decoder_start_token_id", None)
        start = base.model.config.decoder_start_token_id if start is None else start
        self.start_ids: list[int] = [int(base.model.config.pad_token_id if start is None else start)]
        bind_attention(base.model)

    def layers(self) -> list[LayerShape]:
        """See Forward.layers."""
        return layer_shapes(self._model)

    def spec(self, spec: BaseSpec) -> BaseSpec:
        """The stacks have an embedding module each, of one weight: no adapter may act on it, so none is named."""
        parameters = {n: shape for n, shape in spec.parameters.items() if not n.startswith(f"{spec.embedding}.")}
        return replace(spec, parameters=parameters, embedding="", is_encoder_decoder=True)

    def adapt(self, spec: BaseSpec) -> None:
        """See Forward.adapt."""
        for name, module in adaptable_modules(self._model).items():
            adapt_module(module, name, is_head=name == spec.head)
        adapt_embedding(self._model.encoder.embed_tokens, "encoder.embed_tokens")

    def execute(self, inputs: ModelInput, cache: KVCache, pool: AdapterPool) -> Tensor:
        """See Forward.execute."""
        encoder = encoder_pass(inputs, cache, pool, self._device)
        if encoder is not None:
            self._encode(encoder)
        return self._decode(decoder_pass(inputs, cache, pool, self._device))

    def warm_up_inputs(self, block_size: int) -> list[ModelInput]:
        """See Forward.warm_up_inputs."""
        count = min(8, 2 * block_size - 1)
        tokens = [0] * count + self.start_ids
        prompt = SequenceInput(None, tokens, 0, [0, 1], [count], count)
        return [ModelInput([prompt]), ModelInput([SequenceInput(None, self.start_ids, count, [0, 1], [0], count)])]

    def _encode(self, encoder: Pass) -> None:
        with computing(encoder.step):
            encoded = self._model.encoder(input_ids=encoder.input_ids[None])
            write_source(self._model, encoded.last_hidden_state)

    def _decode(self, decoder: Pass) -> Tensor:
        """As T5's own forward does after its encoder; only rows whose logits are wanted reach the head."""
        with computing(decoder.step):
            nothing = torch.empty(1, 0, self._model.model_dim, device=self._device)  # it lies in the cache
            hidden = self._model.decoder(
                input_ids=decoder.input_ids[None], encoder_hidden_states=nothing, use_cache=False
            ).last_hidden_state[:, decoder.logits_rows]
            if getattr(self._model.config, "scale_decoder_outputs", False):  # mT5 has no such setting
                hidden = hidden * self._model.model_dim**-0.5
            logits: Tensor = self._model.lm_head(hidden)[0]
        return logits
