"""What every activation of the paper's Table 2 costs, in time and in memory, against ReLU.

    make bench                                                # everything this machine can measure
    python benchmarks/bench_activations.py --device cpu --what activation

Two things are measured (``--what``):

``activation``
    one forward and one backward pass of the activation alone over a 128 x 64 x 32 x 32 tensor in float32, the largest
    of a ResNet-18 on 32 x 32 images;
``training_step``
    one step of standard training (SGD with momentum) of the whole ResNet-18 on 128 such images, what the paper timed.

Each in three modes. ``naive`` is what the paper seems to have run: the recursion as one would type it, differentiated
by autograd; Mish composed likewise; in a network, the activations of PyTorch that can work in place do so. The paper's
gigabytes fit this reading (see the page of Table 2). Where that is the same as ``eager``, the row is left out.
``eager`` is this package's RCT-AF and PyTorch's own activations, never in place; ``compiled`` the same under
``torch.compile``.

Rules of the clock: compilation and warm-up are not timed. In each round every variant runs once, in a new random order,
and is divided by eager ReLU *of that round*, so that a slow minute of the machine slows both. Recorded are the median
and the quartiles of these ratios. On a GPU the time between two CUDA events, several passes in a row.

Memory is the peak of what PyTorch's allocator holds, followed through every allocation. For the activation alone it
counts from what the caller holds anyway (input, incoming gradient); for the training step from nothing, so weights,
momentum and images are inside. ``saved_mib`` is what autograd keeps between the two passes of the activation besides
its output; its input counts, which could be freed otherwise.

Records go to ``results/benchmarks/``, beside a comparison with the committed ones as ratios to ReLU, never as seconds.
They decide no test. On a CPU the package's C kernel is used where a compiler is found; with ``CC=none`` the record is
that of the plain formula that serves everywhere else. On a CPU, compiling and timing 11 networks takes an hour or so:
``--what activation`` leaves them out, ``--modes naive eager`` leaves the compiling out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.profiler import profile

from rctaf import RCTAF, _kernels, alpha_for_curvature, make_activation
from rctaf.arithmetic import no_tf32
from rctaf.models import make_model
from rctaf.paper import TABLE_2
from rctaf.records import ROOT, provenance, results_dir, source, write_text

CURVATURE = 7.0  # Table 1's tuned variants
SHAPES = {"activation": (128, 64, 32, 32), "training_step": (128, 3, 32, 32)}
# Without the first three, glibc gives the pages of every large tensor back and faults them in again: that would be
# measured. The last keeps the profiler, which follows the allocations, from announcing itself at every use.
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_TOP_PAD_": str(64 << 20),
    "KINETO_LOG_LEVEL": "99",
}

Step = Callable[[], object]
Key = tuple[str, str]  # activation as in TABLE_2, mode


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


class NaiveMish(nn.Module):
    """Mish as its paper defines it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(F.softplus(x))


IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
    "selu": partial(nn.SELU, inplace=True),
}


def variants(what: str) -> dict[Key, Callable[[], nn.Module]]:
    """(activation, mode) -> what makes the module."""
    made: dict[Key, Callable[[], nn.Module]] = {}
    for name in TABLE_2:
        kind, _, order = name.partition(" β=")
        if order:
            beta = int(order)
            alpha = alpha_for_curvature(CURVATURE, beta)
            made[name, "naive"] = partial(Naive, alpha, beta)
            made[name, "eager"] = partial(RCTAF, alpha, beta)
        else:
            if kind == "mish":
                made[name, "naive"] = NaiveMish
            elif kind in IN_PLACE and what == "training_step":  # an input that the caller keeps cannot be overwritten
                made[name, "naive"] = IN_PLACE[kind]
            made[name, "eager"] = partial(make_activation, kind)
        made[name, "compiled"] = made[name, "eager"]
    return made


def compiled(module: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    return torch.compile(module, fullgraph=True, dynamic=False) if mode == "compiled" else module


def activation(make: Callable[[], nn.Module], mode: str, shape: tuple[int, ...], device: torch.device) -> Step:
    """Forward and backward pass of one activation."""
    x = torch.randn(shape, device=device, requires_grad=True)
    grad, function = torch.randn(shape, device=device), compiled(make(), mode)
    return lambda: torch.autograd.grad(function(x), x, grad)


def training_step(make: Callable[[], nn.Module], mode: str, shape: tuple[int, ...], device: torch.device) -> Step:
    """One step of standard training of a ResNet-18. Gradients are freed at its end, so that a step leaves nothing."""
    model = make_model("resnet18", activation=make, in_channels=shape[1], n_classes=10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.rand(shape, device=device), torch.randint(10, shape[:1], device=device)
    logits = compiled(model, mode)

    def step() -> None:
        F.cross_entropy(logits(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


SUBJECTS = {"activation": activation, "training_step": training_step}


def traced(function: Callable[[], Any], device: torch.device) -> tuple[Any, int, int]:
    """What ``function`` returns, the bytes it leaves allocated, and the peak while it ran; both from its start."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = function()
        torch.cuda.synchronize()
        return result, torch.cuda.memory_allocated() - before, torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as seen:
        result = function()
    events = [(e.start_ns(), e.nbytes()) for e in seen.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return result, held, peak


def saved_bytes(module: nn.Module, shape: tuple[int, ...], device: torch.device) -> int:
    """Bytes of the distinct storages that eager autograd keeps for backward, the output's excluded."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    x = torch.randn(shape, device=device, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = module(x)
    kept.pop(y.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def seconds(step: Step, device: torch.device) -> float:
    """Duration of one call."""
    if device.type == "cpu":
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    calls = 10
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(20_000_000)  # some 10 ms, in which Python queues the calls: what is timed is the GPU, not Python
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def save(file: str, load: float, content: dict[str, Any]) -> Path:
    """Write a benchmark's record under ``results/benchmarks``.

    Args:
        load: how many processes wanted a core when it began: 0 on an idle machine.
        content: its results, and their ``provenance``.
    """
    record = {"cores": os.cpu_count(), "load_before": round(load, 2)}
    path = results_dir() / "benchmarks" / file
    write_text(path, json.dumps(record | content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def origin(device: torch.device, started: float) -> tuple[str, dict[str, Any]]:
    """A name for the device, to be part of a file's, and the provenance of what ran on it."""
    made = provenance(started, source("benchmarks")) | {"activation_kernel": _kernels.fused_by(device.type)}
    if device.type == "cuda":
        return re.sub(r"\W+", "_", made["device"].lower()), made
    made["device"] = f"{platform.machine()} CPU"  # also where there is a GPU besides
    return f"cpu_{made['threads']}t{'_no_kernel' * (made['activation_kernel'] == 'PyTorch')}", made


def spread(values: list[float]) -> dict[str, Any]:
    if len(values) == 1:
        return {"median": values[0], "quartiles": [values[0]] * 2}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartiles": [low, high]}


@no_tf32()  # the record says float32
def measure(
    what: str, device: torch.device, shape: tuple[int, ...], rounds: int, chosen: dict[Key, Callable[[], nn.Module]]
) -> list[dict[str, Any]]:
    """One row per variant; ``chosen`` must hold eager ReLU, which all are divided by."""
    if any(mode == "compiled" for _, mode in chosen):
        torch._dynamo.config.recompile_limit = 100  # all variants share the code that the limit counts
    if device.type == "cuda":  # the first product allocates what cuBLAS works in, for each of two threads, and keeps it
        nn.Linear(64, 64, device=device)(torch.rand(64, 64, device=device)).sum().backward()
    steps: dict[Key, Step] = {}
    peaks: dict[Key, int] = {}
    for (name, mode), make in chosen.items():
        torch.manual_seed(0)
        step, own, _ = traced(partial(SUBJECTS[what], make, mode, shape, device), device)
        first, second = traced(step, device), traced(step, device)
        # The first step allocates the momentum, compiles and picks algorithms; a later one is what training needs.
        held = 0 if what == "activation" else own + first[1]
        steps[name, mode], peaks[name, mode] = step, held + second[2]
        print(".", end="", flush=True, file=sys.stderr)

    times: dict[Key, list[float]] = {key: [] for key in steps}
    order = list(steps)
    shuffle = random.Random(0)
    for _ in range(rounds):
        shuffle.shuffle(order)
        for key in order:
            times[key].append(seconds(steps[key], device))
    print(file=sys.stderr)

    rows = []
    for (name, mode), own_times in times.items():
        ratios = [t / r for t, r in zip(own_times, times["relu", "eager"], strict=True)]
        row = {
            "activation": name,
            "mode": mode,
            "time_over_relu": spread(ratios),
            "ms": spread([1e3 * t for t in own_times]),
            "peak_mib": peaks[name, mode] / 2**20,
        }
        if what == "activation" and mode != "compiled":
            row["saved_mib"] = saved_bytes(chosen[name, mode](), shape, device) / 2**20
        rows.append(row)
    return rows


def beside_committed(path: Path, rows: list[dict[str, Any]], ratio: str, *names: str) -> Iterator[str]:
    """Each row's ratio as text, with that of the committed record of the same name, found by the fields ``names``."""
    command = ["git", "-C", str(ROOT), "show", f"HEAD:results/benchmarks/{path.name}"]
    done = subprocess.run(command, capture_output=True, text=True)
    before = json.loads(done.stdout)["rows"] if done.returncode == 0 else []
    medians = {tuple(row.get(name) for name in names): row[ratio]["median"] for row in before}
    for row in rows:
        low, high = row[ratio]["quartiles"]
        old = medians.get(tuple(row[name] for name in names))
        known = "no other" if old is None else f"{old:.2f}"
        yield f"{row[ratio]['median']:5.2f} x ({low:.2f} to {high:.2f}; committed: {known})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=SUBJECTS, action="append", help="default: both")
    parser.add_argument("--device", choices=["cpu", "cuda"], action="append", help="default: all there are")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--modes", nargs="+", default=["naive", "eager", "compiled"])
    args = parser.parse_args()
    if not ENVIRONMENT.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})

    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    for name in args.device or ["cpu", *["cuda"] * torch.cuda.is_available()]:
        for what in args.what or SUBJECTS:
            run(what, torch.device(name), args.rounds, args.batch, args.modes)


def run(what: str, device: torch.device, rounds: int, batch: int, modes: list[str]) -> None:
    started, busy = time.time(), os.getloadavg()[0]
    shape = (batch, *SHAPES[what][1:])
    chosen = {key: make for key, make in variants(what).items() if key[1] in modes or key == ("relu", "eager")}
    rows = measure(what, device, shape, rounds, chosen)
    place, made = origin(device, started)
    record = {
        "benchmark": what,
        "device_type": device.type,
        "shape": shape,
        "dtype": "float32",
        "curvature": CURVATURE,
        "rounds": rounds,
        "rows": rows,
        "provenance": made,
    }
    path = save(f"{what}_{place}.json", busy, record)
    print(f"{what} on {made['device']}, {made['activation_kernel']} kernel, batch {batch}, {rounds} rounds")
    for row, ratio in zip(rows, beside_committed(path, rows, "time_over_relu", "activation", "mode"), strict=True):
        print(f"{row['activation']:11} {row['mode']:9} {ratio} ReLU, peak {row['peak_mib']:.0f} MiB")
    print(path)


if __name__ == "__main__":
    main()
