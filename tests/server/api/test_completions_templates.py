"""Conversations over HTTP: whatever form they come in, the model reads what the base's template makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.server.api.support import BASE, error_of
from tests.server.live import Live, live_server

PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% for t in m.tool_calls or [] %}{% for k, v in t.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ extra }}"
)
USER = {"role": "user", "content": "Hi"}
CHAT, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/tokenize", "/detokenize"


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A base whose template wants parts."""
    template = tmp_path_factory.mktemp("template") / "parts.jinja"
    template.write_text(PARTS)
    with live_server(base, tmp_path_factory.mktemp("data"), chat_template=str(template)) as made:
        yield made
        made.wait_idle()


def prompt(live: Live, messages: list[dict[str, Any]], **fields: Any) -> str:
    """What the model reads, by /tokenize; a chat completion reads as many tokens."""
    answer = live.post(TOKENIZE, {"messages": messages, **fields})
    assert answer.status_code == 200, answer.text
    chat = live.post(CHAT, {"model": BASE, "messages": messages, "max_tokens": 1, **fields})
    assert chat.status_code == 200, chat.text
    assert chat.json()["usage"]["prompt_tokens"] == answer.json()["count"]
    text: str = live.post(DETOKENIZE, {"tokens": answer.json()["tokens"]}).json()["prompt"]
    return text


PARTED: list[Any] = [
    "Is it?",
    [{"type": "text", "text": "Is "}, {"type": "text", "text": "it?"}],
    ["Is ", {"type": "input_text", "text": "it?"}],
    [{"type": "output_text", "text": "Is ", "annotations": []}, {"type": "refusal", "refusal": "it?"}],
]


@pytest.mark.parametrize("content", PARTED)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_content_reaches_a_template_of_parts(live: Live, role: str, content: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "mul", "arguments": "{}"}}
    before = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}] if role == "tool" else [USER]
    read = prompt(live, [*before, {"role": role, "content": content, "tool_call_id": "c"}])
    assert f"<|im_start|>{role}\nIs it?<|im_end|>" in read


def test_developer_is_system_and_arguments_are_an_object(live: Live) -> None:
    function = {"name": "mul", "arguments": '{"a": 3}'}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": "54"},
    ]
    read = prompt(live, messages)
    assert "system\nBe brief.<|im_end|>\n<|im_start|>system\nBe kind.<|im_end|>" in read
    assert "assistant\n<a>3<|im_end|>\n<|im_start|>tool\n54<|im_end|>" in read


def test_the_reason_of_a_refusal_is_the_templates(live: Live) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "mul", "arguments": "[1]"}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}]
    for path in (CHAT, TOKENIZE):
        error = error_of(live.post(path, {"model": BASE, "messages": messages}))
        assert "Can only get item pairs from a mapping." in error["message"]
        assert error["param"] == "messages"


@pytest.mark.parametrize("said", ["Sure, ", [{"type": "text", "text": "Sure, "}]])
def test_the_last_message_is_continued(live: Live, server: Live, base: Path, said: Any) -> None:
    messages = [USER, {"role": "assistant", "content": said}]
    for served in (live, server):
        read = prompt(served, messages, continue_final_message=True)
        assert read.endswith("<|im_start|>assistant\nSure, ")
        assert read == prompt(served, messages, continue_final_message=True, add_generation_prompt=False)
    if isinstance(said, str):
        tokenizer = AutoTokenizer.from_pretrained(base)
        assert read == tokenizer.apply_chat_template(messages, continue_final_message=True, tokenize=False)


def test_the_answer_is_begun_unless_told_otherwise(live: Live) -> None:
    assert prompt(live, [USER]) == prompt(live, [USER], add_generation_prompt=True)
    assert prompt(live, [USER]) == prompt(live, [USER], add_generation_prompt=False) + "<|im_start|>assistant\n"


def test_arguments_of_the_template(live: Live) -> None:
    assert prompt(live, [USER], chat_template_kwargs={"extra": "more"}).endswith("assistant\nmore")


@pytest.mark.parametrize("path", [CHAT, TOKENIZE])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"continue_final_message": True, "messages": [USER]}, "continue_final_message"),
        ({"continue_final_message": "yes"}, "continue_final_message"),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": dict.fromkeys(map(str, range(33)), 1)}, "chat_template_kwargs"),
    ],
)
def test_mistakes(live: Live, path: str, fields: dict[str, Any], param: str) -> None:
    messages = [USER, {"role": "assistant", "content": "x"}]
    assert error_of(live.post(path, {"model": BASE, "messages": messages, **fields}))["param"] == param
