"""Conversations to prompts, and what is known from that of their answers: thoughts and calls, and how to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.api.context import ServerContext
from server.api.wire_conversation import ConversationBody
from server.api.wire_tools import NO_PARAMETERS, ToolUse
from server.errors import InvalidRequestError
from server.settings import ServerConfig
from server.text.grammars import Form, Kind
from server.text.output.call_grammars import CallGrammar, Function
from server.text.output.calls import CallOptions
from server.text.output.formats import CallFormat, named_format
from server.text.output.parts import MessageParser, PlainParser
from server.text.output.thoughts import MARKS, ThoughtMarks, ThoughtParser
from server.text.template_form import content_text
from server.text.tokenizer import TextProcessor, count_characters


@dataclass(frozen=True)
class Reading:
    """How answers are read. ``shown`` are special tokens around their parts; ``grammar`` holds them to their form."""

    make_parser: Callable[[], MessageParser] = PlainParser
    shown: frozenset[int] = frozenset()
    grammar: str = ""


async def reading_of(
    context: ServerContext, text: TextProcessor, body: ConversationBody, prompt: str, *, formed: bool = False
) -> Reading:
    """How answers to ``prompt``, which was rendered of ``body``, are read. Raises InvalidRequestError.

    One that is ``formed`` is held to a form from its beginning, and has no thoughts that the prompt begins.
    """
    config = context.config
    template = text.template_for(body.chat_template_kwargs)
    use, found, begun = body.tool_use, _marks(config, template.thought_marks, body), False
    if found is not None and not formed:
        begun = found.left_open_by(_last_said(body)) if body.continue_final_message else found.begun_by(prompt)
    form = None
    if use is not None:
        form = template.call_format if config.tool_parser == "auto" else named_format(config.tool_parser)
    shown = _special(text, [*(form.marks if form else ()), *((*found.starts, found.end) if found else ())])
    grammar = ""
    if form is not None and use is not None and not formed and (use.forced or any(one.strict for one in use.functions)):
        ruled_out = found is not None and prompt.rstrip().endswith(found.end)  # the prompt has empty thoughts
        write = partial(_grammar, form, use, None if ruled_out else found, begun=begun, special=shown)
        if lark := await text.off_loop(count_characters([_function(one) for one in use.callable]), write):
            grammar = await context.grammars.make(Form(Kind.GRAMMAR, lark, "tools"))
    return Reading(partial(_parser, form, use, found, begun=begun), frozenset(shown.values()), grammar)


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
    if form is not None and use is not None:
        schemas = dict(map(_function, use.callable))
        inner = form.parser(CallOptions(schemas, form.make_id, use.parallel and use.named is None))
    return inner if marks is None else ThoughtParser(marks, inner, begun=begun)


def _function(one: Any) -> Function:
    return one.name, one.parameters or NO_PARAMETERS


def _grammar(
    form: CallFormat, use: ToolUse, marks: ThoughtMarks | None, *, begun: bool, special: dict[str, int]
) -> str:
    """The grammar of answers that have to call, or of calls where a function is ``strict``."""
    grammar = CallGrammar(form, special.get)
    functions = [_function(one) for one in use.callable]
    if use.forced:
        parallel = use.parallel and use.named is None
        return grammar.forced(functions, parallel=parallel, marks=marks, begun=begun)
    return grammar.when_opened(functions)


def refuse_tools(body: ConversationBody) -> None:
    """Raise InvalidRequestError where a body has tools that no conversation can be rendered with."""
    if body.tool_use is not None:
        raise InvalidRequestError("tools: this base reads a text, and calls none; leave them out", param="tools")
