"""With --chat-template an adapter must have been trained with that template, otherwise with the base's own."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from peft import LoraConfig

from adapters.package.manifest import BaseRef, Manifest, encode_manifest
from bases.fingerprint import base_fingerprint, template_sha256
from tests.factory import CHAT_TEMPLATE, make_adapter
from tests.server.live import live_server

OTHER = "{{ messages[-1].content }} ->"


@pytest.mark.parametrize("served", [CHAT_TEMPLATE, OTHER])
@pytest.mark.parametrize("trained", [CHAT_TEMPLATE, OTHER])
def test_the_templates_of_training_and_serving_must_be_the_same(
    tiny_base: Path, tmp_path: Path, trained: str, served: str
) -> None:
    package = make_adapter(
        tiny_base, tmp_path / "package", LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    base = BaseRef("tiny", base_fingerprint(tiny_base))
    manifest = Manifest(
        kind="lora", base=base, created=datetime.now(UTC), chat_template_sha256=template_sha256(trained)
    )
    (package / "hotswap.json").write_bytes(encode_manifest(manifest))
    (tmp_path / "template.jinja").write_text(served)
    flag = "" if served == CHAT_TEMPLATE else str(tmp_path / "template.jinja")
    with ExitStack() as stack:
        serving = live_server(tiny_base, tmp_path / "data", adapters=(("a", str(package)),), chat_template=flag)
        if trained != served:
            with pytest.raises(AssertionError, match="trained with another chat template"):
                stack.enter_context(serving)
            return
        live = stack.enter_context(serving)
        body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        assert live.post("/v1/chat/completions", body).status_code == 200
