"""What is proposed for data of any size fits the base, and the file of it is read back as the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.support import colour_rows, make_config, write_jsonl
from trainer.config.loading import load_config
from trainer.proposal import Look, as_yaml, look, preference_of, proposal, room


@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
@pytest.mark.parametrize("rows", [1, 19, 150, 1500, 100_000])
def test_a_proposal_fits_its_rows_and_is_read_back(tiny_base: Path, tmp_path: Path, rows: int, method: str) -> None:
    file = write_jsonl(tmp_path / "1e5.jsonl", colour_rows(2))
    settings = [f"data={file}", f"base={tiny_base}", f"output={tmp_path}/2024-02-30", f"method={method}"]
    settings += ["system_prompt=1e5: 'x' #\n y ", "weight_decay=1e-5"]
    plain = load_config(None, settings, {})
    seen = Look(rows, 704, "")
    config = load_config(None, settings, {}, defaults=proposal(plain, seen))
    assert config.training.learning_rate == plain.training.learning_rate
    assert config.data.max_length == room(plain)  # the base has fewer positions than the rows have tokens
    assert (config.data.validation == 0) == (rows < 20) == (not config.training.best_checkpoint)
    whole = config.training.batch_size * config.training.gradient_accumulation
    assert 4 <= whole <= 16
    assert 1 <= config.training.epochs <= 5
    path = tmp_path / "run.yaml"
    path.write_text(as_yaml(config, seen, "run.yaml"), encoding="utf-8")
    assert load_config(path, (), {}) == config
    assert "# the preset of " in path.read_text(encoding="utf-8")


def test_the_data_is_looked_at_as_training_reads_it(tiny_base: Path, tmp_path: Path) -> None:
    seen = look(make_config(tmp_path, tiny_base, "max_length=8"))
    assert (seen.rows, seen.length) == (40, 64)
    assert "this data can be trained on" in seen.text
    pairs = [{"prompt": "a", "chosen": "b" * 40, "rejected": "c"}] * 10
    config = make_config(tmp_path / "pairs", tiny_base, "validation=2", rows=pairs)
    assert preference_of(config) == "dpo"
    assert preference_of(make_config(tmp_path / "plain", tiny_base)) is None
    seen = look(make_config(tmp_path / "pairs", tiny_base, "validation=2", "preference=dpo", rows=pairs))
    assert seen.rows == 8
    assert seen.length % 64 == 0
