"""What several test folders share: one tiny base and adapters of every served kind, saved by peft itself."""

from __future__ import annotations

import copy
import gc
import os
import secrets

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from hypothesis import HealthCheck, settings
from transformers.utils import logging as transformers_logging

from tests.factory import make_base
from tests.once import Once
from tests.slow_cases import mark_slow_cases

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # machines are busy
settings.load_profile("untimed")
transformers_logging.disable_progress_bar()


# Whole runs, processes of their own, every kind at once: seconds a test. `make test-fast` leaves them out.
LONG = (
    "adapters/kinds/replacement/test_modules_to_save.py",
    "adapters/kinds/test_against_peft.py",
    "adapters/kinds/test_bad_packages.py",
    "bases/test_gguf.py",
    "bases/test_one_rule.py",
    "bases/test_quantization_saved.py",
    "benchmarks/",
    "deploy/test_against_prometheus.py",
    "loadtests/soak/test_soak.py",
    "loadtests/test_cli.py",
    "server/api/test_admin_versions.py",
    "server/api/test_auth.py",
    "server/api/test_context_admission.py",
    "server/catalog/test_lifecycle_candidates.py",
    "server/engine/ipc/",
    "server/engine/test_engine_every_kind.py",
    "server/engine/test_engine_parity.py",
    "server/engine/test_engine_seq2seq.py",
    "server/model/families/",
    "server/model/lean/test_exact_kinds.py",
    "server/model/seq2seq/",
    "server/model/test_model_runner.py",
    "server/test_freezes.py",
    "server/test_serving.py",
    "server/test_serving_faults.py",
    "trainer/commands/test_eval.py",
    "trainer/commands/test_plan.py",
    "trainer/data/test_training_data_memory.py",
    "trainer/distributed/",
    "trainer/evaluation/test_evaluate.py",
    "trainer/export/",
    "trainer/loop/",
    "trainer/methods/test_own_full.py",
    "trainer/plan/",
    "trainer/preference/test_run.py",
    "trainer/preference/test_grpo",
    "trainer/publishing/",
    "trainer/test_added_tokens.py",
    "trainer/test_run.py",
    "trainer/test_sweep.py",
)


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> None:
    """What imports and earlier files have made stays: loading and training collect garbage, and would look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_model_card() -> Iterator[None]:
    """peft saves a card with each adapter, of a template that it would compile each time: a third of the saving."""
    make = ModelCard.from_template
    plain = make(ModelCardData())

    def from_template(card_data: ModelCardData, *args: Any, **kwargs: Any) -> Any:
        return make(card_data, *args, **kwargs) if args or kwargs else copy.deepcopy(plain)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelCard, "from_template", from_template)
        yield


@pytest.fixture(scope="module", autouse=True)
def own_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers that are told of no --data-dir keep nothing among the user's data, nor among another file's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOTSWAP_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data" / secrets.token_hex(8)))
        yield


@pytest.fixture(autouse=True)
def data_dir_of_a_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor among another test's."""
    monkeypatch.setenv("HOTSWAP_DATA_DIR", str(tmp_path_factory.getbasetemp() / "data" / secrets.token_hex(8)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in ``LONG``, and the cases that are slow ones."""
    mark_slow_cases(items)
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(LONG):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What is made once for all workers."""
    return Once(tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_base(once: Once) -> Path:
    """A random two-layer llama with biases, in fp32."""
    return once.make("tiny", lambda path: make_base(path, attention_bias=True, mlp_bias=True))


class _Saved(Mapping[str, Path]):
    """Adapters by name, each saved by peft when it is first asked for."""

    def __init__(self, base: Path, once: Once) -> None:
        from tests.kinds import CASES  # imports peft

        self._cases, self._base, self._once = CASES, base, once

    def __getitem__(self, name: str) -> Path:
        case, seed = self._cases[name], list(self._cases).index(name)
        return self._once.make(f"adapters/{name}", lambda path: case.save(self._base, path, seed=seed))

    def __iter__(self) -> Iterator[str]:
        return iter(self._cases)

    def __len__(self) -> int:
        return len(self._cases)


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path, once: Once) -> Mapping[str, Path]:
    """Adapters of every served kind for ``tiny_base``, by name."""
    return _Saved(tiny_base, once)
