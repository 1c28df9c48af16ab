"""Of which architecture a base is, and that its own code is never looked at unasked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bases.architecture import is_encoder_decoder, model_class, read_config
from bases.errors import BaseModelError, UntrustedCodeError
from tests.once import Once
from tests.server.model.families.own_code import AUTO_CLASSES, MODELS, make_own_code_base


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_of_its_own_code_is_read_where_it_is_trusted(once: Once, kind: str) -> None:
    base = once.make(f"own-code/{kind}", lambda folder: make_own_code_base(folder / kind, kind)) / kind
    loaded = set(sys.modules)
    with pytest.raises(UntrustedCodeError, match=r"architecture \w+, which comes as code.*--trust-remote-code"):
        read_config(base)
    assert not any("tiny_" in name for name in set(sys.modules) - loaded)
    config = read_config(base, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules.")
    assert model_class(config).__name__ == AUTO_CLASSES[kind][-1]
    assert not is_encoder_decoder(base)


@pytest.mark.parametrize(
    ("config", "kind", "found"),
    [
        ({"model_type": "llama"}, "AutoModelForCausalLM", False),
        ({"model_type": "t5", "is_encoder_decoder": True}, "AutoModelForSeq2SeqLM", True),
        ({"model_type": "mt5", "is_encoder_decoder": True}, "AutoModelForSeq2SeqLM", True),
    ],
)
def test_which_class_loads_it(tmp_path: Path, config: dict[str, object], kind: str, found: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_class(read_config(tmp_path)).__name__ == kind
    assert is_encoder_decoder(tmp_path) is found


def test_what_nobody_knows_or_serves_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobodys"}))
    with pytest.raises(UntrustedCodeError, match="does not know; update transformers"):
        read_config(tmp_path, trust_remote_code=True)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bart", "is_encoder_decoder": True}))
    with pytest.raises(BaseModelError, match="bart is an encoder-decoder model of a family that is not served"):
        is_encoder_decoder(tmp_path)


def test_code_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    own = {"model_type": "nobodys", "auto_map": {"AutoConfig": "configuration_x.XConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(own))
    (tmp_path / "configuration_x.py").write_text("class XConfig(\n")
    with pytest.raises(BaseModelError, match=r"the configuration of the base in .* cannot be read"):
        read_config(tmp_path, trust_remote_code=True)
