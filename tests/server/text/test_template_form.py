"""What form of a conversation a template takes is found out, and conversations are brought into it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from server.text.template_form import ContentForm, TemplateForm, content_text
from server.text.tokenizer import TextProcessor
from tests.factory import CHAT_TEMPLATE, make_tokenizer

ROLE, END = "{% for m in messages %}<|im_start|>{{ m.role }}\n", "<|im_end|>\n{% endfor %}"
PARTS = ROLE + "{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}" + END
FILTERED = (
    ROLE + "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p['text'] | trim }}{% endfor %}" + END
)
FIRST = ROLE + "{{ m.content[0]['text'] }}" + END
EITHER = (
    ROLE
    + (
        "{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    )
    + END
)
JSON = ROLE + "{{ m.content | tojson }}" + END
BY_ROLE = ROLE + "{% if m.role == 'user' %}{{ m.content[0].text }}{% else %}{{ m.content }}{% endif %}" + END
A, B = {"type": "text", "text": "Is this"}, {"type": "text", "text": "safe?"}


def processor(template: str) -> TextProcessor:
    return TextProcessor(make_tokenizer(), template)


def form_of(template: str) -> TemplateForm:
    form = processor(template).template_form
    assert form is not None
    return form


@pytest.mark.parametrize(
    ("template", "user", "system"),
    [
        (CHAT_TEMPLATE, ContentForm.TEXT, ContentForm.TEXT),
        (PARTS, ContentForm.PARTS, ContentForm.PARTS),
        (FILTERED, ContentForm.PARTS, ContentForm.PARTS),
        (FIRST, ContentForm.ONE_PART, ContentForm.ONE_PART),
        (EITHER, ContentForm.AS_SENT, ContentForm.AS_SENT),
        (JSON, ContentForm.TEXT, ContentForm.TEXT),
        (BY_ROLE, ContentForm.ONE_PART, ContentForm.TEXT),
        ("{{ raise_exception('never') }}", ContentForm.TEXT, ContentForm.TEXT),
    ],
)
def test_the_form_of_content(template: str, user: ContentForm, system: ContentForm) -> None:
    form = form_of(template)
    assert (form.content_form("user"), form.content_form("system")) == (user, system)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PARTS, FILTERED, FIRST, EITHER, JSON, BY_ROLE])
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("content", ["Is this\nsafe?", [A, B]])
def test_no_text_is_lost_whatever_was_sent(template: str, role: str, content: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": role, "content": content}]
    prompt = processor(template).render_chat(messages)
    assert A["text"] in prompt
    assert B["text"] in prompt
    assert "'type'" not in prompt


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, PARTS, EITHER])
@pytest.mark.parametrize("content", [None, "", []])
def test_nothing_is_rendered_as_nothing(template: str, content: Any) -> None:
    prompt = processor(template).render_chat(
        [{"role": "assistant", "content": content}], {"add_generation_prompt": False}
    )
    assert prompt == "<|im_start|>assistant\n<|im_end|>\n"


def test_parts_of_one_text_are_lines_of_it() -> None:
    assert content_text([A, B]) == "Is this\nsafe?"
    assert "Is thissafe?" in processor(PARTS).render_chat([{"role": "user", "content": [A, B]}])


# ---- developer and system ----

DEFAULTED = "{% if messages[0].role != 'system' %}DEFAULT\n{% endif %}" + ROLE + "{{ m.content }}" + END
KNOWN = ROLE.replace("{{ m.role }}", "{% if m.role == 'developer' %}DEV{% else %}{{ m.role }}{% endif %}")
KNOWN += "{{ m.content }}" + END
STRICT = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no ' + m.role) }}"
    "{% elif m.role == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)
FIRST_ONLY = (
    "{% if messages[0].role in ['system', 'developer'] %}[dev]{{ messages[0].content }}{% endif %}"
    "{% for m in messages if m.role == 'user' %}[user]{{ m.content }}{% endfor %}"
)
SAID = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, DEFAULTED, STRICT, ROLE.replace("m.role", "m.role | upper") + END])
def test_developer_is_system_where_the_template_does_not_know_it(template: str) -> None:
    text = processor(template)
    system = [{**SAID[0], "role": "system"}, SAID[1]]
    assert text.render_chat(SAID) == text.render_chat(system)
    assert "developer" not in text.render_chat(SAID).lower()


def test_developer_is_itself_where_the_template_knows_it() -> None:
    assert processor(KNOWN).render_chat(SAID).startswith("<|im_start|>DEVBe brief.")
    assert form_of(FIRST_ONLY).developer


@pytest.mark.parametrize("template", [STRICT, FIRST_ONLY])
@pytest.mark.parametrize("roles", [("system", "system"), ("system", "developer"), ("developer", "system")])
def test_two_system_messages_are_one_where_only_one_is_taken(template: str, roles: tuple[str, str]) -> None:
    messages = [{"role": role, "content": text} for role, text in zip(roles, ("Be brief.", [A, B]), strict=True)]
    prompt = processor(template).render_chat([*messages, {"role": "user", "content": "Hi"}])
    assert "Be brief.\n\nIs this\nsafe?" in prompt


def test_two_system_messages_are_two_where_both_are_taken() -> None:
    messages = [{"role": "system", "content": "One."}, {"role": "developer", "content": "Two."}]
    prompt = processor(CHAT_TEMPLATE).render_chat(messages)
    assert prompt.startswith("<|im_start|>system\nOne.<|im_end|>\n<|im_start|>system\nTwo.<|im_end|>\n")


# ---- tool calls ----

CALLS = ROLE + "{{ m.content }}{% for t in m.tool_calls or [] %}" + "CALL{% endfor %}" + END
AS_JSON = CALLS.replace("CALL", "{{ t.function.arguments | tojson }}")
AS_ITEMS = CALLS.replace("CALL", "{% for k, v in t.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}")
AS_TEXT = CALLS.replace("CALL", "{{ '[' + t.function.arguments + ']' }}")
EITHER_WAY = CALLS.replace(
    "CALL", "{% set a = t.function.arguments %}{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}"
)
LEGACY = ROLE + "{% if m.function_call %}{{ m.function_call.arguments | tojson }}{% endif %}" + END


def calling(arguments: Any) -> list[dict[str, Any]]:
    function = {"name": "mul", "arguments": arguments}
    call = {"id": "call00001", "type": "function", "function": function}
    return [
        {"role": "user", "content": "3*18?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "54"},
    ]


@pytest.mark.parametrize(
    ("template", "written"),
    [(AS_JSON, '{"a": 3}'), (AS_ITEMS, "<a>3"), (AS_TEXT, '[{"a": 3}]'), (EITHER_WAY, '{"a": 3}')],
)
@pytest.mark.parametrize("arguments", ['{"a": 3}', {"a": 3}])
def test_arguments_reach_the_template_in_its_form(template: str, written: str, arguments: Any) -> None:
    messages = calling(arguments)
    before = json.dumps(messages)
    assert f"<|im_start|>assistant\n{written}<|im_end|>" in processor(template).render_chat(messages)
    assert json.dumps(messages) == before, "the request was changed"


@pytest.mark.parametrize("arguments", ["[1]", "3", "nonsense", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000, '"x"'])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    assert json.dumps(arguments, ensure_ascii=False) in processor(AS_JSON).render_chat(calling(arguments))


@pytest.mark.parametrize("arguments", ["", "  ", None])
def test_no_arguments_are_an_empty_object(arguments: str) -> None:
    assert "assistant\n{}<|im_end|>" in processor(AS_JSON).render_chat(calling(arguments))


def test_calls_from_before_there_were_tools() -> None:
    message = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}}
    assert 'assistant\n{"a": 1}<' in processor(LEGACY).render_chat([message])


@pytest.mark.parametrize("calls", [[], None])
def test_an_empty_list_of_calls_is_none(calls: Any) -> None:
    template = ROLE + "{% if m.tool_calls is defined %}CALLS{% else %}{{ m.content }}{% endif %}" + END
    assert "CALLS" not in processor(template).render_chat([{"role": "assistant", "content": "x", "tool_calls": calls}])


@pytest.mark.parametrize("calls", ["x", [1], [None], [{"function": "f"}], [{"function": {"name": 3}}], {}, 3])
def test_calls_of_another_shape_are_left_alone(calls: Any) -> None:
    message = {"role": "assistant", "content": "x", "tool_calls": calls, "function_call": calls}
    prompt = processor(CHAT_TEMPLATE).render_chat([message])
    assert "assistant\nx<|im_end|>" in prompt


def test_calls_are_text_where_the_template_writes_none() -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": "é"}'}}]
    message = {"role": "assistant", "content": "Let me see.", "tool_calls": calls}
    written = 'assistant\nLet me see.\n{"name": "f", "arguments": {"a": "é"}}<|im_end|>'
    assert written in processor(CHAT_TEMPLATE).render_chat([message])
    old = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": "é"}'}}
    assert 'assistant\n{"name": "f", "arguments": {"a": "é"}}<' in processor(CHAT_TEMPLATE).render_chat([old])


TOOL = {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": {"type": "object"}}}
TOLD = 'You can call these functions:\n{"name": "f", "description": "Does.", "parameters": {"type": "object"}}\nTo call'


def test_tools_are_text_where_the_template_knows_none() -> None:
    text = processor(CHAT_TEMPLATE)
    prompt = text.render_chat([{"role": "user", "content": "Hi"}], {"tools": [TOOL]})
    assert prompt.startswith(f"<|im_start|>system\n{TOLD}")
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert text.render_chat(said, {"tools": [TOOL]}).startswith(f"<|im_start|>system\nBe brief.\n\n{TOLD}")
    knowing = processor(CHAT_TEMPLATE + "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}")
    assert knowing.render_chat(said, {"tools": [TOOL]}).endswith("assistant\n<f>")
    assert knowing.template_for(None).knows_tools
    assert not text.template_for(None).knows_tools


NO_ROLES = (
    "{% for m in messages %}{% if m.role not in ('user', 'assistant') %}{{ raise_exception('no') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}"
)


def test_templates_without_system_and_results_get_them_from_the_user() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "54"},
        {"role": "tool", "tool_call_id": "2", "content": "55"},
    ]
    prompt = processor(NO_ROLES).render_chat(messages, {"tools": [TOOL]})
    assert prompt.startswith(f"[user]Hi\n\n{TOLD}")
    assert prompt.endswith('[assistant]{"name": "f", "arguments": {}}[user]54\n55')


def test_ids_that_the_template_takes() -> None:
    template = (
        "{# [TOOL_CALLS] #}{% for m in messages %}{% for c in m.tool_calls or [] %}"
        "<{{ c.id }}:{{ c.function.name }}>{% endfor %}"
        "{% if m.role == 'tool' %}({{ m.tool_call_id }}){% endif %}{{ m.content }}{% endfor %}"
    )
    call = {"id": "call_0123456789", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "abcdefghi"}]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "54"},
    ]
    prompt = processor(template).render_chat(messages)
    found = re.search(r"<(\w{9}):f><abcdefghi:f>\((\w{9})\)54", prompt)
    assert found is not None
    assert found[1] == found[2] != "call_0123"
