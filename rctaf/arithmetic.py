"""How an experiment computes, so that its record can be repeated to the last bit; and that a look draws no numbers."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# for deterministic(): cuBLAS looks at it once, at the first product of matrices in a process
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def repeatable() -> Iterator[None]:
    """Single precision as it is written, and the same operations every time; the former settings return afterwards.

    - No TensorFloat-32, which cuDNN uses by default and whose 10 bits are not the fp32 of a record.
    - cuDNN takes its algorithms by rule, not by the clock.
    - Denormals are zero: a large alpha makes them, and they cost a CPU twice the time.
    - Gradients are on, even if the caller has switched them off or is in ``torch.inference_mode``.

    Also a decorator: ``@repeatable()``.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    flushed = bool(torch.tensor(1e-39, device="cpu") * 1 == 0)  # torch has no other way to ask
    with no_tf32(), torch.inference_mode(False):
        cudnn.deterministic, cudnn.benchmark = True, False
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before
            torch.set_flush_denormal(flushed)


@contextmanager
def no_tf32() -> Iterator[None]:
    """No TensorFloat-32 inside. PyTorch has two ways to say so, and refuses the older one to who has used the newer."""
    backends: Any = torch.backends
    cudnn, matmul = backends.cudnn, backends.cuda.matmul
    try:
        before = [(cudnn, "allow_tf32", cudnn.allow_tf32), (matmul, "allow_tf32", matmul.allow_tf32)]
        off: bool | str = False
    except RuntimeError:
        parts = matmul, cudnn.conv, cudnn.rnn
        before, off = [(part, "fp32_precision", part.fp32_precision) for part in parts], "ieee"
    for part, name, _ in before:
        setattr(part, name, off)
    try:
        yield
    finally:
        for part, name, value in before:
            setattr(part, name, value)


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms inside, as training asks for them; the former setting after.

    Not for AutoAttack: its FAB takes cumulative sums of floats, which have no such algorithm on a GPU.
    """
    debugging: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), debugging.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that writes every tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        debugging.fill_uninitialized_memory = fill


@contextmanager
def random_numbers_kept() -> Iterator[Callable[[], bool]]:
    """Within it somebody's code may draw random numbers; afterwards it is as if nobody had.

    Yields a function that says whether any were drawn so far, from Python, NumPy or torch on whatever device.
    """
    before = _generators()
    try:
        yield lambda: pickle.dumps(_generators()) != pickle.dumps(before)
    finally:
        python, numpy, cpu, gpus = before
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch.from_numpy(cpu))
        if gpus:
            torch.cuda.set_rng_state_all([torch.from_numpy(state) for state in gpus])


def _generators() -> tuple[Any, Any, np.ndarray, list[np.ndarray]]:
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = np.random.get_state()  # noqa: NPY002 (what others' code may draw from)
    return random.getstate(), numpy, torch.get_rng_state().numpy(), [state.numpy() for state in gpus]
