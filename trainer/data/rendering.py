"""Conversations to segments of text by a chat template, each segment to be learned or only to be read.

The templates by name are for bases that have none or are to be trained with another one; ``eos_token`` and
``bos_token`` are the base's own. A server must render the same template as training did: the package records its hash,
and servers refuse it where theirs is another. What is learned is found by rendering prefixes of the conversation, never
by looking for a template's keywords: the prompt of an answer is exactly what a server renders for the messages before
it, and the answer follows it at once. What a template writes between the two (an empty thought, a channel) is in no
prompt of a server's; learned, it would be said to clients. It is left out.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import msgspec
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from typing_extensions import override

from adapters.package.manifest import ToolForm
from bases.tool_text import template_tool
from trainer.config.data import DataConfig
from trainer.data.conversations import TEXT, DroppedRow, answer_indices, answers_of, require_answer
from trainer.data.messages import ASSISTANT, Conversation, Message
from trainer.data.template_messages import MessageForm, find_message_form
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
_TOOL: Mapping[str, Any] = template_tool({"name": "probe_tool", "description": "Probe"})
_CHANGED = "the chat template does not keep the prompt in front of the answer"


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


@dataclass(frozen=True)
class Said:
    """An answer as the model is to say it, and the ``tail`` that its template writes after it."""

    text: str
    tail: str = ""


class Renderer(Protocol):
    """Turns rows into segments, and prompts into what stands before an answer. ``tail`` is what it writes after one,
    ``insert`` what it would write before one that no prompt holds."""

    tail: str
    insert: str

    def sequences(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[list[TextSegment]]:
        """The segments of a row: one list, or one for each answer where they cannot stand in one, the last one first.

        Each ends with the last message that is learned. Raises DroppedRow.
        """
        ...

    def segments(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[TextSegment]:
        """The segments up to the last answer. Raises DroppedRow."""
        return self.sequences(conversation, tools)[0]

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> TextSegment:
        """What stands before the assistant's answer to ``messages``."""
        ...

    def said(self, conversation: Conversation, tools: Sequence[Any] = ()) -> Said:
        """The last message of ``conversation``, which is the assistant's. Raises DroppedRow."""
        ...


def make_renderer(config: DataConfig, tokenizer: Any) -> Renderer:
    """The renderer that ``config`` asks for. Raises DataError when the base has no chat template."""
    text = template_text(config, tokenizer)
    return PlainRenderer(config) if text is None else ChatRenderer(config, tokenizer, text)


def with_tool_form(config: DataConfig, tokenizer: Any) -> DataConfig:
    """``config`` with a form of functions and calls for ``auto``: the template's, where it writes both, else text."""
    if config.tools != "auto":
        return config
    asked = msgspec.structs.replace(config, tools="template")
    try:
        known = isinstance(make_renderer(asked, tokenizer), ChatRenderer)
    except DataError:
        known = False
    return asked if known else msgspec.structs.replace(config, tools="text")


def tool_form(config: DataConfig) -> ToolForm:
    """How functions and calls are written, where that is decided."""
    assert config.tools != "auto"
    return config.tools


class PlainRenderer(Renderer):
    """Prompt and response as they are, for ``/v1/completions``."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.tail = self.insert = ""

    @override
    def sequences(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[list[TextSegment]]:
        if conversation[0].role == TEXT:
            return [text_segments(conversation)]
        require_answer(conversation, self._config)
        if len(conversation) != 2 or tools:
            raise DataError(
                "data.template: none joins one prompt and one response; these rows have system messages, history, "
                "turns or tools: use data.template: chat or a named one"
            )
        asked, answer = conversation
        everything = self._config.learn == "everything"
        prompt = TextSegment(asked.content, everything, special=True, whole=everything)
        return [[prompt, TextSegment(answer.content, learned=True, whole=everything, answer=True)]]

    @override
    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> TextSegment:
        return TextSegment(messages[-1].content, learned=False, special=True)

    @override
    def said(self, conversation: Conversation, tools: Sequence[Any] = ()) -> Said:
        return Said(conversation[-1].content)


class ChatRenderer(Renderer):
    """Conversations by a chat template, for ``/v1/chat/completions``."""

    def __init__(self, config: DataConfig, tokenizer: Any, template: str) -> None:
        """Raises DataError for a template that cannot be asked for an answer, or knows no tools where it must."""
        self._config, self._tokenizer, self._template = config, tokenizer, template
        self._tool_template, self._form = template, MessageForm()
        if config.tools == "template":
            self._use_tools()
        self.tail, self.insert = self._probe()

    def _use_tools(self) -> None:
        """Leave tools and calls to the template. Raises DataError for one that does not write them."""
        if self._config.template == BASE:
            self._tool_template = str(self._tokenizer.get_chat_template(tools=[_TOOL]))  # some have one of its own
        if "tool_calls" not in self._tool_template:
            raise DataError("data.tools: the chat template writes no tool calls; set data.tools: text")
        self._form = find_message_form(self._tool_template, partial(self._render_plain, tools=[_TOOL]))
        with suppress(DroppedRow):
            asked = [Message("user", _ASKED)]
            if _TOOL["function"]["name"] not in self._render(asked, [_TOOL], add_generation_prompt=True):
                raise DataError("data.tools: the chat template writes no functions; set data.tools: text")

    @override
    def sequences(self, conversation: Conversation, tools: Sequence[Any] = ()) -> list[list[TextSegment]]:
        """The segments of a row. A template that rewrites earlier turns gets a list for each answer, for what stands
        before a later one is not what was said."""
        if conversation[0].role == TEXT:
            return [text_segments(conversation)]
        require_answer(conversation, self._config)
        try:
            return [self._split(conversation, tools, answer_indices(conversation))]
        except _RewrittenError:
            everything = self._config.learn == "everything"
            alone = answer_indices(conversation)[-1:] if everything else answers_of(conversation, self._config)
            return [self._split(conversation, tools, [i]) for i in reversed(alone)]

    @override
    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> TextSegment:
        return TextSegment(self._render(messages, tools, add_generation_prompt=True), learned=False)

    def whole(self, messages: Sequence[Message]) -> str:
        """``messages`` as they are read, not answered. Raises DroppedRow."""
        return self._render(messages, (), add_generation_prompt=False)

    @override
    def said(self, conversation: Conversation, tools: Sequence[Any] = ()) -> Said:
        return self._said(conversation, tools, self.prompt(conversation[:-1], tools).text)

    def _split(self, conversation: Conversation, tools: Sequence[Any], answers: Sequence[int]) -> list[TextSegment]:
        out: list[TextSegment] = []
        done = ""
        everything = self._config.learn == "everything"
        wanted = answers_of(conversation, self._config)
        for i in answers:
            before = self._render(conversation[:i], tools, add_generation_prompt=True)
            if not before.startswith(done):
                raise _RewrittenError
            said = self._said(conversation[: i + 1], tools, before)
            answer = said.text + said.tail
            out += [
                TextSegment(before[len(done) :], everything, whole=everything),
                TextSegment(answer, i in wanted, whole=everything, answer=True),
            ]
            done = before + answer
        while out and not out[-1].learned:
            out.pop()  # nothing after the last thing learned is read
        if not out:
            raise DroppedRow("every answer that the chat template keeps is excluded by its weight or train")
        return out

    def _said(self, conversation: Conversation, tools: Sequence[Any], before: str) -> Said:
        """The last message, the assistant's, as it is to be said after the prompt ``before``. Raises DroppedRow."""
        *history, message = conversation
        after = self._render(conversation, tools, add_generation_prompt=False)
        rest = _behind(before, after)
        if message.thought and rest is not None and _holds(rest, message.thought):
            return _cut_tail(rest, self.tail)
        if message.thought:  # the template knows none, or writes none where the prompt ends with its own
            message = _thinking_aloud(message)
            after = self._render([*history, message], tools, add_generation_prompt=False)
            rest = _behind(before, after)
        if rest is not None and rest.strip() == (message.content.strip() + self.tail).strip():
            return _cut_tail(rest, self.tail)  # mostly; one rendering less
        probe = self._render([*history, Message(ASSISTANT, _ANSWERED)], tools, add_generation_prompt=False)
        head, found, tail = probe.rpartition(_ANSWERED)
        if found:
            return _without_insert(message, before, after, head, tail)
        if rest is None:
            raise DroppedRow(_CHANGED)
        return Said(rest)

    def _render(self, messages: Sequence[Message], tools: Sequence[Any], *, add_generation_prompt: bool) -> str:
        try:
            plain = self._form.plain(messages)
        except (TypeError, ValueError, LookupError) as error:
            raise DroppedRow("a call is no JSON object with a name and arguments") from error
        return self._render_plain(plain, tools=tools, add_generation_prompt=add_generation_prompt)

    def _render_plain(
        self, messages: Sequence[dict[str, Any]], *, tools: Sequence[Any], add_generation_prompt: bool = False
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=list(tools) or None,
                    chat_template=self._tool_template if tools else self._template,
                    add_generation_prompt=add_generation_prompt,
                    tokenize=False,
                )
            )
        except TemplateError as error:
            raise DroppedRow(f"the chat template refuses it: {error.message}") from error
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise DroppedRow("the chat template cannot render it") from error

    def _probe(self) -> tuple[str, str]:
        """What the template writes after an answer, and before one that no prompt holds.

        DataError where that is the answer's own header. Without a generation prompt a server would not write it, and
        nothing would tell the answer from what is asked.
        """
        messages = (Message("user", _ASKED), Message(ASSISTANT, _ANSWERED))
        try:
            before = self._render(messages[:1], (), add_generation_prompt=True)
            without = self._render(messages[:1], (), add_generation_prompt=False)
            after = self._render(messages, (), add_generation_prompt=False)
        except DroppedRow:
            return "", ""  # it wants other messages than these; rows will show
        head, found, tail = after.rpartition(_ANSWERED)
        if not found:
            return "", ""
        insert = head[len(before) :].strip() if head.startswith(before) else ""
        if insert and before == without:
            raise DataError(
                f"the chat template has no generation prompt: it writes {insert!r} before an answer but not at "
                "the end of a prompt; give data.template one with {% if add_generation_prompt %}"
            )
        return tail, insert


def _without_insert(message: Message, before: str, after: str, head: str, tail: str) -> Said:
    """What is said of ``message`` after the prompt ``before``, where the template renders them together as ``after``.

    ``head`` and ``tail`` are what it writes around another content: what is in ``head`` and in no prompt is its own.
    White space is said, as bases have learned it. What the content holds is said in any case, also a thought that the
    template takes out of it. Raises DroppedRow.
    """
    rest = _behind(before, after)
    if after.startswith(head) and _squeezed(after[len(head) :]).startswith(_squeezed(message.content)):
        insert = head[len(before) :] if head.startswith(before) else ""
        return _cut_tail((insert if insert.isspace() else "") + after[len(head) :], tail)
    if rest is not None and _holds(rest, message.content):
        return _cut_tail(rest, tail)
    if message.calls:
        raise DroppedRow(_CHANGED)
    begun = before[len(os.path.commonprefix([before, head])) :].strip()  # noqa: RUF071 - such as a thought
    content = message.content.strip()
    return Said(content.removeprefix(begun).lstrip() if begun else content, tail)


def _behind(before: str, after: str) -> str | None:
    """What ``after`` adds to ``before``, white space between them aside; None where it begins otherwise."""
    if after.startswith(before):
        return after[len(before) :]
    bare = before.rstrip()
    return after[len(bare) :].lstrip() if after.startswith(bare) else None


def _cut_tail(text: str, tail: str) -> Said:
    return Said(text.removesuffix(tail), tail) if text.endswith(tail) else Said(text)


def _holds(text: str, part: str) -> bool:
    """Whether ``part`` stands in ``text``, white space aside: templates trim it and put some between parts."""
    return _squeezed(part) in _squeezed(text)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def _thinking_aloud(message: Message) -> Message:
    """``message`` with its thought in its content, between the marks in use."""
    return replace(message, content=f"<think>\n{message.thought}\n</think>\n\n{message.content}", thought="")


def text_segments(conversation: Conversation) -> list[TextSegment]:
    """The one segment of a row that is text only: plain language modelling."""
    return [TextSegment(conversation[0].content, learned=True, special=True, whole=True)]


class _RewrittenError(Exception):
    """A longer conversation does not begin with the rendering of its own beginning."""
