"""AutoAttack through the package's own evaluation and through ours: the same verdict per image, in how much time?

    make bench
    python benchmarks/bench_autoattack.py [--images 200] [--rounds 3] [--threads 1] [--device cpu]

A ResNet-8 is trained on digits with TRADES for 6 epochs, then attacked at the training budget. The reference is the
installed package (``autoattack`` or ``pyautoattack``) with its own loop on the model as it is; ours makes the same
calls with the same seed and batches on the frozen network. In each round both run once, in a random order. Recorded
are the ratio of their times, round by round, and for how many images their verdicts differ. The record goes to
``results/benchmarks/``; it decides no test.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import time
from typing import Any

import numpy as np
import torch
from bench_activations import beside_committed, origin, save, spread
from torch import Tensor, nn

from rctaf.arithmetic import repeatable
from rctaf.config import RunConfig, parse_epsilon
from rctaf.data import load, to_float
from rctaf.evaluation import autoattack
from rctaf.evaluation.autoattack import ATTACKS, Version, unpack_mask
from rctaf.models import from_config
from rctaf.training import train

CONFIG = RunConfig(dataset="digits", method="trades", epochs=6, epsilon="0.15", alpha=14.0, beta=1, seed=0)


@repeatable()  # the same arithmetic as ours
def reference(model: nn.Module, x: Tensor, y: Tensor, attacks: tuple[str, ...]) -> np.ndarray:
    """Which images the package's own evaluation leaves robust [N]."""
    options: dict[str, Any] = {"eps": parse_epsilon(CONFIG.epsilon), "seed": 0, "version": "standard"}
    if importlib.util.find_spec("autoattack") is not None:
        adversary = importlib.import_module("autoattack").AutoAttack(model, device=x.device, verbose=False, **options)
        adversary.attacks_to_run = list(attacks)
        attacked = adversary.run_standard_evaluation(x, y, bs=len(x))
    else:
        adversary = importlib.import_module("pyautoattack").AutoAttack(model, device=x.device, **options)
        adversary.attacks_to_run = list(attacks)
        attacked, _ = adversary.run_standard_evaluation(x, y, batch_size=len(x))
    with torch.no_grad():
        return (model(attacked).argmax(1) == y).cpu().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", help="default: the CPU, then the GPU if there is one")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for device in [args.device] if args.device else ["cpu", *["cuda"] * torch.cuda.is_available()]:
        compare(torch.device(device), args)


def compare(device: torch.device, args: argparse.Namespace) -> None:
    """Time both on one device, and write the record."""
    started, busy = time.time(), os.getloadavg()[0]
    data = load("digits", device=device)
    model = from_config(CONFIG, in_channels=data.channels, n_classes=data.n_classes).to(device)
    train(model, data, CONFIG)
    x, y = to_float(data.test_x)[: args.images], data.test_y[: args.images]

    versions: tuple[Version, ...] = ("screening", "standard")
    rows, shuffle = [], random.Random(0)
    for version in versions:
        seconds: dict[str, list[float]] = {"ours": [], "reference": []}
        verdicts: dict[str, np.ndarray] = {}
        for _ in range(args.rounds):
            for name in shuffle.sample(list(seconds), 2):
                begin = time.perf_counter()
                if name == "ours":
                    entry = autoattack(model, x, y, parse_epsilon(CONFIG.epsilon), version, seed=0, batch_size=len(x))
                    verdicts[name] = unpack_mask(entry["mask"], len(x))
                else:
                    verdicts[name] = reference(model, x, y, ATTACKS[version])
                seconds[name].append(time.perf_counter() - begin)
        ratios = [r / o for o, r in zip(seconds["ours"], seconds["reference"], strict=True)]
        rows.append(
            {
                "version": version,
                "reference_over_ours": spread(ratios),
                "images": len(x),
                "robust": int(verdicts["ours"].sum()),
                "verdicts_that_differ": int((verdicts["ours"] != verdicts["reference"]).sum()),
                "seconds_ours": min(seconds["ours"]),
                "implementation": entry["implementation"],
            }
        )
    name, made = origin(device, started)
    record = {
        "benchmark": "autoattack",
        "provenance": made,
        "rounds": args.rounds,
        "config": CONFIG.model_dump(mode="json"),
        "rows": rows,
    }
    path = save(f"autoattack_{name}.json", busy, record)
    for row, ratio in zip(rows, beside_committed(path, rows, "reference_over_ours", "version"), strict=True):
        print(f"{row['version']:10} {ratio}, {row['verdicts_that_differ']} of {len(x)} verdicts differ")
    print(path)


if __name__ == "__main__":
    main()
