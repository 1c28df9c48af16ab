"""What is learned of an answer: what a client is to get, right after the prompt that a server renders.

Templates put things before an answer: an empty thought, a channel, white space; before the last one only, or in the
prompt. The server here is the one that serves: its own renderer, given the same conversation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from server.text.tokenizer import TextProcessor
from tests.factory import CHAT_TEMPLATE, make_tokenizer
from tests.trainer.data.test_training_data import learned, load
from tests.trainer.support import write_jsonl
from trainer.config.data import DataConfig
from trainer.data.conversations import ParsedRow
from trainer.data.encoding import RowEncoder
from trainer.data.messages import Conversation, Message, messages_of
from trainer.data.training_data import load_questions
from trainer.errors import DataError

END = "<|im_end|>"
_THINKS = (  # as Qwen3: a thought before the last answer, empty where there is none; earlier ones are taken out
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% set thought, said = m.reasoning_content or '', m.content %}"
    "{% if '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
_OPENS = (  # as DeepSeek-R1: the prompt begins a thought; thoughts are taken out of answers
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '[A]' + m.content.split('</think>')[-1] + '<|im_end|>' }}"
    "{% else %}{{ '[U]' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[A]<think>\n' }}{% endif %}"
)
_CLOSES = (  # the prompt ends with an empty thought unless it is told to think
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% if not enable_thinking %}{{ '<t></t>' }}{% endif %}{% endif %}"
)
_CHANNEL = (  # as gpt-oss: every answer stands in a channel that the prompt does not name
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}{% if m.role == 'assistant' %}{{ ' final: ' }}{% endif %}"
    "{{ m.content | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
_SPACE = _CHANNEL.replace("' final: '", "'\n\n'")
_OTHER_SPACE = CHAT_TEMPLATE.replace("assistant\n{% endif", "assistant: {% endif")
TEMPLATES = {
    "thinks": _THINKS, "opens": _OPENS, "closes": _CLOSES, "channel": _CHANNEL, "space": _SPACE,
    "other space": _OTHER_SPACE, "plain": CHAT_TEMPLATE,
}  # fmt: skip


def encoder(template: str) -> RowEncoder:
    return RowEncoder(DataConfig(path="x", template=template), make_tokenizer(), (258,))


def chat(*contents: str) -> Conversation:
    return tuple(Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents))


def sequences(template: str, conversation: Conversation) -> list[list[tuple[str, bool]]]:
    found = encoder(template).renderer.sequences(conversation)
    return [[(segment.text, segment.learned) for segment in segments] for segments in found]


@pytest.mark.parametrize("content", ["red", "think", "<", "final", "a\n\nb", "[A]", "n"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_of_a_chat_follow_what_a_server_renders_and_nothing_else_is_learned(name: str, content: str) -> None:
    served = TextProcessor(make_tokenizer(), TEMPLATES[name])
    conversation = chat("q1", content, "q2", "blue", "q3", content)
    plain = [{"role": message.role, "content": message.content} for message in conversation]
    answered = set()
    for segments in sequences(TEMPLATES[name], conversation):
        before = ""
        for text, is_learned in segments:
            if is_learned:
                at = next(i for i in (1, 3, 5) if served.render_chat(plain[:i]) == before)
                assert text.strip().removesuffix(END) == plain[at]["content"]
                answered.add(at)
            before += text
    assert answered == {1, 3, 5}


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_is_compared_with_what_the_data_says(name: str) -> None:
    rows = encoder(TEMPLATES[name])
    question = rows.question(ParsedRow(chat("q", "red")))
    (example,) = rows.encode(ParsedRow(chat("q", "red"))).examples
    assert question.response == "red"
    assert example.input_ids[: len(question.input_ids)] == question.input_ids


THOUGHT = "<think>\nr\n</think>\n\n"


ASIDE = {"content": "a", "reasoning_content": "r"}


@pytest.mark.parametrize(
    ("name", "answer", "said"),
    [
        ("thinks", {"content": f"{THOUGHT}a"}, f"{THOUGHT}a"),
        ("thinks", {"content": "<think>r</think>a"}, f"{THOUGHT}a"),  # as the template writes it
        ("thinks", {"content": "<think>\n\n</think>\n\na"}, "<think>\n\n</think>\n\na"),
        ("thinks", ASIDE, f"{THOUGHT}a"),
        ("opens", {"content": f"{THOUGHT}a"}, "r\n</think>\n\na"),  # the prompt has begun it
        ("opens", {"content": "r\n</think>\n\na"}, "r\n</think>\n\na"),
        ("opens", ASIDE, "r\n</think>\n\na"),
        *((name, {"content": f"{THOUGHT}a"}, f"{THOUGHT}a") for name in ("closes", "channel", "plain")),
        *((name, ASIDE, f"{THOUGHT}a") for name in ("closes", "channel", "plain")),
    ],
)
def test_a_thought_of_the_data_is_learned_wherever_the_data_has_it(
    name: str, answer: dict[str, str], said: str
) -> None:
    conversation = messages_of("here", [{"role": "user", "content": "q"}, {"role": "assistant", **answer}])
    (segments,) = sequences(TEMPLATES[name], conversation)
    assert [text.strip().removesuffix(END) for text, is_learned in segments if is_learned] == [said]
    assert encoder(TEMPLATES[name]).reference(conversation, ()).strip() == said


def test_each_thought_of_a_chat_is_learned_after_the_prompt_that_it_was_had_at() -> None:
    conversation = chat("q1", f"{THOUGHT}a", "q2", f"{THOUGHT}b")
    last, first = sequences(_THINKS, conversation)
    head = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\n"
    assert first == [(head, False), (f"{THOUGHT}a<|im_end|>\n", True)]
    asked = f"{head}a<|im_end|>\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    assert last == [(asked, False), (f"{THOUGHT}b<|im_end|>\n", True)]


def test_a_thought_may_have_other_names_and_must_be_text() -> None:
    for name in ("reasoning_content", "thinking", "reasoning"):
        (message,) = messages_of("here", [{"role": "assistant", "content": "a", name: " r\n"}])
        assert message.thought == "r"
    with pytest.raises(DataError, match="here: message 0: reasoning must be text, not an object"):
        messages_of("here", [{"role": "assistant", "content": "a", "reasoning": {"effort": "low"}}])


def test_marks_that_are_special_tokens_are_compared_as_clients_see_them() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    rows = RowEncoder(DataConfig(path="x", template=_THINKS), tokenizer, (258,))
    assert rows.reference(chat("q", f"{THOUGHT}a"), ()).split() == ["r", "a"]


def test_calls_are_learned_without_what_stands_before_every_answer() -> None:
    template = _THINKS.replace(
        "said + '<|im_end|>\n'", "said + m.tool_calls | map(attribute='function') | join + '<|im_end|>\n'"
    )
    call = Message("assistant", "", calls=('{"name": "f", "arguments": {}}',))
    (segments,) = sequences(template, (Message("user", "q"), call))
    assert segments[-1] == ("{'name': 'f', 'arguments': {}}<|im_end|>\n", True)


def test_what_is_left_out_is_said_and_in_no_example(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    rows = [{"prompt": "q", "response": "red"}] * 3
    data = load(tmp_path, tokenizer, rows, template=_THINKS, validation=1)
    assert learned(tokenizer, data.train[0]) == ["red<|im_end|>"]
    assert [note for note in data.notes if "before an answer" in note] == [
        "the template writes '<think>\\n\\n</think>' before an answer, which no prompt of a server holds: it is left "
        "out, and answers begin with their content"
    ]
    assert not [note for note in load(tmp_path, tokenizer, rows).notes if "before an answer" in note]


def test_a_server_is_asked_for_what_training_taught(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "response": "<think>r</think>a"}] * 4)
    config = DataConfig(path=str(path), validation=1, template=_THINKS)
    rows = RowEncoder(config, make_tokenizer(), (258,))
    assert [question.reference for question in load_questions(config, 0, "validation", rows)] == [f"{THOUGHT}a"]
    assert [question.reference for question in load_questions(config, 0, "validation")] == ["<think>r</think>a"]
