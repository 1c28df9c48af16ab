"""Finding the requests at fault when a step raises."""

from __future__ import annotations

import pytest
from torch import Tensor

from server.engine.batch import Work
from server.engine.executor import Executor
from server.engine.request import Request
from server.engine.sampler import Sampler
from server.model.inputs import ModelInput
from tests.server.engine.requests import make_request
from tests.server.engine.toy_runner import NOT_FINITE, RAISES, ToyRunner


def make_work(prompts: list[list[int]]) -> list[Work]:
    work = []
    for i, prompt in enumerate(prompts):
        request: Request = make_request(str(i), prompt, temperature=0.0)
        request.block_table = [i]
        work.append(Work(request, len(prompt)))
    return work


@pytest.mark.parametrize("bad", [[], [0], [3, 4], [6], [0, 1, 2, 3, 4, 5, 6]])
@pytest.mark.parametrize("poison", [RAISES, NOT_FINITE])
def test_every_guilty_request_and_no_other(bad: list[int], poison: int) -> None:
    runner = ToyRunner()
    prompts = [[i, poison] if i in bad else [i, i + 1] for i in range(7)]
    results = Executor(runner, Sampler()).run(make_work(prompts))
    assert [int(result.work.request.request_id) for result in results] == list(range(7))
    for i, result in enumerate(results):
        assert (result.error is not None) == (i in bad)
        assert (result.token is None) == (i in bad)
        if i not in bad:
            assert [result.token] == runner.greedy(None, prompts[i], 1)


def test_a_batch_that_is_only_too_large_costs_nobody() -> None:
    class SmallRunner(ToyRunner):
        def execute(self, inputs: ModelInput) -> Tensor:
            if len(inputs.sequences) > 2:
                raise MemoryError
            return super().execute(inputs)

    results = Executor(SmallRunner(), Sampler()).run(make_work([[i, 5] for i in range(7)]))
    assert all(result.error is None for result in results)


def test_an_interrupt_is_not_a_failed_request() -> None:
    class Interrupted(ToyRunner):
        def execute(self, inputs: ModelInput) -> Tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Executor(Interrupted(), Sampler()).run(make_work([[1]]))


def test_no_work_runs_no_model() -> None:
    runner = ToyRunner()
    assert Executor(runner, Sampler()).run([]) == []
    assert runner.inputs == []
