"""The running statistics of a model's batch norms, as one object that can be restored or updated once more."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class NormStatistics:
    """The running means and variances of all batch norms of a model, remembered as they are now.

    Raises:
        ValueError: the norms do not all have one number as momentum.
    """

    def __init__(self, model: nn.Module) -> None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        momenta = {m.momentum for m in norms}
        momentum = next(iter(momenta), 0.0)  # without norms any will do
        if momentum is None or len(momenta) > 1:
            given = ", ".join(sorted(map(str, momenta)))
            raise ValueError(f"all batch norms must have one number as momentum (0.1 is torch's default), got {given}")
        # .data, because the backward pass of a training forward checks that nobody wrote to them, though it never
        # reads them; the forwards' own updates go unnoticed in the same way
        self._live: list[Tensor] = [t.data for m in norms for t in (m.running_mean, m.running_var) if t is not None]
        self._keep = 1 - momentum
        self._before = [t.clone() for t in self._live]

    def last_update(self) -> list[Tensor]:
        """(1 - keep) * batch statistic of the single forward since this object was made: new - keep * old."""
        if not self._live:
            return []
        return list(torch._foreach_sub(self._live, torch._foreach_mul(self._before, self._keep)))

    def apply(self, update: list[Tensor]) -> None:
        """Update the running statistics as one more forward of the batch behind ``update`` would."""
        if update:
            torch._foreach_mul_(self._live, self._keep)
            torch._foreach_add_(self._live, update)

    def restore(self) -> None:
        """Set the running statistics back to what they were when this object was made."""
        if self._live:
            torch._foreach_copy_(self._live, self._before)
