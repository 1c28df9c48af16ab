"""The kinds of adapter that peft makes and hotswap does not serve, and why."""

from __future__ import annotations

from collections.abc import Mapping

REFUSED: Mapping[str, str] = {
    "ADAMSS": (
        "AdaMSS saves no list of the output features that each of its subspaces covers: peft finds them again by "
        "clustering the base's weights with scikit-learn, and may find others; train LoRA or PEANuT instead"
    ),
    "ADAPTION_PROMPT": (
        "adaption prompts attend to rows of their own inside the attention of the upper layers, which the paged cache "
        "has no place for; train prefix tuning instead"
    ),
    "LILY": (
        "Lily mixes its adapters by an average over all tokens of a batch, so that what one request gets depends on "
        "the others and on how its prompt is cut; train LoRA or VeRA instead"
    ),
    "POLY": "Poly chooses among its skills by a task that no request names; publish one LoRA for each task instead",
    "PSOFT": (
        "PSOFT saves a rotation between singular vectors of the base's weights without these vectors, whose signs are "
        "others on another device or in another precision; save it as a LoRA, which it is exactly: peft.save_as_lora "
        "with rank r"
    ),
    "SHADOW": (
        "ShadowPEFT runs a second network with a cache of its own beside the base, not an adapter of its modules; "
        "train LoRA instead"
    ),
    "XLORA": (
        "X-LoRA runs the base twice for every token and mixes other adapters, which are not in the package, by what it "
        "found; publish the LoRA adapters themselves"
    ),
}
