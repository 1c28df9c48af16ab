from __future__ import annotations

from typing import Any

import openai
import pytest

from server.api.responses.summaries import encode_summary, summary_message
from tests.server.api.responses.test_routes import GREEDY, chat_text
from tests.server.api.support import BASE, error_of
from tests.server.live import Live

SAID: Any = [{"role": "user", "content": "Tuesday?"}, {"role": "assistant", "content": "Tuesday."}]


def test_a_summary_takes_the_place_of_what_was_said(client: openai.OpenAI) -> None:
    compacted = client.responses.compact(model="lora", input=SAID, prompt_cache_key="x")
    (item,) = compacted.output
    assert (compacted.object, item.type) == ("response.compaction", "compaction")
    content = item.encrypted_content  # type: ignore[union-attr]
    assert compacted.usage.output_tokens > 0
    given: Any = [item.model_dump(exclude_none=True), {"role": "user", "content": "When?"}]
    response = client.responses.create(model="lora", input=given, max_output_tokens=5, store=False, **GREEDY)
    said = [{"role": "system", "content": summary_message(str(content))}, {"role": "user", "content": "When?"}]
    assert response.output_text == chat_text(client, said, 5)


def test_says_what_is_wrong(server: Live) -> None:
    assert error_of(server.post("/v1/responses/compact", {"input": "x"}))["param"] == "model"
    assert error_of(server.post("/v1/responses/compact", {"model": BASE}))["param"] == "input"
    other = {"type": "compaction", "encrypted_content": "gAAAA"}
    error = error_of(server.post("/v1/responses", {"model": BASE, "input": [other]}))
    assert error["param"] == "input[0].encrypted_content"


def test_only_whole_summaries_are_read() -> None:
    assert summary_message(encode_summary("who, wörld")).endswith("\nwho, wörld")
    for broken in ("hotswap.1.%", "other"):
        with pytest.raises(ValueError, match="send"):
            summary_message(broken)
