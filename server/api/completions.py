"""``POST /v1/chat/completions`` and ``POST /v1/completions``: the forms of their choices."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response
from typing_extensions import override

from server.api.answer_form import ChoiceFormat
from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep
from server.api.job import Job, Prompt
from server.api.large_answer import packed
from server.api.logprobs import chat_logprobs, completion_logprobs, joined, prompt_logprobs, ranked_prompt
from server.api.outputs import Completion, TextDelta, TokenEntry
from server.api.prepare import chat_batch_job, chat_job, completion_job
from server.api.respond import answer
from server.api.stored_completions import kept_form
from server.api.wire import ChatBatchBody, ChatCompletionBody, CompletionBody
from server.api.wire_conversation import ConversationBody
from server.engine.messages import TokenLogprobs
from server.text.echo import echo_of
from server.text.output.parts import AssistantMessage, ContentDelta, Part, ReasoningDelta, ToolCallBegin

router = APIRouter()
ChatBody = Annotated[ChatCompletionBody, Depends(json_body(ChatCompletionBody))]


@router.post("/v1/chat/completions", response_model=None)
async def chat_completions(caller: InferenceKey, request: Request, context: ContextDep, body: ChatBody) -> Response:
    """Continue a conversation, whole or as a stream."""
    form = kept_form(ChatChoices(body), context, caller.owner, body) if body.store else ChatChoices(body)
    return await answer(request, context, body, form, chat_job)


class ChatChoices(ChoiceFormat):
    """The form of the choices of a chat that ``body`` asks for."""

    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, body: ConversationBody) -> None:
        use = body.tool_use
        self._named = use is not None and use.named is not None
        self._legacy = body.calls_functions
        self._thoughts = body.include_reasoning is not False

    @override
    def choice(self, job: Job, completion: Completion) -> dict[str, Any]:
        """A message and why it ended."""
        return {
            "index": completion.index,
            "message": self._message(completion.message, echoed=self._prompt(job, completion).echo),
            "logprobs": self._logprobs(job, completion.tokens),
            "finish_reason": self._finish_reason(completion),
            "stop_reason": completion.stop_reason,
            "token_ids": completion.token_ids if job.tells.token_ids else None,
        }

    @override
    def chunk_choices(self, job: Job, delta: TextDelta) -> list[dict[str, Any]]:
        """The role first, then each part; the finish reason stands beside the last text, or in a chunk without any.

        Tokens stand beside the first part of their delta, or alone.
        """
        role = [self._chunk(delta, {"role": "assistant", "content": ""})] if delta.first else []
        if delta.first and (echo := self._prompt(job, delta).echo):
            role.append(self._chunk(delta, {"content": echo}))
        told = [self._chunk(delta, told) for part in delta.parts if (told := self._delta_of(part))]
        if not told and (delta.token_ids or (delta.tokens and job.sampling.logprobs is not None)):
            told.append(self._chunk(delta, {"content": ""}))
        if told:
            told[0]["logprobs"] = self._logprobs(job, delta.tokens)
            if job.tells.token_ids:
                told[0]["token_ids"] = delta.token_ids
        if delta.finish_reason is not None:
            if not (told and "content" in told[-1]["delta"]):
                told.append(self._chunk(delta, {}))
            told[-1] |= {"finish_reason": self._finish_reason(delta), "stop_reason": delta.stop_reason}
        return role + told

    @override
    def first_fields(self, job: Job) -> dict[str, Any]:
        """The prompt's tokens stand beside the choices, once."""
        return {"prompt_token_ids": job.prompts[0].ids} if job.tells.token_ids else {}

    @override
    def fields(self, job: Job, completions: list[Completion]) -> dict[str, Any]:
        """The prompt's tokens and log-probabilities stand beside the choices, which share it."""
        ids, values = job.prompts[0].ids, completions[0].prompt_logprobs
        return {
            "prompt_logprobs": _ranked_prompt(job, ids, values),
            "prompt_token_ids": ids if job.tells.token_ids else None,
        }

    def _prompt(self, job: Job, part: Completion | TextDelta) -> Prompt:
        return job.prompts[part.index // job.n]

    def _message(self, message: AssistantMessage, *, echoed: str = "") -> dict[str, Any]:
        """A message as chat completions write it; one that only calls has no content."""
        calls, content = message.calls, echoed + message.content
        plain: dict[str, Any] = {
            "role": "assistant",
            "content": None if calls and not content and not self._named else content,
            "refusal": None,
        }
        if message.reasoning and self._thoughts:
            plain |= {"reasoning_content": message.reasoning, "reasoning": message.reasoning}
        if calls and self._legacy:
            plain["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
        elif calls:
            plain["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in calls]
        return plain

    def _delta_of(self, part: Part) -> dict[str, Any]:
        """A part as chunks write it; empty where it is not told."""
        if isinstance(part, ContentDelta):
            return {"content": part.text}
        if isinstance(part, ReasoningDelta):
            return {"reasoning_content": part.text, "reasoning": part.text} if self._thoughts else {}
        if isinstance(part, ToolCallBegin):
            if self._legacy:
                return {"function_call": {"name": part.name, "arguments": ""}}
            return {"tool_calls": [{"index": part.index, **_call(part.id, part.name, "")}]}
        if self._legacy:
            return {"function_call": {"arguments": part.arguments}}
        return {"tool_calls": [{"index": part.index, "function": {"arguments": part.arguments}}]}

    def _finish_reason(self, ended: Completion | TextDelta) -> str | None:
        """That a call ended it is told, unless the client named the function."""
        if not ended.called or ended.finish_reason != "stop" or self._named:
            return ended.finish_reason
        return "function_call" if self._legacy else "tool_calls"

    def _chunk(self, delta: TextDelta, content: dict[str, Any]) -> dict[str, Any]:
        return {"index": delta.index, "delta": content, "logprobs": None, "finish_reason": None}

    def _logprobs(self, job: Job, tokens: list[TokenEntry]) -> dict[str, Any] | None:
        top = job.sampling.logprobs
        if top is None:
            return None
        return chat_logprobs(tokens, top, job.tokenizer, by_id=job.tells.ids_for_names, pack=packed)


def _ranked_prompt(job: Job, ids: list[int], values: list[TokenLogprobs | None] | None) -> list[Any] | None:
    if job.prompt_logprobs is None or values is None:
        return None
    return ranked_prompt(ids, values, job.prompt_logprobs, job.tokenizer, pack=packed)


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


BatchBody = Annotated[ChatBatchBody, Depends(json_body(ChatBatchBody))]


@router.post("/v1/chat/completions/batch", response_model=None)
async def chat_completions_batch(_: InferenceKey, request: Request, context: ContextDep, body: BatchBody) -> Response:
    """Continue several conversations: choices in their order, `n` of each."""
    return await answer(request, context, body, BatchChoices(body), chat_batch_job)


class BatchChoices(ChatChoices):
    """The form of the choices of several conversations, each with its own prompt."""

    @override
    def choice(self, job: Job, completion: Completion) -> dict[str, Any]:
        ids = self._prompt(job, completion).ids
        return {
            **super().choice(job, completion),
            "prompt_token_ids": ids if job.tells.token_ids else None,
            "prompt_logprobs": _ranked_prompt(job, ids, completion.prompt_logprobs),
        }

    @override
    def fields(self, job: Job, completions: list[Completion]) -> dict[str, Any]:
        return {}


TextBody = Annotated[CompletionBody, Depends(json_body(CompletionBody))]


@router.post("/v1/completions", response_model=None)
async def completions(_: InferenceKey, request: Request, context: ContextDep, body: TextBody) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    return await answer(request, context, body, CompletionChoices(), completion_job)


class CompletionChoices(ChoiceFormat):
    """The form of completion choices. An echoed prompt stands before the text, its log-probabilities before theirs."""

    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self) -> None:
        self._echoes: dict[int, str] = {}

    @override
    def choice(self, job: Job, completion: Completion) -> dict[str, Any]:
        """A whole choice."""
        echoed = self._echoed(job, completion.index)
        prompt = self._prompt(job, completion.index)
        return {
            "index": completion.index,
            "text": echoed + completion.text,
            "logprobs": self._logprobs(job, completion, echoed),
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
            "token_ids": completion.token_ids if job.tells.token_ids else None,
            "prompt_token_ids": prompt.told_ids if job.tells.token_ids else None,
            "prompt_logprobs": _ranked_prompt(job, prompt.ids, completion.prompt_logprobs),
        }

    @override
    def chunk_choices(self, job: Job, delta: TextDelta) -> list[dict[str, Any]]:
        """One chunk per delta; the prompt comes with the first, the finish reason with the last."""
        echoed = self._echoed(job, delta.index)
        if not (delta.text or delta.tokens or delta.token_ids or delta.finish_reason or (delta.first and echoed)):
            return []
        choice: dict[str, Any] = {
            "index": delta.index,
            "text": (echoed if delta.first else "") + delta.text,
            "logprobs": self._logprobs(job, delta, echoed),
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if job.tells.token_ids:
            choice["token_ids"] = delta.token_ids
        if job.tells.token_ids and delta.first:
            choice["prompt_token_ids"] = self._prompt(job, delta.index).told_ids
        return [choice]

    def _logprobs(self, job: Job, part: Completion | TextDelta, echoed: str) -> dict[str, list[Any]] | None:
        top = job.sampling.logprobs
        if top is None:
            return None
        settings: dict[str, Any] = {"by_id": job.tells.ids_for_names, "pack": packed}
        output = completion_logprobs(part.tokens, top, job.tokenizer, base_offset=len(echoed), **settings)
        if part.prompt_logprobs is None or not job.echo:
            return output
        ids = self._prompt(job, part.index).ids
        values = part.prompt_logprobs
        prompt = prompt_logprobs(ids, values, top, job.tokenizer, prompt_text=echoed, **settings)
        return joined(prompt, output)

    def _echoed(self, job: Job, index: int) -> str:
        if not job.echo:
            return ""
        prompt = self._prompt(job, index)
        if prompt.text is not None:
            return prompt.text
        number = index // job.n
        if number not in self._echoes:
            self._echoes[number] = echo_of(job.tokenizer, prompt.ids)
        return self._echoes[number]

    def _prompt(self, job: Job, index: int) -> Prompt:
        return job.prompts[index // job.n]
