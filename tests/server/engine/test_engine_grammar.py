"""Outputs held to grammars in the whole engine, beside others that are not."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from server.engine.messages import FinishReason
from server.text.grammars import Form, Kind, grammar_of
from tests.factory import make_base, make_tokenizer
from tests.server.engine.driver import Driver, prompt_of
from tests.server.text.random_schemas import random_schema

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "n": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def json_schema(schema: dict[str, Any]) -> str:
    return grammar_of(Form(Kind.JSON_SCHEMA, schema, "x", whitespace=None))


def regex(pattern: str) -> str:
    return grammar_of(Form(Kind.REGEX, pattern, "x"))


def choice(*texts: str) -> str:
    return grammar_of(Form(Kind.CHOICE, list(texts), "x"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(make_base(tmp_path_factory.mktemp("grammar") / "base"))
    yield driver
    driver.engine.check_integrity()
    driver.engine.close()


def text_of(driver: Driver, name: str) -> str:
    stop = driver.outputs[name][-1].stop_token_id
    tokens = driver.tokens(name)
    return str(make_tokenizer().decode(tokens if stop is None else tokens[:-1]))


def reason(driver: Driver, name: str) -> FinishReason | None:
    return driver.outputs[name][-1].finish_reason


def test_every_output_fits_its_schema_and_others_are_as_without(driver: Driver) -> None:
    grammar = json_schema(SCHEMA)
    params: dict[str, Any] = {"temperature": 1.0, "logprobs": None}
    driver.submit("plain", prompt_of(1, 9), None, 40, seed=5, **params)
    driver.run()
    alone = driver.tokens("plain")
    driver.submit("plain", prompt_of(1, 9), None, 40, seed=5, **params)
    for i in range(12):
        driver.submit(f"json-{i}", prompt_of(i, 9), None, 200, seed=i, grammar=grammar, **params)
    driver.run()
    assert driver.tokens("plain") == alone
    for i in range(12):
        found = json.loads(text_of(driver, f"json-{i}"))
        assert reason(driver, f"json-{i}") is FinishReason.STOP
        assert list(found) == ["name", "n"]
        assert 0 <= found["n"] <= 999
        assert len(found["name"]) <= 4


def test_whatever_the_schema_outputs_are_valid_by_it(driver: Driver) -> None:
    """Logits are random: nothing but the grammar leads anywhere. What is cut says nothing."""
    schemas = [random_schema(random.Random(seed)) for seed in range(48)]
    for i, schema in enumerate(schemas):
        driver.submit(
            str(i), prompt_of(i, 5), None, 250, seed=i, grammar=json_schema(schema), temperature=2.0, logprobs=None
        )
    driver.run()
    ended = [i for i in range(len(schemas)) if reason(driver, str(i)) is FinishReason.STOP]
    cut = [i for i in range(len(schemas)) if reason(driver, str(i)) is FinishReason.LENGTH]
    assert len(ended) + len(cut) == len(schemas)
    assert len(cut) < len(schemas) // 8
    for i in ended:
        jsonschema_rs.validator_for(schemas[i], validate_formats=True).validate(json.loads(text_of(driver, str(i))))


def test_log_probabilities_are_of_the_model_itself(driver: Driver) -> None:
    prompt = prompt_of(3, 7)
    driver.submit("told", prompt, None, 60, grammar=json_schema(SCHEMA), temperature=1.0)
    driver.run()
    tokens = driver.tokens("told")
    want = driver.want(prompt, tokens, None).log_softmax(-1)
    entries = [entry for output in driver.outputs["told"] for entry in output.logprobs or []]
    for row, entry in zip(want, entries, strict=True):
        assert entry.logprob == pytest.approx(float(row[entry.token_id]), abs=1e-3)


def test_a_grammar_that_may_go_on_ends_by_the_end_token_alone(driver: Driver) -> None:
    grammar = regex("a+b?")
    driver.submit("ignores", [5, 6], None, 30, grammar=grammar, ignore_eos=True, logit_bias={65 - 33: -100.0})
    driver.submit("ends", [5, 6], None, 30, grammar=grammar, ignore_eos=False, logit_bias={258: 50.0})
    driver.submit("later", [5, 6], None, 30, grammar=grammar, ignore_eos=False, logit_bias={258: 50.0}, min_tokens=5)
    driver.run()
    assert set(text_of(driver, "ignores")) <= set("ab")
    assert driver.tokens("ends")[-1] == 258
    assert text_of(driver, "ends") == "a"
    assert len(text_of(driver, "later")) == 5 or text_of(driver, "later").endswith("b")


def test_what_is_complete_ends_at_once_whatever_min_tokens_says(driver: Driver) -> None:
    driver.submit("yes", [5, 6], None, 30, grammar=choice("yes"), min_tokens=20)
    driver.submit("cut", [5, 6], None, 2, grammar=choice("yes"))
    driver.run()
    assert (text_of(driver, "yes"), reason(driver, "yes")) == ("yes", FinishReason.STOP)
    assert driver.outputs["yes"][-1].stop_token_id is None
    assert (text_of(driver, "cut"), reason(driver, "cut")) == ("ye", FinishReason.LENGTH)


def test_what_cannot_go_on_is_refused_and_costs_nobody_else(driver: Driver) -> None:
    allowed = (0, 1, 2)
    driver.submit("stuck", [5, 6], None, 30, grammar=choice("yes"), allowed_token_ids=allowed)
    driver.submit("broken", [5, 6], None, 30, grammar="start: <|no_such_token|>")
    driver.submit("fine", [5, 6], None, 30, grammar=choice("yes"))
    driver.run()
    for name in ("stuck", "broken"):
        assert driver.outputs[name][-1].is_refusal
        assert reason(driver, name) is FinishReason.ERROR
    assert text_of(driver, "fine") == "yes"


def test_a_request_may_be_aborted_while_its_grammar_is_compiled(driver: Driver) -> None:
    driver.submit("gone", [5, 6], None, 30, grammar=regex("x[0-9]{3}y"))
    driver.engine.abort("gone")
    driver.run()
    assert reason(driver, "gone") is FinishReason.ABORT


def test_drafted_tokens_change_nothing(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    schema = {"type": "array", "items": {"enum": ["abc", "abd"]}, "minItems": 12, "maxItems": 12}
    grammar = json_schema(schema)
    texts = {}
    for speculation in ("auto", "off"):
        driver = Driver(base, speculation=speculation)
        for seed in range(4):
            driver.submit(str(seed), [5, 6], None, 200, grammar=grammar, temperature=1.0, seed=seed, logprobs=None)
        driver.run()
        texts[speculation] = [text_of(driver, str(seed)) for seed in range(4)]
        accepted = sum(o.accepted_tokens for outputs in driver.outputs.values() for o in outputs)
        assert (accepted > 0) == (speculation == "auto")
        driver.engine.check_integrity()
        driver.engine.close()
    assert texts["auto"] == texts["off"]
    assert all(len(json.loads(text)) == 12 for text in texts["auto"])
