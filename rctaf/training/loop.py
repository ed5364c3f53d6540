"""The training loop: data on the device, nothing waits for it inside an epoch, bit-identical when resumed."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rctaf.activations import LearnedRCTAF
from rctaf.arithmetic import deterministic, repeatable
from rctaf.augmentation import augment, auto_augment
from rctaf.config import RunConfig, explain
from rctaf.data import Dataset, to_float
from rctaf.models import select_norm
from rctaf.models.frozen import Frozen, Unsupported
from rctaf.records import written_whole
from rctaf.training import schedules
from rctaf.training.methods import Outcome, View, make_method
from rctaf.training.weights import WeightAverage, perturbed

CHECKPOINT_EVERY = 30.0  # seconds
Progress = Callable[[int, int, dict[str, float] | None], object]


class Diverged(ArithmeticError):
    """The loss, or a running statistic of the network, was not finite; the message says in which epoch."""


def train(
    model: nn.Module,
    dataset: Dataset,
    config: RunConfig,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Train a model in place, as ``config`` says; it ends in evaluation mode, as the average where one is kept.

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
        images, adversarial methods only), ``lr``, ``epsilon`` (of the training attack), ``alpha_1``, ``alpha_2``, ...
        (learned alphas only, at the end of the epoch), ``seconds``.

    Raises:
        Diverged: a loss, or at the end of an epoch a running statistic, was not finite.
        ValueError: the checkpoint is not one of this configuration, or not readable.
    """
    # the convolutions' own layout: saves 17 % of a step on a CPU
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compiled:
        torch.compiler.reset()  # what was compiled before counts towards a limit, beyond which code runs as it is
    with repeatable(), deterministic():
        run = _Run(model, dataset, config, progress or (lambda done, total, row: None))
        if checkpoint is not None and checkpoint.exists():
            run.load(checkpoint)
        saved = time.monotonic()
        for epoch in range(run.epochs_done + 1, config.epochs + 1):
            run.epoch(epoch)
            if checkpoint is not None and (epoch == config.epochs or time.monotonic() - saved > CHECKPOINT_EVERY):
                run.save(checkpoint)
                saved = time.monotonic()
    if run.average is not None:
        run.average.install()
    model.eval()
    return run.history


def epochs_done(checkpoint: Path) -> int:
    """After how many epochs a checkpoint was written.

    Raises:
        ValueError: the file is not a readable checkpoint.
    """
    return len(_read(checkpoint, torch.device("cpu"))["history"].get("epoch", []))


def _read(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        for name in ("config", "generators", "history"):
            content[name]
    except Exception as error:  # whatever is wrong inside the file, the remedy is the same
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: not a readable checkpoint ({reason}); delete it to start again") from None
    return content


class _Run:
    """One training run between two epochs: everything that changes, hence everything a checkpoint holds."""

    def __init__(self, model: nn.Module, dataset: Dataset, config: RunConfig, progress: Progress) -> None:
        self.model, self.dataset, self.config, self.progress = model, dataset, config, progress
        self.device = dataset.train_x.device
        self.steps = math.ceil(len(dataset.train_x) / config.batch_size)
        self.method = make_method(config)
        self.optimizer = make_optimizer(model, config)
        self.generators = make_generators(config.seed, self.device)
        decay = config.averaging_decay  # None where no average is asked for
        self.average = None if decay is None else WeightAverage(model, decay)
        self.history: dict[str, list[float]] = {}
        made: Callable[[nn.Module], nn.Module] = _compiled if config.compiled else lambda module: module
        self.network = self.target = made(model)  # what is trained, and what the attacks differentiate
        self.frozen: Frozen | None = None
        with suppress(Unsupported):  # the attacks then use the model itself, in more time
            self.frozen = Frozen(model, to_float(dataset.train_x[:1]))
            self.target = made(self.frozen)

    @property
    def epochs_done(self) -> int:
        return len(self.history.get("epoch", []))

    def epoch(self, epoch: int) -> None:
        """One pass over the training images, and its row of the history."""
        started = time.perf_counter()
        config, model, device = self.config, self.model, self.device
        lr, budget = schedules.learning_rate(config, epoch), schedules.budget(config, epoch)
        average = self.average if epoch >= (config.averaging_from or 1) else None
        if average is not None and epoch == config.averaging_from:
            average.restart()
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        model.train()
        losses: list[Tensor] = []
        correct: dict[str, Tensor] = {}
        order = torch.randperm(len(self.dataset.train_x), generator=self.generators["order"]).to(device)
        # equal parts: a last batch of a few images would give batch norm statistics of a few images
        for step, batch in enumerate(torch.tensor_split(order, self.steps), 1):
            y = self.dataset.train_y[batch]
            outcome = self._step(self.dataset.train_x[batch], y, epoch, budget)
            if average is not None and config.averaging == "step":
                average.update()
            losses.append(outcome.loss.detach())
            for name, logits in outcome.logits.items():
                correct[name] = correct.get(name, 0) + (logits.detach().argmax(1) == y).sum()
            self.progress((epoch - 1) * self.steps + step, config.epochs * self.steps, None)
        if average is not None and config.averaging == "epoch":
            average.update()
        self.method.end_epoch()
        # A loss can stay finite while a running statistic is not: then no network is left to evaluate.
        statistics = [buffer.isfinite().all() for buffer in model.buffers() if buffer.is_floating_point()]
        sound = torch.stack(statistics).all() if statistics else torch.tensor(True, device=device)
        # the first thing of the epoch that waits for the device
        *values, sound_value = torch.stack([*losses, sound.to(losses[0].dtype)]).tolist()
        for step, value in enumerate(values, 1):
            if not math.isfinite(value):
                where = f"epoch {epoch}, step {step} of {self.steps}"
                raise Diverged(f"the loss became {value} in {where} ({config.label})")
        if not sound_value:
            raise Diverged(f"a running statistic of the network is not finite after epoch {epoch} ({config.label})")
        row = {"epoch": float(epoch), "loss": sum(values) / self.steps}
        row |= {name: count.item() / len(order) for name, count in correct.items()}
        row.setdefault("train_accuracy", row.get("train_robust_accuracy", 0.0))
        row |= {"lr": lr, "epsilon": budget.epsilon if budget.steps else 0.0}
        learned = [m for m in model.modules() if isinstance(m, LearnedRCTAF)]
        row |= {f"alpha_{place}": module.alpha for place, module in enumerate(learned, 1)}
        row["seconds"] = time.perf_counter() - started
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        self.progress(epoch * self.steps, config.epochs * self.steps, row)

    def _step(self, images: Tensor, y: Tensor, epoch: int, budget: schedules.Budget) -> Outcome:
        """Views, attack, loss, update."""
        config, model, method = self.config, self.model, self.method
        views = []
        for kind in method.views:
            x, norm_set = self._view(images, kind), int(kind == "auto")
            select_norm(model, norm_set)
            if self.frozen is not None and budget.steps:
                self.frozen.refresh()
            with self._precision():
                attacked = method.attack(self.target, x, y, budget, self.generators["attack"])
            views.append(View(x, attacked, norm_set))
        select_norm(model, 0)

        def ascent_loss() -> Tensor:
            with self._precision():
                return method.ascent_loss(self.network, views, y)

        perturbs = config.awp is not None and epoch >= (config.awp_from or 1)
        with perturbed(model, ascent_loss, config.awp or 0.0) if perturbs else nullcontext():
            with self._precision():
                outcome = method.loss(self.network, views, y)
            self.optimizer.zero_grad()
            outcome.loss.backward()
            self.optimizer.step()
        method.observe(outcome, y)
        return outcome

    def _view(self, images: Tensor, kind: str) -> Tensor:
        """A batch as the network sees it: float32 in [0, 1], channels last."""
        if kind == "auto":
            images = auto_augment(images, self.generators["policy"])
        x = to_float(augment(images, self.config.augment, self.generators["augment"]))
        return x.contiguous(memory_format=torch.channels_last)

    def _precision(self) -> torch.autocast:
        """bf16 arithmetic with fp32 weights where asked for. A fresh context per use: autocast caches the cast
        weights until it ends, and those cast for the attack carry no gradient."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "optimizer": self.optimizer, "method": self.method}
        return parts | ({} if self.average is None else {"average": self.average})

    def save(self, path: Path) -> None:
        """Write the checkpoint whole or not at all."""
        content = {
            "config": self.config.model_dump(mode="json"),
            "device": self.device.type,
            "history": self.history,
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            **{name: part.state_dict() for name, part in self._parts().items()},
        }
        whole = io.BytesIO()  # straight into a file, torch.save would not say why that cannot be written
        torch.save(content, whole)
        with written_whole(path) as handle:
            handle.write(whole.getbuffer())

    def load(self, path: Path) -> None:
        """Go back to where the checkpoint was written."""
        content = _read(path, self.device)
        settings, generators, history = (content[name] for name in ("config", "generators", "history"))
        device = content.get("device", self.device.type)
        if device != self.device.type:  # the generators are of a device
            raise ValueError(f"{path}: begun on {device}, this is {self.device.type}; go on there or delete it")
        wanted = self.config.model_dump(mode="json")
        try:  # this fills in settings younger than the checkpoint
            before = RunConfig.model_validate(settings).model_dump(mode="json")
        except ValueError as error:
            reason = explain(error)
            raise ValueError(f"{path}: written by another version ({reason}); delete it to start again") from None
        different = sorted(k for k in wanted if before[k] != wanted[k])
        if generators.keys() != self.generators.keys():
            raise ValueError(f"{path}: written by an older version; delete it to start again")
        if different:
            raise ValueError(f"{path}: written with another {', '.join(different)}; delete it to start again")
        for name, part in self._parts().items():
            part.load_state_dict(content[name])
        for name, generator in self.generators.items():
            generator.set_state(generators[name].cpu())
        self.history = history


def _compiled(module: nn.Module) -> nn.Module:
    """The module with its forward and backward pass compiled, once for every size of a batch (there are two)."""
    # kernels chosen by rule and not by the clock; older versions of PyTorch have no such option
    options: Any = {"deterministic": True} if "deterministic" in torch._inductor.list_options() else None
    compiled: Any = torch.compile(module, dynamic=False, options=options)
    return compiled


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.SGD:
    """SGD with momentum.

    Spared from weight decay are learned alphas, and with ``decay_gains=False`` batch-norm gains and all biases.
    ``head_lr`` multiplies the learning rate of the classifier's weights (``lr_factor`` of
    their parameter group); their decay per step, learning rate times weight decay, stays.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    alphas = {m.log_alpha for m in model.modules() if isinstance(m, LearnedRCTAF)}
    head = {m.weight for m in model.modules() if isinstance(m, nn.Linear)} if config.head_lr != 1 else set()
    spared = {p for p in parameters if p in alphas or (p.ndim <= 1 and not config.decay_gains)}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p not in spared | head]},
        {"params": [p for p in parameters if p in spared], "weight_decay": 0.0},
        {
            "params": [p for p in parameters if p in head],
            "lr_factor": config.head_lr,
            "weight_decay": config.weight_decay / config.head_lr,
        },
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.SGD(used, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True)


def make_generators(seed: int, device: torch.device) -> dict[str, torch.Generator]:
    """Independent streams, so that the order of the images does not depend on the method or the attack.

    ``order`` and ``policy`` (of AutoAugment) live on the CPU; ``augment`` and ``attack`` on ``device``.
    """
    cpu = torch.device("cpu")
    places = {"order": cpu, "augment": device, "attack": device, "policy": cpu}
    seeds = np.random.SeedSequence(seed).generate_state(len(places), np.uint64)
    return {
        name: torch.Generator(place).manual_seed(int(s)) for (name, place), s in zip(places.items(), seeds, strict=True)
    }
