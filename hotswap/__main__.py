"""``python -m hotswap`` is ``hotswap``."""

from hotswap.cli import main

raise SystemExit(main())
