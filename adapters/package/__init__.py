"""A package's files, to configuration and tensors and back. Knows no ops.

Only ``reading``, ``writing``, ``tensors`` and ``golden`` import torch.
"""
