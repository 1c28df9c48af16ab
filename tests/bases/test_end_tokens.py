"""What ends an output: the union of what tokenizer, template, generation_config.json and config.json say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bases.end_tokens import end_token_ids
from tests.factory import CHAT_TEMPLATE, make_tokenizer

EOT, BEGIN, END = 256, 257, 258  # <|endoftext|>, <|im_start|>, <|im_end|>
PLAIN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def tokenizer_of(eos: str | None, template: str | None) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return tokenizer


def write(directory: Path, name: str, content: object) -> None:
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize(
    ("eos", "template", "named", "expected"),
    [
        ("<|im_end|>", CHAT_TEMPLATE, ({"eos_token_id": END}, {"eos_token_id": END}), (END,)),
        ("<|endoftext|>", CHAT_TEMPLATE, ({}, {}), (EOT, END)),
        ("<|endoftext|>", PLAIN, ({"eos_token_id": [BEGIN, END]}, {"eos_token_id": 7}), (EOT, BEGIN, END, 7)),
        ("<|endoftext|>", None, ({"eos_token_id": None}, {"eos_token_id": [7, EOT]}), (EOT, 7)),
        (None, PLAIN, ({}, {"text_config": {"eos_token_id": 9}}), (9,)),
        (None, None, ({}, {"eos_token_id": None}), ()),
    ],
)
def test_everything_that_ends_an_output_is_found_once(
    eos: str | None, template: str | None, named: tuple[object, object], expected: tuple[int, ...], tmp_path: Path
) -> None:
    write(tmp_path, "generation_config.json", named[0])
    write(tmp_path, "config.json", named[1])
    assert end_token_ids(tmp_path, tokenizer_of(eos, template)) == expected


def test_the_template_that_is_used_counts_not_the_one_that_is_there(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("<|endoftext|>", CHAT_TEMPLATE)
    assert end_token_ids(tmp_path, tokenizer, PLAIN) == (EOT,)
    assert end_token_ids(tmp_path, tokenizer_of("<|endoftext|>", PLAIN), CHAT_TEMPLATE) == (EOT, END)


def test_a_template_that_takes_parts_ends_turns_too(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("message.content", "message.content[0]['text']")
    assert end_token_ids(tmp_path, tokenizer_of("<|endoftext|>", template)) == (EOT, END)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no such roles') }}",
        "{{ messages[0].content }}<|im_end|>",  # the answer is not rendered
        "{{ messages[7].content }}",
        "{% if",
    ],
)
def test_a_template_that_cannot_say_names_no_token(template: str, tmp_path: Path) -> None:
    assert end_token_ids(tmp_path, tokenizer_of("<|endoftext|>", template)) == (EOT,)


@pytest.mark.parametrize("content", ["{", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": true}'])
def test_files_that_name_no_tokens_are_passed_over(content: str, tmp_path: Path) -> None:
    write(tmp_path, "generation_config.json", content)
    write(tmp_path, "config.json", {"eos_token_id": 5})
    assert end_token_ids(tmp_path, None) == (5,)


def test_a_token_that_is_only_text_ends_nothing(tmp_path: Path) -> None:
    """Such as one that a run adds to the vocabulary: no server of the base alone would know it."""
    tokenizer = tokenizer_of("<|endoftext|>", "{% for message in messages %}{{ message.content }}[END]{% endfor %}")
    tokenizer.add_tokens(["[END]"])
    assert end_token_ids(tmp_path, tokenizer) == (EOT,)
