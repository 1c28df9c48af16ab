"""The configuration of a model that comes as code beside its weights."""

from transformers import PretrainedConfig


class TinyGlmConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "tiny_glm"
    vocab_size: int = 320
    hidden_size: int = 64
    intermediate_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rotary_dim: int = 8
    max_position_embeddings: int = 256
