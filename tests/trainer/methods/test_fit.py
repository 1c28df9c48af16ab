"""What does not fit a base is said in one line before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.engine.messages import AdapterLoaded
from tests.bases.test_quantization_saved import CONFIGS, save_quantized
from tests.trainer.served import serve
from tests.trainer.support import losses, make_config
from trainer.errors import ConfigError
from trainer.export.merge import merge
from trainer.run import train


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["target_modules=[q_proj, qproj]"],
            "method.target_modules: the base has no module 'qproj'; did you mean q_proj",
        ),
        (["target_modules=[c_attn]"], "has no module 'c_attn'; its linear maps are q_proj, k_proj, v_proj, o_proj"),
        (["target_modules=[input_layernorm]"], "method.target_modules: Target module .* is not supported"),
        (["target_modules='(q_proj'"], "method.target_modules: "),
        (["target_modules='.*nothing'"], "method.target_modules: .*nothing"),
        (["method=bottleneck", "target_modules=[down_proj, x]"], "has no module 'x'"),
        (["method=ia3", "target_modules=[k_proj]", "feedforward_modules=[up]"], "feedforward_modules: the base has no"),
        (["r=5000"], "method: r is 5000; values from 1 to 1024 are read"),
        (["method=adalora", "init_r=5000"], "method: init_r is 5000"),
        (["method=bottleneck", "bottleneck_size=5000"], "bottleneck_size is 5000"),
        (["method=prompt", "tokens=9000"], "num_virtual_tokens is 9000"),
        (["method=prefix", "tokens=9000", "projection=false"], "num_virtual_tokens is 9000"),
        (["method.rank_pattern.nothing=4"], "rank_pattern keys did not match"),
        (["method=boft", "block_size=7"], "method: "),
        (["modules_to_save=[head]"], "method.modules_to_save: the base has no module 'head'"),
        (["modules_to_save=[act_fn]"], "method.modules_to_save: model.layers.0.mlp.act_fn has no parameters to train"),
        (
            ["quantize=nf4", "target_modules=[q_proj]", "modules_to_save=[down_proj]"],
            "method.modules_to_save: model.layers.0.mlp.down_proj is quantized",
        ),
        (["quantize=int8", "modules_to_save=[down_proj]"], "mlp.down_proj is quantized, and quantized weights cannot"),
        (["method=freeze", "layers=9"], "method.layers: the base has 2 layers, 9 cannot be trained"),
        (["method=freeze", "layers=0", "method.modules=[x]"], "method.modules: the base has no module 'x'"),
        (["train_type=freeze", "freeze_module_name=layers.27."], "its layers are model.layers.0 to model.layers.1"),
        (["train_type=freeze", "freeze_module_name=model.nrm"], "did you mean model.norm?"),
        (["train_type=lora", "lora_module_name=query_key_value"], "its linear maps are q_proj, k_proj, v_proj, o_proj"),
    ],
)
def test_what_the_base_cannot_do_is_one_line(tiny_base: Path, tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        train(make_config(tmp_path, tiny_base, *options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.numeric
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantized_checkpoint_is_for_methods_that_can_use_one(tiny_base: Path, tmp_path: Path, quantize: str) -> None:
    path = save_quantized(tiny_base, tmp_path / quantize, CONFIGS[quantize])
    for method in ("hra", "full"):
        with pytest.raises(ConfigError, match=rf"{method} works on the base's weights .*quantized \({quantize}\)"):
            train(make_config(tmp_path / method, path, f"method={method}"))
    plain = train(make_config(tmp_path / "a", tiny_base, f"quantize={quantize}"))
    saved = train(make_config(tmp_path / "b", path))
    assert losses(saved) == losses(plain)  # the same weights in the same type: the same bits
    assert saved.package is not None
    assert isinstance(serve(path, saved.package, "auto"), AdapterLoaded)
    with pytest.raises(ConfigError, match="merge into its full-precision form"):
        merge(saved.package, tmp_path / "merged", str(path))
