"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from server.api.auth import InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.error_responses import json_response
from server.api.prepare import last_user_text, reads_plain_text
from server.api.wire import DetokenizeBody, TokenizeBody
from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor

router = APIRouter()


@router.post("/tokenize", response_model=None)
@router.post("/v1/tokenize", response_model=None)
async def tokenize(
    _: InferenceKey, context: ContextDep, body: Annotated[TokenizeBody, Depends(json_body(TokenizeBody))]
) -> Response:
    """Token ids of a text (with special tokens unless told otherwise), or of a rendered conversation."""
    tokenizer = _tokenizer(context, body.model)
    text, plain = body.prompt or "", True
    if body.messages is not None:
        messages = [message.for_template() for message in body.messages]
        plain = context.engine.ready and reads_plain_text(context)
        text = last_user_text(messages) if plain else await context.text.render_chat_off_loop(messages)
    elif len(text) > context.config.max_prompt_chars:
        raise InvalidRequestError(
            f"prompt: {len(text)} characters; at most {context.config.max_prompt_chars} are tokenised at once "
            "(--max-prompt-chars)",
            param="prompt",
            code="string_above_max_length",
        )
    special = plain if body.add_special_tokens is None else body.add_special_tokens
    tokens = await tokenizer.encode_off_loop(text, add_special_tokens=special)
    length = context.engine.info.max_model_len if context.engine.ready else None
    return json_response({"count": len(tokens), "max_model_len": length, "tokens": tokens})


@router.post("/detokenize", response_model=None)
@router.post("/v1/detokenize", response_model=None)
async def detokenize(
    _: InferenceKey, context: ContextDep, body: Annotated[DetokenizeBody, Depends(json_body(DetokenizeBody))]
) -> Response:
    """The text of token ids, special tokens included."""
    tokenizer = _tokenizer(context, body.model)
    if max(body.tokens, default=0) >= 2**31:
        raise InvalidRequestError("token ids must be below 2**31", param="tokens")
    decode = partial(tokenizer.decode, body.tokens, skip_special_tokens=False)
    return json_response({"prompt": await tokenizer.off_loop(len(body.tokens), decode)})


def _tokenizer(context: ServerContext, model: str | None) -> TextProcessor:
    """The tokenizer of ``model``, the base's when it names none. Raises UnknownModelError."""
    return context.text_of(None if model is None else context.registry.resolve(model))
