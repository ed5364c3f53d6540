"""The training loop: data on the device, one synchronisation per epoch, bit-identical when resumed."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rctaf.config import RunConfig
from rctaf.data import Dataset, augment, to_float
from rctaf.training import schedules
from rctaf.training.methods import Method, View, make_method

CHECKPOINT_EVERY = 30.0  # seconds
Progress = Callable[[int, int, dict[str, float] | None], object]


class Diverged(ArithmeticError):
    """The loss was not finite; the message says in which epoch and step."""


def train(
    model: nn.Module,
    dataset: Dataset,
    config: RunConfig,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Train a model in place, as ``config`` says.

    The run is a function of the initial weights, the data and ``config``: repeated on the same device with the
    same number of threads, or resumed from its checkpoint, it ends in the same bits.

    Args:
        model: on the device of ``dataset``; its weights at the start are the caller's.
        dataset: its images are used as they are; ``config.n_train`` is applied when loading, not here.
        checkpoint: file to resume from if it exists; written at most every 30 s, and at the end.
        progress: called as ``progress(steps done, steps in all, None)`` after every step, and with the new row of
            the history after every epoch.

    Returns:
        Columns over epochs: ``epoch`` (from 1), ``loss``, ``train_accuracy`` (of the augmented clean images in
        training mode; of the attacked ones for ``pgd``, which sees no others), ``train_robust_accuracy`` (attacked
        images, adversarial methods only), ``lr``, ``epsilon`` (of the training attack), ``seconds``.

    Raises:
        Diverged: a loss was not finite.
        ValueError: the checkpoint is not one of this configuration, or not readable.
    """
    torch.set_flush_denormal(True)  # large alpha makes denormals, which cost twice the time on a CPU
    # the convolutions' own layout: saves 17 % of a step on a CPU
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    device = dataset.train_x.device
    method = make_method(config)
    optimizer = make_optimizer(model, config)
    generators = make_generators(config.seed, device)
    state = _State(model, optimizer, method, generators, config)
    history = state.load(checkpoint) if checkpoint is not None and checkpoint.exists() else {}
    done = len(history.get("epoch", []))
    saved = time.monotonic()
    with deterministic():
        for epoch in range(done + 1, config.epochs + 1):
            row = _epoch(model, dataset, config, method, optimizer, generators, epoch, progress)
            for name, value in row.items():
                history.setdefault(name, []).append(value)
            if progress is not None:
                steps = _steps(dataset, config)
                progress(epoch * steps, config.epochs * steps, row)
            if checkpoint is not None and (epoch == config.epochs or time.monotonic() - saved > CHECKPOINT_EVERY):
                state.save(checkpoint, history)
                saved = time.monotonic()
    model.eval()
    return history


def _steps(dataset: Dataset, config: RunConfig) -> int:
    return math.ceil(len(dataset.train_x) / config.batch_size)


def _epoch(
    model: nn.Module,
    dataset: Dataset,
    config: RunConfig,
    method: Method,
    optimizer: torch.optim.Optimizer,
    generators: dict[str, torch.Generator],
    epoch: int,
    progress: Progress | None,
) -> dict[str, float]:
    """One pass over the training images; returns the epoch's row of the history."""
    started = time.perf_counter()
    device, n = dataset.train_x.device, len(dataset.train_x)
    lr, budget = schedules.learning_rate(config, epoch), schedules.budget(config, epoch)
    for group in optimizer.param_groups:
        group["lr"] = lr
    model.train()
    losses: list[Tensor] = []
    correct = {name: torch.zeros((), device=device) for name in ("train_accuracy", "train_robust_accuracy")}
    steps = _steps(dataset, config)
    order = torch.randperm(n, generator=generators["order"]).to(device)
    # equal parts: a last batch of a few images would give batch norm statistics of a few images
    for step, batch in enumerate(torch.tensor_split(order, steps)):
        images, y = dataset.train_x[batch], dataset.train_y[batch]
        views = []
        for _ in method.views:
            x = to_float(augment(images, config.augment, generators["augment"]))
            x = x.contiguous(memory_format=torch.channels_last)
            with _precision(config, device):
                views.append(View(x, method.attack(model, x, y, budget, generators["attack"])))
        with _precision(config, device):
            outcome = method.loss(model, views, y)
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(outcome.loss.detach())
        for name, logits in zip(correct, (outcome.clean_logits, outcome.attacked_logits), strict=True):
            if logits is not None:
                correct[name] += (logits.detach().argmax(1) == y).sum()
        if progress is not None:
            progress((epoch - 1) * steps + step + 1, config.epochs * steps, None)
    values = torch.stack(losses).tolist()  # the only synchronisation of the epoch
    for step, value in enumerate(values, 1):
        if not math.isfinite(value):
            raise Diverged(f"the loss became {value} in epoch {epoch}, step {step} of {steps} ({config.label})")
    row = {"epoch": float(epoch), "loss": sum(values) / steps}
    if outcome.clean_logits is None:
        correct["train_accuracy"] = correct["train_robust_accuracy"]
    if outcome.attacked_logits is None:
        del correct["train_robust_accuracy"]
    row |= {name: count.item() / n for name, count in correct.items()}
    row |= {"lr": lr, "epsilon": budget.epsilon if budget.steps else 0.0}
    return row | {"seconds": time.perf_counter() - started}


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """SGD with momentum; ``decay_gains=False`` spares batch-norm gains and all biases from weight decay."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not config.decay_gains:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(groups, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def make_generators(seed: int, device: torch.device) -> dict[str, torch.Generator]:
    """Independent streams, so that the order of the images does not depend on the method or the attack.

    ``order`` lives on the CPU; ``augment`` and ``attack`` on ``device``.
    """
    places = {"order": torch.device("cpu"), "augment": device, "attack": device}
    seeds = np.random.SeedSequence(seed).generate_state(len(places), np.uint64)
    return {
        name: torch.Generator(place).manual_seed(int(s)) for (name, place), s in zip(places.items(), seeds, strict=True)
    }


def _precision(config: RunConfig, device: torch.device) -> torch.autocast:
    """bf16 arithmetic with fp32 weights where asked for. A fresh context per use: autocast caches the cast weights
    until it ends, and those cast for the attack carry no gradient."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms inside, the former setting after."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    debugging: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that writes every tensor twice
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        debugging.fill_uninitialized_memory = fill


class _State:
    """Everything a run needs to go on: weights, optimiser, method, generators, and the history so far."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method,
        generators: dict[str, torch.Generator],
        config: RunConfig,
    ) -> None:
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "method": method}
        self._generators = generators
        self._config = config.model_dump(mode="json")

    def save(self, path: Path, history: dict[str, list[float]]) -> None:
        """Write the checkpoint whole or not at all."""
        content = {
            "config": self._config,
            "history": history,
            "generators": {name: g.get_state() for name, g in self._generators.items()},
            **{name: part.state_dict() for name, part in self._parts.items()},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with open(partial, "wb") as handle:
            torch.save(content, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(partial, path)

    def load(self, path: Path) -> dict[str, list[float]]:
        """Go back to where the checkpoint was written; returns the history up to there."""
        device = next(self._parts["model"].parameters()).device
        try:
            content = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # whatever is wrong inside the file, the remedy is the same
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: not a readable checkpoint ({reason}); delete it to start again") from None
        different = {k for k, v in self._config.items() if content["config"].get(k, v) != v}
        if different:
            raise ValueError(f"{path}: written with another {', '.join(sorted(different))}; delete it to start again")
        for name, part in self._parts.items():
            part.load_state_dict(content[name])
        for name, generator in self._generators.items():
            generator.set_state(content["generators"][name].cpu())
        return content["history"]
