"""The lowest floor: ops from tensors to tensors, native where the processor and a compiler allow it.

Every op has a twin in torch, which is its specification, its fallback, and what it is tested against. Native ops take
fp32 activations on the CPU and keep a fixed order of additions per row, so a row's result is bit for bit the same alone
and in any batch, on any number of threads.

It is not called ``kernels``: a distribution of that name exists, which transformers and bitsandbytes look for.
"""
