"""What each speed step of the training loop gains on a CPU: the loop as it is against the loop without that step.

    make bench
    python benchmarks/bench_training.py [--rounds 15] [--threads 1]

Two batches of 128 digits through one epoch of the package's own loop (TRADES with the grids' settings, ResNet-8). Both
loops run once in every round, in a random order, and each round gives one ratio: seconds without over seconds with.
Recorded are the median and the quartiles of these ratios, in ``results/benchmarks/``. They decide no test.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from unittest import mock

import torch
from bench_activations import Naive, save, spread
from torch import Tensor, nn

from rctaf import RCTAF, _native, alpha_for_curvature, replace_activations
from rctaf.config import RunConfig
from rctaf.data import load
from rctaf.models import from_config
from rctaf.models.norm import eval_mode
from rctaf.training import attacks, methods
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


@dataclass(frozen=True)
class Loop:
    """One way to run the epoch."""

    beta: int
    curvature: float = 7.0  # the tuned value of Table 1
    dataset: str = "digits"
    precision: str = "fp32"
    kind: type[_Run] = _Run
    frozen: bool = True
    activation: Callable[[float, int], nn.Module] = RCTAF
    around: Callable[[], AbstractContextManager] = nullcontext

    def build(self, batch: int) -> Callable[[], float]:
        """A function that runs an epoch of two batches and returns its seconds."""
        config = RunConfig(
            dataset=self.dataset, network="resnet_small", method="trades", epsilon="0.15", seed=0, batch_size=batch,
            beta=self.beta, alpha=alpha_for_curvature(self.curvature, self.beta), precision=self.precision,
        )  # fmt: skip
        data = load(self.dataset, n_train=2 * batch)
        model = from_config(config, in_channels=data.train_x.shape[1], n_classes=data.n_classes)
        replace_activations(model, lambda: self.activation(config.alpha, self.beta))
        if self.kind is not Contiguous:
            model.to(memory_format=torch.channels_last)  # as rctaf.training.train does
        run = self.kind(model, data, config, lambda done, total, row: None)
        if not self.frozen:
            run.frozen = None

        def epoch() -> float:
            with self.around():
                begin = time.perf_counter()
                run.epoch(1)
                return time.perf_counter() - begin

        return epoch


def no_kernel() -> AbstractContextManager:
    return mock.patch.object(_native, "_library", return_value=None)


def published() -> AbstractContextManager:
    return mock.patch.object(methods.Trades, "attack", attack_as_published)


@contextmanager
def plain() -> Iterator[None]:
    """What a loop in the style of the original repositories leaves as it is."""
    with published(), denormals():
        yield


PRESENT = Loop(beta=2)
PLAIN = Loop(beta=2, kind=Contiguous, frozen=False, activation=Naive, around=plain)
STEPS: dict[str, tuple[Loop, Loop]] = {  # what it is -> (with it, without it)
    "C kernel, order 0, against the plain formula": (Loop(0), Loop(0, around=no_kernel)),
    "C kernel, order 1, against the plain formula": (Loop(1), Loop(1, around=no_kernel)),
    "C kernel, order 2, against the plain formula": (PRESENT, replace(PRESENT, around=no_kernel)),
    "C kernel, order 2, against the recursion under autograd": (PRESENT, replace(PRESENT, activation=Naive)),
    "channels last": (PRESENT, replace(PRESENT, kind=Contiguous)),
    "denormals flushed, order 0 at curvature 50": (Loop(0, curvature=50), Loop(0, curvature=50, around=denormals)),
    "natural logits once per attack, network not frozen": (
        replace(PRESENT, frozen=False),
        replace(PRESENT, frozen=False, around=published),
    ),
    "attacks on the frozen network": (PRESENT, replace(PRESENT, frozen=False)),
    "all of it, against a plain loop": (PRESENT, PLAIN),
    "all of it and bf16, Fashion-MNIST, against a plain loop": (
        replace(PRESENT, dataset="fashion_mnist", precision="bf16"),
        replace(PLAIN, dataset="fashion_mnist"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()

    start = time.time(), os.getloadavg()[0]
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    pairs = {}
    for name, pair in STEPS.items():
        try:
            pairs[name] = [loop.build(args.batch) for loop in pair]
        except RuntimeError as error:  # its images are not here and cannot be fetched
            print(f"{name}: left out, {error}")
    for pair in pairs.values():  # warm
        for epoch in pair:
            epoch()
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    taken: dict[str, list[float]] = {name: [] for name in pairs}
    shuffle = random.Random(0)
    for _ in range(args.rounds):
        for name in shuffle.sample(list(pairs), len(pairs)):
            order = shuffle.sample((0, 1), 2)
            seconds = {which: pairs[name][which]() for which in order}
            ratios[name].append(seconds[1] / seconds[0])
            taken[name].append(1e3 * seconds[0] / 2)

    rows = [
        {"step": name, "without_over_with": spread(ratios[name]), "ms_per_batch": statistics.median(taken[name])}
        for name in pairs
    ]
    record = {
        "benchmark": "training",
        "batch": args.batch,
        "rounds": args.rounds,
        "rows": rows,
    }
    path = save(f"training_cpu_{args.threads}t.json", start, record)
    for row in rows:
        ratio = row["without_over_with"]
        low, high = ratio["quartiles"]
        print(f"{row['step']:56} {ratio['median']:5.2f} x ({low:.2f} to {high:.2f})")
    print(path)


if __name__ == "__main__":
    main()
