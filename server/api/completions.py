"""``POST /v1/chat/completions`` and ``POST /v1/completions``: the forms of their choices and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response
from typing_extensions import override

from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep
from server.api.generation import Completion, TextDelta, TokenEntry
from server.api.prepare import Job, Prompt, chat_job, completion_job
from server.api.respond import ChoiceFormat, answer
from server.api.wire import ChatCompletionBody, CompletionBody
from server.engine.messages import TokenLogprobs
from server.text.detokenize import IncrementalDecoder
from server.text.tokenizer import TextProcessor

LEAST = -9999.0  # JSON has no minus infinity; other servers write this too


def chat_logprobs(entries: Sequence[TokenEntry], top: int, text: TextProcessor) -> dict[str, Any]:
    """``choices[].logprobs`` of a chat completion; ``top`` alternatives per token."""
    content = []
    for entry in entries:
        chosen = _chat_token(entry.logprobs.token_id, entry.logprobs.logprob, text)
        alternatives = [_chat_token(token_id, value, text) for token_id, value in entry.logprobs.top[:top]]
        content.append({**chosen, "top_logprobs": alternatives})
    return {"content": content, "refusal": None}


def _chat_token(token_id: int, logprob: float, text: TextProcessor) -> dict[str, Any]:
    return {
        "token": text.token_text(token_id),
        "logprob": _finite(logprob),
        "bytes": list(text.token_bytes(token_id)),
    }


def completion_logprobs(
    entries: Sequence[TokenEntry], top: int, text: TextProcessor, *, base_offset: int = 0
) -> dict[str, list[Any]]:
    """``choices[].logprobs`` of a completion; offsets count from the beginning of the choice's whole text."""
    rows = [(entry.logprobs.token_id, entry.logprobs, base_offset + entry.offset) for entry in entries]
    return _columns(rows, top, text)


def prompt_logprobs(
    ids: Sequence[int], values: Sequence[TokenLogprobs | None], top: int, text: TextProcessor, *, prompt_text: str
) -> dict[str, list[Any]]:
    """The part of an echoed prompt: null for its first token, which nothing predicts."""
    decoder = IncrementalDecoder(text)
    rows, offset = [], 0
    for token_id, value in zip(ids, values, strict=True):
        rows.append((token_id, value, min(offset, len(prompt_text))))
        offset += len(decoder.push(token_id))
    return _columns(rows, top, text)


def joined(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Prompt and output, one after the other."""
    return {key: first[key] + second[key] for key in first}


def _columns(
    rows: Sequence[tuple[int, TokenLogprobs | None, int]], top: int, text: TextProcessor
) -> dict[str, list[Any]]:
    return {
        "tokens": [text.token_text(token_id) for token_id, _, _ in rows],
        "token_logprobs": [None if value is None else _finite(value.logprob) for _, value, _ in rows],
        "top_logprobs": [None if value is None else _top_logprobs(value, top, text) for _, value, _ in rows],
        "text_offset": [offset for _, _, offset in rows],
    }


def _top_logprobs(value: TokenLogprobs, top: int, text: TextProcessor) -> dict[str, float] | None:
    """The most likely tokens and the chosen one; of tokens that read alike the likeliest is kept."""
    if top == 0:
        return None
    out: dict[str, float] = {}
    for token_id, logprob in [*value.top[:top], (value.token_id, value.logprob)]:
        out.setdefault(text.token_text(token_id), _finite(logprob))
    return out


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)


router = APIRouter()
ChatBody = Annotated[ChatCompletionBody, Depends(json_body(ChatCompletionBody))]


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(_: InferenceKey, request: Request, context: ContextDep, body: ChatBody) -> Response:
    """Continue a conversation, whole or as a stream."""
    return await answer(request, context, body, ChatChoices(), chat_job)


class ChatChoices(ChoiceFormat):
    """The form of chat choices."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    @override
    def choice(self, job: Job, completion: Completion) -> dict[str, Any]:
        """A message and why it ended."""
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        return {
            "index": completion.index,
            "message": message,
            "logprobs": self._logprobs(job, completion.tokens),
            "finish_reason": completion.finish_reason,
        }

    @override
    def chunk_choices(self, job: Job, delta: TextDelta) -> list[dict[str, Any]]:
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
        delta: TextDelta,
        content: dict[str, str],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        return {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, job: Job, tokens: list[TokenEntry]) -> dict[str, Any] | None:
        top = job.sampling.logprobs
        return None if top is None else chat_logprobs(tokens, top, job.tokenizer)


TextBody = Annotated[CompletionBody, Depends(json_body(CompletionBody))]


@router.post("/v1/completions", response_model=None)
async def completions(_: InferenceKey, request: Request, context: ContextDep, body: TextBody) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    return await answer(request, context, body, CompletionChoices(), completion_job)


class CompletionChoices(ChoiceFormat):
    """The form of completion choices. An echoed prompt stands before the text, its log-probabilities before theirs."""

    object = "text_completion"
    chunk_object = "text_completion"

    @override
    def choice(self, job: Job, completion: Completion) -> dict[str, Any]:
        """A whole choice."""
        echoed = self._echoed(job, completion.index)
        return {
            "index": completion.index,
            "text": echoed + completion.text,
            "logprobs": self._logprobs(job, completion.index, completion.tokens, completion.prompt_logprobs, echoed),
            "finish_reason": completion.finish_reason,
        }

    @override
    def chunk_choices(self, job: Job, delta: TextDelta) -> list[dict[str, Any]]:
        """One chunk per delta; the prompt comes with the first, the finish reason with the last."""
        echoed = self._echoed(job, delta.index)
        if not (delta.text or delta.tokens or delta.finish_reason or (delta.first and echoed)):
            return []
        return [
            {
                "index": delta.index,
                "text": (echoed if delta.first else "") + delta.text,
                "logprobs": self._logprobs(job, delta.index, delta.tokens, delta.prompt_logprobs, echoed),
                "finish_reason": delta.finish_reason,
            }
        ]

    def _logprobs(
        self,
        job: Job,
        index: int,
        tokens: list[TokenEntry],
        of_prompt: list[TokenLogprobs | None] | None,
        echoed: str,
    ) -> dict[str, list[Any]] | None:
        top = job.sampling.logprobs
        if top is None:
            return None
        output = completion_logprobs(tokens, top, job.tokenizer, base_offset=len(echoed))
        if of_prompt is None:
            return output
        ids = self._prompt(job, index).ids
        return joined(prompt_logprobs(ids, of_prompt, top, job.tokenizer, prompt_text=echoed), output)

    def _echoed(self, job: Job, index: int) -> str:
        if not job.echo:
            return ""
        prompt = self._prompt(job, index)
        return prompt.text or job.tokenizer.decode(prompt.ids)

    def _prompt(self, job: Job, index: int) -> Prompt:
        return job.prompts[index // job.n]
