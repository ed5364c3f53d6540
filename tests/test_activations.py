"""The activations against mpmath: the definition by recursion, carried out on power series with 400 digits."""

from __future__ import annotations

import copy
import functools
import gc
import io
import math
import pickle
import weakref

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from rctaf import (
    ACTIVATIONS,
    RCTAF,
    LearnedRCTAF,
    _kernels,
    _native,
    alpha_for_curvature,
    curvature,
    fix_alphas,
    make_activation,
    rctaf,
)
from rctaf.activations import Sharpened
from rctaf.family import BASELINE_CURVATURES, LAST_ORDER, alpha_for_rms_curvature, polynomials, rms_curvature_at_start

# PyTorch raises these itself, where forward-mode derivatives and the compiler are first used
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

POINTS = (0, 1e-8, 1e-3, 0.1, 0.3, 0.7, 1, 1.5, 1.96, 2.16, 2.4, 3, 3.44, 4.2, 5, 6.3, 8, 13, 17, 26, 40, 55, 80)


def series(u, beta, terms):
    """Taylor coefficients of sigma_{1,beta} at u, straight from the definition; s' = s - s^2 gives the logistic's."""
    n = terms + beta
    s = [1 / (1 + mpmath.exp(-u))]
    for j in range(n - 1):
        s.append((s[j] - mpmath.fsum(s[i] * s[j - i] for i in range(j + 1))) / (j + 1))
    f = [mpmath.log1p(mpmath.exp(u))] + [s[j] / (j + 1) for j in range(n - 1)]
    for _ in range(beta):  # f <- (u + h) f'
        d = [(j + 1) * f[j + 1] for j in range(len(f) - 1)]
        f = [u * d[j] + (d[j - 1] if j else 0) for j in range(len(d))]
    return f


@functools.cache
def truth(x, alpha, beta):
    """sigma and its first four derivatives at the double x. 400 digits: s - s^2 cancels about 0.87 u of them."""
    with mpmath.workdps(400):
        f = series(mpmath.mpf(alpha) * mpmath.mpf(x), beta, 5)
        return [f[n] * mpmath.factorial(n) * mpmath.mpf(alpha) ** (n - 1) for n in range(5)]


def sum_of_sizes(u, alpha, beta, n):
    """The sum of the absolute values of all terms of the n-th derivative at u >= 0; each is computed within 2 eps."""
    q = math.exp(-u) / (1 + math.exp(-u)) ** 2
    rows = polynomials(beta, n)
    return alpha ** (n - 1) * q * sum(abs(a) * q**j * u**k for k, row in enumerate(rows) for j, a in enumerate(row))


@pytest.fixture(params=["as installed", "plain formula"])
def implementation(request, monkeypatch):
    """What runs where a compiled kernel exists, and what runs everywhere else (and under torch.compile)."""
    if request.param == "plain formula":
        monkeypatch.setattr(_native, "_library", lambda: None)


# --- values and derivatives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", range(LAST_ORDER + 1))
def test_every_derivative_matches_the_recursion(beta, dtype, implementation):
    alpha, eps = 3.0, torch.finfo(dtype).eps
    x = torch.tensor([sign * u / alpha for u in POINTS for sign in (1, -1)], dtype=dtype)
    true = [truth(v, alpha, beta) for v in x.tolist()]
    for n in range(5):
        got = _kernels.derivative(x, alpha, beta, n).tolist()
        scale = max(abs(t[n]) for v, t in zip(x.tolist(), true, strict=True) if n or abs(v) < 2)
        for v, g, t in zip(x.tolist(), got, true, strict=True):
            u = abs(alpha * v)
            # Rounding alpha x moves e^-u by u eps / 2. Where humps of both signs meet, digits are lost against the
            # height of the function: its Taylor radius is pi, the terms summed are of size 2^-m: (pi/2)^m.
            allowed = (u + 8) * abs(t[n])
            if beta > 7:  # the terms of each polynomial cancel too: as many digits as their sizes add up to more
                allowed += 2 * sum_of_sizes(u, alpha, beta, n)
            elif u <= 4 * (beta + n):
                allowed += 4 * (math.pi / 2) ** (beta + n) * scale
            assert abs(g - t[n]) <= eps * allowed, (n, v)


@pytest.mark.parametrize("beta", range(LAST_ORDER + 1))
def test_single_precision_is_as_right_as_documented(beta, implementation):
    x = torch.linspace(-60, 60, 20001)
    for n in (1, 2):
        want = _kernels.derivative(x.double(), 1.0, beta, n)  # proven above
        error = (_kernels.derivative(x, 1.0, beta, n).double() - want).abs().max() / want.abs().max()
        assert error < (2e-6 if beta <= 4 else 2e-5 if beta <= 7 else 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [0, 1, 2, 5])
def test_stable_over_the_whole_range_in_every_format(beta, dtype, implementation):
    size = torch.logspace(-6, 4, 301, dtype=torch.float64)
    for alpha in (0.01, 1.0, 14.0, 200.0):
        x = torch.cat([-size, torch.zeros(1, dtype=torch.float64), size]).to(dtype).requires_grad_()
        y = rctaf(x, alpha, beta)
        assert y.dtype == dtype
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x)
        z = x.detach().double()
        eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
        for n, got in enumerate((y, slope, bend)):
            want = _kernels.derivative(z, alpha, beta, n)  # proven above
            height = 1.0 if n < 2 else curvature(alpha, beta)
            scale = want.abs() + height * min(alpha ** -(n == 0), 1e4)
            # As above in float32; half precision is rounded once, or twice where it multiplies a gradient. At order 0
            # the slope is read from the output, whose format underflows alpha times earlier.
            loss = 20 * (math.pi / 2) ** beta if dtype == torch.float32 else 4
            allowed = loss * eps * scale + tiny * (1 + alpha)
            assert torch.isfinite(got).all()
            assert ((got.detach().double() - want).abs() <= allowed).all(), (alpha, n)


def test_extreme_input_stays_exact(implementation):
    x = torch.tensor([-3e38, -1e20, 1e20, 3e38], requires_grad=True)
    for alpha in (0.5, 14.0, 1e9):  # alpha x overflows
        for beta in range(8):
            y = rctaf(x, alpha, beta)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            (bend,) = torch.autograd.grad(slope.sum(), x)
            torch.testing.assert_close(y, F.relu(x), rtol=0, atol=0)
            assert slope.tolist() == [0, 0, 1, 1]
            assert bend.tolist() == [0, 0, 0, 0]
            assert rctaf(torch.tensor([float("nan")]), alpha, beta).isnan().all()


@pytest.mark.parametrize("beta", range(6))
@pytest.mark.parametrize("alpha", [1e-9, 1e9])
def test_single_precision_holds_at_both_ends_of_alpha(alpha, beta, implementation):
    RCTAF(alpha, beta)  # is allowed
    x = torch.cat([torch.tensor(POINTS) / alpha, torch.logspace(-30, 30, 61)])
    x = torch.cat([x, -x])
    for n in range(5):
        want = _kernels.derivative(x.double(), alpha, beta, n)  # proven above
        got = _kernels.derivative(x, alpha, beta, n).double()
        allowed = 1e-5 * (want.abs() + want.abs().max() if n else want.abs() + 1 / alpha)
        assert ((got - want).abs() <= allowed + 1e-37).all(), n


finite = st.floats(-50, 50, allow_subnormal=False)


@settings(max_examples=60, deadline=None)
@given(x=finite, alpha=st.floats(0.01, 200), beta=st.integers(0, 5))
def test_homogeneity_and_recursion(x, alpha, beta):
    z = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = rctaf(z, alpha, beta)
    (slope,) = torch.autograd.grad(y, z)
    # beta <= 5 loses at most (pi/2)^6 < 16 units of height 1/alpha, and |u| eps in the tails
    tolerance = {"rtol": 1e-12, "atol": 1e-12 * max(1, 1 / alpha)}
    torch.testing.assert_close(rctaf(alpha * z, 1.0, beta) / alpha, y, **tolerance)
    torch.testing.assert_close(z * slope, rctaf(z, alpha, beta + 1), **tolerance)


# --- autograd, torch.func, the compiler, autocast --------------------------------------------------------------------


@pytest.mark.parametrize("beta", range(4))
def test_gradcheck_in_every_mode(beta):
    x = torch.tensor([-1.3, -0.2, 0.0, 0.4, 1.1], dtype=torch.float64, requires_grad=True)

    def f(z):
        return rctaf(z, 2.5, beta)

    assert torch.autograd.gradcheck(
        f, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(f, x, check_batched_grad=True, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("beta", range(3))
def test_composed_transforms_give_the_true_second_derivative(beta):
    alpha, x = 7.0, torch.tensor([-0.6, -0.01, 0.0, 0.3, 2.0], dtype=torch.float64)
    want = torch.diag(torch.tensor([float(truth(v, alpha, beta)[2]) for v in x.tolist()], dtype=torch.float64))

    def f(z):
        return rctaf(z, alpha, beta).sum()

    eye = torch.eye(len(x), dtype=torch.float64)
    for got in (
        hessian(f)(x),
        jacfwd(jacrev(f))(x),
        jacrev(jacfwd(f))(x),
        jacrev(jacrev(f))(x),
        vmap(lambda v: jvp(grad(f), (x,), (v,))[1])(eye),
        vmap(lambda v: grad(lambda z: grad(f)(z) @ v)(x))(eye),
        torch.diag(vmap(grad(grad(lambda z: rctaf(z, alpha, beta))))(x)),
    ):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13 * alpha)


@pytest.mark.parametrize("beta", range(3))
def test_forward_mode_inside_of_forward_mode(beta):
    alpha, x = 7.0, torch.tensor([-0.6, -0.01, 0.0, 0.3, 2.0], dtype=torch.float64)

    def forward(f):
        return lambda z: jvp(f, (z,), (torch.ones_like(z),))[1]

    def f(z):
        return rctaf(z, alpha, beta)

    twice = forward(forward(f))
    for n, got in (
        (2, twice(x)),
        (2, vmap(twice)(x)),
        (2, torch.stack([jacfwd(jacfwd(f))(z) for z in x])),
        (3, forward(twice)(x)),
        (3, grad(lambda z: twice(z).sum())(x)),
        (3, forward(forward(grad(lambda z: f(z).sum())))(x)),
    ):
        want = torch.tensor([float(truth(v, alpha, beta)[n]) for v in x.tolist()], dtype=torch.float64)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13 * alpha**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beta", range(3))
def test_many_gradients_at_once(beta, dtype, implementation):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them, in the formats that the kernel takes."""
    x = torch.linspace(-1, 1, 5, dtype=dtype, requires_grad=True)
    (got,) = torch.autograd.grad(rctaf(x, 2.0, beta), x, torch.eye(5, dtype=dtype), is_grads_batched=True)
    torch.testing.assert_close(got.diagonal(), _kernels.derivative(x.detach(), 2.0, beta, 1))


@pytest.mark.parametrize("beta", range(3))
def test_a_gradient_that_is_zero_without_memory(beta, implementation):
    """Forward-mode differentiation makes such zeros of what does not depend on its input."""
    x = torch.randn(5, requires_grad=True)
    (got,) = torch.autograd.grad(rctaf(x, 2.0, beta), x, torch._efficientzerotensor((5,)))
    assert not got.any()


@pytest.mark.parametrize("beta", range(3))
def test_fourth_derivative_through_autograd(beta, implementation):
    x = torch.tensor([-0.7, 0.0, 0.4, 1.2], dtype=torch.float64, requires_grad=True)
    d = rctaf(x, 2.0, beta)
    for n in range(1, 5):
        (d,) = torch.autograd.grad(d.sum(), x, create_graph=True)
        want = torch.tensor([float(truth(v, 2.0, beta)[n]) for v in x.tolist()], dtype=torch.float64)
        torch.testing.assert_close(d.detach(), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", range(4))
def test_forward_over_reverse_with_dual_tensors(beta, implementation):
    """The derivative of a gradient that nobody asked a graph of: torch.func does it otherwise."""
    x, v, w = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    slope, bend = (_kernels.derivative(x.double(), 2.0, beta, n).float() for n in (1, 2))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.requires_grad_(), v)
        (got,) = torch.autograd.grad(rctaf(dual, 2.0, beta).sum(), dual)
        torch.testing.assert_close(forward_ad.unpack_dual(got).tangent, bend * v)
        weight = forward_ad.make_dual(torch.ones(7), w)  # a tangent that comes with the gradient alone
        (got,) = torch.autograd.grad(rctaf(x, 2.0, beta), x, weight)
        torch.testing.assert_close(forward_ad.unpack_dual(got).tangent, slope.detach() * w)


@pytest.mark.parametrize("beta", range(3))
def test_one_tensor_is_saved_and_at_order_0_it_is_the_output(beta):
    saved = []
    x = torch.randn(1000, requires_grad=True) * 1.0
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = rctaf(x, 14.0, beta)
    (kept,) = saved
    assert kept.data_ptr() == (y if beta == 0 else x).data_ptr()
    if beta == 0:
        watch = weakref.ref(x)
        saved.clear()
        del x, kept
        gc.collect()
        assert watch() is None  # nothing else holds the input


def test_compiles_whole_and_fuses_into_one_kernel_each_way():
    from torch._inductor import metrics

    def run(f, x):
        y = f(x)
        return y.detach(), *torch.autograd.grad(y.sum(), x)

    x = torch.linspace(-3, 3, 64).requires_grad_()
    for backend, orders in (("aot_eager", (0, 1, 4)), ("inductor", (2,))):
        for beta in orders:
            torch._dynamo.reset()
            metrics.reset()
            act = nn.Sequential(RCTAF(14.0, beta))
            compiled = torch.compile(act, fullgraph=True, backend=backend)
            for got, want in zip(run(compiled, x), run(act, x), strict=True):
                # the compiler differentiates s as s(1 - s): a few eps of the height, which order 4 multiplies
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * curvature(1, beta) + 1e-6)
            if backend == "inductor":
                assert metrics.generated_kernel_count == 2
    second_order = vmap(lambda v: jvp(grad(lambda z: rctaf(z, 2.0, 2).sum()), (x.detach(),), (v,))[1])
    torch._dynamo.reset()
    got = torch.compile(second_order, fullgraph=True, backend="aot_eager")(torch.eye(64))
    torch.testing.assert_close(got, second_order(torch.eye(64)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beta", range(4))
def test_torchscript_traces_saves_and_loads(beta, implementation):
    def run(f, x):
        y = f(x)
        return y.detach(), *torch.autograd.grad(y.sum(), x)

    act, buffer = RCTAF(14.0, beta), io.BytesIO()
    torch.jit.save(torch.jit.trace(act, torch.randn(5)), buffer)
    buffer.seek(0)
    x = torch.linspace(-3, 3, 60).view(3, 20).requires_grad_()  # another shape
    for got, want in zip(run(torch.jit.load(buffer), x), run(act, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)  # the kernel rounds otherwise


def test_a_trace_in_double_precision_is_the_same_to_the_last_bit():
    x = torch.linspace(-3, 3, 60).double()
    for beta in range(4):
        act = RCTAF(14.0, beta)
        assert torch.equal(torch.jit.trace(act, torch.randn(5).double())(x), act(x))


@pytest.mark.parametrize("beta", range(3))
def test_autocast_keeps_the_format_of_its_input(beta):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), RCTAF(5, beta), nn.Linear(8, 1))
    x = torch.randn(16, 4)
    dtypes = []
    net[1].register_forward_hook(lambda m, inputs, out: dtypes.append((inputs[0].dtype, out.dtype)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x).float().pow(2).mean()
    loss.backward()
    mixed = net[0].weight.grad.clone()
    net.zero_grad()
    net(x).pow(2).mean().backward()
    assert dtypes[0] == (torch.bfloat16, torch.bfloat16)
    assert mixed.dtype == torch.float32
    # four roundings to 8 bits on the way
    torch.testing.assert_close(mixed, net[0].weight.grad, rtol=0.05, atol=0.02 * float(mixed.abs().max()))


def test_symbolic_trace_of_a_network_keeps_one_node():
    net = nn.Sequential(nn.Linear(2, 3), RCTAF(3, 2))
    x = torch.randn(5, 2)
    traced = torch.fx.symbolic_trace(net)
    assert any(node.target is rctaf for node in traced.graph.nodes)
    assert torch.equal(traced(x), net(x))


class CallsRCTAF(nn.Module):
    def __init__(self):
        super().__init__()
        self.learned = LearnedRCTAF(2, 1)

    def forward(self, x):
        return self.learned(rctaf(x, 3, 2))


def test_symbolic_trace_of_code_that_calls_rctaf_or_learns_alpha():
    net, x = CallsRCTAF(), torch.randn(5, 2)
    traced = torch.fx.symbolic_trace(net)
    assert len(traced.graph.nodes) == 5  # input, rctaf, the parameter, the function of it, output
    assert torch.equal(traced(x), net(x))
    assert torch.equal(torch.fx.symbolic_trace(traced)(x), net(x))
    assert torch.equal(pickle.loads(pickle.dumps(traced))(x), net(x))
    traced(x).sum().backward()
    assert net.learned.log_alpha.grad.isfinite()


# --- curvature -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0, 1, 2, 3])
def test_learned_alpha_has_the_true_derivative(beta):
    """Value and derivative in log alpha against mpmath's derivative of the family in its sharpness."""
    points = [-4.0, -0.3, 0.0, 0.07, 1.0, 3.0]
    for alpha in (0.3, 2.0, 14.0):
        module = LearnedRCTAF(alpha, beta).double()
        exact = module.log_alpha.detach().item()  # rounded to single precision when it was made
        for x in points:
            (got,) = torch.autograd.grad(value := module(torch.tensor(x, dtype=torch.float64)), module.log_alpha)
            with mpmath.workdps(60):

                def family(log_alpha, x=x):
                    return truth(x, mpmath.exp(log_alpha), beta)[0]

                # float64, less what cancels between the two terms of the derivative, each at most about |x| + 1/alpha
                assert value.item() == pytest.approx(float(family(mpmath.mpf(exact))), rel=1e-13, abs=1e-15)
                wanted = float(mpmath.diff(family, mpmath.mpf(exact)))
                assert got.item() == pytest.approx(wanted, rel=1e-12, abs=1e-15 * (abs(x) + 1 / alpha))
            above = rctaf(torch.tensor(x, dtype=torch.float64), module.alpha, beta + 1)
            assert got.item() == pytest.approx((above - value).item(), abs=1e-14 * (abs(x) + 1 / alpha))


@pytest.mark.parametrize("beta", [0, 1, 2])
def test_learned_alpha_passes_gradcheck_in_every_mode(beta):
    module = LearnedRCTAF(2.0, beta).double()
    x = torch.tensor([-1.5, -0.2, 0.0, 0.4, 2.0], dtype=torch.float64, requires_grad=True)

    def f(x, log_alpha):
        return torch.func.functional_call(module, {"log_alpha": log_alpha}, (x,))

    inputs = (x, module.log_alpha.detach().requires_grad_())
    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs)
    torch.testing.assert_close(vmap(f, (None, 0))(x, inputs[1].expand(3)), f(*inputs).expand(3, 5))


@pytest.mark.parametrize("beta", range(5))
@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_the_derivative_in_a_learned_alpha_keeps_its_digits_in_single_precision(alpha, beta, implementation):
    """Over many elements, almost all of which lie where sigma is x or 0."""
    x, g = torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0))
    x *= 10

    def gradient(dtype):
        module = LearnedRCTAF(alpha, beta).to(dtype)
        (got,) = torch.autograd.grad(module(x.to(dtype)), module.log_alpha, g.to(dtype))
        return got.item()

    assert gradient(torch.float32) == pytest.approx(gradient(torch.float64), rel=1e-4)


def test_learned_alpha_compiles_and_takes_jagged_tensors():
    x = torch.linspace(-2, 2, 12).view(6, 2)
    for beta in range(3):
        module = LearnedRCTAF(3.0, beta)
        parts = torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged)
        torch.testing.assert_close(module(parts).values(), module(x))
        torch._dynamo.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        results = [torch.autograd.grad(f(x).square().sum(), module.log_alpha)[0] for f in (compiled, module)]
        torch.testing.assert_close(*results)


def test_fixing_an_alpha_refuses_a_forward_of_ones_own():
    class Shifted(LearnedRCTAF):
        def forward(self, input):
            return super().forward(input) + 1

    class Renamed(LearnedRCTAF):
        pass

    net = nn.Sequential(LearnedRCTAF(2, 1), nn.Sequential(Shifted(3, 1)))
    with pytest.raises(ValueError, match=r"^1\.0 \(Shifted\) has a forward of its own"):
        fix_alphas(net)
    assert isinstance(net[0], LearnedRCTAF)
    assert fix_alphas(Renamed(3, 1)) == pytest.approx([3])


def test_learned_alpha_starts_as_rctaf_and_is_fixed_again():
    x = torch.linspace(-3, 3, 50)
    net = nn.Sequential(nn.Linear(2, 2), LearnedRCTAF(14, 1), nn.Sequential(LearnedRCTAF(0.5, 2))).eval()
    torch.testing.assert_close(net[1](x), rctaf(x, 14, 1))  # float32
    half = net[1](x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, rctaf(x.bfloat16(), 14, 1))
    assert [p.shape for p in net[1].parameters()] == [()]
    assert copy.deepcopy(net[1]).requires_grad_(False).alpha == pytest.approx(14, rel=1e-6)
    shared = nn.ModuleList([net, net[1]])
    alphas = fix_alphas(shared)
    assert alphas == pytest.approx([14, 0.5], rel=1e-6)
    assert [type(net[1]), net[1].alpha, net[1].beta] == [RCTAF, alphas[0], 1]
    assert shared[1] is net[1]
    assert not net[1].training
    assert fix_alphas(net) == []
    assert list(net[1].parameters()) == []
    assert copy.deepcopy(net)[1].alpha == alphas[0]
    with pytest.raises(ValueError, match="alpha"):
        LearnedRCTAF(0, 1)


def test_fixed_alphas_come_in_order_and_keep_what_hangs_on_their_modules():
    first, last, seen = LearnedRCTAF(3, 1), LearnedRCTAF(5, 1), []
    last.register_forward_hook(lambda *_: seen.append("called"))
    net = nn.Sequential(nn.Sequential(first), last)
    assert fix_alphas(net) == pytest.approx([3, 5], rel=1e-6)
    net(torch.ones(2))
    assert seen == ["called"]
    assert net[1] is last
    alone = LearnedRCTAF(7, 2)
    assert fix_alphas(alone) == pytest.approx([7], rel=1e-6)
    assert type(alone) is RCTAF
    diverged = nn.Sequential(LearnedRCTAF(3, 1), LearnedRCTAF(3, 1))
    nn.init.constant_(diverged[1].log_alpha, math.nan)
    with pytest.raises(ValueError, match=r"alpha.*got nan"):
        fix_alphas(diverged)
    assert isinstance(diverged[0], LearnedRCTAF)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alpha", [14.3, 1e6])
def test_a_learned_alpha_in_half_precision_is_the_one_it_says(dtype, alpha):
    module = LearnedRCTAF(alpha, 1).to(dtype)
    x = torch.linspace(-3, 3, 50) / alpha
    torch.testing.assert_close(module(x), rctaf(x, module.alpha, 1))  # the input may well be in single precision
    half = torch.linspace(-3, 3, 50).to(dtype)
    assert module(half).dtype == dtype
    torch.testing.assert_close(module(half), rctaf(half, module.alpha, 1))


def test_a_model_without_memory_prints():
    with torch.device("meta"):
        assert repr(nn.Sequential(LearnedRCTAF(14, 1))) == "Sequential(\n  (0): LearnedRCTAF(alpha=?, beta=1)\n)"
    assert repr(LearnedRCTAF(14, 1)) == "LearnedRCTAF(alpha=14, beta=1)"


@pytest.mark.parametrize("beta", range(11))
def test_curvature_is_the_global_maximum(beta):
    with mpmath.workdps(40):

        def height(u):
            return abs(2 * series(mpmath.mpf(u), beta, 3)[2])

        # sigma'' is even; beyond 4 beta + 8 it only decays (checked to 60 + 8 beta on a coarser grid)
        coarse = [(height(u), u) for u in np.arange(0, 4 * beta + 8, 0.125)]
        assert max(height(u) for u in np.arange(4 * beta + 8, 60 + 8 * beta, 4.0)) < max(coarse)[0] / 10
        best = max(coarse)[1]
        low, high = mpmath.mpf(max(best - 0.125, 0)), mpmath.mpf(best + 0.125)
        for _ in range(50):  # ternary search: 0.25 (2/3)^50 = 4e-10, squared in the height
            a, b = low + (high - low) / 3, high - (high - low) / 3
            low, high = (a, high) if height(a) < height(b) else (low, b)
        want = max(height(low), height(0))
    assert curvature(1, beta) == pytest.approx(float(want), rel=4e-16)
    if beta <= 4:
        assert curvature(1, beta) == 2.0 ** (beta - 2)
    else:
        assert curvature(1, beta) > 1.2 * 2.0 ** (beta - 2)


def test_curvature_of_the_book():
    assert curvature(2.5, 5) == pytest.approx(2.5 * 10.36, rel=1e-3)  # noted in the reading of the paper
    assert [curvature(a, b) for a, b in ((28, 0), (14, 1), (7, 2))] == [7, 7, 7]  # Table 1


@given(alpha=st.floats(1e-6, 1e6), beta=st.integers(0, 8))
def test_alpha_for_curvature_is_the_inverse(alpha, beta):
    # one rounding each way
    assert alpha_for_curvature(curvature(alpha, beta), beta) == pytest.approx(alpha, rel=3e-16)


# --- bad input -------------------------------------------------------------------------------------------------------

BAD_ALPHA = [0, -1, -0.5, math.nan, math.inf, True, "2", None, 1j]
BAD_BETA = [-1, 0.5, 2.0, True, "1", None, math.nan]


@pytest.mark.parametrize("beta", [0, 1, 2, 5])
@pytest.mark.parametrize("alpha", [0.01, 0.7, 3.0, 50.0, 1000.0])
def test_rms_curvature_at_the_start_against_mpmath(alpha, beta):
    """The root mean square of sigma'' over standard normal inputs, by Gauss-Legendre quadrature in 30 digits."""
    with mpmath.workdps(30):

        def density(z):
            return (2 * series(mpmath.mpf(alpha) * z, beta, 3)[2] * alpha) ** 2 * mpmath.npdf(z)

        width = min(1, 1 / alpha)  # pieces as narrow as the narrower factor
        pieces = [width * k for k in (0, 2, 5, 10, 20, 40)]
        truth = mpmath.sqrt(2 * mpmath.quad(density, [p for p in pieces if p < 12] + [min(12, 80 * width)]))
    # float64: some rounding in each of the derivative's terms, which at order 5 cancel by a digit
    assert rms_curvature_at_start(alpha, beta) == pytest.approx(float(truth), rel=1e-13 if beta < 5 else 1e-11)


@given(st.floats(1e-3, 1e4), st.floats(1.001, 10), st.integers(0, 6))
@settings(deadline=None, max_examples=25)
def test_rms_curvature_increases_and_has_an_inverse(c, factor, beta):
    alpha = alpha_for_rms_curvature(c, beta)
    assert rms_curvature_at_start(alpha, beta) == pytest.approx(c, rel=1e-12)
    assert rms_curvature_at_start(factor * alpha, beta) > c
    assert c <= curvature(alpha, beta) * (1 + 1e-12)


def test_rms_curvature_at_both_ends():
    """The maximum where all inputs lie on the bend, the square root of alpha where almost none do."""
    for beta in (0, 1, 2):
        small = rms_curvature_at_start(1e-4, beta) / curvature(1e-4, beta)
        assert small == pytest.approx(1, rel=1e-6)
        assert rms_curvature_at_start(4e4, beta) / rms_curvature_at_start(1e4, beta) == pytest.approx(2, rel=1e-6)
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match="rms curvature"):
            alpha_for_rms_curvature(bad, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: rctaf(torch.zeros(1), a, b),
        RCTAF,
        curvature,
        alpha_for_curvature,
        lambda a, b: make_activation("rctaf", alpha=a, beta=b),
    ],
)
def test_bad_settings_are_named(call):
    for bad in BAD_ALPHA:
        with pytest.raises(ValueError, match="above 0, got") as error:
            call(bad, 1)
        assert repr(bad) in str(error.value)
    for bad in BAD_BETA:
        with pytest.raises(ValueError, match=r"beta.*got") as error:
            call(1.0, bad)
        assert repr(bad) in str(error.value)


@pytest.mark.parametrize("alpha", [torch.tensor(3.0), nn.Parameter(torch.tensor(3.0))])
def test_a_tensor_as_alpha_leads_to_the_module_that_trains_it(alpha):
    for make in (RCTAF, LearnedRCTAF, lambda a, b: rctaf(torch.zeros(1), a, b)):
        with pytest.raises(ValueError, match=r"^alpha.*got a (Tensor|Parameter); LearnedRCTAF\(alpha, beta\)") as error:
            make(alpha, 1)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("alpha", [1e39, 1.1e9, 0.9e-9, 1e-40])
def test_an_alpha_beyond_single_precision_is_refused(alpha):
    x = torch.tensor([-1.0, 0.0, 1.0])
    for make in (
        RCTAF,
        LearnedRCTAF,
        lambda a, b: rctaf(x, a, b),
        lambda a, b: make_activation("rctaf", alpha=a, beta=b),
    ):
        with pytest.raises(ValueError, match=r"alpha.*must be from 1e-9 to 1e9.*got") as error:
            make(alpha, 1)
        assert repr(alpha) in str(error.value)
    assert curvature(alpha, 1) == alpha / 2  # a number has no such limits


@pytest.mark.parametrize("beta", [LAST_ORDER + 1, 16, 30])
def test_an_order_beyond_single_precision_is_refused(beta):
    for make in (
        RCTAF,
        LearnedRCTAF,
        lambda a, b: rctaf(torch.zeros(1), a, b),
        lambda a, b: make_activation("rctaf", alpha=a, beta=b),
    ):
        make(1.0, LAST_ORDER)
        with pytest.raises(ValueError, match=f"beta.*must be at most 12 for tensors.*got {beta}"):
            make(1.0, beta)
    assert curvature(1.0, beta) > 2.0 ** (beta - 2)  # a number has no such limit


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("beta", range(3))
def test_tensors_without_memory_of_their_own_are_refused(beta):
    x = torch.eye(3)
    with pytest.raises(ValueError, match=r"^x must be .*, got a strided nested tensor; make.*layout=torch\.jagged$"):
        RCTAF(2.0, beta)(torch.nested.nested_tensor([x, x[:2]]))
    for module in (RCTAF(2.0, beta), LearnedRCTAF(2.0, beta)):
        for sparse, layout in ((x.to_sparse(), "sparse_coo"), (x.to_sparse_csr(), "sparse_csr")):
            with pytest.raises(
                ValueError, match=rf"^x must be dense or jagged, got the layout torch\.{layout}; .*to_dense"
            ):
                module(sparse)
        with pytest.raises(ValueError, match=r"^x must have 16, 32 or 64 bits, got torch\.float8_e4m3fn; convert"):
            module(x.to(torch.float8_e4m3fn))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("beta", range(4))
def test_jagged_tensors_are_activated_and_differentiated_part_by_part(beta, dtype):
    parts = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (3, 2)]
    x = torch.nested.nested_tensor(parts, layout=torch.jagged, requires_grad=True)
    y = rctaf(x, 2.0, beta)
    (slope,) = torch.autograd.grad(y.values().sum(), x)
    for n, whole in enumerate((y, slope)):
        for got, part in zip(whole.unbind(), parts, strict=True):
            torch.testing.assert_close(got, _kernels.derivative(part, 2.0, beta, n))


def test_memory_of_the_opposite_sign_is_not_taken_for_the_values():
    x = torch.tensor(1 + 2j).conj().imag
    assert x.is_neg()
    for beta in range(3):
        torch.testing.assert_close(rctaf(x, 2.0, beta), rctaf(torch.tensor(-2.0), 2.0, beta))


def test_numpy_numbers_are_numbers_and_integers_are_not_activated():
    assert RCTAF(np.float32(2), np.int64(1)).alpha == 2.0
    with pytest.raises(ValueError, match=r"torch\.int64"):
        rctaf(torch.arange(3), 1.0, 0)
    for x, got in ((np.ones(3), "ndarray"), (1.0, "float"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"x must be a floating-point tensor, got a {got}"):
            rctaf(x, 1.0, 0)
    learned = LearnedRCTAF(1.0, 1)
    for x, got in ((torch.arange(3), "torch.int64"), (torch.ones(2) > 0, "torch.bool"), ([1.0], "a list")):
        with pytest.raises(ValueError, match=f"x must be a floating-point tensor, got {got}"):
            learned(x)


@pytest.mark.parametrize("module", [RCTAF(2, 1), LearnedRCTAF(2, 1), Sharpened("gelu", 2)])
def test_the_argument_has_the_name_that_pytorchs_activations_give_it(module):
    x = torch.linspace(-1, 1, 5)
    assert torch.equal(module(input=x), module(x))


# --- activations by name ---------------------------------------------------------------------------------------------

FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x: max(x, 0.01 * x),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "swish": lambda x: x / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "softplus": lambda x: math.log1p(math.exp(x)),
}


def test_baselines_are_their_formulas_and_not_in_place():
    assert set(ACTIVATIONS) == {*FORMULAS, "rctaf"}
    values = [-4.0, -1.0, -0.1, 0.2, 1.0, 5.0]
    for name, formula in FORMULAS.items():
        x = torch.tensor(values, dtype=torch.float64)
        y = make_activation(name)(x)
        assert x.tolist() == values
        assert y.tolist() == pytest.approx([formula(v) for v in values], rel=1e-12), name


@pytest.mark.parametrize("name", BASELINE_CURVATURES)
def test_sharpened_is_the_formula_at_another_scale(name):
    module = Sharpened(name, 3.5)
    values = [-4.0, -1.0, -0.1, 0.2, 1.0, 5.0]
    x = torch.tensor(values, dtype=torch.float64)
    expected = [FORMULAS[name](3.5 * v) / 3.5 for v in values]
    assert module(x).tolist() == pytest.approx(expected, rel=1e-12)
    assert x.tolist() == values
    # its largest second derivative, by differences of the formula: on the left of 0, where that of ELU jumps
    h = 1e-5
    f = [FORMULAS[name](3.5 * point) / 3.5 for point in (0, -h, -2 * h)]
    assert (f[0] - 2 * f[1] + f[2]) / h**2 == pytest.approx(3.5 * BASELINE_CURVATURES[name], rel=1e-4)
    assert repr(module) == f"Sharpened({name}, sharpness=3.5)"
    assert not module.state_dict()


def test_sharpened_refuses():
    with pytest.raises(ValueError, match="one of elu, gelu, got 'relu'"):
        Sharpened("relu", 1.0)
    with pytest.raises(ValueError, match=r"sharpness.*-1"):
        Sharpened("elu", -1.0)


def test_order_0_and_1_are_softplus_and_swish():
    x = torch.linspace(-15, 15, 301, dtype=torch.float64)
    for name, beta in (("softplus", 0), ("swish", 1)):
        torch.testing.assert_close(make_activation("rctaf", alpha=1, beta=beta)(x), make_activation(name)(x))


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        ("swich", {}, "unknown activation 'swich'.*rctaf, relu, leaky_relu"),
        ("relu", {"inplace": True}, "'relu' takes no settings, got inplace=True"),
        ("rctaf", {"alpha": 2}, "takes alpha and beta, got alpha=2"),
        ("rctaf", {}, "takes alpha and beta, got nothing"),
        ("rctaf", {"alpha": 2, "beta": 1, "gamma": 3}, "got alpha=2, beta=1, gamma=3"),
    ],
)
def test_make_activation_refuses(name, kw, message):
    with pytest.raises(ValueError, match=message):
        make_activation(name, **kw)


def test_module_prints_copies_and_has_no_state():
    act = RCTAF(14, 1)
    assert repr(act) == "RCTAF(alpha=14, beta=1)"
    assert repr(RCTAF(0.1234567890123, 0)) == "RCTAF(alpha=0.123456789012, beta=0)"
    assert not act.state_dict()
    buffer = io.BytesIO()
    torch.save(act, buffer)
    buffer.seek(0)
    x = torch.randn(9)
    for other in (copy.deepcopy(act), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x), act(x))
