"""What both clients make of trouble, and how often each sends a request."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import httpx
import pytest

from trainer.errors import EvaluationError, PublishError
from trainer.serving.client import AdminClient, InferenceClient, RefusedError

URL = "http://x"
TROUBLE: list[tuple[Exception, str]] = [
    (httpx.ConnectTimeout(""), "http://x cannot be reached: it did not answer in time"),
    (httpx.ConnectError("refused"), "http://x cannot be reached: refused"),
    (httpx.ReadTimeout(""), "http://x did not answer within 5 s; "),
    (httpx.RemoteProtocolError("gone"), "http://x broke off while it answered (gone); see its log"),
    (httpx.UnsupportedProtocol(""), "'http://x' is not a server address; give one like http://localhost:8000"),
]
MODELS = {"data": [{"id": "a", "parent": "base"}, {"id": "base", "parent": None}]}


class Scripted:
    """A transport that gives ``answers`` one after the other, the last for ever, and counts the requests."""

    def __init__(self, *answers: Exception | httpx.Response) -> None:
        self.answers = list(answers)
        self.requests = 0

    def __call__(self, _request: httpx.Request) -> httpx.Response:
        self.requests += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def error(status: int) -> httpx.Response:
    return httpx.Response(status, headers={"Retry-After": "0"}, json={"error": {"message": "no", "code": "c"}})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    """Let both clients speak to a server that answers as given."""

    def scripted(*answers: Exception | httpx.Response) -> Scripted:
        script = Scripted(*answers)
        for kind in (httpx.Client, httpx.AsyncClient):
            transport = httpx.MockTransport(script)
            monkeypatch.setattr(kind, "_transport_for_url", lambda _self, _url, made=transport: made)
        return script

    return scripted


@pytest.mark.parametrize(("trouble", "words"), TROUBLE)
async def test_both_say_trouble_in_the_same_words(
    serve: Callable[..., Scripted], trouble: Exception, words: str
) -> None:
    serve(trouble)
    async with InferenceClient(URL + "/v1/", timeout=5) as client:
        with pytest.raises(EvaluationError) as asked:
            await client.base_name()
    with AdminClient(URL + "/v1/", timeout=5) as admin, pytest.raises(PublishError) as told:
        admin.base_name()
    assert str(asked.value).startswith(words)
    assert str(told.value).startswith(words)


async def test_both_find_the_base_among_the_models(serve: Callable[..., Scripted]) -> None:
    serve(httpx.Response(200, json=MODELS))
    async with InferenceClient(URL) as client:
        assert await client.base_name() == "base"
    with AdminClient(URL) as admin:
        assert admin.base_name() == "base"
        serve(httpx.Response(200, json={"data": MODELS["data"][:1]}))
        with pytest.raises(PublishError, match="not like a hotswap server: no base among its models"):
            admin.base_name()


async def test_a_question_is_sent_again_when_its_connection_broke(serve: Callable[..., Scripted]) -> None:
    broken = httpx.ReadError("")
    script = serve(broken, broken, httpx.Response(200, json=MODELS))
    async with InferenceClient(URL) as client:
        assert await client.base_name() == "base"
        assert script.requests == 3
        script = serve(broken)
        with pytest.raises(EvaluationError, match="broke off"):
            await client.base_name()
        assert script.requests == 3
    script = serve(broken)
    with AdminClient(URL) as admin, pytest.raises(PublishError, match="broke off"):
        admin.activate("a", 1)
    assert script.requests == 1, "it may have come about"


async def test_a_busy_server_is_asked_again_but_nothing_is_uploaded_twice(serve: Callable[..., Scripted]) -> None:
    script = serve(error(503), httpx.Response(200, json=MODELS))
    with AdminClient(URL) as admin:
        assert admin.base_name() == "base"
        assert script.requests == 2
        script = serve(error(429))
        with pytest.raises(RefusedError, match=r"refused to list its models \(429\): no") as refused:
            admin.base_name()
        assert (refused.value.code, script.requests) == ("c", 1)
        script = serve(error(503))
        with pytest.raises(RefusedError, match=r"refused the adapter \(503\): no"):
            admin.upload(BytesIO(b"tar"), {"name": "a"}, replace=False)
        assert script.requests == 1
    script = serve(error(429), error(503), httpx.Response(200, json=MODELS))
    async with InferenceClient(URL) as client:
        assert await client.base_name() == "base"
    assert script.requests == 3
