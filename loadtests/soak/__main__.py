"""``python -m loadtests.soak``."""

from loadtests.soak.cli import main

raise SystemExit(main())
