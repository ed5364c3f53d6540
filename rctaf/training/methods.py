"""The training methods. A method says which views of an image it wants, how it attacks one, and what its loss is.

The loop knows none of them by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rctaf.config import RunConfig
from rctaf.models import select_norm
from rctaf.training.attacks import cross_entropy, divergence_from, evaluating, pgd
from rctaf.training.batchnorm import NormStatistics
from rctaf.training.schedules import Budget


@dataclass(frozen=True)
class View:
    """One augmented batch [N, C, H, W], what the attack made of it, and the set of norms that is used for it."""

    clean: Tensor
    attacked: Tensor
    norm_set: int = 0


@dataclass(frozen=True)
class Outcome:
    """The loss of one step and the base view's logits in training mode, None where the method computes none."""

    loss: Tensor
    clean_logits: Tensor | None
    attacked_logits: Tensor | None


class Method:
    """What :func:`rctaf.training.train` needs to know. This base class attacks nothing and keeps no state."""

    views: tuple[str, ...] = ("base",)

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        """The attacked copy of ``x``; the model's mode is the same afterwards."""
        return x

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        """The loss of one step, batch mean; the model is in training mode."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Standard(Method):
    """CE(f(x), y)."""

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        logits = model(views[0].clean)
        return Outcome(F.cross_entropy(logits, y), logits, None)


class PGD(Method):
    """CE(f(x'), y), x' by a CE attack from a uniform start (Madry et al. 2018); clean images are never seen."""

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        return pgd(model, x, cross_entropy(y), **vars(budget), start="uniform", generator=generator)

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        logits = model(views[0].attacked)
        return Outcome(F.cross_entropy(logits, y), None, logits)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(softmax p || softmax q), batch mean; differentiable in both."""
    return F.kl_div(q_logits.log_softmax(1), p_logits.log_softmax(1), reduction="batchmean", log_target=True)


class Trades(Method):
    """CE(f(x), y) + lam KL(f(x) || f(x')) (Zhang et al. 2019); lam is the paper's 1/lambda.

    The original forwards x twice and x' once in training mode, so batch norm sees natural, attacked, natural
    images. In training mode both natural forwards give the same logits: one is enough for loss and gradient, and
    its update of the running statistics is repeated without the forward.
    """

    def __init__(self, lam: float) -> None:
        self.lam = lam

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        with evaluating(model):
            with torch.no_grad():
                natural = model(x)  # once: in evaluation mode it is the same at every step
            return pgd(model, x, divergence_from(natural), **vars(budget), start="gaussian", generator=generator)

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        view = views[0]
        statistics = NormStatistics(model)
        natural = model(view.clean)
        update = statistics.last_update()
        attacked = model(view.attacked)
        statistics.apply(update)
        loss = F.cross_entropy(natural, y) + self.lam * kl(natural, attacked)
        return Outcome(loss, natural, attacked)


def make_method(config: RunConfig) -> Method:
    """The method that a configuration names."""
    match config.method:
        case "standard":
            return Standard()
        case "pgd":
            return PGD()
        case "trades":
            assert config.lam is not None  # RunConfig drops it only where it is unused
            return Trades(config.lam)
    raise ValueError(f"unknown method {config.method!r}")


__all__ = ["Method", "Outcome", "View", "kl", "make_method", "select_norm"]
