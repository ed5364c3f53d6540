"""The C kernel behind RCT-AF on a CPU: compiled once per machine and compiler where one is found.

Eager PyTorch makes a dozen passes over memory for one activation of order 2; the kernel makes one.
Without a compiler nothing is lost but time: :func:`derivative` then returns None.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rctaf.family import polynomials

_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]


def _processor() -> str:
    """What -march=native depends on; a home directory may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _cache() -> Path:
    """A folder of this user's own that can be written: in the cache, else, as in a container, among temporary files.

    Raises:
        OSError: there is none.
    """
    with suppress(OSError, RuntimeError):  # the latter where there is no home directory
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rctaf"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"rctaf-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:  # code of others must not be loaded
        raise PermissionError(f"{folder} is not this user's alone")
    return folder


@cache
def _library() -> ctypes.CDLL | None:
    words = shlex.split(os.environ.get("CC", "")) or ["cc"]  # a compiler may come with a launcher, or options
    found = shutil.which(words[0])
    if found is None or sys.platform == "win32":
        return None
    compiler = [found, *words[1:]]
    source = _SOURCE.read_text()
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, errors="replace").stdout
        key = hashlib.sha256("\0".join([source, *_FLAGS, _processor(), *compiler, version]).encode()).hexdigest()[:16]
        path = _cache() / f"{key}.so"
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent) as work:
                Path(work, "kernel.c").write_text(source)  # exactly what the key was made of, whoever edits meanwhile
                for openmp in (["-fopenmp"], []):  # Apple's compiler has none: one thread then
                    command = [*compiler, *_FLAGS, *openmp, "-o", f"{work}/kernel.so", f"{work}/kernel.c", "-lm"]
                    if subprocess.run(command, capture_output=True).returncode == 0:
                        os.replace(f"{work}/kernel.so", path)
                        break
                else:
                    return None
        library = ctypes.CDLL(str(path))
    except OSError:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    library.rctaf_derivative.restype = None
    library.rctaf_derivative.argtypes = [
        pointer, ctypes.c_int64, ctypes.c_int64, pointer, pointer, integer, ctypes.c_int64, ctypes.c_float, integer,
        integer, integer, pointer, integer,
    ]  # fmt: skip
    library.rctaf_softplus_backward.restype = None
    library.rctaf_softplus_backward.argtypes = [
        pointer, pointer, pointer, integer, ctypes.c_int64, ctypes.c_float, integer,
    ]  # fmt: skip
    return library


def available() -> bool:
    """Whether float32 and bfloat16 tensors in CPU memory go through the kernel on this machine."""
    return _library() is not None


@cache
def _table(alpha: float, beta: int, n: int) -> tuple[int, ctypes.Array]:
    rows = polynomials(beta, n)
    width = max((len(row) for row in rows[max(0, 2 - n) :]), default=1)
    scale = alpha ** (n - 1)
    flat = [scale * row[j] if j < len(row) else 0.0 for row in rows for j in range(width)]
    return width, (ctypes.c_float * len(flat))(*flat)


class Summand(NamedTuple):
    """``x`` itself or, where given, ``scale[c] x + shift[c]`` in channel c: the output of a batch norm.

    Channels are the second dimension. The output has the dtype of ``x``, the other two single or double precision.
    """

    x: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


def channels(x: Tensor) -> tuple[int, int]:
    """How many channels a dense tensor has, and how many neighbours in memory belong to one before the next begins."""
    return (x.shape[1], max(1, x.stride(1))) if x.ndim > 1 else (1, 1)


def plain(x: Tensor) -> bool:
    """A real block of memory that holds the values: nothing sparse or nested, no subclass, no trace or transform."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.layout is torch.strided
        and not x.is_nested
        and not x.is_neg()  # memory of the opposite sign, as in the imaginary part of a conjugate
        and not x._is_zerotensor()  # zeros without memory, as forward-mode differentiation makes them
        and not torch.jit.is_tracing()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        # a gradient of torch.autograd.grad(is_grads_batched=True)
        and not torch._C._functorch.is_legacy_batchedtensor(x)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _takes(x: Tensor, *others: Tensor) -> bool:
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return known and all(plain(t) and t.dtype == x.dtype for t in (x, *others))


def aligned(like: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """An empty tensor and the given ones, all dense and in one memory order, that of ``like`` if it has no gaps."""
    out = torch.empty_like(like)
    copies = [t if t.stride() == out.stride() else torch.empty_like(out).copy_(t) for t in (like, *others)]
    return (out, *copies)


def derivative(
    terms: tuple[Summand, ...], alpha: float, beta: int, n: int, grad: Tensor | None = None
) -> Tensor | None:
    """sigma^(n) at the sum of one or two summands of one shape, times ``grad``; None where the kernel does not apply.

    It applies to float32 and bfloat16 tensors in CPU memory, and keeps their memory format.
    """
    tensors = [term.x for term in terms] + ([] if grad is None else [grad])
    if not _takes(*tensors) or (library := _library()) is None:
        return None
    out, *tensors = aligned(*tensors)
    parts = [part for term, x in zip(terms, tensors, strict=False) for part in (x, term.scale, term.shift)]
    pointers = (ctypes.c_void_p * 6)(*(None if t is None else t.data_ptr() for t in parts))  # those missing are NULL
    width, rows = _table(alpha, beta, n)
    library.rctaf_derivative(
        pointers, *channels(out), None if grad is None else tensors[-1].data_ptr(), out.data_ptr(),
        out.dtype == torch.bfloat16, out.numel(), alpha, beta, n, width, rows, torch.get_num_threads(),
    )  # fmt: skip
    return out


def softplus_backward(output: Tensor, alpha: float, grad: Tensor) -> Tensor | None:
    """grad (1 - exp(-alpha y)), y the output of order 0; None where the kernel does not apply."""
    if not _takes(output, grad) or (library := _library()) is None:
        return None
    out, output, grad = aligned(output, grad)
    library.rctaf_softplus_backward(
        output.data_ptr(), grad.data_ptr(), out.data_ptr(), output.dtype == torch.bfloat16, output.numel(), alpha,
        torch.get_num_threads(),
    )  # fmt: skip
    return out
