from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer.support import make_config
from trainer.base_model import Base, load_base
from trainer.data.messages import TokenQuestion
from trainer.loop.greedy import exact_match, greedy
from trainer.loop.loss import LabelledHead
from trainer.methods import apply_method, trainable_parameters

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]


@pytest.mark.parametrize("method", ["lora", "prefix", "prompt"])
def test_batched_answers_equal_those_given_one_token_at_a_time(tiny_base: Path, tmp_path: Path, method: str) -> None:
    config = make_config(tmp_path, tiny_base, f"method={method}")
    base = load_base(config)
    model = apply_method(base, config.method)
    torch.manual_seed(1)
    for parameter in trainable_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.2)
    answers = greedy(model, LabelledHead(model), base, PROMPTS, 6)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        for token in answer:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits[0, -1]
            assert int(logits.argmax()) == token
            ids.append(token)
    assert {len(answer) for answer in answers} == {6} or min(map(len, answers)) < 6


def test_no_answer_is_longer_than_the_base_has_positions_for(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(make_config(tmp_path, tiny_base))
    endless = Base(**{**vars(base), "end_ids": (-1,)})
    head = LabelledHead(base.model)
    whole = greedy(base.model, head, endless, PROMPTS, 6)
    room = [max(0, 4 - len(prompt)) for prompt in PROMPTS]
    assert greedy(base.model, head, endless, PROMPTS, 6, context=4) == [
        answer[:count] for answer, count in zip(whole, room, strict=True)
    ]


def test_answers_end_at_the_end_token_and_are_compared_exactly(tiny_base: Path, tmp_path: Path) -> None:
    base = load_base(make_config(tmp_path, tiny_base))
    head = LabelledHead(base.model)
    free = greedy(base.model, head, base, [PROMPTS[0]], 5)[0]
    stops = Base(**{**vars(base), "end_ids": (free[2],)})
    cut = free[: free.index(free[2])]
    assert greedy(base.model, head, stops, [PROMPTS[0]], 5)[0] == cut
    right = base.tokenizer.decode(cut)
    questions = [TokenQuestion((5, 6, 7), f" {right}\n"), TokenQuestion((5, 6, 7), right + "x")]
    assert exact_match(base.model, head, stops, questions) == 0.5
