"""Encoder-decoder bases: T5, Flan-T5 and mT5.

A request's prompt is the encoder's input. Its positions come first in the request's KV blocks and hold the keys and
values that the decoder's cross-attention reads; the decoder's own positions follow. So blocks, budgets and preemption
are those of any other base.
"""
