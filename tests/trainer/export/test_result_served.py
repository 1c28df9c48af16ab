"""What the trainer makes, the server takes: every method's package stands the parity probe of a real engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from server.engine.messages import AdapterLoaded
from tests.trainer.every_method import METHODS, others_slow
from tests.trainer.served import serve
from tests.trainer.support import make_config
from trainer.config.methods import METHODS as CONFIGS
from trainer.errors import ConfigError
from trainer.loop.session import RunResult
from trainer.run import train


@pytest.mark.parametrize("method", METHODS)
def test_the_server_replays_what_the_trainer_recorded(
    tiny_base: Path, trained: Callable[[str], RunResult], method: str
) -> None:
    package = trained(method).package
    assert package is not None
    event = serve(tiny_base, package, "none")
    assert isinstance(event, AdapterLoaded), event
    assert event.warnings == []


@pytest.mark.parametrize("quantize", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", others_slow(METHODS))
def test_and_over_a_quantized_base(tiny_base: Path, tmp_path: Path, method: str, quantize: str) -> None:
    if quantize not in CONFIGS[METHODS[method][0].removeprefix("method=")].QUANTIZED:
        with pytest.raises(ConfigError, match=r"training\.quantize"):
            make_config(tmp_path, tiny_base, f"quantize={quantize}", *METHODS[method])
        return
    result = train(make_config(tmp_path, tiny_base, f"quantize={quantize}", "max_steps=4", *METHODS[method]))
    assert result.package is not None
    event = serve(tiny_base, result.package, quantize)
    assert isinstance(event, AdapterLoaded), event
    assert event.warnings == []
