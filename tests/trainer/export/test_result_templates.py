"""No adapter is asked with another template than it was trained with, without anybody being told."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.package.manifest import Manifest, read_manifest
from bases.fingerprint import template_sha256
from server.config import EngineConfig
from server.engine.engine import Engine
from server.engine.messages import AdapterFailed, AdapterLoaded
from server.model.model_runner import load_runner
from tests.trainer.served import load
from tests.trainer.support import make_config
from trainer.data.rendering import TEMPLATES
from trainer.run import train


def serve(base: Path, package: Path, template: str = "") -> AdapterLoaded | AdapterFailed:
    """``package`` in an engine that renders the Jinja text ``template``, or the base's own."""
    served = template_sha256(template) if template else ""
    config = EngineConfig(
        model=str(base), quantize="none", dtype="float32", kv_cache_gb=0.02, threads=1, chat_template_sha256=served
    )
    engine = Engine(load_runner(config), config)
    try:
        return load(engine, package)
    finally:
        engine.close()


def trained(folder: Path, base: Path, template: str) -> tuple[Path, Manifest]:
    result = train(make_config(folder, base, "max_steps=1", f"template={template}"))
    assert result.package is not None
    manifest = read_manifest(result.package)
    assert manifest is not None
    return result.package, manifest


@pytest.mark.parametrize("template", ["zephyr", "inline"])
def test_an_adapter_of_another_template_is_served_with_that_template_only(
    tiny_base: Path, tmp_path: Path, template: str
) -> None:
    text = TEMPLATES["vicuna"]
    file = tmp_path / "own.jinja"
    file.write_text(text, encoding="utf-8")
    package, manifest = trained(tmp_path, tiny_base, template if template != "inline" else str(file))
    beside = (package.parent / "chat_template.jinja").read_text(encoding="utf-8")
    assert beside == (text if template == "inline" else TEMPLATES["zephyr"])
    assert manifest.chat_template_sha256 == template_sha256(beside)
    assert manifest.training["template"] == template
    refused = serve(tiny_base, package)
    assert isinstance(refused, AdapterFailed)
    assert "trained with another chat template" in str(refused)
    taken = serve(tiny_base, package, beside)
    assert isinstance(taken, AdapterLoaded)
    assert taken.warnings == []


def test_an_adapter_of_plain_prompts_is_served_with_a_warning(tiny_base: Path, tmp_path: Path) -> None:
    package, manifest = trained(tmp_path, tiny_base, "none")
    assert manifest.chat_template_sha256 is None
    assert not (package.parent / "chat_template.jinja").exists()
    taken = serve(tiny_base, package)
    assert isinstance(taken, AdapterLoaded)
    assert taken.warnings == [
        "the adapter was trained on plain prompts, without a chat template: ask it at /v1/completions"
    ]
