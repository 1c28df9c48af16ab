"""Model directories as one finds them on the hub, whose code comes beside the weights: written here, after the
published configurations of architectures that transformers does not know.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from tests.factory import make_tokenizer
from tests.server.model.families.custom_code.configuration_tiny_chatglm import TinyChatGlmConfig
from tests.server.model.families.custom_code.configuration_tiny_yuan import TinyYuanConfig
from tests.server.model.families.custom_code.modeling_tiny_chatglm import TinyChatGlmForConditionalGeneration
from tests.server.model.families.custom_code.modeling_tiny_yuan import TinyYuanForCausalLM

CODE = Path(__file__).parent / "custom_code"
MODELS: dict[str, Any] = {
    "chatglm": (TinyChatGlmConfig, TinyChatGlmForConditionalGeneration),
    "yuan": (TinyYuanConfig, TinyYuanForCausalLM),
}
# ChatGLM's own says its decoder so.
AUTO_CLASSES = {"chatglm": ("AutoModel", "AutoModelForSeq2SeqLM"), "yuan": ("AutoModelForCausalLM",)}
EOS, PAD = 258, 256


def make_own_code_base(path: Path, kind: str, *, own_tokenizer: bool = False, **settings: Any) -> Path:
    """Save a random fp32 base of the architecture ``kind`` with its code and a tokenizer into ``path``."""
    torch.manual_seed(0)
    config_class, model_class = MODELS[kind]
    model = model_class(config_class(eos_token_id=EOS, pad_token_id=PAD, **settings))
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3 if "lf_gate" in name else 0.12)
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    for part in ("configuration", "modeling"):
        shutil.copy(CODE / f"{part}_tiny_{kind}.py", path)
    auto_map = {"AutoConfig": f"configuration_tiny_{kind}.{config_class.__name__}"}
    auto_map |= dict.fromkeys(AUTO_CLASSES[kind], f"modeling_tiny_{kind}.{model_class.__name__}")
    _add(path / "config.json", auto_map=auto_map)
    if own_tokenizer:
        shutil.copy(CODE / "tokenization_tiny.py", path)
        own = "tokenization_tiny.TinyOwnTokenizer"
        _add(
            path / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, own]}, tokenizer_class="TinyOwnTokenizer"
        )
    return path


def _add(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
