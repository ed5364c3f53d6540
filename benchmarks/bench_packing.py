"""How many training runs at once, with how many threads each, do the most work on this machine's cores or on one GPU.

    python benchmarks/bench_packing.py       # the CPU, then the GPU if there is one

Every process trains the ResNet-8 of the digits grids with TRADES (bench_training.py's epoch of two batches of 128), all
of a packing at the same time and for the same number of epochs. The record in ``results/benchmarks`` holds, for each
packing, images a second of all processes together, as a ratio to one process with one thread in the same round.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

import torch
from bench_activations import beside_committed, origin, save, spread

PACKINGS = {  # processes, threads of each
    "cpu": ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2)),
    "cuda": ((1, 1), (2, 1), (4, 1), (8, 1)),
}
BATCH = 128


def worker(epochs: int, device: str) -> None:
    """One process of a packing: get warm, say so, wait for the start, train, tell the seconds."""
    from bench_training import SMALL

    torch.set_flush_denormal(True)
    epoch = SMALL.build(BATCH, torch.device(device))
    epoch()
    print("warm", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    for _ in range(epochs):
        epoch()
    print(time.perf_counter() - begin, flush=True)


def images_per_second(processes: int, threads: int, epochs: int, device: str) -> float:
    """Of all processes together, from the common start until the last has finished."""
    command = [sys.executable, __file__, "--worker", "--epochs", str(epochs), "--device", device]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    workers = [subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) for _ in range(processes)]
    for process in workers:
        if process.stdout.readline() != "warm\n":
            raise SystemExit("a worker failed; its error is above")
    for process in workers:
        process.stdin.write("go\n")
        process.stdin.flush()
    slowest = max(float(process.communicate()[0]) for process in workers)
    return processes * epochs * 2 * BATCH / slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--device", choices=PACKINGS, action="append", help="default: all there are")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    devices = args.device or ["cpu", *["cuda"] * torch.cuda.is_available()]
    if args.worker:
        worker(args.epochs, *devices)
        return
    for device in devices:
        compare(device, args.rounds, args.epochs)


def compare(device: str, rounds: int, epochs: int) -> None:
    """Time the packings of one device, and write the record."""
    started, busy, shuffle = time.time(), os.getloadavg()[0], random.Random(0)
    rates: dict[tuple[int, int], list[float]] = {packing: [] for packing in PACKINGS[device]}
    for _ in range(rounds):
        for packing in shuffle.sample(PACKINGS[device], len(rates)):
            rates[packing].append(images_per_second(*packing, epochs, device))
    rows = []
    for (processes, threads), values in rates.items():
        ratio = spread([value / one for value, one in zip(values, rates[1, 1], strict=True)])
        rows.append(
            {"processes": processes, "threads": threads, "rate_over_one": ratio, "images_per_s": spread(values)}
        )
    name, made = origin(torch.device(device), started)
    content = {"benchmark": "packing", "rounds": rounds, "epochs": epochs, "batch": BATCH, "rows": rows}
    content["provenance"] = made
    file = f"packing_{'cpu' if device == 'cpu' else name}.json"  # without threads: every packing has its own
    path = save(file, busy, content)
    for row, ratio in zip(rows, beside_committed(path, rows, "rate_over_one", "processes", "threads"), strict=True):
        print(f"{row['processes']} x {row['threads']} thread(s): {ratio} one process")
    print(path)


if __name__ == "__main__":
    main()
