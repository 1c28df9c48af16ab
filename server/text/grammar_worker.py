"""Checks grammars in a process of its own: ``python -m server.text.grammar_worker``, one job after the other.

Compiling one may take any time, and end the process where it is nested too deeply. A job is a form; the answer its
grammar, or what is wrong with it.
"""

from __future__ import annotations

import argparse
import re
import socket
import time
from collections.abc import Sequence

import msgspec
from llguidance import LLMatcher, LLTokenizer

from server.engine.grammar_limits import LIMITS
from server.errors import InvalidRequestError
from server.text.grammars import Form, Kind, grammar_of
from server.text.json_schemas import Schema, find_fault, written
from server.text.template_frames import recv_frame, send_frame
from server.text.worker_limits import allow_seconds, run_worker

QUOTE = '"'
_TRIED_STEPS = 24
_TOO_MUCH = "it takes too much to follow; make it simpler"
_SLOW = 0.25  # seconds that one mask may take; a server has other things to do meanwhile


class Made(msgspec.Struct, frozen=True, omit_defaults=True):
    """The grammar, or the problem and whose it is."""

    grammar: str = ""
    problem: str = ""


def make(form: Form) -> Made:
    """The grammar of a form, which has compiled, and has been followed a little way."""
    try:
        grammar = grammar_of(form)
        problem = problem_of(grammar)
        if problem:
            place = _place(form, problem) if form.kind is Kind.JSON_SCHEMA else ""
            raise form.refusal(problem, place)
        if problem := _trouble(grammar, form.kind):
            raise form.refusal(problem)
    except InvalidRequestError as error:
        return Made(problem=str(error))
    except Exception as error:  # noqa: BLE001 - clients may send anything, and the next form is to be made here
        return Made(problem=f"{form.field}: it cannot be read ({type(error).__name__})")
    return Made(grammar)


def problem_of(grammar: str) -> str:
    """Why a grammar does not compile, in a sentence; empty if it does."""
    problem = LLMatcher.validate_grammar(grammar, limits=LIMITS)
    if not problem or problem.startswith("WARNING"):
        return ""
    # It repeats the grammar behind its first line, and the reason at the end.
    first, *rest = problem.strip().splitlines()
    first = re.sub(r"^(at )?\d+\(\d+\): ", "", first).removeprefix("failed to compile JSON schema: ")
    details = [line.strip() for line in rest if not re.match(r"\s+\d+ \||\s+\^|<non-verbose", line)]
    told = "; ".join(dict.fromkeys([first, *(line for line in details if line and line not in first)]))
    if unknown := re.match(r"Unimplemented keys: \[(.*)\]", told):
        return f"the keyword {unknown[1].replace(QUOTE, '`')} cannot be held to; leave it out"
    return told[:400]


def _place(form: Form, problem: str) -> str:
    """Where in a schema the problem is."""

    def problem_within(schema: Schema) -> str:
        try:
            return problem_of(grammar_of(msgspec.structs.replace(form, value=schema)))
        except InvalidRequestError as error:
            return str(error)

    return written(find_fault(form.value, problem, problem_within))


def _trouble(grammar: str, kind: Kind) -> str:
    """Why a grammar cannot be followed, found out byte by byte on some way through it; empty if it can."""
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0, limits=LIMITS)
    for step in range(_TRIED_STEPS):
        if matcher.is_stopped():
            break
        started = time.monotonic()
        allowed = matcher.compute_bitmask()
        if time.monotonic() - started > _SLOW or matcher.is_error():
            return _TOO_MUCH
        if kind is Kind.JSON_SCHEMA and not any(allowed):
            return "nothing is valid by this schema"
        bytes_ = [8 * i + bit for i, byte in enumerate(allowed[:32]) for bit in range(8) if byte >> bit & 1]
        if not bytes_:
            break
        if matcher.try_consume_tokens([bytes_[(step * 7) % len(bytes_)]]) != 1:
            return _TOO_MUCH
    return ""


def serve(sock: socket.socket, options: argparse.Namespace) -> int:
    """Make one grammar after the other; an empty frame says that this has begun."""
    send_frame(sock, b"")
    while (job := recv_frame(sock)) is not None:
        allow_seconds(options.seconds)
        send_frame(sock, msgspec.json.encode(make(msgspec.json.decode(job, type=Form))))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return run_worker(serve, __doc__, argv)


if __name__ == "__main__":
    raise SystemExit(main())
