"""The op vocabulary: every kind of adapter becomes a few of these.

An op's docstring is its specification, and its ``reference`` the same as a naive row in fp32. How ops run over a
mixed batch is in ``adapters.batch``.
"""

from adapters.ops.activations import Bias
from adapters.ops.adapter import Adapter, PrefixKV, PromptEmbeds
from adapters.ops.low_rank import LowRank
from adapters.ops.op import AddOp, Op, Site

__all__ = ["Adapter", "AddOp", "Bias", "LowRank", "Op", "PrefixKV", "PromptEmbeds", "Site"]
