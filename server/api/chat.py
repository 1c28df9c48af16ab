"""``POST /v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.auth import InferenceKey
from server.api.bodies import json_body
from server.api.generation import Whole
from server.api.job import Job
from server.api.logprobs import chat_logprobs
from server.api.parts import PartsDep
from server.api.prepare import chat_job
from server.api.requests import ChatCompletionBody
from server.api.respond import answer
from server.api.sequence import Delta, TokenEntry

router = APIRouter()
ChatBody = Annotated[ChatCompletionBody, Depends(json_body(ChatCompletionBody))]


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(_: InferenceKey, request: Request, parts: PartsDep, body: ChatBody) -> Response:
    """Continue a conversation, whole or as a stream."""
    return await answer(request, parts, body, ChatReply(), chat_job)


class ChatReply:
    """The form of chat choices."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, job: Job, whole: Whole) -> dict[str, Any]:
        """A message and why it ended."""
        message = {"role": "assistant", "content": whole.text, "refusal": None}
        return {
            "index": whole.index,
            "message": message,
            "logprobs": self._logprobs(job, whole.tokens),
            "finish_reason": whole.finish_reason,
        }

    def chunk_choices(self, job: Job, delta: Delta) -> list[dict[str, Any]]:
        """The role first, then text, and a finish reason in a chunk without text."""
        out = []
        if delta.first:
            out.append(self._chunk(delta, {"role": "assistant", "content": ""}))
        if delta.text or delta.tokens:
            out.append(self._chunk(delta, {"content": delta.text}, logprobs=self._logprobs(job, delta.tokens)))
        if delta.finish_reason is not None:
            out.append(self._chunk(delta, {}, finish_reason=delta.finish_reason))
        return out

    def _chunk(
        self,
        delta: Delta,
        content: dict[str, str],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        return {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, job: Job, tokens: list[TokenEntry]) -> dict[str, Any] | None:
        top = job.sampling.logprobs
        return None if top is None else chat_logprobs(tokens, top, job.tokenizer)
