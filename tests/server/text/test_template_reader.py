"""A template that is read ends turns where running it does, or is not understood; nothing makes it take long."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import pytest

from bases.end_tokens import end_of_turn
from server.text.template_environment import Message, make_environment, variables
from server.text.template_reader import MAX_CHARS, MAX_MADE, read_template
from tests.factory import CHAT_TEMPLATE, make_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
ARGUMENTS = {**SPECIAL, "add_generation_prompt": False}
IN_USE = {path.name: path.read_text() for path in (files("trl") / "chat_templates").iterdir() if ".jinja" in path.name}
FAMILIES = {
    "chatml": (CHAT_TEMPLATE, "<|im_end|>"),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
        "eos_token }}\n{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + "
        "eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}",
        "</s>",
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
        "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}"
        "{% endif %}{% endfor %}",
        "</s>",
    ),
    "alpaca": ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}", None),
    "opening alone": ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}", None),
    "gemma.jinja": (IN_USE["gemma.jinja"], "<end_of_turn>"),
    "llama3.jinja": (IN_USE["llama3.jinja"], "<|eot_id|>"),
    "llama3_2.jinja": (IN_USE["llama3_2.jinja"], "<|eot_id|>"),
    "phi3.jinja": (IN_USE["phi3.jinja"], "<|end|>"),
    "qwen3.jinja": (IN_USE["qwen3.jinja"], "<|im_end|>"),
    "deepseekv3.jinja": (IN_USE["deepseekv3.jinja"], "<｜end▁of▁sentence｜>"),
}
TOKENS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "</s>", "<s>", "[INST]", "[/INST]", "<|end|>"]
TOKENS += [
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<pad>",
    "<｜end▁of▁sentence｜>",
]
UNREAD = {"llava_next.jinja", "llava_next_training.jinja"}  # they select parts by an attribute


def rendered(source: str, messages: list[Message]) -> str | None:
    try:
        return make_environment().from_string(source).render(variables(messages, ARGUMENTS))
    except Exception:  # noqa: BLE001 - whatever a template raises
        return None


def tail(source: str, render: Callable[[str, list[Message]], str | None]) -> str | None:
    """What stands behind the answer."""
    tails: list[str] = []

    def encode(text: str) -> list[int]:
        tails.append(text)
        return []

    end_of_turn(lambda messages: render(source, messages), encode, ())
    return tails[0] if tails else None


def reader(source: str, messages: list[Message]) -> str | None:
    return read_template(source, messages, ARGUMENTS)


@pytest.mark.parametrize("name", IN_USE)
def test_templates_in_use_are_read_as_they_are_rendered(name: str) -> None:
    found = tail(IN_USE[name], reader)
    assert found == (None if name in UNREAD else tail(IN_USE[name], rendered))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_a_turn(name: str) -> None:
    source, wanted = FAMILIES[name]
    assert tail(source, reader) == tail(source, rendered)
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    special = tokenizer.convert_tokens_to_ids(TOKENS)
    found = end_of_turn(
        lambda messages: reader(source, messages),
        lambda text: tokenizer(text, add_special_tokens=False).input_ids,
        special,
    )
    assert (None if found is None else tokenizer.convert_ids_to_tokens(found)) == wanted


ASKED = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages if m.role != 'user' %}{{ loop.index }}{{ loop.last }}{% else %}none{% endfor %}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ loop.previtem.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
        "{% set ns = namespace(n=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set x = 2 %}{% endfor %}"
        "{{ ns.n }}{{ x }}",
        "{% macro say(a, b='!') %}{{ a }}{{ b }}{% endmacro %}{{ say('x') }}{{ say('x', 'y') }}{{ say(b='z', a=1) }}"
        "{{ say() }}",
        "{% set x %}{{ messages[0].content }}{% endset %}{{ x }}{{ x[0] }}{{ x[5] }}{{ x[:1] ~ x[::-1] }}",
        "{% for key, value in messages[0]|items %}{{ key }}={{ value }},{% endfor %}{{ messages | length }}",
        "{{ messages[-1].tools is defined }}{{ messages[-1]['role'] in ['assistant', 'bot'] }}{{ 1 < 2 < 3 }}",
        "{{ 'a' if messages[0].x else 'b' }}{{ 'a' if messages[0].x }}{{ messages[0].x or 'c' }}{{ x | default('d') }}",
        "{{ ' a b '.strip().split(' ') | join('-') }}{{ 'ab'.startswith('a') }}{{ ' x ' | trim | upper }}{{ none }}",
        "{% for i in range(1, 3) %}{{ i % 2 }}{{ -i - 1 }}{% endfor %}{{ messages[0].get('role') }}"
        "{{ messages[0]['nothing'] }}{{ not 1 }}",
        "  {%- if messages is iterable and messages is not string %}\n  x\n  {% endif %}\n{{- '<&>' | safe }}\n",
        "{% generation %}{{ messages[1].content }}{% endgeneration %}",
    ],
)
def test_what_is_understood_is_what_jinja_writes(source: str) -> None:
    assert reader(source, ASKED) == rendered(source, ASKED)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ ('%9999999d' % 1) }}",
        "{{ 'a' * 1000000000 }}{{ 9 ** 9 ** 9 }}",
        "{{ 'a'.format(1) }}{{ 'a'.ljust(1000000000) }}",
        "{{ lipsum() }}{{ cycler('a') }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{{ messages | map('upper') | list }}",
        "{{ range(1000000000000) | list }}",
        "{{ raise_exception('no') }}",
        "{% if",
        "{{ 1" + "0" * 5000 + " }}",
        "{{ " + "(" * 20_000,
        "{% if a %}" * 5_000,
        "x" * (MAX_CHARS + 1),
        "x" * (MAX_MADE + 1),
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(99) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ nothing.x }}",
    ],
)
def test_anything_else_is_not(source: str) -> None:
    assert reader(source, ASKED) is None
