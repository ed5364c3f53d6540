"""The JavaScript of the widget, printed from the expressions in SymPy."""

import sympy as sp
from sympy.codegen.cfunctions import log1p

from rctaf.symbolic.baselines import BASELINES, halves_in_t, prove_baseline
from rctaf.symbolic.certified import prove_curvature, t
from rctaf.symbolic.family import c, derivative, ell, q, s, u

# The short symbols from t = e^{-|u|}, which is never above 1: nothing overflows, and q, s keep their relative accuracy
# where s is near 1 (s(1 - s) would not).
r = sp.Symbol("r", positive=True)  # 1/(1 + t)
STABLE = {
    t: sp.exp(-sp.Abs(u)),
    r: 1 / (1 + t),
    s: sp.Piecewise((t * r, u < 0), (r, True)),
    q: t * r**2,
    c: sp.Piecewise(((1 - t) * r, u < 0), ((t - 1) * r, True)),
    ell: sp.Max(u, 0) + log1p(t),
}

# JavaScript has no erf. For |z| < 2 the series erf z = 2/sqrt(pi) e^{-z²} sum 2^n z^{2n+1}/(2n+1)!!, whose terms are
# all of one sign; beyond, the continued fraction of 1 - erf from its 60th level (DLMF 7.6.2 and 7.9.1).
_ERF = """
function erf(z) {
  const y = Math.abs(z), scale = Math.exp(-y * y) / Math.sqrt(Math.PI);
  let value;
  if (y < 2) {
    let term = 2 * y;
    value = term;
    for (let n = 1; term > 1e-17 * value; n++) { term *= 2 * y * y / (2 * n + 1); value += term; }
    value *= scale;
  } else {
    let fraction = y;
    for (let n = 60; n > 0; n--) fraction = y + n / 2 / fraction;
    value = 1 - scale / fraction;
  }
  return z < 0 ? -value : value;
}
"""


def _print(expr: sp.Expr) -> str:
    decimals = {number: sp.Float(number, 17) for number in expr.atoms(sp.Rational) if number.q > 1000}
    return " ".join(sp.jscode(expr.xreplace(decimals), user_functions={"erf": "erf", "log1p": "Math.log1p"}).split())


def javascript(orders: tuple[int, ...] = (0, 1, 2, 3, 4)) -> str:
    """JavaScript source, printed from the expressions in SymPy in their stable form. It defines

    - FAMILY[beta](x, alpha) -> [σ, σ′, σ″] for each of `orders`,
    - BASELINE[name](x) -> [σ, σ′, σ″] for each of `BASELINES`,
    - CURVATURE.family[beta], the certified max|σ″|/α, and CURVATURE.baseline[name], the certified max|σ″|.

    Raises:
        ValueError: if an order is not an integer >= 0.
    """
    common = "".join(f"const {symbol} = {_print(value)}; " for symbol, value in STABLE.items())
    family = [
        f"  {beta}: (x, alpha) => {{ const u = alpha*x; {common}\n"
        f"    return [{', '.join(_print(derivative(beta, n)) for n in range(3))}]; }},"
        for beta in orders
    ]
    baselines = []
    for name in BASELINES:
        if name in ("swish", "softplus"):
            baselines.append(f"  {name}: (x) => FAMILY[{1 if name == 'swish' else 0}](x, 1),")
            continue
        left, right = (", ".join(map(_print, half)) for half in halves_in_t(name, 2))
        baselines.append(
            f"  {name}: (x) => {{ const t = Math.exp(-Math.abs(x));\n    return x < 0 ? [{left}] : [{right}]; }},"
        )
    values = {beta: float(prove_curvature(beta).maximum) for beta in orders}
    others = {name: prove_baseline(name).maximum for name in BASELINES}
    return "\n".join(
        [
            "// Printed by rctaf.symbolic.javascript from SymPy.",
            _ERF.strip(),
            "const FAMILY = {",
            *family,
            "};",
            "const BASELINE = {",
            *baselines,
            "};",
            "const CURVATURE = {",
            "  family: {" + ", ".join(f"{beta}: {value!r}" for beta, value in values.items()) + "},",
            "  baseline: {" + ", ".join(f"{n}: {v!r}".replace("inf", "Infinity") for n, v in others.items()) + "},",
            "};",
            "",
        ]
    )
