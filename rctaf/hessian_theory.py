r"""The diagonal of the Hessian of a fully connected network, exactly (Eq. 7 of the paper, corrected).

A network with layers :math:`l = 1, \dots, L` computes :math:`z^l = W^l h^{l-1} + b^l`, :math:`h^l = \sigma(z^l)`,
:math:`h^0 = x`, and answers :math:`f = z^L`. Its loss on one example is :math:`\ell(f)`, with gradient
:math:`g` and Hessian :math:`G` in the :math:`C` outputs. Write

.. math::
    \delta^L = g, \qquad
    a^l = (W^{l+1})^\top \delta^{l+1}, \qquad
    \delta^l = \sigma'(z^l) \odot a^l,                                                        \tag{20}

so that :math:`a^l = \partial\ell/\partial h^l` and :math:`\delta^l = \partial\ell/\partial z^l`. A parameter that feeds
neuron :math:`j` of layer :math:`l` through the factor :math:`\varphi` (:math:`h^{l-1}_k` for a weight, 1 for a
bias) has

.. math::
    H_{\theta\theta} = \varphi^2 D^l_j, \qquad D^l_j = \partial^2\ell / \partial (z^l_j)^2.    \tag{23}

**Squared path sum (exact).** With :math:`T^{m,l} = \partial z^m / \partial z^l`, whose entry :math:`ij` is the
*sum* over all paths from neuron :math:`j` to neuron :math:`i`,

.. math::
    D^l_j = \underbrace{\bigl[(T^{L,l})^\top G\, T^{L,l}\bigr]_{jj}}_{\text{Gauss-Newton}}
          + \underbrace{\sum_{m=l}^{L-1} \sum_i \sigma''(z^m_i)\, a^m_i\, (T^{m,l}_{ij})^2}_{\text{curvature}}. \tag{33}

The path sum is never listed. Both parts are diagonals of matrices that a backward pass hands from layer to layer
(the pre-activation Hessian of Botev et al. 2017), with :math:`S = \operatorname{diag} \sigma'(z^l)`:

.. math::
    R^L = 0, \qquad R^l = S (W^{l+1})^\top R^{l+1} W^{l+1} S + \operatorname{diag}(\sigma''(z^l) \odot a^l),

and the same without the last term, from :math:`G`, for the Gauss-Newton part, which is carried as the Jacobian
:math:`T^{L,l}` instead. Time :math:`O(L n^3)` and memory :math:`O(n^2)` per example for width :math:`n`.

**Own-neuron recursion (approximate).** As we read them, Eq. 24-27 let :math:`\delta^{l+1}_i` depend on
:math:`z^l_j` through :math:`z^{l+1}_i` alone, which gives the rule of Becker and LeCun (1989), begun with the exact
diagonal in the output layer as in HesScale (Elsayed et al. 2024):

.. math::
    \hat D^L = \operatorname{diag} G, \qquad
    \hat D^l_j = \sigma''(z^l_j)\, a^l_j + \sigma'(z^l_j)^2 \sum_i (W^{l+1}_{ij})^2 \hat D^{l+1}_i.    \tag{30}

It costs :math:`O(L n^2)` and drops every :math:`\partial\delta_i/\partial z_k` with :math:`i \ne k`.
The proof of (33) and the dropped term are in ``notebooks/theory/hessian_diagonal.ipynb``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LOSSES = ("squared", "cross_entropy")


@dataclass(frozen=True)
class Diagonal:
    """One number per parameter of a linear layer: ``weight`` [n_out, n_in] and ``bias`` [n_out]."""

    weight: Tensor
    bias: Tensor

    def __add__(self, other: Diagonal) -> Diagonal:
        return Diagonal(self.weight + other.weight, self.bias + other.bias)

    def flat(self) -> Tensor:
        """Weights, row by row, then biases: [n_out * n_in + n_out]."""
        return torch.cat([self.weight.reshape(-1), self.bias])


@dataclass(frozen=True)
class LayerDiagonal:
    """The Hessian diagonal of one linear layer: its two exact parts, and the own-neuron approximation of their sum."""

    gauss_newton: Diagonal
    curvature: Diagonal
    own_neuron: Diagonal

    @property
    def exact(self) -> Diagonal:
        """Gauss-Newton part plus curvature part: the true diagonal."""
        return self.gauss_newton + self.curvature


def hessian_diagonal(model: nn.Sequential, x: Tensor, y: Tensor, loss: str) -> tuple[LayerDiagonal, ...]:
    r"""Diagonal of the Hessian of the mean loss over a batch, for every weight and bias, layer by layer.

    Args:
        model: ``nn.Sequential(Linear, activation, Linear, ..., Linear)``. An activation is any elementwise module
            that is differentiable twice; a kink counts as autograd counts it (ReLU has :math:`\sigma'' = 0`).
        x: inputs [batch, n_0].
        y: targets [batch, C] for ``"squared"``, :math:`\ell = \tfrac12\lVert f - y\rVert^2` (so :math:`G = I`);
            class numbers [batch] for ``"cross_entropy"`` (so :math:`G = \operatorname{diag} p - p p^\top`).
        loss: one of :data:`LOSSES`.

    Returns:
        One :class:`LayerDiagonal` per linear layer, from the input to the output, in the dtype of the model.

    Raises:
        TypeError: the modules are not linear layers with biases and one activation between each two.
        ValueError: unknown loss, targets of the wrong shape, or an activation that mixes the entries of its input.

    >>> line = nn.Sequential(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 1)).double()
    >>> with torch.no_grad(): _ = [p.copy_(torch.full_like(p, v)) for p, v in zip(line.parameters(), [3, 1, 2, 0])]
    >>> first, last = hessian_diagonal(line, torch.full((1, 1), 5.0).double(), torch.zeros(1, 1).double(), "squared")
    >>> first.exact.weight.item(), first.exact.bias.item()  # f = 2 (3 * 5 + 1), so (2 * 5)^2 and 2^2
    (100.0, 4.0)
    >>> last.exact.weight.item()  # (3 * 5 + 1)^2
    256.0
    """
    linears, activations = _layers(model)
    with torch.no_grad():
        inputs, jets = _forward(linears, activations, x)
        gradient, loss_hessian = _loss_derivatives(linears[-1](inputs[-1]), y, loss)

        n_classes = gradient.shape[1]
        delta = gradient
        jacobian = torch.eye(n_classes, dtype=x.dtype, device=x.device).expand(len(x), -1, -1)  # T^{L,l}
        residual = torch.zeros_like(loss_hessian)  # R^l
        own = loss_hessian.diagonal(dim1=1, dim2=2)  # \hat D^l
        layers: list[LayerDiagonal] = []
        for number in reversed(range(len(linears))):
            h = inputs[number]
            gauss_newton = torch.einsum("bcj,bcd,bdj->bj", jacobian, loss_hessian, jacobian)
            layers.append(
                LayerDiagonal(
                    gauss_newton=_to_parameters(gauss_newton, h),
                    curvature=_to_parameters(residual.diagonal(dim1=1, dim2=2), h),
                    own_neuron=_to_parameters(own, h),
                )
            )
            if number == 0:
                break
            weight = linears[number].weight
            slope, bend = jets[number - 1]  # sigma'(z) and sigma''(z) of the layer below
            a = delta @ weight
            delta = slope * a
            step = weight * slope.unsqueeze(1)  # dz^{l+1}/dz^l, [batch, n_{l+1}, n_l]
            jacobian = jacobian @ step
            residual = step.mT @ residual @ step + torch.diag_embed(bend * a)
            own = bend * a + slope.square() * (own @ weight.square())
    return tuple(reversed(layers))


def _layers(model: nn.Sequential) -> tuple[list[nn.Linear], list[nn.Module]]:
    modules = list(model)
    linears = [module for module in modules[::2] if isinstance(module, nn.Linear) and module.bias is not None]
    activations = modules[1::2]
    alternates = len(linears) == len(activations) + 1 and len(modules) % 2 == 1
    if not alternates or any(isinstance(module, nn.Linear) for module in activations):
        kinds = ", ".join(type(module).__name__ for module in modules)
        raise TypeError(f"expected Linear, activation, Linear, ..., Linear with biases; got {kinds or 'no modules'}")
    return linears, activations


def _forward(
    linears: list[nn.Linear], activations: list[nn.Module], x: Tensor
) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
    """What each linear layer reads (h^{l-1}), and (sigma', sigma'') at each hidden pre-activation."""
    inputs, jets = [x], []
    for linear, activation in zip(linears, activations, strict=False):
        z = linear(inputs[-1])
        h = activation(z.clone())  # it may work in place
        if not torch.allclose(activation(z.clone().reshape(-1, 1)).reshape(z.shape), h):
            raise ValueError(f"activation {activation} mixes the entries of its input; expected an elementwise one")
        inputs.append(h)
        jets.append(_slope_and_bend(activation, z))
    return inputs, jets


def _slope_and_bend(activation: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    # the gradient of a sum of elementwise values is the elementwise derivative
    slope = torch.func.grad(lambda t: activation(t.clone()).sum())
    bend = torch.func.grad(lambda t: slope(t).sum())
    return slope(z), bend(z)


def _loss_derivatives(f: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
    """Gradient [batch, C] and Hessian [batch, C, C] of the loss in the outputs, for each example alone."""
    if loss == "squared":
        if y.shape != f.shape:
            raise ValueError(f"squared loss: targets have shape {tuple(y.shape)}, expected {tuple(f.shape)}")
        return f - y, torch.diag_embed(torch.ones_like(f))
    if loss == "cross_entropy":
        if y.shape != f.shape[:1]:
            raise ValueError(f"cross-entropy: class numbers have shape {tuple(y.shape)}, expected ({len(f)},)")
        p = f.softmax(dim=1)
        return p - nn.functional.one_hot(y, f.shape[1]), torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    raise ValueError(f"unknown loss {loss!r}; expected one of {', '.join(LOSSES)}")


def _to_parameters(diagonal: Tensor, h: Tensor) -> Diagonal:
    """Eq. 23, averaged over the batch: phi^2 D with phi = h_k for weight jk and 1 for bias j."""
    return Diagonal(weight=diagonal.mT @ h.square() / len(h), bias=diagonal.mean(dim=0))
