"""rctaf.hessian_theory against the whole Hessian of torch.func.hessian, in float64."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from rctaf.activations import RCTAF
from rctaf.hessian_theory import LOSSES, hessian_diagonal

# forward-mode differentiation makes torch script its own decompositions, which torch now calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

# The diagonals compared are of order 1e-2 to 1e3 and each entry is a sum of some hundred float64 products, whose
# rounding stays near 1e-13 of the largest entry: 1e-10 leaves room for that and for nothing else.
TOLERANCE = 1e-10


class Recursion(nn.Module):
    """sigma of order 0, 1 or 2 written from its definition, so that this test stands on nothing else in the package."""

    def __init__(self, alpha: float, beta: int):
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        u = self.alpha * x
        s = torch.sigmoid(u)
        if self.beta == 0:
            return nn.functional.softplus(u) / self.alpha
        if self.beta == 1:
            return x * s
        return x * (s + u * s * (1 - s))


def mlp(widths: tuple[int, ...], activation: nn.Module) -> nn.Sequential:
    modules: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        modules += [nn.Linear(n_in, n_out), activation]
    return nn.Sequential(*modules[:-1]).double()


def problem(widths: tuple[int, ...], loss: str, n: int = 5) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, widths[0], dtype=torch.float64)
    if loss == "squared":
        return x, torch.randn(n, widths[-1], dtype=torch.float64)
    return x, torch.randint(widths[-1], (n,))


def mean_loss(f: Tensor, y: Tensor, loss: str) -> Tensor:
    return nn.functional.cross_entropy(f, y) if loss == "cross_entropy" else (f - y).square().sum(1).mean() / 2


def brute_force(model: nn.Sequential, x: Tensor, y: Tensor, loss: str) -> list[Tensor]:
    """Diagonals of the full Hessian, parameter tensor by parameter tensor."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def of_tensor(name: str) -> Tensor:
        def value(t: Tensor) -> Tensor:
            return mean_loss(torch.func.functional_call(model, {**parameters, name: t}, (x,)), y, loss)

        n = parameters[name].numel()
        return torch.func.hessian(value)(parameters[name]).reshape(n, n).diagonal().reshape(parameters[name].shape)

    return [of_tensor(name) for name in parameters]


def relative_error(got: Tensor, true: Tensor) -> float:
    return ((got - true).abs().max() / true.abs().max()).item()


WIDTHS = [(3, 4, 1), (3, 4, 5, 2), (2, 3, 2, 4, 3), (4, 3, 6, 2, 5, 3), (3, 1, 1, 1, 2), (3, 2)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize(("alpha", "beta"), [(4.0, 0), (2.0, 1), (1.0, 2), (9.0, 2)])
def test_exact_diagonal_is_that_of_the_whole_hessian(widths, alpha, beta, loss):
    torch.manual_seed(1)
    model = mlp(widths, Recursion(alpha, beta))
    x, y = problem(widths, loss)
    true = brute_force(model, x, y, loss)
    got = [part for layer in hessian_diagonal(model, x, y, loss) for part in (layer.exact.weight, layer.exact.bias)]
    assert len(got) == len(true)
    for mine, theirs in zip(got, true, strict=True):
        assert (mine - theirs).abs().max() < TOLERANCE * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("loss", LOSSES)
def test_gauss_newton_part_is_that_of_the_linearised_network(loss):
    """Gauss-Newton = the Hessian of the loss of the network replaced by its tangent at the present weights."""
    torch.manual_seed(2)
    widths = (3, 4, 5, 3)
    model = mlp(widths, Recursion(3.0, 1))
    x, y = problem(widths, loss)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    layers = hessian_diagonal(model, x, y, loss)
    got = [part for layer in layers for part in (layer.gauss_newton.weight, layer.gauss_newton.bias)]
    for (name, centre), mine in zip(parameters.items(), got, strict=True):

        def outputs(t, name=name):
            return torch.func.functional_call(model, {**parameters, name: t}, (x,))

        def tangent(step, centre=centre, outputs=outputs):
            f, df = torch.func.jvp(outputs, (centre,), (step,))
            return mean_loss(f + df, y, loss)

        n = centre.numel()
        true = torch.func.hessian(tangent)(torch.zeros_like(centre)).reshape(n, n).diagonal().reshape(centre.shape)
        assert relative_error(mine, true) < TOLERANCE


def test_curvature_part_is_the_squared_path_sum_written_as_loops():
    """Eq. 33 with every path listed: sum over paths first, square afterwards."""
    torch.manual_seed(3)
    widths = (2, 3, 2, 3, 1)
    activation = Recursion(2.0, 2)
    model = mlp(widths, activation)
    x, y = problem(widths, "squared", n=1)
    weights = [module.weight.detach() for module in model[::2]]
    z, h = [], [x[0]]
    for module in model[::2]:
        z.append(module(h[-1]).detach())
        h.append(activation(z[-1]))
    slope = [torch.func.vmap(torch.func.grad(activation))(t) for t in z]
    bend = [torch.func.vmap(torch.func.grad(torch.func.grad(activation)))(t) for t in z]
    n_layers = len(weights)
    delta = [z[-1] - y[0]]
    for number in range(n_layers - 1, 0, -1):
        delta.insert(0, slope[number - 1] * (weights[number].T @ delta[0]))

    def paths(low, j, high, i):
        """The products of weights and slopes along each path from neuron j of layer low to neuron i of layer high."""
        if low == high:
            return [1.0] if i == j else []
        return [
            weights[low + 1][k, j] * slope[low][j] * rest
            for k in range(widths[low + 2])
            for rest in paths(low + 1, k, high, i)
        ]

    for number, layer in enumerate(hessian_diagonal(model, x, y, "squared")):
        for j in range(widths[number + 1]):
            true = sum(
                bend[m][i] * (weights[m + 1][:, i] @ delta[m + 1]) * sum(paths(number, j, m, i)) ** 2
                for m in range(number, n_layers - 1)
                for i in range(widths[m + 1])
            )
            assert abs(float(layer.curvature.bias[j] - true)) < TOLERANCE


@pytest.mark.parametrize(
    ("widths", "loss", "exact_layers"),
    [
        ((3, 4, 1), "squared", {1, 2}),
        ((3, 4, 2), "squared", {1, 2}),
        ((3, 4, 5, 1), "squared", {2, 3}),
        ((2, 3, 4, 3, 1), "squared", {3, 4}),
        ((2, 1, 1, 1, 1), "squared", {1, 2, 3, 4}),
        ((2, 2, 1, 2, 1), "squared", {3, 4}),
        ((3, 4, 5, 3), "cross_entropy", {3}),
    ],
)
def test_where_the_own_neuron_recursion_is_exact(widths, loss, exact_layers):
    torch.manual_seed(4)
    model = mlp(widths, Recursion(2.0, 1))
    x, y = problem(widths, loss)
    layers = hessian_diagonal(model, x, y, loss)
    errors = [relative_error(layer.own_neuron.flat(), layer.exact.flat()) for layer in layers]
    # a wrong layer is wrong by far more than rounding: 1e-6 separates the two kinds by orders of magnitude
    assert {number for number, error in enumerate(errors, 1) if error < 1e-12} == exact_layers
    assert all(error > 1e-6 for number, error in enumerate(errors, 1) if number not in exact_layers)


def test_own_neuron_recursion_against_its_formula_in_a_float_loop():
    torch.manual_seed(5)
    widths = (2, 3, 4, 2)
    activation = Recursion(5.0, 0)
    model = mlp(widths, activation)
    x, y = problem(widths, "cross_entropy", n=1)
    _, second, third = [module.weight.detach() for module in model[::2]]
    z1 = model[0](x[0]).detach()
    z2 = model[2](activation(z1)).detach()
    p = model[4](activation(z2)).detach().softmax(0)
    slope = [torch.func.vmap(torch.func.grad(activation))(z) for z in (z1, z2)]
    bend = [torch.func.vmap(torch.func.grad(torch.func.grad(activation)))(z) for z in (z1, z2)]
    g = p.clone()
    g[y[0]] -= 1
    d2 = torch.zeros(4, dtype=torch.float64)
    a2 = torch.zeros(4, dtype=torch.float64)
    for j in range(4):
        a2[j] = sum(third[c, j] * g[c] for c in range(2))
        d2[j] = bend[1][j] * a2[j] + slope[1][j] ** 2 * sum(third[c, j] ** 2 * p[c] * (1 - p[c]) for c in range(2))
    delta2 = slope[1] * a2
    layer = hessian_diagonal(model, x, y, "cross_entropy")[0]
    for j in range(3):
        a1 = sum(second[i, j] * delta2[i] for i in range(4))
        d1 = bend[0][j] * a1 + slope[0][j] ** 2 * sum(second[i, j] ** 2 * d2[i] for i in range(4))
        assert abs(float(layer.own_neuron.bias[j] - d1)) < TOLERANCE
        assert abs(float(layer.own_neuron.weight[j, 1] - d1 * x[0, 1] ** 2)) < TOLERANCE


def test_relu_has_no_curvature_part():
    model = mlp((3, 4, 4, 2), nn.ReLU())
    x, y = problem((3, 4, 4, 2), "squared")
    for layer in hessian_diagonal(model, x, y, "squared"):
        assert layer.curvature.flat().count_nonzero() == 0


@pytest.mark.parametrize("kind", [nn.ReLU, nn.SiLU])
def test_activations_may_work_in_place(kind):
    model = mlp((3, 4, 4, 2), kind())
    x, y = problem((3, 4, 4, 2), "squared")
    expected = [layer.exact.flat() for layer in hessian_diagonal(model, x, y, "squared")]
    for module in model[1::2]:
        module.inplace = True
    found = [layer.exact.flat() for layer in hessian_diagonal(model, x, y, "squared")]
    assert all(map(torch.equal, found, expected))


def test_the_batch_is_averaged():
    torch.manual_seed(6)
    model = mlp((3, 4, 2), Recursion(2.0, 1))
    x, y = problem((3, 4, 2), "cross_entropy", n=6)
    whole = hessian_diagonal(model, x, y, "cross_entropy")
    halves = [hessian_diagonal(model, x[part], y[part], "cross_entropy") for part in (slice(3), slice(3, 6))]
    for layer, one, two in zip(whole, *halves, strict=True):
        mean = (one.exact.flat() + two.exact.flat()) / 2
        torch.testing.assert_close(layer.exact.flat(), mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "modules",
    [
        [],
        [nn.SiLU()],
        [nn.Linear(2, 2), nn.SiLU()],
        [nn.Linear(2, 2), nn.BatchNorm1d(2), nn.SiLU(), nn.Linear(2, 1)],
        [nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)],
        [nn.Linear(2, 2, bias=False), nn.SiLU(), nn.Linear(2, 1)],
    ],
)
def test_other_networks_are_refused(modules):
    with pytest.raises(TypeError, match="expected Linear, activation, Linear"):
        hessian_diagonal(nn.Sequential(*modules), torch.zeros(1, 2), torch.zeros(1, 1), "squared")


def test_bad_input_is_refused_with_its_value():
    model = nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.Linear(2, 3))
    x = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="unknown loss 'hinge'"):
        hessian_diagonal(model, x, torch.zeros(4, 3), "hinge")
    with pytest.raises(ValueError, match=r"targets have shape \(4,\), expected \(4, 3\)"):
        hessian_diagonal(model, x, torch.zeros(4), "squared")
    with pytest.raises(ValueError, match=r"class numbers have shape \(4, 1\), expected \(4,\)"):
        hessian_diagonal(model, x, torch.zeros(4, 1, dtype=torch.long), "cross_entropy")
    mixing = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1), nn.Linear(2, 3))
    with pytest.raises(ValueError, match="mixes the entries"):
        hessian_diagonal(mixing, x, torch.zeros(4, 3), "squared")


@pytest.mark.parametrize("beta", [0, 1, 2])
def test_the_package_activation_gives_the_same_diagonal(beta):
    torch.manual_seed(7)
    widths = (3, 4, 4, 2)
    plain = mlp(widths, Recursion(3.0, beta))
    ours = mlp(widths, RCTAF(alpha=3.0, beta=beta))
    ours.load_state_dict(plain.state_dict())
    x, y = problem(widths, "cross_entropy")
    both = (hessian_diagonal(model, x, y, "cross_entropy") for model in (plain, ours))
    for expected, got in zip(*both, strict=True):
        torch.testing.assert_close(got.exact.flat(), expected.exact.flat(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(got.own_neuron.flat(), expected.own_neuron.flat(), rtol=1e-10, atol=1e-12)
