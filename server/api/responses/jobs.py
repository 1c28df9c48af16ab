"""The jobs of responses: those of chats, cut where that is asked for."""

from __future__ import annotations

from server.adapter_key import AdapterKey
from server.api.context import ServerContext
from server.api.context_budget import MAX_LENGTH_CODE
from server.api.job import Job
from server.api.prepare import chat_job
from server.api.wire import ChatCompletionBody
from server.api.wire_conversation import ChatMessage
from server.errors import InvalidRequestError

_INSTRUCTIONS = ("system", "developer")


async def truncated_job(
    context: ServerContext, chat: ChatCompletionBody, adapter: AdapterKey | None, started: float
) -> Job:
    """As ``chat_job``, with as few of the oldest messages left out as makes the rest fit.

    Raises InvalidRequestError when even the last message does not.
    """
    try:
        return await chat_job(context, chat, adapter, started)
    except InvalidRequestError as error:
        if error.code != MAX_LENGTH_CODE:
            raise
        refusal = error
    fitting: Job | None = None
    fewest, most = 1, sum(message.role not in _INSTRUCTIONS for message in chat.messages) - 1
    while fewest <= most:  # more left out never makes it longer
        middle = (fewest + most) // 2
        shorter = chat.model_copy(update={"messages": without_oldest(chat.messages, middle)})
        try:
            fitting, most = await chat_job(context, shorter, adapter, started), middle - 1
        except InvalidRequestError as error:
            if error.code != MAX_LENGTH_CODE:
                raise
            refusal, fewest = error, middle + 1
    if fitting is None:
        raise refusal
    return fitting


def without_oldest(messages: list[ChatMessage], number: int) -> list[ChatMessage]:
    """``messages`` without the oldest ``number`` that are no instructions, nor results of tools that they called."""
    kept: list[ChatMessage] = []
    left = number
    begun = False  # with what is kept of the conversation
    for message in messages:
        if message.role in _INSTRUCTIONS:
            kept.append(message)
        elif left:
            left -= 1
        elif begun or message.role != "tool":
            begun = True
            kept.append(message)
    return kept
