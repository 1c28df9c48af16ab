"""What the trainer writes of tools and calls is what a server writes: as text, and by templates that know them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from adapters.package.chat_template import PackageChat
from server.api.wire_tools import Tool
from server.text.tokenizer import TextProcessor
from tests.factory import CHAT_TEMPLATE, make_tokenizer
from trainer.config.data import DataConfig
from trainer.data.conversations import ConversationReader, ParsedRow
from trainer.data.encoding import Encoder
from trainer.data.rendering import make_renderer
from trainer.data.rows import RawRow

TOOLS: list[dict[str, Any]] = [
    {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "strict": True,
     "description": "Wéather"},
    {"type": "function", "function": {"description": None, "name": "time", "returns": "a text"}},
]  # fmt: skip
CALL = {"name": "weather", "arguments": {"city": "Zürich"}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]}
SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    CALLING,
    {"role": "tool", "tool_call_id": "1", "content": "rain"},
    {"role": "assistant", "content": "It rains."},
]
HERMES = (
    "{%- if tools %}{{- '<|im_start|>system\\n' + messages[0].content + '\\n<tools>' }}{%- for tool in tools %}"
    "{{- '\\n' + tool | tojson }}{%- endfor %}{{- '\\n</tools><|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages if not (tools and m.role == 'system') %}{{- '<|im_start|>' + m.role + '\\n' }}"
    "{{- m.content or '' }}"
    '{%- for c in m.tool_calls or [] %}{{- \'<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{- c.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
ENCODED = HERMES.replace("c.function.arguments | tojson", "'' + c.function.arguments")
MISTRAL = (
    "{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) }}{%- endif %}{%- for m in messages %}"
    "{%- if m.tool_calls %}{%- for c in m.tool_calls %}{%- if c.id | length != 9 %}"
    "{{- raise_exception('ids have nine characters') }}{%- endif %}"
    "{{- '[TOOL_CALLS]' + c.function.name + (c.function.arguments | tojson) }}{%- endfor %}"
    "{%- elif m.role == 'tool' %}{%- if m.tool_call_id | length != 9 %}{{- raise_exception('no id') }}{%- endif %}"
    "{{- '[TOOL_RESULTS]' + m.content }}{%- else %}{{- '[' + m.role + ']' + m.content }}{%- endif %}"
    "{%- if m.role == 'assistant' %}{{- '<|im_end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '>' }}{%- endif %}"
)
KIMI = (
    "{%- if tools %}{{- 'tools: ' + (tools | tojson) }}{%- endif %}{%- for m in messages %}{{- '<' + m.role + '>' }}"
    "{%- if m.role == 'tool' %}{{- '## Return of ' + m.tool_call_id + '\\n' }}{%- endif %}{{- m.content or '' }}"
    "{%- for c in m.tool_calls or [] %}{{- '<|tool_call_begin|>' + c.id + '<|tool_call_argument_begin|>' }}"
    "{{- c.function.arguments | tojson }}{{- '<|tool_call_end|>' }}{%- endfor %}{{- '<|im_end|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)


def parsed(config: DataConfig, said: list[dict[str, Any]], tools: list[Any]) -> ParsedRow:
    values = {"messages": said, "tools": json.dumps(tools)}
    return ConversationReader(config).read(RawRow("rows.jsonl line 1", values))


def trained(template: str, form: Any, said: list[dict[str, Any]]) -> list[int]:
    """Token ids of the prompt of the last answer of ``said``."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    config = DataConfig(path="x", tools=form)
    row = parsed(config, said, TOOLS)
    prompt = make_renderer(config, tokenizer).prompt(row.conversation[:-1], row.tools)
    return Encoder(tokenizer, [2], 4096, "drop").prompt_ids(prompt)


def served(template: str, form: Any, said: list[dict[str, Any]]) -> list[int]:
    """Token ids of what a client sends before the last answer of ``said``, for an adapter trained on ``form``."""
    text = TextProcessor(make_tokenizer(), template)
    messages = json.loads(json.dumps(said[:-1]))
    for message in messages:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    tools = [Tool.model_validate(tool if tool.get("type") else {"function": tool}) for tool in TOOLS]
    sent = [{"type": "function", "function": tool.function.for_template} for tool in tools]
    chat = text.fit_chat(PackageChat(written_tools=form == "text"), (), ())
    prompt = text.with_chat(chat).render_chat(messages, {"tools": sent})
    return text.encode(prompt, add_special_tokens=False)


@pytest.mark.parametrize("said", [SAID, SAID[1:], SAID[:3], SAID[1:3]], ids=["all", "no system", "call", "call alone"])
@pytest.mark.parametrize(
    ("template", "form"),
    [
        (CHAT_TEMPLATE, "text"),
        (HERMES, "text"),
        (HERMES, "template"),
        (ENCODED, "template"),
        (MISTRAL, "template"),
        (MISTRAL, "text"),
        (KIMI, "template"),
    ],
    ids=["knows none", "hermes as text", "hermes", "encoded arguments", "mistral", "mistral as text", "kimi"],
)
def test_training_and_serving_write_the_same(template: str, form: Any, said: list[dict[str, Any]]) -> None:
    if template == HERMES and said[0]["role"] != "system" and form == "template":
        said = [SAID[0], *said]
    ids = served(template, form, said)
    assert trained(template, form, said) == ids
    text = make_tokenizer().decode(ids)
    assert ("You can call these functions" in text) == (form == "text")
    assert '"description": "W' in text
    assert "strict" not in text
    assert "returns" not in text


def test_calls_of_a_history_are_written_as_they_were_learned() -> None:
    forms: list[tuple[Any, str]] = [
        ("text", json.dumps(CALL, ensure_ascii=False)),
        ("template", f"<tool_call>\n{json.dumps(CALL, ensure_ascii=False)}\n</tool_call>"),
    ]
    for form, call in forms:
        assert call in make_tokenizer().decode(served(HERMES, form, SAID))
        row = parsed(DataConfig(path="x", tools=form), SAID, TOOLS)
        assert row.with_tools
        assert (row.conversation[2].content == call) == (form == "text")


def test_calls_of_sharegpt_are_written_in_one_way() -> None:
    said = [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name":"f","arguments":{"é":1}}'}]
    row = parsed(DataConfig(path="x"), said, [])
    assert row.conversation[1].content == '{"name": "f", "arguments": {"é": 1}}'
    listed = [said[0], {"from": "function_call", "value": '[{"name": "f"}, {"name": "g", "arguments": "{}"}]'}]
    assert parsed(DataConfig(path="x", tools="template"), listed, []).conversation[1].calls == (
        '{"name": "f", "arguments": {}}',
        '{"name": "g", "arguments": {}}',
    )
    spoken = [said[0], {"from": "function_call", "value": "f(1)"}]
    assert parsed(DataConfig(path="x"), spoken, []).conversation[1].content == "f(1)"
