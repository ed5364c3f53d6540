"""What each speed step of the training loop gains: the loop as it is against the loop without that step.

    make bench                                                # everything this machine can measure
    python benchmarks/bench_training.py --size small          # 8 x 8 digits, ResNet-8, TRADES with 5 steps; on the CPU
    python benchmarks/bench_training.py --size large          # 32 x 32 x 3, ResNet-18, 10 steps; on the GPU if any

Two batches go through one epoch of the package's own loop, with the settings of the grids. Both loops run once in every
round, in a random order, and each round gives one ratio: seconds without over seconds with. Recorded are the median
and the quartiles of these ratios, in ``results/benchmarks/``. They decide no test. Compilation and warm-up are not
timed.

The large images are noise, which takes as long as any other. For them the record also says how near the whole loop
comes to the fastest convolution of its network alone (forward, in the precision of the loop), both in multiplications
and additions a second.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from bench_activations import Naive, beside_committed, origin, save, seconds, spread
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from rctaf import RCTAF, _native, alpha_for_curvature, attacks, replace_activations
from rctaf.arithmetic import deterministic, no_tf32, repeatable
from rctaf.config import RunConfig
from rctaf.data import Dataset, load
from rctaf.models import from_config
from rctaf.models.norm import eval_mode
from rctaf.training import methods
from rctaf.training.loop import _Run


class Contiguous(_Run):
    """The loop in PyTorch's default memory format."""

    def _view(self, images: Tensor, kind: str) -> Tensor:
        return super()._view(images, kind).contiguous()


def attack_as_published(self, model, x, y, budget, generator):
    """The inner loop of the original TRADES repository: natural logits again at every step, with their graph."""

    def objective(logits: Tensor) -> Tensor:
        return attacks.divergence_from(model(x))(logits)

    with eval_mode(model):
        return attacks.pgd(model, x, objective, **vars(budget), start="gaussian", generator=generator)


@contextmanager
def denormals():
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(True)


def published() -> AbstractContextManager:
    return mock.patch.object(methods.Trades, "attack", attack_as_published)


def no_kernel() -> AbstractContextManager:
    return mock.patch.object(_native, "_library", return_value=None)


class Operations(TorchDispatchMode):
    """Counts multiplications and additions of convolutions and matrix products, as PyTorch's FlopCounterMode does.

    That one also follows modules, by hooks that ``torch.autograd.grad`` does not allow.
    """

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


AS_TRAINED = (repeatable, deterministic)


@dataclass(frozen=True)
class Loop:
    """One way to run the epoch."""

    beta: int
    curvature: float = 7.0  # the tuned value of Table 1
    dataset: str = "digits"  # or "noise", in the shape of CIFAR-10
    network: str = "resnet_small"
    width: int | None = None
    attack_steps: int = 5
    precision: str = "fp32"
    compiled: bool = False
    kind: type[_Run] = _Run
    frozen: bool = True
    activation: Callable[[float, int], nn.Module] = RCTAF
    around: tuple[Callable[[], AbstractContextManager], ...] = AS_TRAINED

    def run(self, batch: int, device: torch.device) -> _Run:
        config = RunConfig(
            network=self.network, width=self.width, method="trades", attack_steps=self.attack_steps, epsilon="0.15",
            beta=self.beta, alpha=alpha_for_curvature(self.curvature, self.beta), batch_size=batch,
            precision=self.precision, compiled=self.compiled, seed=0,
        )  # fmt: skip
        data = noise(2 * batch, device) if self.dataset == "noise" else load(self.dataset, 2 * batch, device=device)
        model = from_config(config, in_channels=data.channels, n_classes=data.n_classes).to(device)
        replace_activations(model, lambda: self.activation(config.alpha, self.beta))
        if self.kind is not Contiguous:
            model.to(memory_format=torch.channels_last)  # as rctaf.training.train does
        run = self.kind(model, data, config, lambda done, total, row: None)
        if not self.frozen:
            run.frozen, run.target = None, run.network
        return run

    def build(self, batch: int, device: torch.device) -> Callable[[], float]:
        """A function that runs an epoch of two batches and returns its seconds."""
        run = self.run(batch, device)

        def epoch() -> float:
            with ExitStack() as stack:
                for context in self.around:
                    stack.enter_context(context())
                begin = time.perf_counter()
                run.epoch(1)  # waits for the device at its end
                return time.perf_counter() - begin

        return epoch

    def operations(self, batch: int, device: torch.device) -> int:
        """Multiplications and additions of the convolutions and matrix products of an epoch."""
        run = replace(self, compiled=False).run(batch, device)  # the counter does not see into compiled code
        with Operations() as counter:
            run.epoch(1)
        return counter.total


def noise(n: int, device: torch.device) -> Dataset:
    images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(10, (n,), device=device)
    return Dataset("noise", images, labels, images[:1], labels[:1], n_classes=10)


SMALL = Loop(beta=2)
PLAIN = {  # of the originals, whose GPUs had no TensorFloat-32
    "kind": Contiguous,
    "frozen": False,
    "activation": Naive,
    "around": (published, denormals, no_tf32),
}
FASHION = replace(SMALL, dataset="fashion_mnist")
LARGE = Loop(beta=2, dataset="noise", network="resnet18", attack_steps=10)
BF16 = replace(LARGE, precision="bf16")
UNFROZEN_AS_PUBLISHED = {"frozen": False, "around": (*AS_TRAINED, published)}
SIZES = {"small": (128,), "large": (128, 512)}  # of a batch
STEPS: dict[str, dict[str, tuple[Loop, Loop]]] = {  # size -> what it is -> (with it, without it)
    "small": {
        **{
            f"C kernel, order {beta}, against the plain formula": (
                Loop(beta),
                Loop(beta, around=(*AS_TRAINED, no_kernel)),
            )
            for beta in range(3)
        },
        "C kernel, order 2, against the recursion under autograd": (SMALL, replace(SMALL, activation=Naive)),
        "channels last": (SMALL, replace(SMALL, kind=Contiguous)),
        "denormals flushed, order 0 at curvature 50": (
            Loop(0, curvature=50),
            Loop(0, curvature=50, around=(*AS_TRAINED, denormals)),
        ),
        "natural logits once per attack, network not frozen": (
            replace(SMALL, frozen=False),
            replace(SMALL, **UNFROZEN_AS_PUBLISHED),
        ),
        "attacks on the frozen network": (SMALL, replace(SMALL, frozen=False)),
        "compiled": (replace(SMALL, compiled=True), SMALL),
        "all of it, against a plain loop": (SMALL, replace(SMALL, **PLAIN)),
        "all of it and bf16, Fashion-MNIST, against a plain loop": (
            replace(FASHION, precision="bf16"),
            replace(FASHION, **PLAIN),
        ),
    },
    "large": {
        "activation kernel, against the recursion under autograd": (LARGE, replace(LARGE, activation=Naive)),
        "channels last": (LARGE, replace(LARGE, kind=Contiguous)),
        "natural logits once per attack, network not frozen": (
            replace(LARGE, frozen=False),
            replace(LARGE, **UNFROZEN_AS_PUBLISHED),
        ),
        "attacks on the frozen network": (LARGE, replace(LARGE, frozen=False)),
        "bf16": (BF16, LARGE),
        "channels last, bf16": (BF16, replace(BF16, kind=Contiguous)),
        "compiled": (replace(LARGE, compiled=True), LARGE),
        "compiled, bf16": (replace(BF16, compiled=True), BF16),
        "all of it in single precision, against a plain loop": (
            replace(LARGE, compiled=True),
            replace(LARGE, **PLAIN),
        ),
        "all of it and bf16, against a plain loop": (replace(BF16, compiled=True), replace(LARGE, **PLAIN)),
    },
}


def fastest_convolution(loop: Loop, batch: int, device: torch.device) -> float:
    """Operations a second of the fastest convolution of the loop's network, forward, in the loop's precision."""
    run, seen = loop.run(batch, device), []
    for module in run.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda module, inputs: seen.append((module, *inputs)))
    best = 0.0
    with repeatable(), torch.no_grad():
        run.model(run._view(run.dataset.train_x[:batch], "base"))
        for module, x in list(seen):
            precision = torch.bfloat16 if loop.precision == "bf16" else torch.float32
            weight, x = module.weight.to(precision), x.to(precision)
            convolve = partial(F.conv2d, x, weight, None, module.stride, module.padding)
            with Operations() as counter:
                convolve()
            best = max(best, counter.total / min(seconds(convolve, device) for _ in range(5)))
    return best


def measure(
    pairs: dict[str, tuple[Loop, Loop]], batch: int, device: torch.device, rounds: int
) -> Iterator[dict[str, Any]]:
    """One row for each pair of loops."""
    epochs = {}
    for name, pair in pairs.items():
        try:
            epochs[name] = [loop.build(batch, device) for loop in pair]
        except RuntimeError as error:  # its images are not here and cannot be fetched
            print(f"{name}: left out, {error}")
    for pair in epochs.values():  # compile, warm
        for epoch in pair:
            epoch()
    taken: dict[str, list[dict[int, float]]] = {name: [] for name in epochs}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(epochs), len(epochs)):
            order = shuffle.sample((0, 1), 2)
            taken[name].append({which: epochs[name][which]() for which in order})
    reached: dict[str, float] = {}
    for name, rows in taken.items():
        loop, (with_it, without) = pairs[name][0], ([row[which] for row in rows] for which in (0, 1))
        row = {
            "step": name,
            "batch": batch,
            "without_over_with": spread([b / a for a, b in zip(with_it, without, strict=True)]),
            "ms_per_batch": 1e3 * statistics.median(with_it) / 2,
            "images_per_s": 2 * batch / statistics.median(with_it),
        }
        if loop.dataset == "noise":
            if loop.precision not in reached:
                reached[loop.precision] = fastest_convolution(loop, batch, device)
            row["of_fastest_convolution"] = (
                loop.operations(batch, device) / statistics.median(with_it) / reached[loop.precision]
            )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=STEPS, help="default: small, and large where there is a GPU")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--batch", type=int, action="append", help="default: 128; of the large size 128 and 512")
    parser.add_argument("--width", type=int, help="of the first stage; default: the network's own")
    parser.add_argument("--eager", action="store_true", help="leave out what is compiled: on a CPU that takes minutes")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch._dynamo.config.recompile_limit = 100  # all loops share the code that the limit counts
    for size in [args.size] if args.size else ["small", *["large"] * torch.cuda.is_available()]:
        device = torch.device("cuda" if size == "large" and torch.cuda.is_available() else "cpu")
        pairs = {
            name: (replace(loop, width=args.width), replace(other, width=args.width))
            for name, (loop, other) in STEPS[size].items()
            if not (args.eager and loop.compiled)
        }
        run(size, pairs, args.batch or SIZES[size], device, args.rounds)


def run(
    size: str, pairs: dict[str, tuple[Loop, Loop]], batches: tuple[int, ...], device: torch.device, rounds: int
) -> None:
    started, busy = time.time(), os.getloadavg()[0]
    rows = [row for batch in batches for row in measure(pairs, batch, device, rounds)]
    place, made = origin(device, started)
    record = {"benchmark": "training", "size": size, "rounds": rounds, "rows": rows, "provenance": made}
    path = save(f"training_{'' if size == 'small' else 'large_'}{place}.json", busy, record)
    for row, ratio in zip(rows, beside_committed(path, rows, "without_over_with", "step", "batch"), strict=True):
        print(f"{row['step']:56} batch {row['batch']:3} {ratio}, {row['images_per_s']:.0f} images/s", end="")
        print(f", {row['of_fastest_convolution']:.0%} of a convolution" if "of_fastest_convolution" in row else "")
    print(path)


if __name__ == "__main__":
    main()
