"""The configuration of a small decoder in ChatGLM2's manner, under that architecture's published names."""

from typing import Any

from transformers import PretrainedConfig


class TinyChatGlmConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "chatglm"

    def __init__(  # noqa: PLR0917 - the names are those of the published configuration
        self,
        num_layers: int = 2,
        padded_vocab_size: int = 320,
        hidden_size: int = 64,
        ffn_hidden_size: int = 96,
        kv_channels: int = 16,
        num_attention_heads: int = 4,
        multi_query_group_num: int = 2,
        seq_length: int = 256,
        layernorm_epsilon: float = 1e-5,
        add_qkv_bias: bool = True,
        pre_seq_len: int | None = None,
        prefix_projection: bool = False,
        keeps_tuples: bool = False,
        **kwargs: Any,
    ) -> None:
        self.num_layers = num_layers
        self.padded_vocab_size = self.vocab_size = padded_vocab_size
        self.hidden_size = hidden_size
        self.ffn_hidden_size = ffn_hidden_size
        self.kv_channels = kv_channels
        self.num_attention_heads = num_attention_heads
        self.multi_query_group_num = multi_query_group_num
        self.seq_length = seq_length
        self.layernorm_epsilon = layernorm_epsilon
        self.add_qkv_bias = add_qkv_bias
        self.pre_seq_len = pre_seq_len
        self.prefix_projection = prefix_projection
        self.keeps_tuples = keeps_tuples
        super().__init__(**{"tie_word_embeddings": False, **kwargs})
