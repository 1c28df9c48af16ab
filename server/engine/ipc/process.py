"""The engine process: ``python -m server.engine.ipc.process --fd N``, N being its end of a socket pair.

The main thread owns the model and steps; one thread reads messages, one writes them, one says that the process lives.
The process ends when the other end of the socket closes, whatever it is doing. Interrupts are the parent's business
and are ignored here; SIGUSR1 writes what every thread is doing to stderr.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import NoReturn

import msgspec

from server.config import EngineConfig
from server.engine.engine_loop import Inbox, Progress, SteppableEngine, build_engine, run_engine
from server.engine.ipc.buffers import Outbox
from server.engine.ipc.compiler import leave_out_compiler
from server.engine.ipc.transport import TransportError, decode_to_engine, encode, recv_frame
from server.engine.ipc.watchdog import BEAT_SECONDS
from server.engine.messages import EngineInfo, Heartbeat, Shutdown
from server.errors import EngineStartError
from server.logs import configure_logging
from server.memory import share_heap

logger = logging.getLogger(__name__)

ORPHAN_GRACE_SECONDS = 3.0  # for the current step to finish after the other end has gone
FLUSH_SECONDS = 5.0  # for the last messages to be taken
_SWITCH_SECONDS = 0.0002


def serve(sock: socket.socket) -> int:
    """Run an engine for the other end of ``sock``; returns the exit status."""
    first = recv_frame(sock)
    if first is None:
        return 0
    inbox: Inbox = queue.SimpleQueue()
    outbox, finished, progress = Outbox(), threading.Event(), Progress()
    reader = threading.Thread(target=feed, args=(sock, inbox, finished), name="engine-reader", daemon=True)
    writer = threading.Thread(target=drain, args=(sock, outbox), name="engine-writer", daemon=True)
    heart = threading.Thread(target=beat, args=(progress, outbox, finished), name="engine-heartbeat", daemon=True)
    for thread in (reader, writer, heart):
        thread.start()
    ended_as_told = run_engine(partial(_build, first), inbox, outbox.put, progress)
    finished.set()
    outbox.close()
    writer.join(FLUSH_SECONDS)
    return 0 if ended_as_told else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the child; returns its exit status."""
    share_heap()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1)
    parser = argparse.ArgumentParser(prog="server.engine.ipc.process", description="The process that owns the model.")
    parser.add_argument("--fd", type=int, required=True, help="our end of a socket pair")
    parser.add_argument("--log-level", default="info")
    options = parser.parse_args(argv)
    configure_logging(options.log_level)
    os.environ.setdefault("TQDM_DISABLE", "1")  # progress bars are no log lines; read when the libraries are imported
    with socket.socket(fileno=options.fd) as sock:
        sock.set_inheritable(False)
        return serve(sock)


def _build(config: bytes) -> tuple[SteppableEngine, EngineInfo]:
    try:
        decoded = msgspec.json.decode(config, type=EngineConfig)
    except msgspec.DecodeError as error:
        raise EngineStartError(f"the engine's settings are wrong: {error}") from error
    leave_out_compiler()
    built = build_engine(decoded)
    _keep_loading_beside()
    return built


def _keep_loading_beside() -> None:
    """Let the loader thread cost the stepping thread little, whatever Python has to do for a package.

    Each product lets go of the interpreter's lock and waits an interval at most to have it back; and collections look
    at what is new, not at all that torch and the model consist of.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()


def feed(sock: socket.socket, inbox: Inbox, finished: threading.Event) -> None:
    """Feed the inbox until the other end closes; then see that the process ends, even out of a long load."""
    try:
        while (payload := recv_frame(sock)) is not None:
            inbox.put(decode_to_engine(payload))
    except (TransportError, OSError) as error:
        if not finished.is_set():  # else the socket was closed because all is done
            logger.error("cannot read from the server: %s", error)
    inbox.put(Shutdown())
    if not finished.wait(ORPHAN_GRACE_SECONDS):
        logger.warning("the server has gone; ending at once")
        os._exit(1)


def drain(sock: socket.socket, outbox: Outbox) -> None:
    """Send what the outbox holds until it closes, or until the other end has gone (which the reader notices)."""
    while messages := outbox.take():
        try:
            for message in messages:
                sock.sendall(encode(message))
        except OSError as error:
            logger.warning("cannot write to the server: %s", error)
            return


def beat(progress: Progress, outbox: Outbox, finished: threading.Event) -> None:
    """Say until the end that the process lives, and whether its stepping thread gets on."""
    while not finished.wait(BEAT_SECONDS):
        if not len(outbox):  # else what is waiting to be sent says as much
            outbox.put(Heartbeat(progress.mark))


def _leave(status: int) -> NoReturn:
    """End the process, without finalising the interpreter.

    Threads of ours and of libraries may be in native code still; an interpreter that is gone ends them by unwinding
    their stacks, which aborts the process where C++ forbids that. There is nothing to finalise: the model is memory.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody may be reading
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main())
