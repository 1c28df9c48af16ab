"""An adapter that was read and checked, on its way into the runner, and what it is verified against there.

How far a served adapter's logits may be from those its trainer recorded, and how the distance is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from adapters.ops import Adapter
from adapters.package.golden import GoldenLogits
from adapters.package.manifest import Manifest
from bases.names import split_quantization


@dataclass(frozen=True, eq=False)
class VerificationPlan:
    """What an adapter is held against before requests may use it; distances as in ``server.model.prepared``.

    ``golden`` are the trainer's recorded logits, none for packages without. ``golden_tolerance`` is how far from them
    the adapter may be, ``golden_warning`` from where on its maker should know, ``batch_tolerance`` how much it may
    change with what else is in the batch.
    """

    golden: tuple[GoldenLogits, ...]
    golden_tolerance: float
    golden_warning: float
    batch_tolerance: float


@dataclass(frozen=True, eq=False)
class PreparedAdapter:
    """``seconds`` were spent by stage (read, validate, copy); ``warnings`` are for whoever uploaded it.

    ``digest`` is of the content that was read; None where that was no package. ``shared``: bytes of what other adapters
    may have as well, by its own digest.
    """

    adapter: Adapter
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    plan: VerificationPlan | None = None
    digest: str | None = None
    shared: Mapping[str, int] = field(default_factory=dict)


# Shares of the logits' own spread. Within one quantization only kernels, batch shapes and roundings differ. Between
# quantizations the base itself answers differently: on the default base by 0.07 for gguf, 0.15 int8, 0.9 nf4, 2.1 fp4,
# where an adapter of a few steps changes it by 0.3 to 0.5. There only gross errors can be seen.
ROUNDING = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.15}
_SCALES = 0.15  # double quantization rounds the scales alone
_COARSE = {"int8": 0.3, "gguf": 0.2, "nf4": 2.0, "fp4": 4.0}
_BATCH = {"float32": 1e-3, "float16": 0.03, "bfloat16": 0.1}
_KV_INT8 = "bfloat16"  # keys and values of int8 round about as those do


def distance(measured: Tensor, expected: Tensor) -> float:
    """The largest distance of two sets of logits, over rows.

    Semantics: ``max_i ||m_i - e_i|| / ||e_i - mean(e_i)||``: 0 for equal logits, about 1 or above for unrelated ones.
    Shape: both [n, vocab_size].
    """
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1).clamp(min=1e-12)
    return float(((measured - expected).norm(dim=-1) / spread).max())


def make_verification_plan(
    golden: Sequence[GoldenLogits], manifest: Manifest | None, quantization: str, dtype: str, kv_dtype: str
) -> VerificationPlan:
    """What to hold an adapter against on a base in ``quantization``, with such types of products and cache.

    The tolerance is tight when the training's base was quantized and computed alike, wider where the base differs;
    a package whose distance exceeds the tight one is served with a warning then.
    """
    training = manifest.training if manifest is not None else {}
    theirs, their_dtype = str(training.get("quantize", "none")), str(training.get("dtype", "float32"))
    ours = dtype, _KV_INT8 if kv_dtype == "int8" else kv_dtype
    rounding = max(*(ROUNDING[name] for name in ours), ROUNDING.get(their_dtype, 0.0))
    coarse = {split_quantization(name)[0] for name in (theirs, quantization)}
    tolerance = rounding
    if len(coarse) > 1:
        tolerance = max(rounding, *(_COARSE.get(name, 0.0) for name in coarse))
    elif theirs != quantization:
        tolerance = max(rounding, _SCALES)
    return VerificationPlan(tuple(golden), tolerance, rounding, max(_BATCH[name] for name in ours))
