"""Adapters into a running server, over HTTP."""
