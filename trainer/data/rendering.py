"""Conversations to segments of text by a chat template, each segment to be learned or only to be read.

The templates by name are for bases that have none or are to be trained with another one; ``eos_token`` and
``bos_token`` are the base's own. A server must render the same template as training did: the package records its hash,
and servers refuse it where theirs is another. What is learned is found by rendering prefixes of the conversation, never
by looking for a template's keywords: the prompt of an answer is exactly what a server renders for the messages before
it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typing_extensions import override

from trainer.config.data import DataConfig
from trainer.data.conversations import TEXT, DroppedRow, answer_indices, answers_of, require_answer
from trainer.data.messages import ASSISTANT, Conversation, Message
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


_ASKED, _ANSWERED = "What is it?", "Probe answer."


@dataclass(frozen=True)
class TextSegment:
    """A stretch of text. Of a ``learned`` one the part up to the token that ends the turn is learned, or all of it
    where it is ``whole``. ``special`` lets the tokenizer add what begins a text, as for a plain prompt. ``answer``
    tells what the assistant says from what it is asked.
    """

    text: str
    learned: bool
    special: bool = False
    whole: bool = False
    answer: bool = False


class Renderer(Protocol):
    """Turns rows into segments, and prompts into what stands before an answer. ``tail`` is what it writes after one."""

    tail: str

    def segments(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[TextSegment]:
        """The segments of a row, up to the last message of the assistant. Raises DroppedRow."""
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> TextSegment:
        """What stands before the assistant's answer to ``messages``."""
        ...


def make_renderer(config: DataConfig, tokenizer: Any) -> Renderer:
    """The renderer that ``config`` asks for. Raises DataError when the base has no chat template."""
    text = template_text(config, tokenizer)
    return PlainRenderer(config) if text is None else ChatRenderer(config, tokenizer, text)


class PlainRenderer(Renderer):
    """Prompt and response as they are, for ``/v1/completions``."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.tail = ""

    @override
    def segments(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[TextSegment]:
        if conversation[0].role == TEXT:
            return text_segments(conversation)
        require_answer(conversation, self._config)
        if len(conversation) != 2 or tools:
            raise DataError(
                "data.template: none joins one prompt and one response; these rows have system messages, history, "
                "turns or tools: use data.template: chat or a named one"
            )
        asked, answer = conversation
        everything = self._config.learn == "everything"
        return [
            TextSegment(asked.content, everything, special=True, whole=everything),
            TextSegment(answer.content, learned=True, whole=everything, answer=True),
        ]

    @override
    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> TextSegment:
        return TextSegment(messages[-1].content, learned=False, special=True)


class ChatRenderer(Renderer):
    """Conversations by a chat template, for ``/v1/chat/completions``."""

    def __init__(self, config: DataConfig, tokenizer: Any, template: str) -> None:
        """Raises DataError for a template that cannot be asked for an answer, or knows no tools where it must."""
        self._config, self._tokenizer, self._template = config, tokenizer, template
        if config.tools == "template" and "tool_calls" not in template:
            raise DataError("data.tools: the chat template writes no tool calls; set data.tools: text")
        self.tail = self._probe()

    @override
    def segments(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[TextSegment]:
        """The segments of a row. A template that rewrites earlier turns leaves only the last answer to be learned."""
        if conversation[0].role == TEXT:
            return text_segments(conversation)
        require_answer(conversation, self._config)
        answers = answer_indices(conversation)
        for turns in (answers, answers[-1:]):
            try:
                return self._split(conversation, tools, turns)
            except _RewrittenError:
                continue
        raise DroppedRow("the chat template does not keep the prompt in front of the answer")

    @override
    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> TextSegment:
        return TextSegment(self._render(messages, tools, add_generation_prompt=True), learned=False)

    def _split(self, conversation: Conversation, tools: Sequence[Any], answers: Sequence[int]) -> list[TextSegment]:
        out: list[TextSegment] = []
        done = ""
        everything = self._config.learn == "everything"
        wanted = answers_of(conversation, self._config)
        for i in answers:
            before = self._render(conversation[:i], tools, add_generation_prompt=True)
            after = self._render(conversation[: i + 1], tools, add_generation_prompt=False)
            if not before.startswith(done) or not after.startswith(before):
                raise _RewrittenError
            out += [
                TextSegment(before[len(done) :], everything, whole=everything),
                TextSegment(after[len(before) :], i in wanted, whole=everything, answer=True),
            ]
            done = after
        while out and not out[-1].learned:
            out.pop()  # nothing after the last thing learned is read
        if not out:
            raise DroppedRow("every answer that the chat template keeps is excluded by its weight or train")
        return out

    def _render(self, messages: Sequence[Message], tools: Sequence[Any], *, add_generation_prompt: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [_plain(message) for message in messages],
                    tools=list(tools) or None,
                    chat_template=self._template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except TemplateError as error:
            raise DroppedRow(f"the chat template refuses it: {error.message}") from error
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise DroppedRow("the chat template cannot render it") from error

    def _probe(self) -> str:
        """What the template writes after an answer. DataError where the answer's own header is left to be learned.

        Without a generation prompt a server would not write that header, and the model would say it aloud.
        """
        messages = (Message("user", _ASKED), Message(ASSISTANT, _ANSWERED))
        try:
            before = self._render(messages[:1], (), add_generation_prompt=True)
            without = self._render(messages[:1], (), add_generation_prompt=False)
            after = self._render(messages, (), add_generation_prompt=False)
        except DroppedRow:
            return ""  # it wants other messages than these; rows will show
        if not after.startswith(before):
            return ""
        header, found, tail = after[len(before) :].partition(_ANSWERED)
        if not found:
            return ""
        if header.strip() and before == without:
            raise DataError(
                f"the chat template has no generation prompt: it writes {header.strip()!r} before an answer but not at "
                "the end of a prompt; give data.template one with {% if add_generation_prompt %}"
            )
        return tail


def text_segments(conversation: Conversation) -> list[TextSegment]:
    """The one segment of a row that is text only: plain language modelling."""
    return [TextSegment(conversation[0].content, learned=True, special=True, whole=True)]


def _plain(message: Message) -> dict[str, Any]:
    plain: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        plain["tool_calls"] = [{"type": "function", "function": json.loads(call)} for call in message.calls]
    return plain


class _RewrittenError(Exception):
    """A longer conversation does not begin with the rendering of its own beginning."""
