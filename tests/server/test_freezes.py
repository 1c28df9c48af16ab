"""One client sends what takes long to read; another's stream and /health must not notice.

Real processes, real sockets.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from peft import LoraConfig

from tests.factory import make_adapter, make_base
from tests.server.bystanders import bystanders
from tests.server.command import serving, url_of

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BAR = 0.1  # seconds: what a stream's longest gap may grow by, and the slowest answer of /health
TRIES = 5  # other processes make gaps too: each try has a control as long as itself, and one quiet try is enough
QUIET = 0.5  # seconds of a control, at least
# Where a body would have the engine compute for long, it asks for more tokens than there is room for.


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("freezes") / "tiny", max_position_embeddings=8192)


@dataclass(frozen=True)
class Served:
    """A server: where, and its process."""

    url: str
    pid: int


@pytest.fixture(scope="module")
def served(base: Path) -> Iterator[Served]:
    with serving("--model", str(base), "--threads", "1", "--log-level", "error") as (process, lines):
        yield Served(url_of(lines), process.pid)


def _send(url: str, requests: list[tuple[str, bytes]]) -> set[int]:
    """All ``requests`` at once; what they are answered by."""

    def post(request: tuple[str, bytes]) -> int:
        path, content = request
        http = HTTPConnection(urlsplit(url).netloc, timeout=60)  # httpx takes a while to get ready
        http.request("POST", path, content, {"content-type": "application/json"})
        with closing(http), http.getresponse() as response:
            response.read()
            return response.status

    with ThreadPoolExecutor(len(requests)) as threads:
        return set(threads.map(post, requests))


def _chat(message: bytes, extra: bytes = b"") -> bytes:
    return b'{"model": "tiny", "max_tokens": 1, "messages": [' + message + b"]" + extra + b"}"


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": "tiny", "max_tokens": 1, **fields}).encode()


def _keys(count: int) -> bytes:
    return b"{" + b",".join(b'"k%d":1' % i for i in range(count)) + b"}"


PROSE = "Well, it's said: the quick brown fox jumps over 13 lazy dogs; 世界, too.\n"
EMPTY = b'{"role":"u"}'
USER = b'{"role": "user", "content": "x"}'
ATTACKS: dict[str, Callable[[], list[tuple[str, bytes]]]] = {
    "500,000 empty messages": lambda: [(CHAT, _chat(b",".join([EMPTY] * 500_000)))],
    "as many messages as allowed": lambda: [(CHAT, _chat(b",".join([USER] * 4096)))],
    "6 MB to tokenise": lambda: [("/tokenize", _body(prompt=PROSE * 80_000))],
    "as much as allowed to tokenise": lambda: [("/tokenize", _body(prompt="xy " * 660_000))],
    "6 MB as a prompt": lambda: [(TEXT, _body(prompt=PROSE * 80_000))],
    "6 MB as a message": lambda: [(CHAT, _body(messages=[{"role": "user", "content": PROSE * 80_000}]))],
    "a field of 6 MB": lambda: [(CHAT, _body(messages=[{"role": "user", "content": "x", "more": "y" * 6_000_000}]))],
    "a field of 600,000 keys": lambda: [(CHAT, _chat(USER[:-1] + b', "more": ' + _keys(600_000) + b"}"))],
    "as many keys as allowed": lambda: [(CHAT, _chat(USER[:-1] + b', "more": ' + _keys(35_000) + b"}"))],
    "template arguments": lambda: [(CHAT, _chat(USER, b', "chat_template_kwargs": {"x": ' + _keys(600_000) + b"}"))],
    "2.5 million prompts": lambda: [(TEXT, b'{"model": "tiny", "prompt": [' + b",".join([b'""'] * 2_500_000) + b"]}")],
    "256 prompts": lambda: [(TEXT, _body(prompt=[PROSE * 20] * 256, max_tokens=8000))],
    "2 million token ids": lambda: [(TEXT, _body(prompt=[7] * 2_000_000))],
    "as many token ids as allowed": lambda: [(TEXT, _body(prompt=[[7] * 1000] * 250, max_tokens=8000))],
    "2 million ids to detokenise": lambda: [("/detokenize", _body(tokens=[70] * 2_000_000))],
    "as many ids as allowed": lambda: [("/detokenize", _body(tokens=[70] * 260_000))],
    "nesting": lambda: [(TEXT, b"[" * 7_000_000), (CHAT, _chat(b"[" * 3_000_000 + b"]" * 3_000_000))],
    "nothing but quotes": lambda: [(TEXT, b'"' * 7_000_000)],
    "logit_bias and stop": lambda: [
        (TEXT, _body(prompt="x", logit_bias={str(i): 1 for i in range(500_000)})),
        (TEXT, _body(prompt="x", stop=["x"] * 1_000_000)),
    ],
    "giant numbers": lambda: [
        (TEXT, b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 7_000_000 + b"}"),
        (TEXT, b'{"model": "tiny", "prompt": "x", "max_tokens": 1, "temperature": 0.' + b"9" * 7_000_000 + b"}"),
    ],
    "24 tokenise requests": lambda: [("/tokenize", _body(prompt=PROSE * 500))] * 24,
    "many at once": lambda: [
        (CHAT, _chat(b",".join([EMPTY] * 500_000))),
        (CHAT, _chat(USER[:-1] + b', "more": ' + _keys(35_000) + b"}")),
        (TEXT, _body(prompt=[7] * 260_000)),
        ("/tokenize", _body(prompt="xy " * 660_000)),
        ("/detokenize", _body(tokens=[70] * 260_000)),
        (TEXT, b'"' * 7_000_000),
    ],
}


SERVED = ("as much as allowed to tokenise", "as many keys as allowed", "as many ids as allowed", "24 tokenise requests")


REFUSED_SOON = {"6 MB to tokenise", "6 MB as a message", "a field of 600,000 keys", "template arguments",
                "2 million token ids", "2 million ids to detokenise", "nothing but quotes", "giant numbers",
                "2.5 million prompts"}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in REFUSED_SOON else name for name in ATTACKS]
)
def test_nobody_notices_a_request(served: Served, name: str) -> None:
    requests, codes = ATTACKS[name](), {200} if name in SERVED else {200, 400, 413}
    _check_quiet(served, lambda: _send(served.url, requests), lambda took: time.sleep(max(QUIET, took)), codes)


TOKENS = {"17 MB of tokens": (17_000, 1000, 400), "as many tokens as allowed": (13_000, 10, 201)}


@pytest.mark.parametrize("name", list(TOKENS))
def test_nobody_notices_a_tokenizer(served: Served, base: Path, tmp_path: Path, name: str) -> None:
    count, length, code = TOKENS[name]
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    package = make_adapter(base, tmp_path / "package", config)
    names = itertools.count()

    def upload(count: int, code: int) -> set[int]:
        """Never the same tokens twice: what is known is not built again."""
        mine = next(names)
        tokens = [{"id": 259 + i, "content": f"{mine}-{i:0{length - 2}d}", "special": i % 2 == 0} for i in range(count)]
        (package / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
        files = [("files", (path.name, path.read_bytes())) for path in package.iterdir()]
        with httpx.Client(base_url=served.url, timeout=60) as http:
            answer = http.post(f"/v1/adapters?name=of-{count}-{length}-{mine}", files=files)
        assert answer.status_code == code, answer.text
        assert code == 201 or "added tokens" in answer.json()["error"]["message"]
        return {answer.status_code}

    _check_quiet(served, lambda: upload(count, code), lambda _: upload(3, 201), {code})


def _check_quiet(
    served: Served, send: Callable[[], set[int]], control: Callable[[float], object], codes: set[int]
) -> None:
    """Fail unless, in one of some tries, ``send`` leaves everybody else as much alone as ``control`` does."""
    seen = []

    def act() -> None:
        assert send() <= codes

    with bystanders(served.url, "tiny", served.pid) as others:
        for _ in range(TRIES):
            started = time.perf_counter()
            attacked = others.during(act)
            took = time.perf_counter() - started
            alone = others.during(lambda: control(took))  # noqa: B023 - called at once
            seen.append((attacked.gap - alone.gap, attacked.health - alone.health, took))
            if max(seen[-1][:2]) < BAR:
                return
    pytest.fail(f"the longest gap and the slowest /health grew by (and this took seconds): {seen}")
