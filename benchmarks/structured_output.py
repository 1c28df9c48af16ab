"""What outputs that follow a grammar cost those beside them.

    python -m benchmarks.structured_output [--model PATH] [--rows 8]

Half of the rows of every step are plain. The others are plain too, or follow a JSON schema, in rounds that take turns;
tokens are not drafted. All rows of a step are done at once, so that the plain rows are as fast as their steps: printed
are the median step of either kind of round, and how fast plain rows are beside grammars, 1 being as fast as beside
their like. Below 0.97 it ends with status 1.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

from bases.finding import DEFAULT_BASE, resolve_base
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.messages import EngineRequest, SamplingParams
from server.model.model_runner import load_runner
from server.text.grammars import Form, Kind, grammar_of

BAR = 0.97
SCHEMA = {
    "type": "array",
    "minItems": 400,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer"}, "is": {"enum": [1, 2]}},
        "required": ["name", "age", "is"],
        "additionalProperties": False,
    },
}


def round_of(engine: Engine, rows: int, steps: int, grammar: str) -> list[float]:
    """Seconds of each step in which all rows generate, half of them held to ``grammar`` unless that is empty."""
    for i in range(rows):
        sampling = SamplingParams(
            max_tokens=steps + 40, temperature=1.0, seed=i, ignore_eos=True, grammar=grammar if i % 2 else ""
        )
        engine.add_request(EngineRequest(request_id=str(i), prompt_ids=[1, 2, 3, 4, 5 + i], sampling=sampling))
    while len(engine.scheduler.running) < rows or any(r.num_output_tokens < 8 for r in engine.scheduler.running):
        engine.step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()
        seconds.append(time.perf_counter() - started)
    assert len(engine.scheduler.running) == rows, "outputs ended too early to be timed"
    for i in range(rows):
        engine.abort(str(i))
    while engine.has_work:
        engine.step()
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 1 where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_BASE, help="a base that is here: a directory, or its id")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    model = str(resolve_base(options.model))
    config = EngineConfig(model=model, speculation="off", max_num_seqs=options.rows)
    engine = Engine(load_runner(config), config)
    grammar = grammar_of(Form(Kind.JSON_SCHEMA, SCHEMA, "schema"))
    plain: list[float] = []
    held: list[float] = []
    for number in range(options.rounds + 1):
        for found, text in ((plain, ""), (held, grammar)):
            seconds = round_of(engine, options.rows, options.steps, text)
            if number:  # the first round fills caches
                found.extend(seconds)
    engine.close()
    ratio = statistics.median(plain) / statistics.median(held)
    print(f"{options.rows} rows, half of them held to a schema, on {model}")
    print(f"median step: {statistics.median(plain) * 1e3:.2f} ms plain, {statistics.median(held) * 1e3:.2f} ms held")
    print(f"plain rows beside grammars: {ratio:.3f} of their speed beside plain rows (bar {BAR})")
    return 0 if ratio >= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
