"""``context_management``: once a conversation is long, what was said before its last turn is summed up on the way."""

from __future__ import annotations

from dataclasses import replace

from fastapi import Request

from server.api.auth import Caller
from server.api.context import ServerContext
from server.api.context_budget import MAX_LENGTH_CODE
from server.api.event_stream import ClientGone
from server.api.job import Job
from server.api.prepare import asked_model, chat_job
from server.api.respond import answer
from server.api.responses.body import ResponseBody
from server.api.responses.chat import chat_of
from server.api.responses.compaction import ASK, SUMMARY_TOKENS, CompactionForm
from server.api.responses.jobs import truncated_job
from server.api.responses.keeping import Conversation
from server.api.responses.summaries import last_turn
from server.api.wire import ChatCompletionBody
from server.errors import InvalidRequestError

_SHARE = 3 / 4  # of what the base reads: the threshold of who names none


async def shortened(
    request: Request, context: ServerContext, caller: Caller, body: ResponseBody, conversation: Conversation
) -> Conversation:
    """``conversation``, with a summary in the place of what was said before its last turn where ``body`` wants that.

    Raises InvalidRequestError, and ClientGone when nobody waits any more.
    """
    items = conversation.items
    before = items[: len(items) - len(last_turn(items))]
    if not body.context_management or not before or len(before) == len(items):
        return conversation
    threshold = body.context_management[0].compact_threshold or int(context.engine.info.max_model_len * _SHARE)
    chat = chat_of(body, items, earlier=len(conversation.earlier))
    if await input_tokens(context, caller, chat) <= threshold:
        return conversation
    plain = {"stream": None, "text": None, "tools": None, "tool_choice": None, "include": None, "top_logprobs": None}
    tokens = min(SUMMARY_TOKENS, max(1, threshold // 2))
    asked = body.model_copy(update={**plain, "max_output_tokens": tokens})
    form = CompactionForm()
    await answer(request, context, chat_of(asked, [*before, ASK], earlier=len(before)), form, truncated_job)
    if form.item is None:
        raise ClientGone
    return replace(conversation, summary=form.item, spent=form.spent)


async def input_tokens(context: ServerContext, caller: Caller, chat: ChatCompletionBody) -> float:
    """How many tokens the input of ``chat`` is: more than any number where the base cannot read it."""
    try:
        return (await counted_job(context, caller, chat)).prompt_tokens
    except InvalidRequestError as error:
        if error.code != MAX_LENGTH_CODE:
            raise
        return float("inf")


async def counted_job(context: ServerContext, caller: Caller, chat: ChatCompletionBody) -> Job:
    """The job of ``chat``, which is not to be done. Raises InvalidRequestError."""
    caller.check_asked(context.registry, chat)
    with context.registry.lease(asked_model(context.registry, chat), chat.sticky) as lease:
        return await chat_job(context, chat, lease.key, 0.0)
