"""Measurements of hotswap itself, from inside or beside libraries; loadtests/ drives any server over HTTP."""

import bases  # noqa: F401  # before anything imports bitsandbytes, which it keeps quiet
