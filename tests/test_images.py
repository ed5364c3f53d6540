"""Intervals over seeds and images: against loops over single images, and in experiments whose variance is known."""

import base64
import math
import re

import numpy as np
import pytest
from scipy import stats
from synthetic import fill

from rctaf import images
from rctaf.config import Grid
from rctaf.statistics import mean_interval

CURVATURES = [1, 4, 7, 10, 25]


def crossed(rng: np.random.Generator, s: int, i: int, seed: float, image: float, rest: float) -> np.ndarray:
    """A table of mean 0 with these standard deviations between seeds, between images, and of what is left."""
    return seed * rng.standard_normal((s, 1)) + image * rng.standard_normal((1, i)) + rest * rng.standard_normal((s, i))


def test_interval_is_that_of_sums_written_out():
    d = crossed(np.random.default_rng(1), 4, 9, 0.3, 2.0, 1.0).tolist()
    s, i = 4, 9
    mean = sum(map(sum, d)) / (s * i)
    seeds = [sum(row) / i for row in d]
    columns = [sum(d[k][j] for k in range(s)) / s for j in range(i)]
    of_seeds = sum((m - mean) ** 2 for m in seeds) / (s - 1) / s
    of_images = sum((m - mean) ** 2 for m in columns) / (i - 1) / i
    rest = sum((d[k][j] - seeds[k] - columns[j] + mean) ** 2 for k in range(s) for j in range(i))
    of_images -= rest / ((s - 1) * (i - 1)) / (s * i)
    reach = math.sqrt(3.182446**2 * of_seeds + 2.306004**2 * of_images)  # Student's t for 4 seeds and 9 images
    e = images.over_both(np.array(d))
    assert (e.value, e.low, e.high, e.n) == pytest.approx((mean, mean - reach, mean + reach, 4), rel=1e-5)
    assert of_images > 0


def test_images_that_all_agree_add_nothing():
    d = np.repeat([[0.1], [0.4], [0.0]], 7, axis=1)
    assert vars(images.over_both(d)) == pytest.approx(vars(mean_interval([0.1, 0.4, 0.0])))
    with pytest.raises(ValueError, match="1 seeds and 7 images: expected at least two of each"):
        images.over_both(d[:1])


@pytest.mark.parametrize(
    ("seeds", "parts"), [(3, (0.05, 0.3, 1)), (10, (0.05, 0.3, 1)), (10, (0, 0, 1)), (5, (0.1, 0.5, 0.3))]
)
def test_interval_covers_the_mean_where_the_variance_is_known(seeds, parts):
    rng = np.random.default_rng(0)
    found = [images.over_both(crossed(rng, seeds, 120, *parts)) for _ in range(1500)]
    covered = np.mean([e.low <= 0 <= e.high for e in found])
    assert 0.94 <= covered <= 0.975
    variance = parts[0] ** 2 / seeds + parts[1] ** 2 / 120 + parts[2] ** 2 / (seeds * 120)
    assert np.var([e.value for e in found]) == pytest.approx(variance, rel=0.15)


def test_resampling_both_at_once_counts_the_rest_three_times():
    """Why the interval is no bootstrap: a brute-force one is compared with the variance that was put in."""
    rng = np.random.default_rng(0)
    s, i, variances = 10, 100, []
    for _ in range(60):
        d = crossed(rng, s, i, 0, 0, 1)
        draws = [d[np.ix_(rng.integers(s, size=s), rng.integers(i, size=i))].mean() for _ in range(300)]
        variances.append(np.var(draws))
    assert np.mean(variances) == pytest.approx(3 / (s * i), rel=0.2)


@pytest.fixture
def grid(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    axes = {"seed": [0, 1, 2, 3], "beta": [0, 2], "curvature": CURVATURES}
    blocks = [{"axes": axes}, {"axes": {"seed": [1, 2, 3], "activation": ["relu"]}}]
    return Grid(name="some", scale="synthetic", blocks=blocks)


def survivors(record) -> list[int]:
    """The bits of a mask, the first image being the highest bit of the first byte."""
    bits = "".join(f"{byte:08b}" for byte in base64.b64decode(record.metrics["autoattack"]["mask"]))
    return [int(bit) for bit in bits[:500]]


def test_differences_of_a_grid_by_loops_over_its_records(grid):
    made = fill(grid, peak=1.0, hessian_least=1.0)
    bits = {
        (r.config.activation, r.config.beta, round(r.config.curvature or 0, 9), r.config.seed): survivors(r)
        for r in made
    }

    def row(seed, cells):
        masks = [bits[(*cell, seed)] for cell in cells]
        return [sum(image) / len(masks) for image in zip(*masks, strict=True)]

    def cells(beta, curvatures):
        return [("rctaf", beta, c) for c in curvatures]

    relu = [("relu", None, 0)]
    sides = {
        "order 0 minus order 2, at 7": (cells(0, [7]), cells(2, [7]), [0, 1, 2, 3]),
        "order 2, beyond 10 minus 4 to 10": (cells(2, [25]), cells(2, [4, 7, 10]), [0, 1, 2, 3]),
        "order 0, 4 to 10, minus ReLU": (cells(0, [4, 7, 10]), relu, [1, 2, 3]),
        "order 0, at 1 (highest mean) minus at 7": (cells(0, [1]), cells(0, [7]), [0, 1, 2, 3]),
        "order 2, at 1 (highest mean) minus at 7": (cells(2, [1]), cells(2, [7]), [0, 1, 2, 3]),
    }
    found = images.differences(made, "screening_accuracy")
    assert list(found) == list(sides)
    for name, (one, other, seeds) in sides.items():
        d = [[a - b for a, b in zip(row(s, one), row(s, other), strict=True)] for s in seeds]
        means = [sum(values) / 500 for values in d]
        over_seeds, over_both = found[name]
        half = stats.t.ppf(0.975, len(seeds) - 1) * np.std(means, ddof=1) / len(seeds) ** 0.5
        assert over_seeds.high - over_seeds.value == pytest.approx(half)
        assert (over_seeds.value, over_both.value) == pytest.approx((np.mean(means), np.mean(means)))
        assert vars(over_both) == pytest.approx(vars(images.over_both(np.array(d))))
        assert over_seeds.n == len(seeds)
    # a seed whose images went through the other two attacks as well has no mask of the first two
    axes = {"seed": [4], "beta": [0, 2], "curvature": CURVATURES}
    more = Grid(name="more", scale="synthetic", base={"autoattack": "standard"}, blocks=[{"axes": axes}])
    assert images.differences([*made, *fill(more, peak=1.0, hessian_least=1.0)], "screening_accuracy") == found
    assert len({len(mask) for mask in bits.values()}) == 1
    # what a record's mask is of, and of nothing else
    assert images.differences(made, "robust_accuracy") == {}
    assert images.differences(made, "pgd20_accuracy") == {}
    assert images.differences([r for r in made if r.config.seed < 2], "screening_accuracy") == {}


def test_the_table_and_its_sentence():
    narrow, wide = images.Estimate(0.02, 0.01, 0.03, 5), images.Estimate(0.02, -0.01, 0.05, 5)
    other = images.Estimate(0.0, -0.02, 0.02, 5), images.Estimate(0.0, -0.025, 0.025, 5)
    found = {"a < b": (narrow, wide), "kept": (narrow, narrow), "none": other}
    said = images.describe(found, 500)
    assert "With the 500 attacked images" in said
    assert "1.00 to 3.00 times as wide as over 5 seeds alone; 1 of the 2 that leave out 0" in said
    assert "alone; none of them leaves out 0 over seeds." in images.describe({"none": other}, 500)
    table = images.differences_table(found).data
    heads = ["difference", "points", "95\u00a0% interval over seeds", "over seeds and images"]
    assert re.findall("<th>(.*?)</th>", table) == heads
    assert "<td>a &lt; b</td><td>+2.00</td><td>+1.00 to +3.00</td><td>\u22121.00 to +5.00</td>" in table


def test_different_images_are_refused(grid):
    made = fill(grid, peak=1.0, hessian_least=1.0)
    attacked = made[0].metrics["autoattack"]
    attacked |= {"n": 400, "mask": base64.b64encode(base64.b64decode(attacked["mask"])[:50]).decode()}
    with pytest.raises(ValueError, match=r"attacked on \[400, 500\] images"):
        images.differences(made, "screening_accuracy")
