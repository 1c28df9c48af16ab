"""Measurements of hotswap itself, from inside or beside libraries; loadtests/ drives any server over HTTP."""
