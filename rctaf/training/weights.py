"""Two things done to the weights from outside a method: adversarial perturbation and averaging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rctaf.training.batchnorm import NormStatistics


@contextmanager
def perturbed(model: nn.Module, ascent_loss: Callable[[], Tensor], gamma: float) -> Iterator[None]:
    """Adversarial weight perturbation (Wu et al. 2020): inside, every matrix w is w + gamma |w| g / |g|.

    g is the gradient of ``ascent_loss()`` with respect to w; matrices are the parameters of more than one
    dimension. The originals take one SGD step on a copy and rescale it to the length of w, in which the learning
    rate cancels. Compute the loss, its gradient and the optimiser's step inside: leaving subtracts the same
    perturbation again, so the step's own change stays.

    The running statistics of batch norm are as if ``ascent_loss`` had not been computed, and gradients of the
    parameters are untouched.
    """
    matrices: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    statistics = NormStatistics(model)
    with torch.enable_grad():
        # the parameters of an idle set of norms are not in the graph, but those are no matrices
        gradients = torch.autograd.grad(ascent_loss(), matrices)
    statistics.restore()
    with torch.no_grad():
        moves = [g * (gamma * p.norm() / (g.norm() + 1e-20)) for p, g in zip(matrices, gradients, strict=True)]
        torch._foreach_add_(matrices, moves)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(matrices, moves)


class WeightAverage:
    """average = decay * average + (1 - decay) * weights, over parameters and batch-norm statistics alike."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._live = list(model.state_dict().values())  # these share memory with the model
        self._decay = decay
        self._average = [t.clone() for t in self._live]
        self._floats = [i for i, t in enumerate(self._live) if t.is_floating_point()]

    @torch.no_grad()
    def restart(self) -> None:
        """Begin anew from the weights as they are."""
        torch._foreach_copy_(self._average, self._live)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are."""
        average, live = ([tensors[i] for i in self._floats] for tensors in (self._average, self._live))
        torch._foreach_lerp_(average, live, 1 - self._decay)

    @torch.no_grad()
    def install(self) -> None:
        """Put the average into the model; batch norm's counts of batches stay the model's own."""
        for i in self._floats:
            self._live[i].copy_(self._average[i])

    def state_dict(self) -> dict[str, Any]:
        """The average, for a checkpoint."""
        return {"average": self._average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the average in a checkpoint."""
        torch._foreach_copy_(self._average, state["average"])
