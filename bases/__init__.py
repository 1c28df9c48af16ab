"""A base model on disk and in memory, for server and trainer alike: one rule each. Knows no web.

Finding, importing, loading, quantizing, its compute type, its end tokens, and what it is known by.
"""

from __future__ import annotations

import logging

# On CPUs with AVX512-BF16 bitsandbytes looks for a package that fetches kernels from a hub while it is imported, and
# warns at every start of every process that there is none. Its own kernels are what we use.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
