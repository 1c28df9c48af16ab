"""The environment of foreign templates is transformers': what templates in use write is the same, byte for byte."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

from server.text.template_environment import make_environment, variables
from tests.factory import make_tokenizer

CALL = {"id": "call00001", "type": "function", "function": {"name": "mul", "arguments": {"a": 3, "é": "<&>"}}}
PLAIN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hé \n", "reasoning": "why"}]
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, *PLAIN, {"role": "user", "content": "And?"}],
    [
        {"role": "user", "content": "3*18?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call00001", "name": "mul", "content": "54"},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
    [{"role": "user", "content": None}],
]
TEMPLATES = {
    path.name: path.read_text() for path in (files("trl") / "chat_templates").iterdir() if ".jinja" in path.name
}
SPECIAL = {
    "tojson": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}\n  {% endgeneration %}{% endfor %}",
    "loops": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "names": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ tools }}{{ documents }}{{ extra }}",
    "dict": "{{ dict(a=1) }}{{ dict.fromkeys(['b']) }}{% set ns = namespace(x=1) %}{% set ns.x = 2 %}{{ ns.x }}",
    "dunder": "{% set ns = namespace(__init__=1) %}",
    "class": "{{ messages.__class__ }}",
    "changed": "{{ messages.append(1) }}",
    "reasons": "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{% endfor %}",
    "today": "{{ strftime_now('%Y-%m-%d') }}",
    "raises": "{{ raise_exception('no') }}",
    "space": "  {% if true %}  \n  x\n  {% endif %}\n{{ '<&>' }}\n",
    "defined": "{% for m in messages %}{{ m.content is defined }}{{ 'content' in m }}{% endfor %}",
}


@pytest.mark.parametrize("name", [*TEMPLATES, *SPECIAL])
def test_equals_transformers(name: str) -> None:
    source, tokenizer = {**TEMPLATES, **SPECIAL}[name], make_tokenizer()
    arguments = {"extra": "x", "add_generation_prompt": True}
    template = make_environment().from_string(source)
    for messages in CONVERSATIONS:
        try:
            wanted: Any = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **arguments)
        except Exception as error:  # noqa: BLE001 - whatever it is, ours fails alike
            wanted = type(error)
        try:
            found: Any = template.render(variables(messages, {**tokenizer.special_tokens_map, **arguments}))
        except Exception as error:  # noqa: BLE001
            found = type(error)
        assert found == wanted
