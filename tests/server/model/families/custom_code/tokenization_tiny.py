"""A tokenizer that comes as code: a fast one that writes a begin token before every text, as ChatGLM's do."""

from typing import Any

from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


class TinyOwnTokenizer(PreTrainedTokenizerFast):  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        begin = (str(self.bos_token), int(self.convert_tokens_to_ids(self.bos_token)))
        self.backend_tokenizer.post_processor = TemplateProcessing(single=f"{begin[0]} $A", special_tokens=[begin])
