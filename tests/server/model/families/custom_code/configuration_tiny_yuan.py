"""The configuration of a small decoder in Yuan2's manner, under that architecture's published names."""

from transformers import PretrainedConfig


class TinyYuanConfig(PretrainedConfig):  # type: ignore[misc]
    model_type = "yuan"
    vocab_size: int = 320
    hidden_size: int = 64
    intermediate_size: int = 96
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
