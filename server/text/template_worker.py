"""Renders one chat template of an adapter's, in a process of its own: ``python -m server.text.template_worker``.

The template is whatever somebody uploaded. It runs in Jinja's sandbox, which keeps it from the machine but not from
asking for time and memory: those the operating system bounds, also when the parent has gone. First comes the template,
then one job after the other.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from jinja2 import Template, TemplateError

from server.text.template_environment import make_environment, reason_of, variables
from server.text.template_frames import Answer, Failure, decode_job, recv_frame, send_frame
from server.text.worker_limits import allow_seconds, confine


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; ends when the other end of the socket closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent's business
    parser = argparse.ArgumentParser(prog="server.text.template_worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="our end of a socket pair")
    parser.add_argument("--megabytes", type=int, required=True, help="address space")
    parser.add_argument("--seconds", type=float, required=True, help="computing time of one render")
    parser.add_argument("--max-chars", type=int, required=True, help="length of what is written")
    options = parser.parse_args(argv)
    confine(options.megabytes)
    with socket.socket(fileno=options.fd) as sock:
        return serve(sock, options.seconds, options.max_chars)


def serve(sock: socket.socket, seconds: float, max_chars: int) -> int:
    """Answer one render after the other; an empty frame says that this has begun."""
    send_frame(sock, b"")
    source = recv_frame(sock)
    template: Template | None = None
    while source is not None and (job := recv_frame(sock)) is not None:
        allow_seconds(seconds)
        try:
            template = template or make_environment().from_string(source.decode())
            reply = msgspec.json.encode(Answer(text=_render(template, *decode_job(job), max_chars)))
        except MemoryError:  # what is left of the process is not worth keeping
            send_frame(sock, msgspec.json.encode(Answer(failure=Failure.MEMORY)))
            return 1
        except Exception as error:  # noqa: BLE001 - foreign code raises what it likes
            reply = msgspec.json.encode(Answer(failure=_failure(error), reason=reason_of(error)))
        send_frame(sock, reply)
    return 0


class _TooLongError(Exception):
    """The text is longer than it may be."""


def _render(
    template: Template, messages: Sequence[dict[str, Any]], arguments: Mapping[str, Any], max_chars: int
) -> str:
    pieces, length = [], 0
    for piece in template.generate(variables(messages, arguments)):
        length += len(piece)
        if length > max_chars:
            raise _TooLongError
        pieces.append(piece)
    return "".join(pieces)


def _failure(error: Exception) -> Failure:
    if isinstance(error, _TooLongError):
        return Failure.LENGTH
    return Failure.REFUSED if isinstance(error, TemplateError) else Failure.BROKEN


if __name__ == "__main__":
    sys.exit(main())
