"""A file becomes a model that answers, with the official client; what is wrong is refused before that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.server.api.support import error_of
from tests.server.live import Live, live_server

ROOT = "root-of-tuning"
WORDS = ("red", "green", "blue", "black", "white")
PERMISSIONS = "/v1/fine_tuning/checkpoints/ft:tiny:o::1/permissions"


def rows(count: int) -> bytes:
    """Questions that all have one answer: the loss falls within a few steps."""
    questions = [{"role": "user", "content": WORDS[i % len(WORDS)]} for i in range(count)]
    answer = {"role": "assistant", "content": "ok"}
    return b"".join(json.dumps({"messages": [question, answer]}).encode() + b"\n" for question in questions)


@pytest.fixture(scope="module")
def live(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(base, tmp_path_factory.mktemp("tuning"), organization="acme", admin_key=ROOT) as made:
        yield made


@pytest.fixture(scope="module")
def key(live: Live) -> dict[str, Any]:
    """A key that trains, and asks."""
    with live.http(Authorization=f"Bearer {ROOT}") as http:
        made: dict[str, Any] = http.post("/v1/keys", json={"name": "n", "scopes": ["fine-tuning", "inference"]}).json()
        return made


@pytest.fixture(scope="module")
def client(live: Live, key: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=key["key"], max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def training(client: openai.OpenAI) -> str:
    return client.files.create(file=("rows.jsonl", rows(24)), purpose="fine-tune").id


@pytest.mark.long
def test_a_file_becomes_a_model_that_answers(
    live: Live, client: openai.OpenAI, key: dict[str, Any], training: str
) -> None:
    jobs = client.fine_tuning.jobs
    validation = client.files.create(file=("valid.jsonl", rows(5)), purpose="fine-tune").id
    numbers: Any = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 20.0}
    job = jobs.create(
        model="tiny",
        training_file=training,
        validation_file=validation,
        suffix="my.model",
        seed=7,
        method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
        metadata={"team": "a"},
    )
    assert (job.object, job.status, job.seed, job.fine_tuned_model) == ("fine_tuning.job", "validating_files", 7, None)
    with live.http(Authorization=f"Bearer {key['key']}") as http:  # to the end of the job
        followed = http.get(f"/v1/fine_tuning/jobs/{job.id}/events", params={"stream": "true"}, timeout=120).text
    told = [json.loads(line.removeprefix("data: ")) for line in followed.splitlines() if line.startswith("data: {")]
    assert followed.endswith("data: [DONE]\n\n")
    assert told[-1]["message"] == "The job has successfully completed"
    job = jobs.retrieve(job.id)
    assert (job.status, job.error) == ("succeeded", None)
    name = job.fine_tuned_model
    assert name is not None
    assert name.startswith("ft:tiny:acme:my.model:")
    assert job.trained_tokens
    assert job.finished_at is not None
    steps = [event["data"]["step"] for event in told if "train_loss" in event["data"]]
    assert steps == list(range(1, 13))
    listed = list(jobs.list_events(job.id, limit=4))  # which asks for further pages
    assert [event.id for event in reversed(listed)] == [event["id"] for event in told]
    table = client.files.content(job.result_files[0]).text.splitlines()
    assert table[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert len(table) == 14
    result, *others = jobs.checkpoints.list(job.id, limit=1)  # which asks for further pages
    assert (result.fine_tuned_model_checkpoint, result.step_number) == (name, 12)
    assert {one.step_number for one in others} == {6, 9}
    for one in (result, *others):
        (figures,) = [e["data"] for e in told if e["data"].get("step") == one.step_number and "valid_loss" in e["data"]]
        assert one.metrics.valid_loss == one.metrics.full_valid_loss == figures["valid_loss"]
        assert one.metrics.train_loss
        assert one.metrics.step == one.step_number
    with pytest.raises(openai.BadRequestError):
        jobs.checkpoints.list(job.id, after="ftckpt-none")
    assert [found.id for found in jobs.list(metadata={"team": "a"})] == [job.id]
    assert jobs.list(metadata={"team": "b"}).data == []
    with pytest.raises(openai.BadRequestError):
        jobs.cancel(job.id)
    assert name in [model.id for model in client.models.list()]
    answer = client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "red"}], max_tokens=4, temperature=0
    )
    assert answer.choices[0].message.content == "ok"
    earlier = others[0].fine_tuned_model_checkpoint
    assert earlier == f"{name}:ckpt-step-{others[0].step_number}"
    assert client.chat.completions.create(
        model=f"{earlier}:0.5+{name}:0.5", messages=[{"role": "user", "content": "red"}], max_tokens=1
    ).choices
    for made in (name, *(one.fine_tuned_model_checkpoint for one in others)):
        assert client.models.delete(made).deleted  # by the key whose job made it
    assert name not in [model.id for model in client.models.list()]
    with live.http(Authorization=f"Bearer {key['key']}") as http:
        assert error_of(http.delete("/v1/models/none"), 403)["code"] == "insufficient_permissions"


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"model": "none"}, "model", "does not exist"),
        ({"training_file": "file-none"}, "training_file", "there is no file"),
        ({"validation_file": "file-none"}, "validation_file", "there is no file"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations", "wandb is not supported"),
        ({"method": {"type": "reinforcement"}}, "method.type", "reinforcement is not supported"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method", "the type is dpo"),
        ({"method": {"type": "x"}}, "method.type", "must be supervised or dpo"),
        ({"suffix": "a:b"}, "suffix", "may have letters"),
        ({"suffix": "a" * 65}, "suffix", "at most 64"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "at least 1"),
        ({"metadata": {"k": "v" * 513}}, "metadata", "512"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    client: openai.OpenAI, training: str, fields: dict[str, Any], param: str, said: str
) -> None:
    with httpx.Client(base_url=str(client.base_url).removesuffix("/v1/"), headers=client.auth_headers) as http:
        body = {"model": "tiny", "training_file": training, **fields}
        response = http.post("/v1/fine_tuning/jobs", json=body)
    error = error_of(response, 404 if param == "model" else 400)
    assert error["param"] == param
    assert said in error["message"]


def test_files_have_to_be_of_the_right_purpose(client: openai.OpenAI) -> None:
    other = client.files.create(file=("a.txt", b"x"), purpose="user_data")
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="tiny", training_file=other.id)
    assert (refused.value.code, refused.value.param) == ("invalid_purpose", "training_file")


def test_jobs_that_are_not_there(client: openai.OpenAI) -> None:
    jobs = client.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError) as refused:
            call("ftjob-none")
        assert refused.value.code == "job_not_found"


def test_jobs_belong_to_the_key_that_made_them(live: Live, client: openai.OpenAI, training: str) -> None:
    job = client.fine_tuning.jobs.create(model="tiny", training_file=training)
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled"
    assert cancelled.finished_at is not None

    def ask(scope: list[str], adapters: list[str] | None = None) -> httpx.Client:
        with live.http(Authorization=f"Bearer {ROOT}") as http:
            made = http.post("/v1/keys", json={"name": "n", "scopes": scope, "adapters": adapters}).json()
        return live.http(Authorization=f"Bearer {made['key']}")

    with ask(["fine-tuning"]) as http:
        assert error_of(http.get(f"/v1/fine_tuning/jobs/{job.id}"), 404)["code"] == "job_not_found"
        assert http.get("/v1/fine_tuning/jobs").json()["data"] == []
    with ask(["inference"]) as http:
        assert "fine-tuning" in error_of(http.get("/v1/fine_tuning/jobs"), 403)["message"]
    with ask(["fine-tuning"], ["team-*"]) as http:
        row = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("f", rows(2))}).json()["id"]
        body = {"model": "tiny", "training_file": row}
        assert "ft:tiny:acme::*" in error_of(http.post("/v1/fine_tuning/jobs", json=body), 403)["message"]
    with live.http(Authorization=f"Bearer {ROOT}") as http:
        assert http.get(f"/v1/fine_tuning/jobs/{job.id}").json()["status"] == "cancelled"
        told = http.get("/v1/events", params={"name": job.id}).json()["data"]
        assert {event["action"] for event in told} == {"fine_tuning.create", "fine_tuning.cancel"}


def test_permissions_of_checkpoints_are_refused(live: Live, key: dict[str, Any]) -> None:
    with live.http(Authorization=f"Bearer {key['key']}") as http:
        for response in (http.get(PERMISSIONS), http.post(PERMISSIONS), http.delete(f"{PERMISSIONS}/x")):
            assert error_of(response)["code"] == "not_supported"
