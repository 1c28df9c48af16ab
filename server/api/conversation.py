"""Conversations to prompts, and what is known from that of their answers: thoughts and calls, and how to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.api.context import ServerContext
from server.api.wire import ChatCompletionBody
from server.api.wire_conversation import ConversationBody
from server.api.wire_tools import NO_PARAMETERS, ToolUse
from server.errors import InvalidRequestError
from server.settings import ServerConfig
from server.text.grammars import Form, Kind
from server.text.output.call_grammars import CallGrammar, Function
from server.text.output.calls import CallOptions
from server.text.output.formats import CHANNELS, GENERIC, CallFormat, named_format
from server.text.output.parts import MessageParser, PlainParser
from server.text.output.thoughts import MARKS, ThoughtMarks, ThoughtParser
from server.text.template_form import content_text
from server.text.tokenizer import TextProcessor, count_characters


@dataclass(frozen=True)
class Reading:
    """How answers are read. ``shown`` are special tokens around their parts; ``grammar`` holds them to their form.

    Where that is what the body says, ``lead`` is what may stand before it.
    """

    make_parser: Callable[[], MessageParser] = PlainParser
    shown: frozenset[int] = frozenset()
    grammar: str = ""
    lead: str = ""


async def reading_of(context: ServerContext, text: TextProcessor, body: ChatCompletionBody, prompt: str) -> Reading:
    """How answers to ``prompt``, which was rendered of ``body``, are read. Raises InvalidRequestError."""
    config, use = context.config, body.tool_use
    template = text.template_for(body.chat_template_kwargs)
    marks, begun, calls = _marks(config, template.thought_marks, body), False, None
    if marks is not None:
        begun = marks.left_open_by(_last_said(body)) if body.continue_final_message else marks.begun_by(prompt)
    if use is not None:
        told = config.tool_parser == "auto" or template.written_tools  # what an adapter has learned goes before
        calls = template.call_format if told else named_format(config.tool_parser)
    elif template.has_channels:
        calls = CHANNELS
    special = _special(text, [*(calls.marks if calls else ()), *((*marks.starts, marks.end) if marks else ())])
    may_think = begun or (marks is not None and not body.continue_final_message and not _is_thought(marks, prompt))
    answer = _Answer(calls, use, marks if may_think else None, begun, special)
    return Reading(
        partial(_parser, calls, use, marks, begun=begun),
        frozenset(special.values()),
        await _grammar(context, text, answer, body.form()),
        await _lead(context, text, answer, body.form()),
    )


def _is_thought(marks: ThoughtMarks, prompt: str) -> bool:
    """Whether the prompt has thoughts already, be they empty."""
    return prompt.rstrip().endswith(marks.end)


@dataclass(frozen=True)
class _Answer:
    """What an answer may hold: thoughts between ``marks``, ``begun`` by the prompt, and ``calls`` as ``use`` says.

    ``special`` are the marks that are special tokens, with their numbers.
    """

    calls: CallFormat | None
    use: ToolUse | None
    marks: ThoughtMarks | None
    begun: bool
    special: dict[str, int]

    @property
    def tool_characters(self) -> int:
        """How much there is to read of the tools that may be called."""
        return count_characters([_function(one) for one in self.use.callable]) if self.use else 0

    def forced(self) -> str:
        """The grammar of answers that have to call, or of calls where a function is ``strict``."""
        assert self.calls is not None
        assert self.use is not None
        grammar, functions = CallGrammar(self.calls, self.special.get), list(map(_function, self.use.callable))
        if not self.use.forced:
            return grammar.when_opened(functions)
        parallel = self.use.parallel and self.use.named is None
        return grammar.forced(functions, parallel=parallel, marks=self.marks, begun=self.begun)

    def lead(self, form: Form) -> str:
        """What may stand before ``form``. Calls may come in the place of what is asked of the message alone."""
        grammar = CallGrammar(self.calls or GENERIC, self.special.get)
        functions = list(map(_function, self.use.callable)) if self.use and form.of_message else []
        parallel = self.use is not None and self.use.parallel
        return grammar.lead(functions, parallel=parallel, marks=self.marks, begun=self.begun)


async def _grammar(context: ServerContext, text: TextProcessor, answer: _Answer, form: Form | None) -> str:
    """That of answers that have to call, or may and are held to it; empty for others."""
    use = answer.use
    if use is None or not (use.forced or (form is None and any(one.strict for one in use.functions))):
        return ""
    if form is not None and not form.of_message:
        raise InvalidRequestError(
            f"tool_choice: an answer that has to call a tool has no other form; leave out one of it and {form.field}",
            param="tool_choice",
        )
    lark = await text.off_loop(answer.tool_characters, answer.forced)
    return await context.grammars.make(Form(Kind.GRAMMAR, lark, "tools")) if lark else ""


async def _lead(context: ServerContext, text: TextProcessor, answer: _Answer, form: Form | None) -> str:
    """What may stand before the form that answers are held to."""
    if form is None or (answer.use is not None and answer.use.forced):
        return ""
    lead = await text.off_loop(answer.tool_characters, partial(answer.lead, form))
    if answer.use is not None and lead:  # the schemas of tools are a client's
        await context.grammars.make(Form(Kind.GRAMMAR, "start: " + lead.replace("@inner", '"x"', 1), "tools"))
    return lead


def _marks(config: ServerConfig, of_template: ThoughtMarks | None, body: ConversationBody) -> ThoughtMarks | None:
    if body.leaves_thoughts or config.reasoning_parser == "none":
        return None
    return of_template if config.reasoning_parser == "auto" else MARKS[config.reasoning_parser]


def _last_said(body: ConversationBody) -> str:
    return content_text((body.messages or [])[-1].for_template()["content"]) if body.messages else ""


def _special(text: TextProcessor, marks: list[str]) -> dict[str, int]:
    """Those of ``marks`` that are special tokens, with their numbers."""
    found = {mark: text.special_token(mark) for mark in marks}
    return {mark: number for mark, number in found.items() if number is not None}


def _parser(form: CallFormat | None, use: ToolUse | None, marks: ThoughtMarks | None, *, begun: bool) -> MessageParser:
    inner: MessageParser = PlainParser()
    if form is not None:
        use = use or ToolUse(())
        schemas = dict(map(_function, use.callable))
        parallel = use.parallel and use.named is None
        inner = form.parser(CallOptions(schemas, form.make_id, parallel, use.forced, thoughts=marks is not None))
    return inner if marks is None or form is CHANNELS else ThoughtParser(marks, inner, begun=begun)


def _function(one: Any) -> Function:
    return one.name, one.parameters or NO_PARAMETERS


def refuse_tools(body: ConversationBody) -> None:
    """Raise InvalidRequestError where a body has tools that no conversation can be rendered with."""
    if body.tool_use is not None:
        raise InvalidRequestError("tools: this base reads a text, and calls none; leave them out", param="tools")
