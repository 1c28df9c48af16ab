"""Hyper-parameter sweeps: several runs of one configuration, and which was best."""
