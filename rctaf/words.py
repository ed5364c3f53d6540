"""Numbers in sentences: the one way in which verdicts, controls and costs write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rctaf.statistics import Estimate


def typeset(text: str) -> str:
    """With a minus sign before a negative number, and no line break between a number and its %.

    >>> typeset("-1.5 to 3 % on CIFAR-10, 4-10") == "\\u22121.5 to 3\\u00a0% on CIFAR-10, 4-10"
    True
    """
    return re.sub(r"(?<=\d) %", "\u00a0%", re.sub(r"(?<![\w.)])-(?=\d)", "\u2212", text))


def points(e: Estimate) -> str:
    """An estimate that is a share, in percentage points with its interval.

    >>> points(Estimate(0.012, 0.003, 0.021, 8))
    '+1.20 points (+0.30 to +2.10)'
    """
    return typeset(f"{100 * e.value:+.2f} points ({100 * e.low:+.2f} to {100 * e.high:+.2f})")


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
    >>> listed(["one"]), listed(["one", "two", "three"])
    ('one', 'one, two and three')
    """
    return " and ".join([*([", ".join(words[:-1])] if len(words) > 1 else []), *words[-1:]])
