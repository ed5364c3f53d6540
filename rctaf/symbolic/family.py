r"""The activation family in SymPy: its derivatives, and the proofs that its forms are one function.

The family (Eq. 1-6 of arXiv 2603.23860) starts at the softplus of sharpness α and applies the Euler operator θ = x d/dx
once per order:

    σ_{α,0}(x) = ln(1 + e^{αx}) / α,        σ_{α,β+1}(x) = x σ′_{α,β}(x),        so  σ_{α,β} = θ^β σ_{α,0}.

With u = αx, s the logistic function of u, q = s(1 - s) and c = 1 - 2s (an odd function of u with c² = 1 - 4q):

    σ_{α,β}''(x) = α q P_β(u, c),     P_0 = 1,     P_{β+1} = (2 + u c) P_β + u dP_β/du,

where dP/du is the total derivative (dc/du = -2q). Everything below follows from this one recursion.
"""

from functools import cache

import sympy as sp
from sympy.functions.combinatorial.numbers import stirling

from rctaf.family import checked_order

x = sp.Symbol("x", real=True)
alpha = sp.Symbol("alpha", positive=True)
u = sp.Symbol("u", real=True)  # u = αx
s, q, c, ell = sp.symbols("s q c ell", real=True)  # logistic(u), s(1 - s), 1 - 2s, softplus(u)

# What the short symbols stand for, as functions of u.
MEANING = {
    ell: sp.log(1 + sp.exp(u)),
    q: sp.exp(u) / (1 + sp.exp(u)) ** 2,
    c: (1 - sp.exp(u)) / (1 + sp.exp(u)),
    s: sp.exp(u) / (1 + sp.exp(u)),
}


def sigma(beta: int) -> sp.Expr:
    """σ_{α,β}(x) by the paper's recursion and nothing else (Eq. 1, 3, 5): the definition all other forms must meet.

    >>> sigma(0)
    log(exp(alpha*x) + 1)/alpha
    """
    beta = checked_order(beta)
    value = sp.log(1 + sp.exp(alpha * x)) / alpha
    for _ in range(beta):
        value = x * sp.diff(value, x)
    return value


@cache
def curvature_polynomial(beta: int) -> sp.Expr:
    """P_β(u, c), collected in powers of u: σ″ = α q P_β."""
    if beta == 0:
        return sp.Integer(1)
    previous = curvature_polynomial(beta - 1)
    return sp.collect(sp.expand((2 + u * c) * previous + u * total_derivative(previous)), u, sp.factor)


def total_derivative(expr: sp.Expr) -> sp.Expr:
    """d/du of a polynomial in u and c, where c is a function of u with dc/du = -2q = -(1 - c²)/2."""
    return sp.diff(expr, u) - (1 - c**2) / 2 * sp.diff(expr, c)


def derivative(beta: int, n: int) -> sp.Expr:
    """The n-th derivative of σ_{α,β} with respect to x, in the short symbols u, s, q, c and ell (see `MEANING`).

    The form is stable: no term overflows, and nothing cancels for large |u|, when q, s and c come from e^{-|u|}.

    >>> derivative(1, 2)
    alpha*q*(c*u + 2)
    >>> derivative(2, 1)
    q*u*(c*u + 3) + s
    """
    beta = checked_order(beta)
    n = checked_order(n, "n (derivative)")
    if n == 0:
        return ell / alpha if beta == 0 else u / alpha * derivative(beta - 1, 1)
    if n == 1:  # σ_{β+1}' = σ_β' + u q P_β, from differentiating σ_{β+1} = x σ_β'
        slope = sum((curvature_polynomial(j) for j in range(beta)), sp.Integer(0))
        return s + q * u * sp.collect(sp.expand(slope), u, sp.factor)
    polynomial = curvature_polynomial(beta)
    for _ in range(n - 2):  # (q P)' = q (c P + P')
        polynomial = sp.collect(sp.expand(c * polynomial + total_derivative(polynomial)), u, sp.factor)
    return alpha ** (n - 1) * q * polynomial


def closed_form(beta: int) -> sp.Expr:
    """σ_{α,β}(x) = (1/α) Σ_k S(β,k) u^k softplus^{(k)}(u), with S the Stirling numbers of the second kind, in x.

    θ^β = Σ_k S(β,k) x^k (d/dx)^k holds for every function; softplus^{(k)} is a polynomial in the logistic function.
    """
    beta = checked_order(beta)
    terms = [stirling(beta, k) * u**k * sp.diff(MEANING[ell], u, k) for k in range(beta + 1)]
    return (sum(terms, sp.Integer(0)) / alpha).subs(u, alpha * x)


def explicit(expr: sp.Expr) -> sp.Expr:
    """`expr` with the short symbols replaced by what they mean, as a function of x and α."""
    return expr.subs(MEANING).subs(u, alpha * x)


def vanishes(expr: sp.Expr) -> bool:
    """Whether an expression in x, α, e^{αx} and ln(1 + e^{αx}) is identically 0: decided by exact algebra.

    x, e^{αx} and the logarithm are algebraically independent, so after renaming them the question is one about rational
    functions, which `cancel` decides.
    """
    power, logarithm = sp.symbols("power logarithm", positive=True)
    powers = {term: power ** (term.args[0] / (alpha * x)) for term in expr.atoms(sp.exp)}
    renamed = expr.subs(sp.log(1 + sp.exp(alpha * x)), logarithm).subs(powers)
    return bool(sp.cancel(sp.together(renamed)) == 0)


@cache
def verify(beta: int) -> None:
    """Prove, as exact identities, that the recursion, the closed form and the short forms of σ … σ‴ agree, and that
    σ_{α,β}(x) = σ_{1,β}(αx)/α. By induction: the short form of order β is x d/dx of the short form of order β - 1.

    Raises:
        ArithmeticError: if any identity fails.
    """
    beta = checked_order(beta)
    if beta == 0:
        recursion = sigma(0)
    else:
        verify(beta - 1)
        recursion = x * sp.diff(explicit(derivative(beta - 1, 0)), x)
    short = [explicit(derivative(beta, n)) for n in range(4)]
    claims = {
        "recursion": short[0] - recursion,
        "closed form": short[0] - closed_form(beta),
        "homogeneity": short[0].subs(alpha, 1).subs(x, alpha * x) / alpha - short[0],
    }
    claims |= {f"derivative {n}": short[n] - sp.diff(short[n - 1], x) for n in (1, 2, 3)}
    failed = [name for name, difference in claims.items() if not vanishes(difference)]
    if failed:
        raise ArithmeticError(f"order {beta}: not an identity: {', '.join(failed)}")
