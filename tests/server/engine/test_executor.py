"""From scheduled requests to a model input, whose the rows of logits are, and who is at fault when a step raises."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from server.adapter_key import AdapterKey
from server.engine.executor import OUT_OF_MEMORY, Executor, Work, make_batch, scheduled_work
from server.engine.request import Request
from server.engine.sampling.sampler import Sampler
from server.engine.scheduler import SchedulerOutput
from server.model.inputs import VIRTUAL, ModelInput
from tests.server.engine.requests import make_request
from tests.server.engine.toy_runner import NOT_FINITE, RAISES, ToyRunner


def test_rows_of_prompt_logprobs_and_samples() -> None:
    chunk = make_request("chunk", [1, 2, 3, 4, 5], prompt_logprobs=0)
    whole = make_request("whole", [1, 2, 3], prompt_logprobs=0)
    decode = make_request("decode", [1, 2], outputs=(9,))
    decode.num_computed_tokens = 2
    batch = make_batch([Work(chunk, 3), Work(whole, 3), Work(decode, 1)])
    assert [s.logits_at for s in batch.inputs.sequences] == [[0, 1, 2], [0, 1, 2], [0]]
    assert batch.prompt_rows == [range(3), range(3, 5), range(6, 6)]
    assert batch.sample_rows == [5, 6]
    assert [row.request.request_id for row in batch.samples for _ in range(1 + len(row.draft))] == ["whole", "decode"]
    assert batch.inputs.sequences[2].token_ids == [9]
    assert batch.inputs.sequences[2].start == 2


def test_rows_of_drafts() -> None:
    a, b, c = (make_request(name, [1, 2], outputs=(9,)) for name in "abc")
    for request in (a, b, c):
        request.num_computed_tokens = 2
    batch = make_batch([Work(a, 1, draft=(5, 6)), Work(b, 1), Work(c, 1, draft=(7,))])
    assert [s.token_ids for s in batch.inputs.sequences] == [[9, 5, 6], [9], [9, 7]]
    assert [s.logits_at for s in batch.inputs.sequences] == [[0, 1, 2], [0], [0, 1]]
    assert batch.sample_rows == list(range(6))
    assert [row.request.request_id for row in batch.samples for _ in range(1 + len(row.draft))] == [
        "a",
        "a",
        "a",
        "b",
        "c",
        "c",
    ]


@pytest.mark.parametrize("right", range(4))
def test_a_draft_holds_up_to_its_first_wrong_token(right: int) -> None:
    runner = ToyRunner()
    request = make_request(prompt_ids=[1, 2, 3], temperature=0.0)
    request.block_table = [0, 1]
    answer = runner.greedy(None, [1, 2, 3], 4)
    draft = [token if i < right else (token + 1) % 60 for i, token in enumerate(answer[:3])]
    result = Executor(runner, Sampler()).run([Work(request, 3, draft=draft)])[0]
    assert result.tokens == answer[: right + 1]


def test_virtual_tokens_have_no_logprobs() -> None:
    request = make_request(prompt_ids=[5, 6, 7], num_virtual_tokens=2, prompt_logprobs=0)
    sequence = make_batch([Work(request, 5)]).inputs.sequences[0]
    assert sequence.token_ids == [VIRTUAL, VIRTUAL, 5, 6, 7]
    assert sequence.logits_at == [2, 3, 4]


def test_prompt_logprobs_already_told_are_not_asked_again() -> None:
    request = make_request(prompt_ids=[1, 2, 3, 4], prompt_logprobs=0)
    request.num_prompt_logprobs += 1
    assert list(Work(request, 4).prompt_targets) == [2, 3]
    request.num_computed_tokens = 3
    assert list(Work(request, 1).prompt_targets) == []


def test_prompt_only_requests_sample_nothing() -> None:
    assert not Work(make_request(max_tokens=0), 3).samples


def test_work_is_sorted_by_adapter_and_carries_copies() -> None:
    a, b = AdapterKey("a", 1, ""), AdapterKey("b", 1, "")
    requests = {f"r{i}": make_request(f"r{i}", [1], key) for i, key in enumerate([b, None, a, b, a, None])}
    work = scheduled_work(SchedulerOutput(dict.fromkeys(requests, 1), {"r3": (4, 5)}), requests)
    assert [w.request.adapter for w in work] == [None, None, a, a, b, b]
    assert make_batch(work).inputs.copies == [(4, 5)]
    assert make_batch(work[:3]).inputs.copies == [], "a copy goes with its request"


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
        assert (result.tokens == []) == (i in bad)
        if i not in bad:
            assert result.tokens == runner.greedy(None, prompts[i], 1)


def test_a_batch_that_is_only_too_large_costs_nobody() -> None:
    class SmallRunner(ToyRunner):
        def execute(self, inputs: ModelInput) -> Tensor:
            if len(inputs.sequences) > 2:
                raise MemoryError
            return super().execute(inputs)

    results = Executor(SmallRunner(), Sampler()).run(make_work([[i, 5] for i in range(7)]))
    assert all(result.error is None for result in results)


class OutOfMemoryRunner(ToyRunner):
    """Runs out of memory as torch does, with large activations in a frame of the pass, when a prompt is too long."""

    def __init__(self) -> None:
        super().__init__()
        self.activations: list[weakref.ref[Tensor]] = []

    def execute(self, inputs: ModelInput) -> Tensor:
        assert not any(kept() is not None for kept in self.activations), "the failed pass is still in memory"
        activations = torch.empty(8)
        self.activations.append(weakref.ref(activations))
        if max(len(sequence.token_ids) for sequence in inputs.sequences) > 3:
            torch.empty(2**60)  # no machine has it
        return super().execute(inputs)


def test_out_of_memory_costs_the_one_that_needs_too_much_and_frees_what_the_pass_held() -> None:
    runner = OutOfMemoryRunner()
    prompts = [[i, 5] if i != 6 else [1, 2, 3, 4] for i in range(7)]  # the last: the captured log keeps its error
    executor = Executor(runner, Sampler())
    results = executor.run(make_work(prompts))
    assert [result.error for result in results] == [OUT_OF_MEMORY if i == 6 else None for i in range(7)]
    assert executor.passes == len(runner.activations) > 1, "a step that is run in parts still gets on"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")])
def test_every_way_of_running_out_of_memory_is_called_so(error: Exception) -> None:
    class Full(ToyRunner):
        def execute(self, inputs: ModelInput) -> Tensor:
            raise error

    assert [result.error for result in Executor(Full(), Sampler()).run(make_work([[1]]))] == [OUT_OF_MEMORY]


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
