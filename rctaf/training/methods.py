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

from rctaf.attacks import cross_entropy, divergence_from, logits_of, natural_logits, pgd
from rctaf.config import RunConfig
from rctaf.models import select_norm
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

    @property
    def logits(self) -> dict[str, Tensor]:
        """The logits there are, by the history's name for their accuracy."""
        both = {"train_accuracy": self.clean_logits, "train_robust_accuracy": self.attacked_logits}
        return {name: logits for name, logits in both.items() if logits is not None}


class Method:
    """What :func:`rctaf.training.train` needs to know. This base class attacks nothing and keeps no state."""

    views: tuple[str, ...] = ("base",)  # "base": crop and flip as configured; "auto": AutoAugment before that

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        """The attacked copy of ``x``; the model's mode is the same afterwards."""
        return x

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        """The loss of one step, batch mean; the model is in training mode."""
        raise NotImplementedError

    def ascent_loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Tensor:
        """What an adversarial weight perturbation ascends: the loss on the base view."""
        return self.loss(model, views[:1], y).loss

    def observe(self, outcome: Outcome, y: Tensor) -> None:
        """Called once after every step."""

    def end_epoch(self) -> None:
        """Called once after every epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint at the end of an epoch must hold to resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Standard(Method):
    """CE(f(x), y)."""

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        logits = logits_of(model, views[0].clean)
        return Outcome(F.cross_entropy(logits, y), logits, None)


class PGD(Method):
    """CE(f(x'), y), x' by a CE attack from a uniform start (Madry et al. 2018); clean images are never seen."""

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        return pgd(model, x, cross_entropy(y), **vars(budget), start="uniform", generator=generator)

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        logits = logits_of(model, views[0].attacked)
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
        objective = divergence_from(natural_logits(model, x))
        return pgd(model, x, objective, **vars(budget), start="gaussian", generator=generator)

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        view = views[0]
        statistics = NormStatistics(model)
        natural = logits_of(model, view.clean)
        update = statistics.last_update()
        attacked = logits_of(model, view.attacked)
        statistics.apply(update)
        loss = F.cross_entropy(natural, y) + self.lam * kl(natural, attacked)
        return Outcome(loss, natural, attacked)


class Mart(Method):
    """BCE(f(x'), y) + lam KL(f(x) || f(x')) (1 - p_y) (Wang et al. 2020), p and p' the softmax of f(x) and f(x').

    BCE = -log p'_y - log(1 - max_{k != y} p'_k); nothing is held fixed. The small constants are the original's.
    """

    def __init__(self, lam: float) -> None:
        self.lam = lam

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        return pgd(model, x, cross_entropy(y), **vars(budget), start="gaussian", generator=generator)

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        natural, attacked = logits_of(model, views[0].clean), logits_of(model, views[0].attacked)
        p, q = natural.softmax(1), attacked.softmax(1)
        label = y[:, None]
        runner_up = q.scatter(1, label, -1.0).amax(1)
        boosted = F.cross_entropy(attacked, y) - (1.0001 - runner_up + 1e-12).log().mean()
        divergence = (p * (natural.log_softmax(1) - (q + 1e-12).log())).sum(1)
        misclassified = 1.0000001 - p.gather(1, label)[:, 0]
        return Outcome(boosted + self.lam * (divergence * misclassified).mean(), natural, attacked)


class Dajat(Method):
    """Mean over views of CE(f(x_v), y) + lam KL(f(x_v) || f(x'_v)), plus lam_jsd times the views' divergence
    (Addepalli et al. 2022).

    The divergence is the mean over views of KL(p_v || mean of all p), p_v the softmax of f(x_v): clean images
    only. The base view and the AutoAugment views each use their own set of batch norms, in attack and loss.

    Args:
        lam_jsd: None where there is one view only.
        auto_views: number of AutoAugment views beside the base; without any this is ACAT.
        label_smoothing: probability shared by the wrong labels in CE; the weight perturbation goes without.
    """

    def __init__(self, lam: float, lam_jsd: float | None, auto_views: int, label_smoothing: float) -> None:
        self.lam, self.lam_jsd, self.label_smoothing = lam, lam_jsd, label_smoothing
        self.views = ("base",) + ("auto",) * auto_views

    attack = Trades.attack

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        return self._loss(model, views, y, self.label_smoothing)

    def ascent_loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Tensor:
        return self._loss(model, views[:1], y, 0.0).loss

    def _loss(self, model: nn.Module, views: Sequence[View], y: Tensor, smoothing: float) -> Outcome:
        losses, natural, attacked = [], [], []
        for view in views:
            select_norm(model, view.norm_set)
            natural.append(logits_of(model, view.clean))
            attacked.append(logits_of(model, view.attacked))
            # torch spreads its smoothing over all K classes, the original over the K - 1 wrong ones
            k = natural[-1].shape[1]
            ce = F.cross_entropy(natural[-1], y, label_smoothing=smoothing * k / (k - 1))
            losses.append(ce + self.lam * kl(natural[-1], attacked[-1]))
        select_norm(model, 0)
        loss = torch.stack(losses).mean()
        if len(views) > 1:  # of one view it would be 0 but for the clamp
            assert self.lam_jsd is not None
            p = torch.stack([logits.softmax(1) for logits in natural])
            mixture = p.mean(0).clamp(1e-7, 1).log()
            loss = loss + self.lam_jsd * torch.stack([F.kl_div(mixture, q, reduction="batchmean") for q in p]).mean()
        return Outcome(loss, natural[0], attacked[0])


class Dkl(Method):
    """CE(f(x), y) + lam CE(stop(softmax f(x)), f(x')) + lam_mse/4 sum_jk w_j w_k (d_j - d_k)^2, d = f(x) - f(x')
    (Cui et al. 2024, improved KL).

    w is the row of the image's label in a table of class means: softmax(f(x) / T) averaged over the images of each
    class in the previous epoch, uniform in the first. As w sums to one, the double sum is 2 Var_w(d), which
    takes K operations instead of K^2. Only the probabilities marked "stop" are held fixed.

    Args:
        temperature: T.
        attack_mse: the attack ascends CE + sum/4 (CIFAR-100) instead of CE alone.
    """

    def __init__(self, lam: float, lam_mse: float, temperature: float, attack_mse: bool) -> None:
        self.lam, self.lam_mse, self.temperature, self.attack_mse = lam, lam_mse, temperature, attack_mse
        self._means: Tensor | None = None  # [K, K]; row y: the weights of the images of class y
        self._sums: Tensor | None = None  # of this epoch

    def _weights(self, logits: Tensor, y: Tensor) -> Tensor:
        if self._means is None:
            return torch.full_like(logits, 1 / logits.shape[1])
        return self._means[y]

    def _squared_differences(self, natural: Tensor, attacked: Tensor, weights: Tensor) -> Tensor:
        """1/4 sum_jk w_j w_k (d_j - d_k)^2 = Var_w(d) / 2, per image [N]."""
        d = natural - attacked
        centred = d - (weights * d).sum(1, keepdim=True)
        return (weights * centred**2).sum(1) / 2

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
        natural = natural_logits(model, x)
        objective = soft = divergence_from(natural)
        if self.attack_mse:
            weights = self._weights(natural, y)

            def objective(logits: Tensor) -> Tensor:
                return soft(logits) + self._squared_differences(natural, logits, weights).sum()

        return pgd(model, x, objective, **vars(budget), start="gaussian", generator=generator)

    def loss(self, model: nn.Module, views: Sequence[View], y: Tensor) -> Outcome:
        attacked = logits_of(model, views[0].attacked)  # first, as in the original: batch norm sees them in this order
        natural = logits_of(model, views[0].clean)
        soft = F.cross_entropy(attacked, natural.detach().softmax(1))
        squared = self._squared_differences(natural, attacked, self._weights(natural, y)).mean()
        return Outcome(F.cross_entropy(natural, y) + self.lam * soft + self.lam_mse * squared, natural, attacked)

    def observe(self, outcome: Outcome, y: Tensor) -> None:
        assert outcome.clean_logits is not None
        p = (outcome.clean_logits.detach() / self.temperature).softmax(1)
        sums = F.one_hot(y, p.shape[1]).to(p.dtype).T @ p
        self._sums = sums if self._sums is None else self._sums + sums

    def end_epoch(self) -> None:
        assert self._sums is not None
        count = self._sums.sum(1, keepdim=True)  # each image adds 1 to the row of its class
        before = self._means if self._means is not None else torch.full_like(self._sums, 1 / len(self._sums))
        self._means = torch.where(count > 0, self._sums / count.clamp(min=1e-20), before)
        self._sums = None

    def state_dict(self) -> dict[str, Any]:
        return {"means": self._means}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._means = state["means"]


def make_method(config: RunConfig) -> Method:
    """The method that a configuration names."""
    c: Any = config  # RunConfig drops a setting only where it is unused: none of these is None
    match config.method:
        case "standard":
            return Standard()
        case "pgd":
            return PGD()
        case "trades":
            return Trades(c.lam)
        case "mart":
            return Mart(c.lam)
        case "dajat":
            return Dajat(c.lam, c.lam_jsd, c.auto_views, c.label_smoothing)
        case "dkl":
            return Dkl(c.lam, c.lam_mse, c.temperature, c.attack_mse)
