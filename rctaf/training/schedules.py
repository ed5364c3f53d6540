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
    """The attack of an epoch; the step size is epsilon / 4 where none is set."""
    epsilon = parse_epsilon(config.epsilon)
    step_size = epsilon / 4 if config.attack_step_size is None else parse_epsilon(config.attack_step_size)
    return Budget(epsilon, config.attack_steps or 0, step_size)
