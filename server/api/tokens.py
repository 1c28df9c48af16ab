"""``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from server.api.auth import Caller, InferenceKey
from server.api.body import json_body
from server.api.context import ContextDep, ServerContext
from server.api.conversation import refuse_tools
from server.api.error_responses import ApiError, json_response
from server.api.large_answer import LargeAnswer, json_parts
from server.api.prepare import asked_model, last_user_text, reads_plain_text
from server.api.wire import DetokenizeBody, ModelBody, TokenizeBody
from server.catalog.registry import Draw
from server.errors import InvalidRequestError
from server.text.tokenizer import TextProcessor

router = APIRouter()


@router.post("/tokenize", response_model=None)
@router.post("/v1/tokenize", response_model=None)
async def tokenize(
    caller: InferenceKey, context: ContextDep, body: Annotated[TokenizeBody, Depends(json_body(TokenizeBody))]
) -> Response:
    """Token ids of a text (with special tokens unless told otherwise), or of a rendered conversation."""
    tokenizer = _tokenizer(context, body, caller)
    text, plain = body.prompt or "", True
    if body.messages is not None:
        messages = [message.for_template() for message in body.messages]
        plain = context.engine.ready and reads_plain_text(context, tokenizer)
        if plain:
            refuse_tools(body)
            text = last_user_text(messages, body.chat_template_kwargs)
        else:
            text = await tokenizer.render_chat_off_loop(messages, body.chat_template_kwargs)
    elif len(text) > context.config.max_prompt_chars:
        raise InvalidRequestError(
            f"prompt: {len(text)} characters; at most {context.config.max_prompt_chars} are tokenised at once "
            "(--max-prompt-chars)",
            param="prompt",
            code="string_above_max_length",
        )
    special = plain if body.add_special_tokens is None else body.add_special_tokens
    _check_bytes(context, text, body)
    tokens = await tokenizer.encode_off_loop(text, add_special_tokens=special)
    length = context.engine.info.max_model_len if context.engine.ready else None
    kept = (length if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens) or len(tokens)
    tokens = tokens[:kept] if body.truncation_side == "right" else tokens[-kept:]
    answer = {"count": len(tokens), "max_model_len": length}
    return await tokenizer.off_loop(len(tokens), partial(_written, tokenizer, answer, tokens, body))


def _check_bytes(context: ServerContext, text: str, body: TokenizeBody) -> None:
    """Raise InvalidRequestError for a text that may make more tokens than an answer can hold: one for each byte."""
    limit = 2 * context.config.max_prompt_chars
    if len(text) * 4 > limit and (size := len(text.encode(errors="replace"))) > limit:
        param = "messages" if body.prompt is None else "prompt"
        raise InvalidRequestError(
            f"{param}: a text of {size} bytes; at most {limit} are tokenised at once (twice --max-prompt-chars)",
            param=param,
            code="string_above_max_length",
        )


def _written(tokenizer: TextProcessor, answer: dict[str, Any], tokens: list[int], body: TokenizeBody) -> Response:
    """The answer, written part by part: it may be of millions of tokens."""
    strings = map(tokenizer.piece, tokens) if body.return_token_strs else None
    return LargeAnswer(json_parts({**answer, "tokens": tokens, "token_strs": strings}))


@router.post("/detokenize", response_model=None)
@router.post("/v1/detokenize", response_model=None)
async def detokenize(
    caller: InferenceKey, context: ContextDep, body: Annotated[DetokenizeBody, Depends(json_body(DetokenizeBody))]
) -> Response:
    """The text of token ids, special tokens included."""
    tokenizer = _tokenizer(context, body, caller)
    text = await tokenizer.off_loop(len(body.tokens), partial(_decode, tokenizer, body.tokens))
    return json_response({"prompt": text})


@router.get("/tokenizer_info", response_model=None)
@router.get("/v1/tokenizer_info", response_model=None)
async def tokenizer_info(_: InferenceKey, context: ContextDep) -> Response:
    """The configuration of the base's tokenizer, with the chat template that is used; where the operator allows it."""
    if not context.config.tokenizer_info:
        raise ApiError(
            404,
            "this server does not tell its tokenizer's configuration; its operator can allow it with --tokenizer-info",
            code="not_found",
        )
    return json_response(await asyncio.to_thread(context.text.configuration))


def _decode(tokenizer: TextProcessor, tokens: list[int]) -> str:
    """The text of ``tokens``. Raises InvalidRequestError for one that is not in the vocabulary."""
    unknown = next((token for token in tokens if not tokenizer.has_token(token)), None)
    if unknown is not None:
        raise InvalidRequestError(f"tokens: token id {unknown} is not in the tokenizer's vocabulary", param="tokens")
    return tokenizer.decode(tokens, skip_special_tokens=False)


def _tokenizer(context: ServerContext, body: ModelBody, caller: Caller) -> TextProcessor:
    """The tokenizer of the model that ``body`` names, of the version that its user is given of it.

    Raises UnknownModelError or InvalidRequestError.
    """
    caller.check_asked(context.registry, body)
    draw = None if body.sticky is None else Draw(body.sticky)
    return context.text_of(context.registry.resolve(asked_model(context.registry, body), draw))
