"""Numbers in sentences: the one way in which verdicts, controls and costs write them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from rctaf.statistics import Estimate


def unbroken(html: str) -> str:
    """HTML whose max|σ″| stay on one line: a browser may break after a bar."""
    return html.replace("max|σ″|", '<span style="white-space: nowrap">max|σ″|</span>')


def typeset(text: str) -> str:
    """With a minus sign before a negative number, and no line break between a number and its %.

    >>> typeset("-1.5 to 3 % on CIFAR-10, 4-10") == "\\u22121.5 to 3\\u00a0% on CIFAR-10, 4-10"
    True
    """
    return re.sub(r"(?<=\d) %", "\u00a0%", re.sub(r"(?<![\w.)])-(?=\d)", "\u2212", text))


def decimals(*ends: float) -> int:
    """How many decimals show on which side of 0 the ends of an interval lie: two, or up to four.

    >>> decimals(0.1, 0.2), decimals(0.0021, 0.2), decimals(0.0, -1e-9)
    (2, 3, 4)
    """
    return next((k for k in (2, 3) if all(end == 0 or float(f"{end:.{k}f}") for end in ends)), 4)


def points(e: Estimate) -> str:
    """An estimate that is a share, in percentage points with its interval.

    >>> points(Estimate(0.012, 0.003, 0.021, 8)), points(Estimate(0.001, 0.00002, 0.002, 8))
    ('+1.20 points (+0.30 to +2.10)', '+0.100 points (+0.002 to +0.200)')
    >>> points(Estimate(-1e-18, 0.1, 0.2, 8))  # a sum of floats that is 0
    '+0.00 points (+10.00 to +20.00)'
    """
    value, low, high = (100 * v for v in (e.value, e.low, e.high))
    k = decimals(low, high)
    return typeset(f"{value:+z.{k}f} points ({low:+.{k}f} to {high:+.{k}f})")


def ratio(e: Estimate) -> str:
    """An estimate that is the logarithm of a ratio, as the ratio with its interval.

    >>> ratio(Estimate(0.7, 0.6, 0.8, 5))
    '2.01 (1.82 to 2.23)'
    """
    value, low, high = (f"{math.exp(v):.3g}" for v in (e.value, e.low, e.high))
    return f"{value} ({low} to {high})"


def p_value(p: float) -> str:
    """
    >>> p_value(0.0213), p_value(8e-5)
    ('p = 0.021', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def count(number: int | str, noun: str) -> str:
    """
    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}" + "s" * (str(number) != "1")


def listed(words: Sequence[str]) -> str:
    """
    >>> listed([]), listed(["one"]), listed(["one", "two"]), listed(["one", "two", "three"])
    ('', 'one', 'one and two', 'one, two and three')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def numbered_orders(orders: Sequence[str]) -> str:
    """
    >>> numbered_orders(["1"]), numbered_orders(["0", "2"])
    ('order 1', 'orders 0 and 2')
    """
    return f"order{'s' if len(orders) > 1 else ''} {listed(orders)}"
