"""Those who ask: some compare every answer, some watch the time, some leave early, some never read."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from random import Random
from urllib.parse import urlsplit

import aiohttp

from loadtests.soak.asking import Reply, ask, events, streaming
from loadtests.soak.references import Answer
from loadtests.soak.server import Server
from loadtests.soak.site import Site

PATIENCE = 120.0  # seconds for which a request is sent again before it counts as lost
LONG_TOKENS = 200
DEAF_SECONDS = 60.0
# Some 6 MB of events: Linux takes up to 4 MB off a sender's hands before anybody reads.
DEAF_REQUEST = {"max_tokens": 400, "n": 8, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}


async def comparer(site: Site, random: Random) -> None:
    """Ask, and have every answer judged."""
    while not site.over.is_set():
        model, answer = site.draw(random)
        await settle(site, random.choice(site.servers), model, answer, stream=random.random() < 0.5)
        site.ledger.judge()


async def settle(site: Site, server: Server, model: str, answer: Answer, *, stream: bool = False) -> Reply:
    """Ask until there is an answer, which is judged, or until there should have been one."""
    first = time.monotonic()
    body = {"model": model, **answer.body}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    while True:
        began = time.monotonic()
        reply = await ask(server.session, body)
        if not reply.problem:
            if reply.tokens != answer.max_tokens:
                site.ledger.lost.append(f"{model}: {reply.tokens} tokens came instead of {answer.max_tokens}")
            site.ledger.answered(None if model == site.base else model, reply.version, answer, reply.text)
            return reply
        if model in site.churned and reply.code == "model_not_found":
            site.ledger.counts["refused: removed"] += 1
            return reply
        excused = reply.status == 429 or site.ledger.excuses(reply.code, began, server.name)
        if not excused or time.monotonic() - first > PATIENCE:
            site.ledger.lost.append(f"{model} at {server.name}: {reply.status} {reply.problem}")
            return reply
        site.ledger.counts["sent again"] += 1
        await asyncio.sleep(0.2)


async def bystander(site: Site, random: Random) -> None:
    """Long streams of one after another adapter that nobody touches; every gap is measured."""
    while not site.over.is_set():
        server, model = random.choice(site.servers), random.choice((site.base, *site.fixed))
        prompt = list(random.choice(site.references.answers).prompt)
        body = {"model": model, "prompt": prompt, "max_tokens": LONG_TOKENS, "ignore_eos": True}
        began = time.monotonic()
        reply = await _watch(site, server, body | {"stream_options": {"include_usage": True}})
        site.ledger.counts["bystander streams"] += 1
        if reply.problem and not site.ledger.excuses(reply.code, began, server.name):
            site.ledger.lost.append(f"a bystander's stream of {model} at {server.name}: {reply.problem}")
        if reply.problem:
            await site.pause(0.5)


async def _watch(site: Site, server: Server, body: dict[str, object]) -> Reply:
    """Read one stream; what became of it, without its text."""
    reply, first = Reply(), True
    try:
        async with streaming(server.session, body) as response:
            reply.status = response.status
            if response.status != 200:
                reply.fail(await response.json(content_type=None))
                return reply
            async for event, seconds in events(response):
                if "error" in event:
                    reply.fail(event)
                    return reply
                if not first:  # the wait for the first is the queue's
                    site.ledger.saw_gap(time.monotonic() - seconds, seconds)
                first = False
                reply.tokens = (event.get("usage") or {}).get("completion_tokens", reply.tokens)
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        reply.problem = f"{type(error).__name__}: {error}"
    if not reply.problem and reply.tokens != LONG_TOKENS:
        reply.problem, reply.code = f"{reply.tokens} tokens came instead of {LONG_TOKENS}", "too_few_tokens"
    return reply


async def leaver(site: Site, random: Random) -> None:
    """Begin streams, read a little and hang up."""
    while not site.over.is_set():
        server, (model, answer) = random.choice(site.servers), site.draw(random)
        body = {"model": model, "prompt": list(answer.prompt), "max_tokens": LONG_TOKENS, "n": 2, "ignore_eos": True}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ValueError):
            async with streaming(server.session, body) as response:
                wanted = random.randrange(6)
                async for _ in events(response):
                    wanted -= 1
                    if wanted <= 0:
                        break
        site.ledger.counts["left early"] += 1
        await site.pause(random.uniform(0.05, 0.3))


class DeafReaders:
    """``count`` connections that ask for more than the system's buffers take, and never read."""

    def __init__(self, site: Site, random: Random, count: int) -> None:
        self._site = site
        self._random = random
        self._count = count
        self._sockets: list[socket.socket] = []

    async def run(self) -> None:
        """Call, and then let one after the other be followed by a new one."""
        await self.call()
        while not self._site.over.is_set():
            await self._site.pause(DEAF_SECONDS)
            if self._sockets:
                self._sockets.pop(0).close()
                await self.call()

    async def call(self) -> None:
        """Open as many as there should be."""
        while len(self._sockets) < self._count:
            try:
                await self._call()
            except OSError:  # that server is not there just now
                await asyncio.sleep(0.2)

    async def _call(self) -> None:
        model, _ = self._site.draw(self._random)
        body = {"model": model, "messages": [{"role": "user", "content": "Go on."}], "stream": True, **DEAF_REQUEST}
        payload = json.dumps(body).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        parts = urlsplit(self._random.choice(self._site.servers).url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that little is taken off the server's hands
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, (parts.hostname, parts.port))
            await loop.sock_sendall(sock, f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload)
        except OSError:
            sock.close()
            raise
        self._sockets.append(sock)
        self._site.ledger.counts["deaf readers"] += 1

    def hang_up(self) -> None:
        """Close all."""
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
