"""Differences when the attacked images count as a sample, like the seeds: from the verdict on every image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd
import scipy
from IPython.display import HTML

from rctaf.evaluation.autoattack import unpack_mask
from rctaf.names import activation_name
from rctaf.records import Record, table
from rctaf.statistics import Array, Estimate, mean_interval
from rctaf.tables import html_table
from rctaf.verdicts import BAND, MIN_SEEDS, TUNED, by_order, complete_seeds
from rctaf.words import decimals, typeset

Differences = dict[str, tuple[Estimate, Estimate]]  # by name: over seeds, over seeds and images
_VERSIONS = {"screening_accuracy": "screening", "robust_accuracy": "standard"}  # whose masks a column is the mean of


def over_both(d: Array) -> Estimate:
    """The mean of a table [seeds, images] with a 95 % interval for other seeds *and* other images.

    With d = µ + seed + image + rest, each part of a mean 0 and independent, S seeds and I images, the variance of the
    mean is σ²_seed/S + σ²_image/I + σ²_rest/(SI). The variance s²/S of the seeds' means holds the first and the last;
    the variance of the images' means holds the second and the last, which is taken off by the mean square of what
    seeds and images leave (two-way analysis of variance). Each of the two has its own t, and the half-widths are added
    as squares: the interval is never narrower than that over seeds. In simulated experiments (3 to 10 seeds, 100 to
    500 images) it covers the mean in 95-97 % of cases.

    Resampling seeds and images at once would count the rest three times (Owen 2007, doi 10.1214/07-AOAS122): where it
    is large, as for single runs on single images, that variance is up to 2.8 times too large.

    Raises:
        ValueError: fewer than two seeds or images.
    """
    s, i = d.shape
    if min(s, i) < 2:
        raise ValueError(f"{s} seeds and {i} images: expected at least two of each")
    seeds, images, mean = d.mean(1), d.mean(0), float(d.mean())
    rest = ((d - seeds[:, None] - images + mean) ** 2).sum() / ((s - 1) * (i - 1) * s * i)
    of_images = max(0.0, images.var(ddof=1) / i - rest)
    t = scipy.stats.t.ppf(0.975, [s - 1, i - 1])
    reach = math.sqrt(t[0] ** 2 * seeds.var(ddof=1) / s + t[1] ** 2 * of_images)
    return Estimate(mean, mean - reach, mean + reach, s)


def survivors(records: Sequence[Record], value: str) -> pd.DataFrame:
    """Which images each run still classified after the attack whose accuracy is ``value``, as 0 and 1.

    Returns:
        a row per run that holds them, with its id as index, and a column per image.

    Raises:
        ValueError: the runs were attacked on different numbers of images.
    """
    masks = {
        record.run_id: unpack_mask(attacked["mask"], attacked["n"])
        for record in records
        if (attacked := record.metrics.get("autoattack")) and attacked["version"] == _VERSIONS.get(value)
    }
    if len(numbers := {len(mask) for mask in masks.values()}) > 1:
        raise ValueError(f"the runs were attacked on {sorted(numbers)} images: expected as many of each")
    return pd.DataFrame.from_dict(masks, orient="index").astype(float)


def differences(records: Sequence[Record], value: str) -> Differences:
    """Some differences of a figure over seeds, and over seeds and images; paired by seed and image.

    They are: the lowest order minus the highest at max|σ″| = 7; the highest beyond 10 minus within 4 to 10; the lowest
    within 4 to 10 minus ReLU; each order where its mean is highest minus at 7. Empty without complete seeds (see
    :func:`rctaf.verdicts.complete_seeds`) or without the verdicts on single images.
    """
    masks, frame = survivors(records, value), table(records)
    if masks.empty:
        return {}
    frame = frame[frame["id"].isin(masks.index)]
    rows = complete_seeds(frame, value)
    if rows["seed"].nunique() < MIN_SEEDS:
        return {}

    def mean(part: pd.DataFrame) -> pd.DataFrame:
        """[seeds, images], averaged over the cells of each seed."""
        return masks.loc[part["id"]].groupby(part["seed"].to_numpy()).mean()

    found: Differences = {}

    def add(name: str, one: pd.DataFrame, other: pd.DataFrame) -> None:
        if len(one) and len(other):
            a, b = mean(one), mean(other)
            both = a.index.intersection(b.index)
            d = (a.loc[both] - b.loc[both]).to_numpy(float)
            if len(d) >= MIN_SEEDS:
                found[name] = mean_interval(d.mean(1)), over_both(d)

    orders = by_order(rows)
    tuned = {beta: part[np.isclose(part["curvature"], TUNED)] for beta, part in orders.items()}
    first, last = min(orders), max(orders)
    band = {beta: part[part["curvature"].between(*BAND)] for beta, part in orders.items()}
    beyond = orders[last][orders[last]["curvature"] > BAND[1]]
    inside = f"{BAND[0]:g} to {BAND[1]:g}"
    if first != last:
        add(f"order {first} minus order {last}, at {TUNED:g}", tuned[first], tuned[last])
    add(f"order {last}, beyond {BAND[1]:g} minus {inside}", beyond, band[last])
    relu = frame[(frame["activation"] == "relu") & frame["seed"].isin(rows["seed"])]
    add(f"order {first}, {inside}, minus {activation_name('relu')}", band[first], relu)
    for beta, part in orders.items():
        means = part.groupby("curvature")[value].mean()
        best = float(means.index[int(means.to_numpy(float).argmax())])
        if not math.isclose(best, TUNED):
            name = f"order {beta}, at {best:g} (highest mean) minus at {TUNED:g}"
            add(name, part[part["curvature"] == best], tuned[beta])
    return found


def describe(found: Differences, images: int) -> str:
    """How much wider the intervals are when the images count as a sample too, and what they still tell apart.

    Args:
        found: from :func:`differences`.
        images: how many were attacked.
    """
    reaches = [(seeds.high - seeds.low, both.high - both.low) for seeds, both in found.values()]
    wider = [both / seeds for seeds, both in reaches if seeds > 0] or [math.inf]
    apart = [(seeds, both) for seeds, both in found.values() if not seeds.low <= 0 <= seeds.high]
    told = "none of them leaves out 0 over seeds"
    still = sum(not both.low <= 0 <= both.high for _, both in apart)
    if apart:
        told = f"{still} of the {len(apart)} that leave out 0 over seeds still do"
    return (
        f"With the {images} attacked images as a sample too, the intervals of the differences below are "
        f"{min(wider):.2f} to {max(wider):.2f} times as wide as over {max(seeds.n for seeds, _ in found.values())} "
        f"seeds alone; {told}."
    )


def differences_table(found: Differences) -> HTML:
    """The differences of :func:`differences` with both intervals, in percentage points."""

    def interval(e: Estimate) -> str:
        k = decimals(100 * e.low, 100 * e.high)
        return f"{100 * e.low:+.{k}f} to {100 * e.high:+.{k}f}"

    rows = [
        ("th", ["difference", "points", "95 % interval over seeds", "over seeds and images"]),
        *(
            ("td", [escape(name), f"{100 * both.value:+z.2f}", interval(seeds), interval(both)])
            for name, (seeds, both) in found.items()
        ),
    ]
    head, *lines = (f"<tr>{''.join(f'<{tag}>{typeset(text)}</{tag}>' for text in texts)}</tr>" for tag, texts in rows)
    return html_table("table measured", head, lines)
