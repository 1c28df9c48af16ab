"""Renders one chat template of an adapter's, in a process of its own: ``python -m server.text.template_worker``.

The template is whatever somebody uploaded. It runs in Jinja's sandbox, which keeps it from the machine but not from
asking for time and memory: those the operating system bounds, also when the parent has gone. First comes the template,
then one job after the other.
"""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from jinja2 import Template, TemplateError

from server.text.template_environment import make_environment, reason_of, variables
from server.text.template_frames import Answer, Failure, decode_job, recv_frame, send_frame
from server.text.worker_limits import allow_seconds, run_worker


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_worker(serve, __doc__, argv, {"--max-chars": "length of what is written"})


def serve(sock: socket.socket, options: argparse.Namespace) -> int:
    """Answer one render after the other; an empty frame says that this has begun."""
    send_frame(sock, b"")
    source = recv_frame(sock)
    template: Template | None = None
    while source is not None and (job := recv_frame(sock)) is not None:
        allow_seconds(options.seconds)
        try:
            template = template or make_environment().from_string(source.decode())
            reply = msgspec.json.encode(Answer(text=_render(template, *decode_job(job), options.max_chars)))
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
