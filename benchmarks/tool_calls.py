"""How well a base, and a LoRA trained on conversations with tools, call tools over HTTP.

    python -m benchmarks.tool_calls --data FOLDER/toolcall

Three quarters of the conversations that have tools are trained on by ``hotswap train``, and the adapter is published
into a running server. Base and adapter are then asked for every answer of the other conversations over HTTP, with
``tools``, greedily, with tool_choice "auto" and, where the answer is a call, "required". What was trained is kept in
OUT and not trained again; OUT/results.json has every answer and OUT/results.md the table. With ``--snips FOLDER`` the
adapter also learns requests of snips, each written as one call of a function. The published sets are no part of the
project.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bases.finding import DEFAULT_BASE
from trainer.evaluation.bootstrap import interval
from trainer.recipes import RECIPES
from trainer.recipes.recipe import Row, shuffled
from trainer.serving.client import bearer
from trainer.serving.local_server import HOTSWAP, LocalServer, start_server, wait_until_ready

ADAPTER = "toolcall"
HELD = 1 / 4  # of the conversations
BATCH = 2
MAX_TOKENS = 128  # of an answer; the longest call has 48
_CONCURRENCY = 16
_TIMEOUT = 600.0  # seconds
_SNIPS_ROWS = 200
_SNIPS = {  # what its intents do; GetWeather is left out, as the weather is what everybody asks tools for
    "AddToPlaylist": "Add a song or an artist to a playlist",
    "BookRestaurant": "Book a table at a restaurant",
    "PlayMusic": "Play music",
    "RateBook": "Rate a book",
    "SearchCreativeWork": "Find a book, a film, a game or another creative work",
    "SearchScreeningEvent": "Find out where and when films are shown",
}
_PARAMETERS = 6  # of a function of snips
_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Call:
    """A call of a function; ``arguments`` as JSON text."""

    name: str
    arguments: str

    @property
    def parsed(self) -> dict[str, Any] | None:
        """The arguments; None where they are no object."""
        try:
            found = json.loads(self.arguments)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Question:
    """A conversation up to an answer, its tools, and the call wanted; None where text is."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    wanted: Call | None


# ---- the data ----


def split(folder: Path) -> tuple[list[Row], list[Row]]:
    """The conversations with tools: those to train on, and those held back; always the same."""
    recipe = RECIPES["toolcall"]
    rows = [row for one in recipe.splits for row in recipe.rows(folder, one) if json.loads(row["tools"] or "[]")]
    mixed = shuffled(rows)
    held = round(len(mixed) * HELD)
    return mixed[held:], mixed[:held]


def snips_rows(folder: Path) -> list[Row]:
    """Requests of snips as conversations of one call; always the same. Three of ten show a second function."""
    rows = [
        (row["prompt"].partition(": ")[2], json.loads(row["response"]))
        for row in RECIPES["snips"].rows(folder, "train")
    ]
    rows = [(text, asked) for text, asked in rows if asked["intent"] in _SNIPS]
    slots: dict[str, set[str]] = {}
    for _, asked in rows:
        slots.setdefault(asked["intent"], set()).update(asked["slots"])
    functions = {one: _snips_function(one, sorted(slots[one])[:_PARAMETERS]) for one in _SNIPS if one in slots}
    drawn = random.Random(0)
    return [_snips_row(text, asked, functions, drawn) for text, asked in rows[:_SNIPS_ROWS]]


def _snips_function(intent: str, slots: Sequence[str]) -> dict[str, Any]:
    told = {slot: {"type": "string", "description": "The " + slot.replace("_", " ")} for slot in slots}
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", intent).lower()
    return {"name": name, "description": _SNIPS[intent], "parameters": {"type": "object", "properties": told}}


def _snips_row(text: str, asked: Mapping[str, Any], functions: Mapping[str, Any], drawn: random.Random) -> Row:
    function = functions[asked["intent"]]
    tools = [function]
    if drawn.random() < 0.3 and (others := [one for intent, one in functions.items() if intent != asked["intent"]]):
        tools = drawn.sample([function, drawn.choice(others)], 2)
    known = function["parameters"]["properties"]
    arguments = {slot: value for slot, value in asked["slots"].items() if slot in known}
    call = json.dumps({"name": function["name"], "arguments": arguments})
    turns = [("human", text[0].upper() + text[1:]), ("function_call", call)]
    return {"messages": [{"from": who, "value": said} for who, said in turns], "tools": json.dumps(tools)}


def questions(rows: Sequence[Row]) -> list[Question]:
    """A question for each answer to a user in ``rows``: what was said before it, as OpenAI's clients write it."""
    return [question for row in rows for question in _questions(row)]


def _questions(row: Row) -> Iterator[Question]:
    tools = [{"type": "function", "function": function} for function in json.loads(row["tools"])]
    messages: list[dict[str, Any]] = []
    for turn in row["messages"]:
        role, said = turn["from"], turn["value"]
        asked = bool(messages) and messages[-1]["role"] == "user"
        if role == "function_call":
            call = json.loads(said)
            wanted = Call(call["name"], json.dumps(call["arguments"]))
            if asked:
                yield Question(tuple(messages), tools, wanted)
            made = {"id": f"call_{len(messages)}", "type": "function", "function": asdict(wanted)}
            messages.append({"role": "assistant", "content": None, "tool_calls": [made]})
        elif role == "observation":
            of = messages[-1]["tool_calls"][0]["id"]
            messages.append({"role": "tool", "tool_call_id": of, "content": said})
        else:
            if role == "gpt" and asked:
                yield Question(tuple(messages), tools, None)
            messages.append({"role": _ROLES[role], "content": said})


# ---- asking and scoring ----


def ask(http: httpx.Client, model: str, choice: str, question: Question) -> list[Call]:
    """The calls of the greedy answer. Raises RuntimeError with the server's words when it is refused."""
    body = {
        "model": model,
        "messages": question.messages,
        "tools": question.tools,
        "tool_choice": choice,
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
    }
    answer = http.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        raise RuntimeError(answer.text)
    message = answer.json()["choices"][0]["message"]
    return [Call(**call["function"]) for call in message.get("tool_calls") or ()]


def ask_all(http: httpx.Client, model: str, choice: str, asked: Sequence[Question]) -> list[list[Call]]:
    """``ask`` for each of ``asked``, several at a time."""
    with ThreadPoolExecutor(_CONCURRENCY) as pool:
        return list(pool.map(partial(ask, http, model, choice), asked))


def _named(wanted: Call, calls: Sequence[Call]) -> bool:
    return bool(calls) and calls[0].name == wanted.name


def _parses(_wanted: Call, calls: Sequence[Call]) -> bool:
    return bool(calls) and calls[0].parsed is not None


def _equals(wanted: Call, calls: Sequence[Call]) -> bool:
    return len(calls) == 1 and _named(wanted, calls) and calls[0].parsed == wanted.parsed


SCORES: dict[str, Callable[[Call, Sequence[Call]], bool]] = {
    "name right": _named,  # of the first call
    "arguments parse": _parses,  # its arguments are an object
    "call equal": _equals,  # there is one call, with the wanted name and arguments
}
SILENT = "no call where none is wanted"


def scores(asked: Sequence[Question], answers: Sequence[Sequence[Call]]) -> dict[str, list[float]]:
    """Each score as its value and its 95 % interval."""
    pairs = list(zip(asked, answers, strict=True))
    wanted = [(one.wanted, calls) for one, calls in pairs if one.wanted is not None]
    silent = [not calls for one, calls in pairs if one.wanted is None]
    found = {name: [score(*pair) for pair in wanted] for name, score in SCORES.items()} | {SILENT: silent}
    return {name: _with_interval(hits) for name, hits in found.items() if hits}


def _with_interval(hits: Sequence[bool]) -> list[float]:
    statistics = np.array([[hit, 1.0] for hit in hits])
    return [float(np.mean(hits)), *interval(statistics, lambda sums: sums[..., 0] / sums[..., 1])]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line for each model and choice."""
    head = ("model", "tool_choice", *SCORES, SILENT)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [_cell(row["scores"].get(name)) for name in (*SCORES, SILENT)]
        lines.append("| " + " | ".join([row["model"], row["choice"], *cells]) + " |")
    return "\n".join(lines)


def _cell(score: Sequence[float] | None) -> str:
    return "" if score is None else f"{score[0]:.3f} ({score[1]:.3f} to {score[2]:.3f})"


# ---- the whole run ----


def main(argv: Sequence[str] | None = None) -> int:
    """Train what is not trained, ask, and print the table."""
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    train_rows, held = split(args.data)
    if not (args.out / "lora" / "adapter").is_dir():
        more = [] if args.snips is None else snips_rows(args.snips)
        _train(args, shuffled([*train_rows, *more]) if more else train_rows)
    asked = questions(held)
    with start_server(["--model", args.base, "--quantize", args.quantize], args.out / "serve.log") as server:
        asyncio.run(wait_until_ready(server))
        publish = ("publish", str(args.out / "lora" / "adapter"), "--server", server.url, "--as", ADAPTER, "--quiet")
        _hotswap(*publish, HOTSWAP_ADMIN_KEY=server.admin_key)
        rows = list(_measured(server, asked))
    (args.out / "results.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    text = table(rows)
    (args.out / "results.md").write_text(text + "\n", encoding="utf-8")
    calls = sum(one.wanted is not None for one in asked)
    print(f"{len(train_rows)} conversations learned, {len(held)} held back: {calls} calls, {len(asked) - calls} texts")
    print(text)
    return 0


def _train(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    file = args.out / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    steps = args.steps or round(args.epochs * -(-len(rows) // BATCH))
    settings = (
        *(f"base={args.base}", f"output={args.out / 'lora'}", "method=lora"),
        *(f"data.path={file}", "data.validation=0", "data.max_length=768"),
        *(f"training.quantize={args.quantize}", f"training.max_steps={steps}", f"training.batch_size={BATCH}"),
        *("training.learning_rate=1e-3", "training.warmup=0.05", "training.threads=1"),
    )
    _hotswap("train", *settings, "--overwrite", "--quiet")


def _measured(server: LocalServer, asked: Sequence[Question]) -> Iterator[dict[str, Any]]:
    """Scores and answers of base and adapter with both choices."""
    calling = [question for question in asked if question.wanted is not None]
    with httpx.Client(base_url=server.url, headers=bearer(server.key), timeout=_TIMEOUT) as http:
        base = http.get("/v1/models").json()["data"][0]["id"]
        for choice, questioned in (("auto", asked), ("required", calling)):
            for name, model in (("base", base), ("LoRA", ADAPTER)):
                answers = ask_all(http, model, choice, questioned)
                said = [
                    {"wanted": one.wanted and asdict(one.wanted), "calls": [asdict(call) for call in calls]}
                    for one, calls in zip(questioned, answers, strict=True)
                ]
                yield {"model": name, "choice": choice, "scores": scores(questioned, answers), "answers": said}


def _hotswap(*arguments: str, **environment: str) -> None:
    """Run the command. Raises RuntimeError with its own words where it fails."""
    command = [*HOTSWAP, *arguments]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr.strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.tool_calls", description="Tools called over HTTP.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the published set")
    parser.add_argument("--snips", type=Path, help="folder of snips: also learn its requests, as calls")
    parser.add_argument("--out", type=Path, default=Path("tool-results"), help="default: %(default)s")
    parser.add_argument("--base", default=DEFAULT_BASE, help="default: %(default)s")
    parser.add_argument("--epochs", type=float, default=2.0, help="of training (default %(default)s)")
    parser.add_argument("--steps", type=int, help=f"of {BATCH} conversations, instead of epochs")
    parser.add_argument("--quantize", default="nf4", help="of the base, in training and served (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
