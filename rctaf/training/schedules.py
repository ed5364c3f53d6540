"""What changes from epoch to epoch: learning rate and attack budget. Epochs count from 1, as in the recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rctaf.config import RunConfig, parse_epsilon


@dataclass(frozen=True)
class Budget:
    """The attack of one epoch: l-infinity radius, number of steps, and step size, in units of the pixel range."""

    epsilon: float
    steps: int
    step_size: float


def learning_rate(config: RunConfig, epoch: int) -> float:
    """The learning rate of an epoch.

    ``cosine``: lr/2 (1 + cos(pi (epoch - 1)/epochs)), constant within an epoch, as in DAJAT.
    ``step``: lr times 0.1 for every entry of ``lr_drops`` that the epoch has reached.
    """
    if config.lr_schedule == "cosine":
        return config.lr / 2 * (1 + math.cos(math.pi * (epoch - 1) / config.epochs))
    return config.lr * 0.1 ** sum(epoch >= drop for drop in config.lr_drops or ())


def budget(config: RunConfig, epoch: int) -> Budget:
    """The attack of an epoch, from ``attack_steps`` and ``attack_step_size`` (epsilon / 4 where none is set).

    With ``epsilon_ramp`` radius and step size are multiplied by epoch / epochs. ``attack_schedule`` is DAJAT's high
    budget: ``as_intended`` runs 2, 3, 4, 5 steps of 1, 2/3, 1/2, 1/2 epsilon in the four quarters of the run;
    ``as_released`` runs the last of these throughout, which is what the released code does, because its four
    conditions epoch <= 50, 100, 150, 200 are not exclusive.
    """
    full = parse_epsilon(config.epsilon)
    ramp = epoch / config.epochs if config.epsilon_ramp else 1.0
    epsilon = full * ramp
    if config.attack_schedule == "as_released":
        return Budget(epsilon, 5, epsilon / 2)
    if config.attack_schedule == "as_intended":
        quarter = sum(epoch > int(config.epochs * part / 4) for part in (1, 2, 3))
        steps, size = ((2, 1.0), (3, 2 / 3), (4, 1 / 2), (5, 1 / 2))[quarter]
        return Budget(epsilon, steps, epsilon * size)
    size = full / 4 if config.attack_step_size is None else parse_epsilon(config.attack_step_size)
    return Budget(epsilon, config.attack_steps or 0, size * ramp)
