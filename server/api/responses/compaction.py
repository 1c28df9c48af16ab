"""``POST /v1/responses/compact``: a conversation made short, by a summary that the model writes of it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import override

from server.adapter_key import AdapterKey
from server.api.answer_form import AnswerForm, EventWriter
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.context_budget import MAX_LENGTH_CODE
from server.api.job import Job
from server.api.large_answer import json_parts
from server.api.outputs import Completion, Usage
from server.api.prepare import chat_job
from server.api.renaming import told_as
from server.api.respond import answer
from server.api.responses.body import PromptBody
from server.api.responses.chat import RESPONSE_NAMES, chat_of
from server.api.responses.form import usage_body
from server.api.responses.keeping import conversation_of
from server.api.responses.outputs import new_id
from server.api.responses.summaries import encode_summary
from server.api.wire import MAX_MODEL_CHARS, ChatCompletionBody, SamplingBody
from server.errors import InvalidRequestError

router = APIRouter()
SUMMARY_TOKENS = 512
ASK = {
    "type": "message",
    "role": "user",
    "content": "Summarize our conversation so far, so that it can be continued from the summary alone. Keep names, "
    "numbers, decisions, open questions and what is still to be done. Write nothing but the summary.",
}


class CompactBody(PromptBody):
    """What is to be compacted."""

    model: str = Field(min_length=1, max_length=MAX_MODEL_CHARS)
    prompt_cache_key: str | None = None


@router.post("/v1/responses/compact", response_model=None)
async def compact_response(
    caller: InferenceKey,
    request: Request,
    context: ContextDep,
    body: Annotated[CompactBody, Depends(json_body(CompactBody))],
) -> Response:
    """Sum up a conversation in one item, which later responses take in its place."""
    conversation = await conversation_of(context, caller.owner, body)
    if not conversation.items:
        raise InvalidRequestError("input: there is nothing to compact", param="input")
    with told_as(RESPONSE_NAMES):
        chat = chat_of(body, [*conversation.items, ASK], earlier=len(conversation.earlier))
        return await answer(request, context, chat, CompactionForm(), summary_job)


async def summary_job(
    context: ServerContext, chat: ChatCompletionBody, adapter: AdapterKey | None, started: float
) -> Job:
    """The job of a summary, which is short unless there is room for less only. Raises InvalidRequestError."""
    try:
        short = chat.model_copy(update={"max_completion_tokens": SUMMARY_TOKENS})
        return await chat_job(context, short, adapter, started)
    except InvalidRequestError as error:
        if error.code != MAX_LENGTH_CODE:
            raise
    return await chat_job(context, chat, adapter, started)


class CompactionForm(AnswerForm):
    """The form of a conversation that was compacted; ``item`` is what it came to, for the tokens ``spent``."""

    def __init__(self) -> None:
        self.item: dict[str, Any] | None = None
        self.spent: tuple[Usage, ...] = ()

    @override
    async def whole(self, job: Job, completions: list[Completion], usage: Usage) -> list[bytes]:
        (completion,) = completions
        self.spent = (usage,)
        self.item = {
            "type": "compaction",
            "id": new_id("cmp"),
            "encrypted_content": encode_summary(completion.message.content),
        }
        body = {
            "id": new_id("resp"),
            "object": "response.compaction",
            "created_at": job.created,
            "output": [self.item],
            "usage": usage_body(usage),
        }
        return json_parts(body)

    @override
    def writer(self, job: Job, body: SamplingBody) -> EventWriter:
        raise InvalidRequestError("stream: a compaction comes whole; leave it out", param="stream")
