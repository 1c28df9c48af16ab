"""Prompts are those of ``apply_chat_template``; what a template says is wrong reaches the client, and nothing else."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor
from tests.factory import CHAT_TEMPLATE, make_tokenizer
from tests.server.text.test_template_form import AS_ITEMS, PARTS, calling

USER = {"role": "user", "content": "Hi"}
TRIMMING = CHAT_TEMPLATE.replace("message.content", "message.content | trim")


def refusal(
    template: str, messages: list[dict[str, Any]], arguments: dict[str, Any] | None = None
) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        TextProcessor(make_tokenizer(), template).render_chat(messages, arguments)
    return caught.value


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[5].content }}", "refuses these messages: list object has no element 5"),
        ("{{ messages[0].content + 1 }}", 'cannot render these messages: can only concatenate str (not "int") to str'),
        ("{{ 1 / 0 }}", "cannot render these messages: division by zero"),
        ("{{ messages[0].nothing.more }}", "'dict object' has no attribute 'nothing'"),
        ("{{ messages | tojson(indent=raise_exception) }}", "cannot render these messages"),
        ("{% if", "unexpected 'end of template'"),
    ],
)
def test_the_templates_own_reason_is_given(template: str, words: str) -> None:
    error = refusal(template, [USER])
    assert words in str(error)
    assert error.param == "messages"


def test_reasons_are_short_and_without_addresses() -> None:
    for template in (
        "{{ raise_exception('x' * 100000) }}",
        "{{ raise_exception(raise_exception | string + 'y\n\x00') }}",
    ):
        message = str(refusal(template, [USER]))
        assert len(message) < 400
        assert message.isprintable()
        assert not re.search("0x[0-9a-f]", message)


def test_arguments_that_must_be_an_object_are_named() -> None:
    message = str(refusal(AS_ITEMS, calling("[1, 2]")))
    assert "Can only get item pairs from a mapping." in message
    assert "`arguments` of a tool call must be a JSON object" in message


# ---- the two switches ----


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRIMMING])
@pytest.mark.parametrize("said", ["Sure,", "Sure, ", " Sure", "{% x %} <|im_end|> Sure"])
@pytest.mark.parametrize("explicit", [{}, {"add_generation_prompt": False}])
def test_a_message_is_continued_as_transformers_does(template: str, said: str, explicit: dict[str, Any]) -> None:
    messages = [USER, {"role": "assistant", "content": said}]
    wanted = make_tokenizer().apply_chat_template(
        messages, chat_template=template, continue_final_message=True, tokenize=False
    )
    text = TextProcessor(make_tokenizer(), template)
    assert text.render_chat(messages, {"continue_final_message": True, **explicit}) == wanted


def test_a_message_of_parts_is_continued() -> None:
    text = TextProcessor(make_tokenizer(), PARTS)
    for content in ("Sure, ", [{"type": "text", "text": "Su"}, {"type": "text", "text": "re, "}]):
        prompt = text.render_chat([USER, {"role": "assistant", "content": content}], {"continue_final_message": True})
        assert prompt.endswith("<|im_start|>assistant\nSure, ")


@pytest.mark.parametrize("begun", [True, False, None])
def test_the_answer_is_begun_unless_said(begun: bool | None) -> None:
    text = TextProcessor(make_tokenizer())
    prompt = text.render_chat([USER], {} if begun is None else {"add_generation_prompt": begun})
    wanted = make_tokenizer().apply_chat_template([USER], add_generation_prompt=begun is not False, tokenize=False)
    assert prompt == wanted


@pytest.mark.parametrize(
    ("messages", "arguments", "words"),
    [
        ([USER, {"role": "assistant", "content": "x"}], {"add_generation_prompt": True}, "cannot both be true"),
        ([USER], {}, "a last message of the role assistant"),
        ([USER, {"role": "assistant", "content": None}], {}, "a last message with content"),
    ],
)
def test_what_cannot_be_continued(messages: list[dict[str, Any]], arguments: dict[str, Any], words: str) -> None:
    error = refusal(CHAT_TEMPLATE, messages, {"continue_final_message": True, **arguments})
    assert words in str(error)
    assert error.param == "continue_final_message"


def test_a_template_that_drops_the_message_cannot_continue_it() -> None:
    messages = [USER, {"role": "assistant", "content": "x" * 5000}]
    error = refusal("{{ messages[0].content }}", messages, {"continue_final_message": True})
    assert "does not write the last message as it is" in str(error)
    assert len(str(error)) < 400


def test_of_several_templates_the_default_is_taken() -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = {"default": CHAT_TEMPLATE, "tool_use": "other"}
    text = TextProcessor(tokenizer)
    assert text.render_chat([USER]) == TextProcessor(make_tokenizer()).render_chat([USER])
    assert text.chat_template_sha256 == TextProcessor(make_tokenizer()).chat_template_sha256
    tokenizer.chat_template = {"tool_use": "other"}
    assert not TextProcessor(tokenizer).has_chat_template


def test_arguments_are_not_repeated_without_end() -> None:
    """A template may write one for each message: little is sent then, and much written."""
    text = TextProcessor(
        make_tokenizer(), "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"
    )
    with pytest.raises(InvalidRequestError, match="chat_template_kwargs: 500009 characters") as caught:
        asyncio.run(text.render_chat_off_loop([USER] * 2000, {"eos_token": "y" * 500_000}))
    assert caught.value.param == "chat_template_kwargs"
    assert asyncio.run(text.render_chat_off_loop([USER], {"eos_token": "y" * 500_000})).endswith("y")
