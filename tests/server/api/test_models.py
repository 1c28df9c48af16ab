from __future__ import annotations

import openai
import pytest

from tests.server.api.support import BASE, MAX_LEN
from tests.server.live import Live


def test_base_and_adapters_are_listed(client: openai.OpenAI, server: Live) -> None:
    models = {model.id: model for model in client.models.list().data}
    assert list(models) == [BASE, "lora", "prefix", "prompt"]
    base = models[BASE].model_dump()
    assert (base["root"], base["parent"], base["max_model_len"]) == (server.context.base_root, None, MAX_LEN)
    lora = models["lora"].model_dump()
    assert (lora["object"], lora["root"], lora["parent"]) == ("model", "lora@1", BASE)
    assert lora["owned_by"] == "hotswap"
    assert lora["created"] >= base["created"]


@pytest.mark.parametrize("name", [BASE, "lora", "lora@1", f"{BASE}:lora"])
def test_one_model_by_any_of_its_names(client: openai.OpenAI, name: str) -> None:
    model = client.models.retrieve(name)
    assert model.id == name
    assert model.model_dump()["parent"] == (None if name == BASE else BASE)


@pytest.mark.parametrize("name", ["nobody", "lora@9", "org/nobody"])
def test_an_unknown_model(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve(name)
    assert missing.value.code == "model_not_found"
