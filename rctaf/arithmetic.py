"""How an experiment computes, so that its record can be repeated to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def repeatable() -> Iterator[None]:
    """Single precision as it is written, and the same operations every time; the former settings return afterwards.

    - No TensorFloat-32, which cuDNN uses by default and whose 10 bits are not the fp32 of a record.
    - cuDNN takes its algorithms by rule, not by the clock.
    - Denormals are zero: a large alpha makes them, and they cost a CPU twice the time.

    Also a decorator: ``@repeatable()``.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark
    flushed = bool(torch.tensor(1e-39) * 1 == 0)  # torch has no other way to ask
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, False, True, False
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.deterministic, cudnn.benchmark = before
        torch.set_flush_denormal(flushed)
