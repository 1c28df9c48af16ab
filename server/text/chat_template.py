"""One chat template: conversations to prompts, as ``apply_chat_template`` writes them in training.

Conversations reach it as clients send them, and are brought into the form that the template takes. A template that
fails is the request's fault, and its own words are the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol

from jinja2 import TemplateError
from typing_extensions import override

from bases.fingerprint import template_sha256
from bases.tool_text import INDEXED_IDS
from server.errors import EngineUnavailableError, InvalidRequestError
from server.text.output.formats import CHANNELS, GENERIC, CallFormat, find_format
from server.text.output.thoughts import ThoughtMarks, find_marks
from server.text.template_environment import Message, reason_of
from server.text.template_form import ASSISTANT, SYSTEM, TOOL, USER, TemplateForm, find_form
from server.text.template_frames import Failure
from server.text.template_sandbox import TemplateOverrunError, TemplateSandbox
from server.text.tool_messages import (
    called,
    results_of_users,
    with_indexed_ids,
    with_short_ids,
    with_tool_calls,
    written_calls,
    written_tools,
)

MISTRAL_MARK = "[TOOL_CALLS]"
_NAME, _KEY, _ID = "probe_tool", "probe_key", "probe0001"
_PARAMETERS = {"type": "object", "properties": {_KEY: {"type": "string", "description": "Probe"}}, "required": [_KEY]}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "Probe", "parameters": _PARAMETERS}}
_TAG = "CONTINUE_FROM_HERE "  # ends in a space, which shows whether the template trims what it is given


class Renderer(Protocol):
    """What runs a template."""

    def render(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        """The text of ``messages``, with the template's other ``arguments``. Raises ServerError."""
        ...


class OwnRenderer(Renderer):
    """Renders a template of the operator's, in this process, with a tokenizer of transformers'."""

    def __init__(self, tokenizer: Any, source: str) -> None:
        self._tokenizer = tokenizer
        self._source = source

    @override
    def render(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                list(messages), chat_template=self._source, tokenize=False, **arguments
            )
        except TemplateError as error:
            raise _refused(Failure.REFUSED, reason_of(error)) from error
        except Exception as error:  # a template raises what it likes
            raise _refused(Failure.BROKEN, reason_of(error)) from error
        return str(text)


class ForeignRenderer(Renderer):
    """Renders a template that came with an adapter, in a process of its own; ``special_tokens`` by role."""

    def __init__(self, sandbox: TemplateSandbox, source: str, special_tokens: Mapping[str, str]) -> None:
        self.sandbox = sandbox
        self._source = source
        self._special_tokens = special_tokens

    @override
    def render(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        answer = self.sandbox.render(self._source, messages, {**self._special_tokens, **arguments})
        if answer.failure is not None:
            raise _refused(answer.failure, answer.reason)
        return answer.text


def _refused(failure: Failure, reason: str) -> InvalidRequestError:
    what = "refuses" if failure is Failure.REFUSED else "cannot render"
    return InvalidRequestError(f"the chat template {what} these messages: {reason}", param="messages")


class ChatTemplate:
    """A template and the form of conversations that it takes.

    ``written_tools``: tools and calls are written as text, as for a template that knows none.
    """

    def __init__(self, source: str, renderer: Renderer, *, written_tools: bool = False) -> None:
        self.source = source
        self.written_tools = written_tools
        self._renderer = renderer
        self._turn = asyncio.Lock()

    @property
    def sha256(self) -> str:
        """Hash of its text."""
        return template_sha256(self.source)

    @cached_property
    def form(self) -> TemplateForm:
        """What it takes, found out by rendering a few conversations. Raises EngineUnavailableError."""
        try:
            return find_form(self._attempt)
        except TemplateOverrunError:  # requests will be told
            return TemplateForm()

    def render(self, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None) -> str:
        """The prompt of a conversation, content as it was sent: a text, a list of parts, or None.

        Two ``arguments`` are not the template's alone: the last message stays open with ``continue_final_message``, and
        otherwise the answer is begun unless ``add_generation_prompt`` is false. Raises InvalidRequestError, or
        EngineUnavailableError for a template of an adapter's.
        """
        given = dict(arguments or {})
        messages = self._with_tools(messages, given)
        continues = bool(given.pop("continue_final_message", False))
        given["add_generation_prompt"] = bool(given.get("add_generation_prompt", not continues))
        if not continues:
            return self._render(self.form.arrange(messages), given)
        _check_continued(messages, given["add_generation_prompt"])
        tagged, said = _tagged(self.form.arrange(messages))
        return _up_to_tag(self._render(tagged, given), said)

    # ---- tools and thoughts ----

    @cached_property
    def with_written_tools(self) -> ChatTemplate:
        """This template for adapters that have learned tools and calls as text."""
        return ChatTemplate(self.source, self._renderer, written_tools=True)

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it writes the tools that it is given. Raises EngineUnavailableError."""
        return not self.written_tools and self._shows((_NAME,), [{"role": USER, "content": "Probe"}], tools=[_TOOL])

    @cached_property
    def writes_calls(self) -> bool:
        """Whether it writes the calls of a conversation. Raises EngineUnavailableError."""
        if self.written_tools:
            return False
        asked: Message = {"role": USER, "content": "Probe"}
        function = {"name": _NAME, "arguments": {_KEY: 1}}
        calling: Message = {
            "role": ASSISTANT,
            "content": "",
            "tool_calls": [{"id": _ID, "type": "function", "function": function}],
        }
        result: Message = {"role": TOOL, "content": "Probe", "tool_call_id": _ID}
        return any(self._shows((_NAME, _KEY), messages) for messages in ([asked, calling, result], [asked, calling]))

    @cached_property
    def call_format(self) -> CallFormat:
        """How answers call tools: as the template says, or as the text does that is written in its place."""
        return find_format(self.source) if self.knows_tools else GENERIC

    @cached_property
    def has_channels(self) -> bool:
        """Whether answers say of each of their parts what it is, with tools and without. Runs nothing."""
        return not self.written_tools and find_format(self.source) is CHANNELS

    @cached_property
    def thought_marks(self) -> ThoughtMarks | None:
        """What stands around thoughts, where the template knows any."""
        return find_marks(self.source)

    def _shows(self, wanted: tuple[str, ...], messages: Sequence[Message], **arguments: Any) -> bool:
        try:
            text = self._renderer.render(self.form.arrange(messages), {"add_generation_prompt": False, **arguments})
        except InvalidRequestError:
            return False
        return any(one in text for one in wanted)

    def _with_tools(self, messages: Sequence[Message], given: dict[str, Any]) -> Sequence[Message]:
        """``messages`` as the template takes them where tools come in, which are left in ``given`` if it knows any."""
        tools = given.get("tools")
        if "function_call" not in self.source:
            messages = with_tool_calls(messages)
        if any(message.get("tool_calls") and called(message) for message in messages) and not self.writes_calls:
            messages = written_calls(messages)
        if MISTRAL_MARK in self.source:
            messages = with_short_ids(messages)
        if INDEXED_IDS in self.source:
            messages = with_indexed_ids(messages)
        if TOOL not in self.form.content and any(message["role"] == TOOL for message in messages):
            messages = results_of_users(messages)
        if tools and not self.knows_tools:
            del given["tools"]
            messages = written_tools(messages, tools, system=SYSTEM in self.form.content)
        return messages

    @property
    def is_foreign(self) -> bool:
        """Whether it came with an adapter: ``render`` waits for another process then."""
        return isinstance(self._renderer, ForeignRenderer)

    async def render_foreign(self, messages: Sequence[Message], arguments: Mapping[str, Any] | None = None) -> str:
        """As ``render``, off the event loop; one at a time, so that one template cannot take all threads."""
        assert isinstance(self._renderer, ForeignRenderer)
        sandbox = self._renderer.sandbox
        try:
            async with asyncio.timeout(sandbox.limits.wall_seconds):
                await self._turn.acquire()
        except TimeoutError:
            raise EngineUnavailableError("the adapter's chat template is busy with other requests; try again") from None
        render = partial(self.render, messages, arguments)
        running = asyncio.get_running_loop().run_in_executor(sandbox.threads, render)
        running.add_done_callback(self._end_turn)
        return await asyncio.shield(running)  # a client that leaves does not end the turn

    def _end_turn(self, running: asyncio.Future[str]) -> None:
        self._turn.release()
        if not running.cancelled():
            running.exception()  # seen here, as its client may have gone

    def _render(self, messages: Sequence[Message], arguments: Mapping[str, Any]) -> str:
        try:
            return self._renderer.render(messages, arguments)
        except InvalidRequestError as error:
            overran = isinstance(error, TemplateOverrunError)
            if not (overran or self.form.text_arguments) and any(map(_has_plain_arguments, messages)):
                message = f"{error}; the `arguments` of a tool call must be a JSON object"
                raise InvalidRequestError(message, param=error.param) from error
            raise

    def _attempt(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._renderer.render(messages, {"add_generation_prompt": False})
        except TemplateOverrunError:  # another try would be another
            raise
        except InvalidRequestError:
            return None


def _has_plain_arguments(message: Message) -> bool:
    """Whether a message calls a tool with arguments that are no object."""
    return any(not isinstance(call.get("arguments", {}), dict) for call in called(message))


# ---- continuing a message ----


def _check_continued(messages: Sequence[Message], add_generation_prompt: bool) -> None:
    if add_generation_prompt:
        raise InvalidRequestError(
            "`continue_final_message` and `add_generation_prompt` cannot both be true: the first goes on with the last "
            "message, the second begins another",
            param="continue_final_message",
        )
    if messages[-1]["role"] != ASSISTANT:
        raise InvalidRequestError(
            "`continue_final_message` needs a last message of the role assistant to go on with",
            param="continue_final_message",
        )
    if messages[-1].get("content") is None:
        raise InvalidRequestError(
            "`continue_final_message` needs a last message with content to go on with", param="continue_final_message"
        )


def _tagged(messages: Sequence[Message]) -> tuple[list[Message], str]:
    """``messages`` with the end of the last one marked, and the text before the mark."""
    *before, last = messages
    content = last["content"]
    if isinstance(content, list):
        *parts, final = content or [{"type": "text", "text": ""}]
        said = str(final.get("text", ""))
        content = [*parts, {**final, "text": said + _TAG}]
    else:
        said, content = content, content + _TAG
    return [*before, {**last, "content": content}], said


def _up_to_tag(text: str, said: str) -> str:
    """What stands before the mark; blanks at the end of what was said are lost where the template trims them."""
    at = text.rfind(_TAG.strip())
    if at < 0 or said.strip() not in text:
        raise InvalidRequestError(
            "`continue_final_message` is not possible: the chat template does not write the last message as it is",
            param="continue_final_message",
        )
    return text[:at] if text[at:].startswith(_TAG) else text[:at].rstrip()
