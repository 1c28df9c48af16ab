"""How far apart two ways of computing the same numbers may be, derived from the arithmetic and not from a run."""

from __future__ import annotations

import math

import torch

from hotkernels import native


def bound(dtype: torch.dtype, length: int, depth: int = 1, scale: float = 1.0) -> float:
    """The distance up to which two results are the same up to rounding in ``dtype``.

    A computed sum of ``length`` products is within ``gamma_n |x|.|y|`` of the exact one, ``gamma_n = n u / (1 - n u)``,
    whatever the order of its terms (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1,
    (3.5)): so whatever the CPU, its kernels and the rows beside. ``u`` is half the distance from 1 to the next number.
    Roundings go either way, which is why the constant ``n`` may be replaced by its square root (ibid., section 2.8;
    this is also what makes the bound sharp enough to find a fault). ``depth`` is the number of sums one after another,
    whose errors add up at worst; both sides have them, hence twice.

    ``scale`` is ``|x|.|y|``, the sum of the absolute products, of the largest result. With entries of random signs it
    is about ``0.64 length`` times their deviations: what cancels in the result does not cancel in its error.

    Products of half types keep their sums in fp32 and round the results alone: there ``length`` counts the roundings
    one after another, and ``scale`` is the size of what is rounded.
    """
    unit = torch.finfo(dtype).eps / 2
    return 2 * depth * math.sqrt(length) * unit * scale


# Logits of the tiny bases of tests.factory. The longest sums are over 128 features. One after another: in each of two
# layers two norms, projection, scores, values, output, up and down, then the last norm and the head. Of a logit,
# |x|.|y| is 64 features of size 0.8 (after a norm) times weights of size 0.8 * 0.12.
# It is 1.2e-4; a single weight matrix rounded to half precision moves logits by 5e-4 (tests/test_bounds.py).
LOGITS = bound(torch.float32, length=128, depth=18, scale=64 * 0.8 * 0.8 * 0.12)

# Hidden states behind their last norm: the sums before the head, of numbers that are no larger.
HIDDEN = bound(torch.float32, length=128, depth=17, scale=64 * 0.8 * 0.8 * 0.12)

# Those of the tiny encoder-decoders: in each of two layers eight such sums in the encoder and thirteen in the decoder,
# which attends twice, then two norms and the head.
SEQ2SEQ_LOGITS = bound(torch.float32, length=128, depth=45, scale=64 * 0.8 * 0.8 * 0.12)


def packed_logits(quantize: str) -> float:
    """As LOGITS, over a base in ``quantize`` that native kernels may multiply by.

    They round activations to words: a number of a run of 32 to half a unit, ``largest / 32767``, or ``largest / 8191``
    where codes stand for the values of a book, which are rounded to 1 / 8191 of the largest of them too. Half units go
    either way, so of 64 products ``sqrt(64)`` of them add up. Activations of size 1 have a largest of 3 in a run, and
    weights of size 0.12 one of 0.3 in a block. Nine linear maps are one after another.
    """
    if native.library() is None or quantize == "none":
        return LOGITS
    maps, products = 9, math.sqrt(64)
    if quantize in ("int8", "gguf"):
        return LOGITS + maps * products * (0.5 / 32767 * 3) * 0.12
    return LOGITS + maps * products * ((0.5 / 8191 * 3) * 0.12 + (0.5 / 8191 * 0.3) * 1)
