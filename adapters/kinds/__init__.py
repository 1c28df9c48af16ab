"""The kinds of adapter: files to ops. A new kind is one new file, and one line in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from adapters.base import BaseSpec
from adapters.config import CONFIGS
from adapters.kinds import (
    adalora,
    beft,
    boft,
    bottleneck,
    c3a,
    deft,
    delora,
    fourierft,
    freeze,
    frod,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    miss,
    multitask,
    oft,
    osf,
    peanut,
    prefix,
    prompt,
    randlora,
    road,
    shira,
    supertuning,
    tinylora,
    tokens,
    unilora,
    vblora,
    vera,
    waveft,
)
from adapters.kinds.check import check_base
from adapters.kinds.saved import take_saved
from adapters.kinds.vocabulary import with_sizes, with_vocabulary
from adapters.ops import Adapter, Op
from adapters.package import AdapterPackage

Compile = Callable[[AdapterPackage, BaseSpec], Adapter]

KINDS: Mapping[str, Compile] = {
    "LORA": lora.compile_lora,
    "FOURIERFT": fourierft.compile_fourierft,
    "SHIRA": shira.compile_shira,
    "C3A": c3a.compile_c3a,
    "WAVEFT": waveft.compile_waveft,
    "HIRA": hira.compile_hira,
    "GLORA": glora.compile_glora,
    "OSF": osf.compile_osf,
    "DEFT": deft.compile_deft,
    "PEANUT": peanut.compile_peanut,
    "PREFIX_TUNING": prefix.compile_prefix,
    "PROMPT_TUNING": prompt.compile_prompt,
    "P_TUNING": prompt.compile_prompt,
    "MULTITASK_PROMPT_TUNING": multitask.compile_multitask,
    "CPT": prompt.compile_prompt,
    "CARTRIDGE": prefix.compile_prefix,
    "TRAINABLE_TOKENS": tokens.compile_tokens,
    "IA3": ia3.compile_ia3,
    "LN_TUNING": ln_tuning.compile_ln_tuning,
    "BEFT": beft.compile_beft,
    "OFT": oft.compile_oft,
    "BOFT": boft.compile_boft,
    "HRA": hra.compile_hra,
    "ROAD": road.compile_road,
    "MISS": miss.compile_miss,
    "SUPERTUNING": supertuning.compile_supertuning,
    "ADALORA": adalora.compile_adalora,
    "VERA": vera.compile_vera,
    "PVERA": vera.compile_pvera,
    "LOHA": loha.compile_loha,
    "LOKR": lokr.compile_lokr,
    "RANDLORA": randlora.compile_randlora,
    "VBLORA": vblora.compile_vblora,
    "TINYLORA": tinylora.compile_tinylora,
    "UNILORA": unilora.compile_unilora,
    "GRALORA": gralora.compile_gralora,
    "DELORA": delora.compile_delora,
    "FROD": frod.compile_frod,
    "BOTTLENECK": bottleneck.compile_bottleneck,
    "FREEZE": freeze.compile_freeze,
}
assert KINDS.keys() == CONFIGS.keys(), "every kind that is read must be compiled"


def compile_package(package: AdapterPackage, base: BaseSpec) -> Adapter:
    """The ops of ``package``, checked against ``base``, in float32 on the CPU.

    Raises BaseMismatchError when the package was made for another base or chat template, PackageError when a tensor is
    missing, unknown or has another shape than the base asks for, UnsupportedKindError for tensors of other kinds.
    """
    check_base(package, base)
    saved = take_saved(package, base)
    rest, rows = tokens.take_tokens(saved.rest, base)
    adapter = KINDS[package.config.peft_type](rest, with_sizes(base, saved.sizes) if rest.config.WIDENS else base)
    ops: dict[str, tuple[Op, ...]] = {}
    for part in (saved.ops, rows, adapter.ops):  # what peft wraps comes before what it adds
        for module, listed in part.items():
            ops[module] = (*ops.get(module, ()), *listed)
    return with_vocabulary(replace(adapter, ops=ops), saved.sizes, base)
