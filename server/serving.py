"""The serving process: binds the address, loads, says what runs and how to try it, and drains when told to stop."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType

from platformdirs import user_data_path

from adapters.errors import AdapterError
from adapters.package.inspection import inspect_package
from server.api.context import ServerContext
from server.app import create_app
from server.catalog.keys import without_keys
from server.catalog.store import AdapterStore
from server.connections import HttpServer
from server.errors import EngineStartError, InvalidRequestError
from server.logs import configure_logging
from server.making import make_context
from server.memory import free_unused, share_heap
from server.settings import ServerConfig
from server.unix_socket import unix_socket

SWITCH_SECONDS = 0.0005
_MOST_NAMED = 20  # adapters


def banner(context: ServerContext, url: str) -> str:
    """A few lines for a person. ``url`` is of a Unix socket where it is a path."""
    info = context.engine.info
    names = context.registry.names()
    more = [f"and {len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    tokens = info.num_kv_blocks * info.block_size
    rows = {
        "base": f"{context.base_name} ({info.quantization}, {info.dtype} on {info.device}, {_size(info.base_bytes)})",
        "kernels": info.kernels,
        "kv cache": f"{_size(info.kv_bytes)}, {tokens:,} tokens; up to {info.max_model_len:,} per sequence",
        "adapters": ", ".join([*(_adapter(context, name) for name in names[:_MOST_NAMED]), *more]) or "none yet",
        "catalog": context.lifecycle.catalog.database.shown,
        "listening": f"{url}  ({_access(context)})",
        "try": _curl(context, url, names[0] if names else context.base_name),
        **({} if url.startswith("/") else {"talk": f"hotswap chat --url {url}"}),
    }
    return "\n".join([f"hotswap {context.version} is ready", *(f"  {key:<10}{value}" for key, value in rows.items())])


def _adapter(context: ServerContext, name: str) -> str:
    version = context.registry.live(name)
    return f"{version.key} ({version.kind}, {_size(version.nbytes)})"


def _access(context: ServerContext) -> str:
    access = context.access
    inference = "no API key needed" if access.inference_is_open else "API key needed"
    if access.admin_is_open:
        return f"{inference}; adapter uploads open to this machine"
    return f"{inference}; adapter uploads {'with an admin key' if access.has_admin_keys else 'off: no --admin-key'}"


def _curl(context: ServerContext, url: str, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32}
    key = ' -H "Authorization: Bearer $KEY"' if not context.access.inference_is_open else ""
    address = f"--unix-socket {shlex.quote(url)} http://localhost" if url.startswith("/") else url
    return f"curl {address}/v1/chat/completions{key} -H 'content-type: application/json' -d '{json.dumps(body)}'"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def run(config: ServerConfig) -> int:
    """Serve until told to stop; returns the exit code. Raises EngineStartError or BaseModelError with the reason."""
    share_heap()
    configure_logging(config.log_level, without_keys)
    with _listening(config) as sock:
        url = _url(config.host, sock.getsockname()[1]) if sock.family is not socket.AF_UNIX else sock.getsockname()
        with _signals_stop():
            context = make_context(config, _data_dir(config))
            check_adapters(context)
            _say(f"loading {context.base_root} ...")
            server = DrainingServer(context, url)
            server.run(sockets=[sock])
            if server.failure is not None:
                raise server.failure
        _say("stopped")
    return 0


@contextmanager
def _signals_stop() -> Iterator[None]:
    """SIGTERM and SIGINT end the block, until the server takes both."""
    seen = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except BaseException:
        if not seen:  # else this is what libraries made of the interrupt
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class DrainingServer(HttpServer):
    """Serves, but a signal first drains: no new requests, running ones finish up to the deadline, then exit 0.

    A second signal is the deadline: what runs ends with an error. A third waits for nothing. ``failure`` is set when
    the server could not start.
    """

    def __init__(self, context: ServerContext, url: str) -> None:
        self.failure: EngineStartError | None = None
        self._context = context
        self._url = url
        self._draining: asyncio.Task[None] | None = None
        self._deadline = asyncio.Event()
        super().__init__(create_app(context, self._started), context.config)

    def _started(self, failure: EngineStartError | None) -> None:
        if failure is None:
            _share_interpreter()
            _say(banner(self._context, self._url))
        else:
            self.failure = failure
            self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT; the handlers run inside the event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; again: wait for running requests no longer; again: nor for anything else."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        elif not self._deadline.is_set():
            self._deadline.set()
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        context = self._context
        context.admission.close("the server is shutting down")
        if context.admission.active:
            _say(f"shutting down: {context.admission.active} running, at most {context.config.drain_seconds:g} s")
        ends = [asyncio.create_task(context.admission.idle()), asyncio.create_task(self._deadline.wait())]
        await asyncio.wait(ends, timeout=context.config.drain_seconds, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        self._deadline.set()
        if context.admission.active:
            await context.engine.close()  # what still runs is told so, in its own stream
        self.should_exit = True


def _share_interpreter() -> None:
    """Let work on other threads, and the collector, hold up the event loop little.

    The loop lets go of the interpreter's lock with each thing it reads or sends, and then waits an interval for a
    thread that computes; and collections look at what is new, not at all that is loaded.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    free_unused()
    gc.freeze()


def check_adapters(context: ServerContext) -> None:
    """Find what is wrong with --adapter before the base is loaded. Raises EngineStartError."""
    for name, path in context.config.adapter:
        try:
            context.registry.check_new_name(name)
            if Path(path).expanduser().is_dir():
                inspect_package(Path(path).expanduser())
            elif not Path(path).expanduser().is_file():
                raise EngineStartError(f"--adapter {name}={path}: there is no such directory or archive")
        except (AdapterError, InvalidRequestError) as error:
            raise EngineStartError(f"--adapter {name}={path}: {error}") from error


def _listening(config: ServerConfig) -> AbstractContextManager[socket.socket]:
    """The socket that is served on. Raises EngineStartError."""
    if config.uds:
        return unix_socket(Path(config.uds).expanduser().absolute(), config.uds_access)
    return bind(config.host, config.port)


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises EngineStartError saying what to do: before a base is loaded for minutes."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen()
    except OSError as error:
        raise EngineStartError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another --port"
        ) from error
    return sock


def _data_dir(config: ServerConfig) -> Path:
    """The directory, made if need be and seen to take packages: before a base is loaded for minutes."""
    named = config.data_dir or user_data_path("hotswap")
    try:
        path = Path(named).expanduser()
    except RuntimeError as error:  # of a user that is not there
        raise EngineStartError(f"cannot keep adapters in {named}: {error}; choose another --data-dir") from error
    AdapterStore(path).close()
    return path


def _url(host: str, port: int) -> str:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::", "") else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _say(text: str) -> None:
    """Tell whoever reads our output; that nobody does any more is no reason not to serve, or not to drain."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end, too
