"""``POST /v1/completions``: plain text in, plain text out."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.auth import InferenceKey
from server.api.bodies import json_body
from server.api.generation import Whole
from server.api.job import Job, Prompt
from server.api.logprobs import completion_logprobs, joined, prompt_logprobs
from server.api.parts import PartsDep
from server.api.prepare import completion_job
from server.api.requests import CompletionBody
from server.api.respond import answer
from server.api.sequence import Delta, TokenEntry
from server.engine.messages import TokenLogprobs

router = APIRouter()
TextBody = Annotated[CompletionBody, Depends(json_body(CompletionBody))]


@router.post("/v1/completions", response_model=None)
async def completions(_: InferenceKey, request: Request, parts: PartsDep, body: TextBody) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    return await answer(request, parts, body, CompletionReply(), completion_job)


class CompletionReply:
    """The form of completion choices. An echoed prompt stands before the text, its log-probabilities before theirs."""

    object = "text_completion"
    chunk_object = "text_completion"

    def choice(self, job: Job, whole: Whole) -> dict[str, Any]:
        """A whole choice."""
        echoed = self._echoed(job, whole.index)
        return {
            "index": whole.index,
            "text": echoed + whole.text,
            "logprobs": self._logprobs(job, whole.index, whole.tokens, whole.prompt_logprobs, echoed),
            "finish_reason": whole.finish_reason,
        }

    def chunk_choices(self, job: Job, delta: Delta) -> list[dict[str, Any]]:
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
