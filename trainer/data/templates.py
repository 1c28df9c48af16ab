"""Chat templates by name, for bases that have none or are to be trained with another one, as Jinja.

``eos_token`` and ``bos_token`` are the base's own. A server must render the same template as training did: the package
records its hash, and servers refuse it where theirs is another.
"""

from __future__ import annotations

import difflib
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trainer.config.data import DataConfig
from trainer.errors import DataError

BASE = "chat"
NONE = "none"

_MARKED = (  # messages between markers of their own
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% else %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] | trim + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
_MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for message in turns %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% else %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
_ALPACA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% set turns = messages[1:] %}"
    "{% else %}{{ 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n' }}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'assistant' %}"
    "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% else %}"
    "{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
_VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set turns = messages[1:] %}"
    "{% else %}{{ 'A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}"
    "{% set turns = messages %}{% endif %}{% for message in turns %}{% if message['role'] == 'assistant' %}"
    "{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% else %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
_ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
_GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{{ bos_token }}{% for message in turns %}{% if message['role'] == 'assistant' %}"
    "{{ '<start_of_turn>model\n' + message['content'] | trim + '<end_of_turn>\n' }}{% else %}"
    "{{ '<start_of_turn>user\n' + (system if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Of the scripts for ChatGLM and ChatGLM2, which count rounds from 0 and from 1. An answer ends with the text.
_ROUNDS = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n\n' }}{% set turns = messages[1:] %}"
    "{% else %}{% set turns = messages %}{% endif %}"
    "{% for message in turns %}{% if message['role'] == 'assistant' %}{{ message['content'] }}{% else %}"
    "{{ ('' if loop.first else 'SEP') + '[Round ' ~ (loop.index0 // 2 + FIRST) ~ ']SEP问：' + message['content'] + "
    "'SEP答：' }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": _MARKED,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "alpaca": _ALPACA,
    "vicuna": _VICUNA,
    "zephyr": _ZEPHYR,
    "phi3": _PHI3,
    "gemma": _GEMMA,
    "chatglm": _ROUNDS.replace("SEP", "\n").replace("FIRST", "0"),
    "chatglm2": _ROUNDS.replace("SEP", "\n\n").replace("FIRST", "1"),
}


def template_name(config: DataConfig) -> str:
    """What to call the template in records: ``inline`` for a text."""
    return "inline" if "{" in config.template else config.template


def template_text(config: DataConfig, tokenizer: Any) -> str | None:
    """The Jinja text that conversations are rendered with; None for plain prompts. Raises DataError."""
    name = config.template
    if name == NONE:
        return None
    if name == BASE:
        text = tokenizer.chat_template
        if not text:
            raise DataError(
                "the base has no chat template; set data.template: none and put all text into the prompt, "
                f"or name one: {', '.join(TEMPLATES)}"
            )
        return str(tokenizer.get_chat_template())
    if "{" in name:
        _check_syntax(name)
        return name
    if name not in TEMPLATES:
        near = difflib.get_close_matches(name, [BASE, NONE, *TEMPLATES], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(
            f"data.template: {name!r} is no template; {hint}Choose from {BASE}, {NONE}, {', '.join(TEMPLATES)}, "
            "or give a .jinja file"
        )
    return TEMPLATES[name]


def _check_syntax(text: str) -> None:
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except TemplateError as error:
        raise DataError(f"data.template is not valid Jinja: {error.message}") from error


def is_foreign(config: DataConfig, tokenizer: Any) -> bool:
    """Whether conversations are rendered with another template than a server of the base has by itself."""
    return config.template not in (BASE, NONE) and template_text(config, tokenizer) != tokenizer.chat_template
