"""Freeze: whole layers of the base trained, in hotswap's own format: the parameters of those layers, nothing else."""

from __future__ import annotations

import re
from collections import defaultdict

from torch import Tensor

from adapters.base_spec import BaseSpec
from adapters.errors import PackageError
from adapters.kinds.config import PREFIX
from adapters.kinds.replacement.config import FreezeConfig
from adapters.kinds.replacement.modules_to_save import replacement, share_weight
from adapters.kinds.saved_adapter import SavedAdapter
from adapters.ops import Adapter
from adapters.quoting import quote

_INDEX = re.compile(r"\.(\d{1,6})\.")


def compile_freeze(package: SavedAdapter, base: BaseSpec) -> Adapter:
    """Ops of a Freeze package.

    Shape: ``base_model.model.<parameter>`` as the base stores that parameter, for every parameter of the layers and
    modules that the configuration names.
    """
    config = package.config
    assert isinstance(config, FreezeConfig)
    _check_names(config, base)
    wanted = {name for name in base.parameters if _is_trained(name, config)}
    found: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in package.tensors.items():
        parameter = name.removeprefix(PREFIX)
        if not name.startswith(PREFIX) or parameter not in wanted:
            raise PackageError(
                f"tensor {quote(name)} is no parameter of the layers and modules that adapter_config.json names, as "
                f"the base {quote(base.name)} has them; a Freeze package holds {PREFIX}<parameter>"
            )
        module, _, leaf = parameter.rpartition(".")
        found[module][leaf] = tensor
    if missing := sorted(wanted - {name.removeprefix(PREFIX) for name in package.tensors}):
        raise PackageError(
            f"tensor {quote(PREFIX + missing[0])} is missing ({len(missing)} of {len(wanted)} parameters of the "
            "trained layers and modules; is the package complete?)"
        )
    if base.tied:
        refusal = f"the base {quote(base.name)} ties its output head to its embedding; the package holds two weights"
        share_weight(found, base, refusal)
    return Adapter(config.KIND, {module: (replacement(module, given, base),) for module, given in found.items()})


def _check_names(config: FreezeConfig, base: BaseSpec) -> None:
    for index in config.layers or ():
        if not 0 <= index < base.num_layers:
            raise PackageError(
                f"adapter_config.json says that layer {index} was trained; the base {quote(base.name)} has layers "
                f"0 to {base.num_layers - 1}"
            )
    for module in config.modules or ():
        if not any(name.startswith(f"{module}.") for name in base.parameters):
            raise PackageError(
                f"adapter_config.json says that the module {quote(module)} was trained, which the base "
                f"{quote(base.name)} does not have, or which cannot be replaced"
            )


def _is_trained(parameter: str, config: FreezeConfig) -> bool:
    index = _INDEX.search(parameter)
    if index is not None and int(index[1]) in (config.layers or ()):
        return True
    return any(parameter.startswith(f"{module}.") for module in config.modules or ())
