"""Makes adapter packages: configuration, data, methods, training loop, export, publishing. Never imports the server."""

from __future__ import annotations

import bases  # noqa: F401  first, for transformers imports peft, and peft bitsandbytes, which ``bases`` keeps quiet
