"""Time and memory of every activation of the paper's Table 2, against ReLU.

    python benchmarks/bench_activations.py [--rounds 15] [--threads 1] [--device cpu]

One forward and one backward pass over a 128 x 64 x 32 x 32 tensor in float32, the largest activation of a ResNet-18
on 32 x 32 images. Three modes: ``naive`` (the recursion as one would type it, differentiated by autograd, as in the
paper), ``eager`` (this package), ``compiled`` (this package under ``torch.compile``). PyTorch's own activations have no
naive mode.

Rules of the clock: compilation and two warm-up passes are not timed. In each round every variant runs once, in a new
random order, and is divided by eager ReLU *of that round*, so that a slow minute of the machine slows both. Reported
are the median and the quartiles of these ratios. ``saved_mib`` is what autograd keeps for backward besides the output,
counted by its own hooks. The record goes to ``results/benchmarks/``; it decides no test.

On a CPU, ``eager`` uses the package's C kernel where a compiler is found; run with ``CC=none`` to time the plain
formula that serves everywhere else.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rctaf import RCTAF, _native, alpha_for_curvature, make_activation
from rctaf.records import provenance, results_dir, write_text

SHAPE = (128, 64, 32, 32)
CURVATURE = 7.0  # Table 1's tuned variants
BASELINES = ("relu", "leaky_relu", "elu", "gelu", "mish", "softplus", "swish", "selu")
# Without these, glibc gives the pages of every large tensor back and faults them in again: that would be measured.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 << 20)}


class Naive(nn.Module):
    """The recursion with autograd left to its own devices."""

    def __init__(self, alpha: float, beta: int) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        u = self.alpha * x
        if self.beta == 0:
            return F.softplus(u) / self.alpha
        s = torch.sigmoid(u)
        return x * s if self.beta == 1 else x * (s + u * s * (1 - s))


Function = Callable[[Tensor], Tensor]


def variants() -> dict[tuple[str, str], Function]:
    """(activation, mode) -> function."""
    torch._dynamo.config.recompile_limit = 100  # all variants share the wrapper that the limit counts
    out: dict[tuple[str, str], Function] = {}
    for name in BASELINES:
        out[name, "eager"] = make_activation(name)
        out[name, "compiled"] = torch.compile(make_activation(name), fullgraph=True)
    for beta in range(3):
        alpha = alpha_for_curvature(CURVATURE, beta)
        name = f"rctaf beta={beta}"
        out[name, "naive"] = Naive(alpha, beta)
        out[name, "eager"] = RCTAF(alpha, beta)
        out[name, "compiled"] = torch.compile(RCTAF(alpha, beta), fullgraph=True)
    return out


def saved_bytes(module: Function, x: Tensor) -> int:
    """Bytes of the distinct storages kept for backward, the output's excluded."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    kept.pop(y.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    if args.device == "cpu" and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})

    started = time.time()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    device = torch.device(args.device)
    x = torch.randn(SHAPE, device=device, requires_grad=True)
    grad = torch.randn(SHAPE, device=device)

    def seconds(module: Function) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        torch.autograd.grad(module(x), x, grad)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    modules = variants()
    saved, peak = {}, {}
    for key, module in modules.items():
        for _ in range(2):
            seconds(module)
        saved[key] = saved_bytes(module, x)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            seconds(module)
            peak[key] = torch.cuda.max_memory_allocated() - before
        print(".", end="", flush=True, file=sys.stderr)

    times: dict[tuple[str, str], list[float]] = {key: [] for key in modules}
    order = list(modules)
    shuffle = random.Random(0)
    for _ in range(args.rounds):
        shuffle.shuffle(order)
        for key in order:
            times[key].append(seconds(modules[key]))

    rows = []
    for (name, mode), own in times.items():
        ratios = [t / r for t, r in zip(own, times["relu", "eager"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row = {
            "activation": name,
            "mode": mode,
            "time_over_relu": {"median": middle, "quartiles": [low, high]},
            "median_ms": 1e3 * statistics.median(own),
            "saved_mib": saved[name, mode] / 2**20,
        }
        if device.type == "cuda":
            row["peak_mib"] = peak[name, mode] / 2**20
        rows.append(row)
        print(
            f"{name:14} {mode:9} {middle:5.2f} x ReLU ({low:.2f}-{high:.2f})"
            f"  {row['median_ms']:7.1f} ms  {row['saved_mib']:6.1f} MiB"
        )

    kernel = device.type == "cpu" and _native._library() is not None
    record = {
        "benchmark": "activations",
        "shape": SHAPE,
        "dtype": "float32",
        "curvature": CURVATURE,
        "rounds": args.rounds,
        "c_kernel": kernel,
        "malloc": KEEP_MEMORY if device.type == "cpu" else {},
        "rows": rows,
        "provenance": provenance(started),
    }
    place = device.type if device.type == "cuda" else f"cpu_{args.threads}t{'' if kernel else '_no_kernel'}"
    path = results_dir() / "benchmarks" / f"activations_{place}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=1, sort_keys=True) + "\n")
    print(path)


if __name__ == "__main__":
    main()
