"""Each procedure on simulated experiments whose truth is known: coverage, size and power, not only values."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import interpolate, optimize, stats

from rctaf.statistics import (
    Estimate,
    cell_means,
    changes_beyond,
    common,
    critical_difference,
    falls,
    holm,
    inside_against_ends,
    lower_beyond,
    mean_interval,
    minimum_detectable_difference,
    noise_parts,
    optimum,
    orders_coincide,
    paired_difference,
    seed_deviation,
    spearman,
    trend,
    variance_between_orders,
    variance_over_cells,
)
from rctaf.verdicts import BOOTSTRAP_SEEDS

CURVATURES = np.array([0.25, 0.5, 1, 2, 4, 7, 10, 15, 25, 50])
BAND = {"band": (4.0, 10.0), "beyond": 10.0}


def experiment(truth, rng, *, seeds=10, orders=(0,), seed_sd=1.0, run_sd=1.0, curvatures=CURVATURES) -> pd.DataFrame:
    """One row per run: truth(order, c) + an effect shared by a whole seed + noise of the run."""
    shared = seed_sd * rng.normal(size=seeds)
    return pd.DataFrame(
        [
            {"beta": b, "curvature": c, "seed": s, "value": truth(b, c) + shared[s] + run_sd * rng.normal()}
            for b in orders
            for c in curvatures
            for s in range(seeds)
        ]
    )


def hill(c, at=2.0, width=1.6):
    """A skewed peak: steeper below than beyond, as robustness behaves."""
    u = np.log(c / at)
    return 80 - 6 * (u / width) ** 2 / (1 + 0.35 * np.where(u > 0, u, 0))


# --- mean ---


def test_mean_interval_covers_the_mean_95_times_in_100():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.normal(3, 2, size=5)) for _ in range(3000)]
    covered = np.mean([e.low <= 3 <= e.high for e in intervals])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 3000)
    expected = stats.t.interval(0.95, 4, 1.0, stats.sem([0.2, 0.8, 1.0, 1.4, 1.6]))
    got = mean_interval([0.2, 0.8, 1.0, 1.4, 1.6])
    assert (got.low, got.high) == pytest.approx(expected, rel=1e-12)


def test_one_seed_has_no_interval_and_bad_numbers_are_refused():
    one = mean_interval([0.5])
    assert (one.value, one.n) == (0.5, 1)
    assert math.isnan(one.low)
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(bad)


def test_cell_means():
    frame = experiment(lambda b, c: c, np.random.default_rng(0), orders=(0, 1), run_sd=0, seed_sd=0, seeds=2)
    means = cell_means(frame, "value")
    assert len(means) == 20
    assert means["value"].tolist() == pytest.approx([*CURVATURES, *CURVATURES])
    assert set(means["n"]) == {2}
    baseline = cell_means(frame.assign(curvature=math.nan), "value")  # no curvature is a cell too, not a lost row
    assert baseline["n"].tolist() == [20, 20]
    assert list(cell_means(frame.iloc[:0], "value").columns) == list(means.columns)


# --- optimum ---


def test_a_noiseless_optimum_is_found_for_maximum_and_minimum():
    rng = np.random.default_rng(0)
    frame = experiment(lambda b, c: hill(c, at=3.0), rng, run_sd=1e-6)
    found = optimum(frame, "value")
    # what is left is the bias of the spline between curvatures a factor of 2 apart
    assert found.curvature.value == pytest.approx(3.0, rel=0.1)
    assert found.identified
    assert found.edge == 0
    frame["value"] *= -1
    assert optimum(frame, "value", kind="min").curvature == found.curvature


@pytest.mark.parametrize("noise", [1.0, 10.0])
def test_the_optimum_is_that_of_the_best_spline(noise):
    """The natural spline of least squares found by a general optimiser, over its values at the knots."""
    rng = np.random.default_rng(6)
    x = np.log(CURVATURES)
    knots = np.quantile(x, np.linspace(0, 1, 7))
    fine = np.linspace(x[0], x[-1], 1001)

    def spline(heights):
        return interpolate.CubicSpline(knots, heights, bc_type="natural")

    for _ in range(10):
        frame = experiment(lambda b, c: hill(c), rng, seeds=4, run_sd=noise)
        means = frame.groupby("curvature")["value"].mean()
        best = spline(optimize.least_squares(lambda h, m=means: spline(h)(x) - m, np.full(7, 80.0), xtol=1e-15).x)
        expected = np.exp(fine[best(fine).argmax()])
        assert optimum(frame, "value").curvature.value == pytest.approx(expected, rel=1e-9)


def test_percentiles_are_widened_as_published():
    """The normal tails beyond t sqrt(n / (n - 1)), with t from a table: on 4 and 9 degrees of freedom."""
    for n, level, t in ((5, 0.05, 2.7764), (10, 0.05, 2.2622), (5, 0.01, 4.6041)):
        tail = stats.norm.cdf(-t * (n / (n - 1)) ** 0.5)
        assert common.tails(n, level) == pytest.approx((tail, 1 - tail), rel=1e-3)


def test_the_interval_of_the_optimum_covers_it_and_is_not_absurdly_wide():
    rng = np.random.default_rng(1)
    found = [optimum(experiment(lambda b, c: hill(c), rng), "value").curvature for _ in range(80)]
    covered = np.mean([e.low <= 2.0 <= e.high for e in found])
    assert covered >= 0.85  # 95 % less 4 binomial standard errors of 80 (0.024)
    assert np.median([math.log(e.high / e.low) for e in found]) < math.log(2.5)


@pytest.mark.parametrize(("seeds", "enough"), [(3, False), (BOOTSTRAP_SEEDS, True), (10, True)])
@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_how_many_seeds_the_interval_of_an_optimum_takes(monkeypatch, seeds, noise, enough):
    """Three seeds have ten different resamples, and their range misses the truth far too often."""
    monkeypatch.setattr(common, "_RESAMPLES", 200)
    rng = np.random.default_rng(seeds)
    found = [optimum(experiment(lambda b, c: hill(c), rng, seeds=seeds, run_sd=noise), "value") for _ in range(120)]
    covered = np.mean([e.curvature.low <= 2.0 <= e.curvature.high for e in found])
    assert (covered > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 120)) == enough, covered


def test_an_optimum_outside_the_grid_is_not_identified():
    rng = np.random.default_rng(2)
    for truth in (lambda b, c: np.log(c), lambda b, c: -np.log(c)):
        found = optimum(experiment(truth, rng), "value")
        assert found.edge > 0.5
        assert not found.identified


def test_identified_is_what_its_text_says():
    """Of tops from inside to the edge, sharp and flat: both reasons against occur by themselves, and neither."""
    half, met = math.log(CURVATURES[-1] / CURVATURES[0]) / 2, set()
    for trial in range(120):
        rng = np.random.default_rng(trial)
        at, width = np.exp(rng.uniform(-1.4, 1.0)), rng.uniform(1.0, 4.0)
        found = optimum(experiment(lambda _, c, a=at, w=width: hill(c, a, w), rng, seeds=6), "value")
        on_edge, wide = found.edge > 0.025, math.log(found.curvature.high / found.curvature.low) > half
        assert found.identified == (not on_edge and not wide), trial
        met.add(
            (on_edge and found.edge < 0.2, wide and math.log(found.curvature.high / found.curvature.low) < 1.8 * half)
        )
    assert {(False, False), (True, False), (False, True)} <= met


def test_a_flat_curve_is_not_identified():
    rng = np.random.default_rng(3)
    found = [optimum(experiment(lambda b, c: 80.0, rng), "value") for _ in range(20)]
    assert sum(f.identified for f in found) <= 2


def test_the_shared_effect_of_a_seed_does_not_matter():
    # The runs of a seed move together: an analysis that resampled single runs would give wide intervals here.
    narrow = optimum(experiment(lambda b, c: hill(c), np.random.default_rng(4), seed_sd=0, run_sd=0.3), "value")
    shaken = optimum(experiment(lambda b, c: hill(c), np.random.default_rng(4), seed_sd=20, run_sd=0.3), "value")
    width = [math.log(f.curvature.high / f.curvature.low) for f in (narrow, shaken)]
    assert width[1] < 3 * width[0]


# --- paired comparisons ---


def test_paired_difference_is_scipys_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=8), rng.normal(size=8) + 0.5
    got = paired_difference(a, b, margin=1.0)
    assert got.p_different == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-10)
    assert got.p_lower == pytest.approx(stats.ttest_rel(a, b, alternative="less").pvalue, rel=1e-10)
    low = stats.ttest_1samp(a - b, -1.0, alternative="greater").pvalue
    high = stats.ttest_1samp(a - b, 1.0, alternative="less").pvalue
    assert got.p_equivalent == pytest.approx(max(low, high), rel=1e-10)


def test_equivalence_is_declared_wrongly_5_times_in_100_and_rightly_most_times():
    rng = np.random.default_rng(1)
    n, margin, repeats = 10, 1.0, 800

    def declared(true_difference):
        shared = rng.normal(size=(repeats, n)) * 5  # seeds differ much more than the orders
        a = shared + true_difference + 0.7 * rng.normal(size=(repeats, n))
        b = shared + 0.7 * rng.normal(size=(repeats, n))
        return np.mean([paired_difference(x, y, margin).p_equivalent < 0.05 for x, y in zip(a, b, strict=True)])

    assert declared(margin) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / repeats))
    assert declared(0.0) > 0.75
    assert declared(2.0) < 0.01


def test_equal_differences_are_handled():
    assert paired_difference([1.0, 2.0], [1.0, 2.0], margin=0.1).p_different == 1
    assert paired_difference([1.0, 2.0], [1.0, 2.0], margin=0.1).p_equivalent == 0
    assert paired_difference([0.0, 1.0], [1.0, 2.0]).p_lower == 0


def test_orders_that_coincide_and_orders_that_do_not():
    rng = np.random.default_rng(2)
    apart = {0: 0.0, 1: 0.0, 2: -3.0}
    frame = experiment(lambda b, c: hill(c) + (c > 4) * apart[b], rng, orders=(0, 1, 2), run_sd=0.5)
    below = orders_coincide(frame, "value", below=4, margin=1.0)
    assert below["orders"].tolist() == ["0 vs 1", "0 vs 2", "1 vs 2"]
    assert below["p_equivalent"].max() < 0.05
    assert set(below["curvatures"]) == {5}
    assert (below["at"] <= 4).all()
    everywhere = orders_coincide(frame, "value", below=100, margin=1.0).set_index("orders")
    assert everywhere.loc["0 vs 2", "p_equivalent"] > 0.05
    assert everywhere.loc["0 vs 2", "p_different_holm"] < 0.01
    assert everywhere.loc["0 vs 2", "difference"] == pytest.approx(1.5, abs=0.5)
    assert everywhere.loc["0 vs 2", "largest"] == pytest.approx(3.0, abs=1.0)
    assert everywhere.loc["0 vs 2", "at"] > 4
    assert everywhere.loc["0 vs 1", "p_different_holm"] > 0.05


def test_orders_that_cross_do_not_coincide():
    """Equal on average over the curvatures, 4 points apart at two of them: a mean of differences sees nothing."""
    rng = np.random.default_rng(5)
    gap = {0.25: 4.0, 0.5: -4.0}
    frame = experiment(lambda b, c: hill(c) + (b == 1) * gap.get(c, 0.0), rng, orders=(0, 1), run_sd=0.3)
    (row,) = orders_coincide(frame, "value", below=3, margin=1.0).to_dict("records")
    assert abs(row["difference"]) < 0.3
    assert row["p_equivalent"] > 0.99
    assert row["p_different_holm"] < 0.01
    assert abs(row["largest"]) == pytest.approx(4, abs=0.5)
    assert row["largest_low"] < row["largest"] < row["largest_high"]
    assert row["at"] in gap
    assert row["largest"] == pytest.approx(-gap[row["at"]], abs=0.5)
    assert row["clearest"] == pytest.approx(-gap[row["clearest_at"]], abs=0.5)


def test_pairs_of_orders_are_scipys_tests_at_every_curvature():
    gap = {(1, 0.5): 4.0, (1, 1.0): -6.0, (2, 2.0): 5.0}  # with either sign
    frame = experiment(
        lambda b, c: gap.get((b, c), 0.0), np.random.default_rng(8), orders=(0, 1, 2), seeds=4, run_sd=0.5
    )
    low = frame[frame["curvature"] <= 2]
    cells = {key: part.sort_values("seed")["value"].to_numpy() for key, part in low.groupby(["beta", "curvature"])}
    found = orders_coincide(frame, "value", below=2, margin=1.0).set_index("orders")
    tests = {
        (f"{a} vs {b}", c): stats.ttest_rel(cells[a, c], cells[b, c])
        for a, b in ((0, 1), (0, 2), (1, 2))
        for c in (0.25, 0.5, 1.0, 2.0)
    }
    corrected = dict(zip(tests, holm([test.pvalue for test in tests.values()]), strict=True))
    for pair, row in found.iterrows():
        a, b = int(pair[0]), int(pair[-1])
        means = {c: (cells[a, c] - cells[b, c]).mean() for c in (0.25, 0.5, 1.0, 2.0)}
        at = max(means, key=lambda c: abs(means[c]))
        clearest = min(means, key=lambda c: tests[pair, c].pvalue)
        interval = tests[pair, at].confidence_interval()
        expected = [means[at], interval.low, interval.high, at, means[clearest], clearest]
        names = ["largest", "largest_low", "largest_high", "at", "clearest", "clearest_at"]
        assert row[names].tolist() == pytest.approx(expected)
        assert row["p_different_holm"] == pytest.approx(min(corrected[pair, c] for c in means))
    assert found["largest"].min() < -3 < 3 < found["largest"].max()


def test_falls_are_scipys_tests_of_every_pair_of_curvatures():
    bumps = {1.0: 1.0, 2.0: -2.0}
    frame = experiment(
        lambda b, c: bumps.get(c, 0.0) + b, np.random.default_rng(9), orders=(0, 1), seeds=5, run_sd=0.4,
        curvatures=[0.5, 1.0, 2.0, 4.0],
    )  # fmt: skip
    means = frame.pivot_table(values="value", index="curvature", columns="seed")
    found = falls(frame, "value")
    assert len(found) == 6
    assert (found["p_lower_holm"].iloc[0], found["p_lower_holm"].iloc[-1]) == (found["p_lower_holm"].min(), 1)
    order = list(zip(found["p_lower_holm"], found["difference"], strict=True))
    assert order == sorted(order)
    tests = [
        stats.ttest_rel(means.loc[row.larger], means.loc[row.smaller], alternative="less") for row in found.itertuples()
    ]
    assert found["p_lower_holm"].tolist() == pytest.approx(holm([test.pvalue for test in tests]).tolist())
    expected = [means.loc[row.larger].mean() - means.loc[row.smaller].mean() for row in found.itertuples()]
    assert found["difference"].tolist() == pytest.approx(expected)
    assert (found["low"] < found["difference"]).all()
    assert (found["difference"] < found["high"]).all()
    with pytest.raises(ValueError, match="at different curvatures: expected the same"):
        falls(frame[(frame["beta"] == 0) | (frame["curvature"] > 1)], "value")


def test_orders_a_margin_apart_at_one_curvature_are_called_equal_at_most_5_times_in_100():
    rng, few = np.random.default_rng(6), np.array([0.5, 1.0, 2.0])
    wrong = [
        orders_coincide(
            experiment(lambda b, c: b * (c == 0.5), rng, orders=(0, 1), run_sd=0.3, curvatures=few),
            "value", below=4, margin=1.0,
        )["p_equivalent"].max() < 0.05
        for _ in range(100)
    ]  # fmt: skip
    assert np.mean(wrong) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 100)
    same = experiment(lambda b, c: 0.0, rng, orders=(0, 1), run_sd=0.3, curvatures=few)
    assert orders_coincide(same, "value", below=4, margin=1.0)["p_equivalent"].max() < 0.05


def test_some_order_is_called_different_wrongly_at_most_5_times_in_100():
    rng = np.random.default_rng(3)
    curvatures, repeats = np.array([1.0, 2.0]), 100
    wrong = 0
    for _ in range(repeats):
        frame = experiment(lambda b, c: c, rng, orders=(0, 1, 2), seeds=6, curvatures=curvatures)
        wrong += orders_coincide(frame, "value", below=4, margin=1.0)["p_different_holm"].min() < 0.05
    assert wrong / repeats < 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)


def test_lower_beyond_finds_a_fall_and_no_fall():
    rng = np.random.default_rng(4)
    fall = experiment(lambda b, c: -3.0 * (c > 10), rng, orders=(0, 1))
    result = lower_beyond(fall, "value", **BAND).set_index("order")
    assert result.index.tolist() == ["0", "1", "all"]
    assert (result["p_lower_holm"] < 0.01).all()
    assert (result["difference"] + 3).abs().max() < 1.5
    assert result.loc["all", "high"] < 0
    assert (result["n"] == 10).all()
    flat = [lower_beyond(experiment(lambda b, c: 0.0, rng, orders=(0, 1)), "value", **BAND) for _ in range(100)]
    wrong = np.mean([r.set_index("order").loc["all", "p_lower"] < 0.05 for r in flat])
    assert wrong < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 100)


def test_changes_beyond_are_differences_of_means_by_hand():
    rows = [
        {"beta": b, "curvature": c, "seed": s, "value": 10 * b + c + 100 * s * (c > 10)}
        for b in (0, 2) for c in (2.0, 4.0, 10.0, 20.0, 30.0) for s in (0, 1, 2)
    ]  # fmt: skip
    changes = changes_beyond(pd.DataFrame(rows), "value", **BAND)
    assert list(changes) == [0, 2]
    for change in changes.values():  # 25 beyond, 7 within the band
        np.testing.assert_allclose(change, [18, 118, 218])


def test_inside_against_ends_by_hand():
    rng = np.random.default_rng(0)
    frame = experiment(lambda b, c: hill(c), rng, orders=(0, 1), seeds=5, run_sd=3.0)
    frame = frame.sample(frac=1, random_state=0)  # the order of rows is no order of seeds
    found = inside_against_ends(frame, "value")
    p = []
    for row in found.to_dict("records"):
        part = frame[frame["beta"] == row["order"]].set_index(["curvature", "seed"])["value"]
        chosen, differences = [], []
        for seed in range(1, 5):
            earlier = {c: np.mean([part[c, s] for s in range(seed)]) for c in CURVATURES[1:-1]}
            chosen.append(max(earlier, key=earlier.get))
            differences.append(part[chosen[-1], seed] - part[row["end"], seed])
        assert row["chosen"] == chosen
        interval = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
        expected = (np.mean(differences), interval.low, interval.high, 4)
        assert (row["difference"], row["low"], row["high"], row["n"]) == pytest.approx(expected)
        end = [part[row["end"], s] for s in range(5)]
        against = [[part[c, s] for s in range(5)] for c in CURVATURES[1:-1]]
        p.append(max(stats.ttest_rel(end, inside, alternative="greater").pvalue for inside in against))
    assert found["end"].tolist() == [0.25, 50, 0.25, 50]
    assert len({tuple(chosen) for chosen in found["chosen"]}) == 2
    assert found["p_end_above"].tolist() == pytest.approx(p)
    assert found["p_end_above_holm"].tolist() == pytest.approx(holm(p).tolist())
    for few in (frame[frame["seed"] < 2], frame[frame["curvature"] < 1]):
        with pytest.raises(ValueError, match="expected 3 of each"):
            inside_against_ends(few, "value")


@pytest.mark.parametrize(("seeds", "by_all_others"), [(3, 0.038), (5, 0.048), (10, 0.062)])
def test_the_inside_is_chosen_without_favour(seeds, by_all_others):
    """Where nothing differs the interval lies above 0 in 2.5 %; it would not, were all other seeds to choose."""
    rng = np.random.default_rng(seeds)
    flat = experiment(lambda b, c: 0.0, rng, orders=range(600), seeds=seeds)  # each order by itself is an experiment
    found = inside_against_ends(flat, "value")
    for end in (0.25, 50):
        share = (found.loc[found["end"] == end, "low"] > 0).mean()
        assert share == pytest.approx(0.025, abs=4 * math.sqrt(0.025 * 0.975 / 600))
    y = rng.normal(size=(20000, 10, seeds))
    best = (y.sum(2, keepdims=True) - y)[:, 1:-1].argmax(1)
    d = np.take_along_axis(y[:, 1:-1], best[:, None], 1)[:, 0] - y[:, 0]
    assert (stats.ttest_1samp(d, 0, axis=1, alternative="greater").pvalue < 0.025).mean() == pytest.approx(
        by_all_others, abs=4 * math.sqrt(0.062 * 0.938 / 20000)
    )


def test_a_trend_is_found_and_its_interval_covers_it():
    """2 per doubling for one order, 4 for the other; a slope seen wrongly 5 times in 100, whatever the seed effects."""
    rng = np.random.default_rng(7)
    low = np.array([0.25, 0.5, 1.0, 2.0])
    found = [
        trend(experiment(lambda b, c: (2 + 2 * b) * np.log2(c), rng, orders=(0, 1), seeds=3, curvatures=low), "value")
        for _ in range(200)
    ]
    assert np.mean([e.value for e in found]) == pytest.approx(3, abs=0.1)
    covered = np.mean([e.low <= 3 <= e.high for e in found])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 200))
    one = experiment(lambda b, c: np.log(c), rng, seeds=4, curvatures=low)
    slopes = [stats.linregress(np.log2(part["curvature"]), part["value"]).slope for _, part in one.groupby("seed")]
    got, expected = trend(one, "value"), mean_interval(slopes)
    assert (got.value, got.low, got.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_holm():
    assert holm([0.5, 0.01, 0.5]).tolist() == pytest.approx([1.0, 0.03, 1.0])
    assert holm([0.2]).tolist() == [0.2]


# --- rank correlation ---


def two_quantities(rng, *, slope=-1.0, noise=0.0, level=0.0, seeds=8):
    """hessian falls with log c, value follows it with ``slope``; order 1 lies ``level`` higher in both."""
    frame = experiment(lambda b, c: 0.0, rng, orders=(0, 1), seeds=seeds, seed_sd=0, run_sd=0)
    position = np.log(frame["curvature"]) + level * frame["beta"]
    frame["hessian"] = position + noise * rng.normal(size=len(frame))
    frame["value"] = slope * np.log(frame["curvature"]) + level * frame["beta"] + noise * rng.normal(size=len(frame))
    return frame


def test_spearman_is_scipys_on_the_seed_means():
    frame = two_quantities(np.random.default_rng(0), noise=3.0)
    result = spearman(frame, "hessian", "value").set_index("order")
    means = frame.groupby(["beta", "curvature"])[["hessian", "value"]].mean()
    assert result.loc["across", "correlation"] == pytest.approx(
        stats.spearmanr(means["hessian"], means["value"]).statistic, rel=1e-12
    )
    for order in (0, 1):
        part = means.loc[order]
        expected = stats.spearmanr(part["hessian"], part["value"]).statistic
        assert result.loc[str(order), "correlation"] == pytest.approx(expected, rel=1e-12)
    assert result.loc["within", "correlation"] == pytest.approx(result.loc[["0", "1"], "correlation"].mean())
    assert result["cells"].tolist() == [10, 10, 20, 20]


def test_within_orders_is_not_fooled_by_a_difference_between_orders():
    frame = two_quantities(np.random.default_rng(1), slope=-1.0, level=100.0, noise=0.1)
    result = spearman(frame, "hessian", "value").set_index("order")
    assert result.loc["within", "correlation"] == pytest.approx(-1, abs=0.05)
    assert result.loc["across", "correlation"] > 0  # Simpson's paradox


def test_the_interval_of_a_correlation_covers_the_one_of_the_true_means():
    # True cell means in a fixed, imperfect order; noise small against their gaps, so that ranks are nearly unbiased.
    rng = np.random.default_rng(2)
    a = np.arange(10.0)
    b = np.array([2.0, 0, 1, 5, 3, 4, 9, 6, 8, 7])
    truth = stats.spearmanr(a, b).statistic
    covered = []
    for _ in range(60):
        frame = experiment(lambda _, c: 0.0, rng, seeds=8, seed_sd=0, run_sd=0)
        position = frame["curvature"].rank(method="dense").astype(int) - 1
        frame["hessian"] = a[position] + rng.normal(size=len(frame))
        frame["value"] = b[position] + rng.normal(size=len(frame))
        row = spearman(frame, "hessian", "value").set_index("order").loc["0"]
        covered.append(row["low"] - 1e-9 <= truth <= row["high"] + 1e-9)
    assert np.mean(covered) >= 0.83  # 95 % less 4 binomial standard errors of 60 (0.028)


@pytest.mark.parametrize(("seeds", "enough"), [(3, False), (BOOTSTRAP_SEEDS, True), (10, True)])
def test_how_many_seeds_the_interval_of_a_correlation_takes(monkeypatch, seeds, enough):
    """One quantity depends on the curvature and the other does not: the interval should leave 0 out 5 times in 100."""
    monkeypatch.setattr(common, "_RESAMPLES", 200)
    rng = np.random.default_rng(seeds)
    wrong = []
    for _ in range(80):
        frame = experiment(lambda b, c: 0.0, rng, orders=(0, 1), seeds=seeds)
        frame["hessian"] = np.log(frame["curvature"] / 3) ** 2 + 0.3 * rng.normal(size=len(frame))
        within = spearman(frame, "hessian", "value").set_index("order").loc["within"]
        wrong.append(not within["low"] <= 0 <= within["high"])
    assert (np.mean(wrong) < 0.05 + 2 * math.sqrt(0.05 * 0.95 / 80)) == enough, np.mean(wrong)


def test_a_constant_quantity_has_no_correlation():
    frame = two_quantities(np.random.default_rng(3))
    frame["value"] = 1.0
    assert (spearman(frame, "hessian", "value")["correlation"] == 0).all()


# --- one run per cell ---


def test_the_minimum_detectable_difference_is_detected_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for power in (0.5, 0.8):
        a = rng.normal(minimum_detectable_difference(2.0, power=power), 2.0, size=20000)
        b = rng.normal(0.0, 2.0, size=20000)
        found = np.abs(a - b) > 1.959964 * 2.0 * math.sqrt(2)
        assert found.mean() == pytest.approx(power, abs=0.015)  # 4 binomial standard errors
    # from printed tables of t: 4.303 and 1.061 on 2 degrees of freedom, 1.960 and 0.842 on infinitely many
    assert minimum_detectable_difference(1.0, df=2) == pytest.approx(5.364 * math.sqrt(2), rel=1e-3)
    assert minimum_detectable_difference(1.0) == pytest.approx(2.802 * math.sqrt(2), rel=1e-3)
    with pytest.raises(ValueError, match="sd=0"):
        minimum_detectable_difference(0)


@pytest.mark.parametrize("shared", [0.0, 0.9, 1.5])
def test_the_seed_deviation_is_found_and_its_interval_covers_it(shared):
    """600 experiments of 10 cells and 5 seeds; of the deviation of 1.5 a part is common to a seed's cells."""
    rng, own = np.random.default_rng(2), math.sqrt(1.5**2 - shared**2)
    found, degrees = [], []
    for _ in range(600):
        frame = experiment(lambda b, c: 10 * c, rng, seeds=5, seed_sd=shared, run_sd=own)
        extra = frame[:1].assign(curvature=99.0)  # a cell of one seed must not count
        estimate, df = seed_deviation(pd.concat([frame, extra]).assign(activation="rctaf"), "value")
        assert estimate.n == 50
        found.append(estimate)
        degrees.append(df)
    assert np.mean(degrees) == pytest.approx({0.0: 37, 0.9: 22, 1.5: 4}[shared], abs=2)  # of at least 4 and at most 40
    # four standard errors: of a mean of 600 variances, and of a binomial share; the degrees of freedom are approximate
    variance = np.array([e.value**2 for e in found])
    assert variance.mean() == pytest.approx(1.5**2, abs=4 * variance.std() / math.sqrt(600))
    covered = np.mean([e.low < 1.5 < e.high for e in found])
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 600))


def test_the_seed_deviation_of_seeds_that_all_cells_have():
    frame = experiment(lambda b, c: c, np.random.default_rng(0), seeds=4, curvatures=[1.0, 2.0]).assign(activation="x")
    gap = frame.drop(frame[(frame["seed"] == 3) & (frame["curvature"] == 1)].index)
    estimate, df = seed_deviation(gap, "value")  # the other cell has a seed more, and is the only one with so many
    assert (estimate.n, df) == (4, pytest.approx(3))
    assert estimate.value == pytest.approx(frame[frame["curvature"] == 2]["value"].std(ddof=1))
    with pytest.raises(ValueError, match="1 runs have 1 seed"):
        seed_deviation(frame[:1], "value")


def test_seeds_that_do_not_differ_have_no_noise():
    """Exactly, though the mean of three 0.1 is not 0.1."""
    frame = pd.DataFrame(
        [("rctaf", 1, c, seed, value) for c, value in ((1, 0.1), (7, 0.7)) for seed in range(3)],
        columns=["activation", "beta", "curvature", "seed", "value"],
    )
    estimate, df = seed_deviation(frame, "value")
    assert (estimate.value, estimate.n) == (0, 6)
    assert np.isnan([estimate.low, estimate.high, df]).all()
    assert noise_parts(frame, "value") == (0, 0)


def test_the_variance_over_cells_is_free_of_seed_noise():
    """2,000 experiments: true variance 4 over cells, or none, under noise with a variance of 16."""
    rng = np.random.default_rng(0)
    truth = np.array([-2.0, 0.0, 2.0])  # variance 4
    for scale in (0.0, 1.0):
        tables = scale * truth + rng.normal(size=(2000, 5, 1)) * 3 + rng.normal(size=(2000, 5, 3)) * 4
        found = np.array([variance_over_cells(table) for table in tables])
        mean, error = found.mean(), found.mean(1).std() / math.sqrt(2000)
        assert mean == pytest.approx(4 * scale**2, abs=4 * error)
        intervals = [mean_interval(numbers) for numbers in found]
        covered = np.mean([e.low <= 4 * scale**2 <= e.high for e in intervals])
        assert 0.93 <= covered <= 0.999
    x = rng.normal(size=(4, 3))  # by its definition: products of the deviations of two seeds
    d = x - x.mean(1, keepdims=True)
    pairs = [(d[i] * d[j]).sum() / 2 for i in range(4) for j in range(4) if i != j]
    assert variance_over_cells(x).mean() == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match=r"at least 3 seeds x 2 cells; got the shape \(2, 3\)"):
        variance_over_cells(x[:2])


def labelled(frame: pd.DataFrame) -> pd.DataFrame:
    """With alpha / 2 of orders 0, 1 and 2."""
    return frame.assign(half_alpha=frame["curvature"] * 2.0 ** (1 - frame["beta"]))


def test_the_variance_between_orders_by_hand():
    rng = np.random.default_rng(0)
    frame = labelled(experiment(lambda b, c: hill(c) + b, rng, orders=(0, 1, 2), seeds=4))
    at = np.linspace(math.log(0.5), math.log(25), 201)
    for label in ("curvature", "half_alpha"):
        curves = {}
        for (beta, seed), part in frame.groupby(["beta", "seed"]):
            part = part.sort_values(label)
            curves[beta, seed] = interpolate.interp1d(np.log(part[label]), part["value"])(at)
        about = {
            s: [curves[b, s] - np.mean([curves[o, s] for o in range(3)], axis=0) for b in range(3)] for s in range(4)
        }
        pairs = [np.sum([x * y for x, y in zip(about[i], about[j], strict=True)], axis=0).mean() / 2
                 for i in range(4) for j in range(4) if i != j]  # fmt: skip
        found = variance_between_orders(frame, "value", label, 0.5, 25)
        assert found.shape == (4,)
        assert found.mean() == pytest.approx(np.mean(pairs))
    with pytest.raises(ValueError, match=r"order 0 has runs at half_alpha .* do not cover 0.25 to 25"):
        variance_between_orders(frame, "value", "half_alpha", 0.25, 25)


def test_the_variance_between_orders_is_free_of_noise_and_of_interpolation():
    """Lines in the logarithm, 2 points per doubling: apart by 2 at equal alpha, which is a variance of 4."""
    rng = np.random.default_rng(1)
    lines = labelled(experiment(lambda b, c: 2 * np.log2(c), rng, orders=(0, 1, 2), seeds=5, run_sd=0, seed_sd=3))
    found = {"curvature": [], "half_alpha": []}
    for _ in range(150):
        uneven = lines["value"] + rng.normal(size=len(lines)) * np.where(lines["curvature"] < 1, 3, 1)
        for label, numbers in found.items():
            numbers.append(variance_between_orders(lines.assign(value=uneven), "value", label, 0.5, 25).mean())
    for label, truth in (("curvature", 0), ("half_alpha", 4)):
        exact = variance_between_orders(lines, "value", label, 0.5, 25)
        np.testing.assert_allclose(exact, truth, atol=1e-9)
        assert np.mean(found[label]) == pytest.approx(truth, abs=4 * np.std(found[label]) / math.sqrt(150))

    bent = labelled(experiment(lambda b, c: hill(c * 2.0 ** (1 - b)), rng, orders=(0, 1, 2), run_sd=0))
    assert variance_between_orders(bent, "value", "half_alpha", 0.5, 25).mean() < 0.1**2
    assert variance_between_orders(bent, "value", "curvature", 0.5, 25).mean() > 2**2


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("apart", [0.0, 3.0])
def test_orders_equally_far_apart_along_both_labels_seldom_seem_closer_along_one(seeds, apart):
    rng = np.random.default_rng(seeds)
    differences = []
    for _ in range(60):
        frame = labelled(experiment(lambda b, c: apart * b, rng, orders=(0, 1, 2), seeds=seeds))
        along, other = (
            variance_between_orders(frame, "value", label, 0.5, 25) for label in ("curvature", "half_alpha")
        )
        differences.append(mean_interval(other - along))
    for wrong in (np.mean([e.low > 0 for e in differences]), np.mean([e.high < 0 for e in differences])):
        assert wrong <= 0.025 + 4 * math.sqrt(0.025 * 0.975 / 60)


def test_the_noise_is_split_into_that_of_a_seed_and_that_of_a_run():
    rng = np.random.default_rng(0)
    squares = []
    for _ in range(200):
        frame = experiment(lambda b, c: 10 * c, rng, seeds=5, seed_sd=2.0, run_sd=1.0).assign(activation="rctaf")
        seed, run = noise_parts(frame, "value")
        assert seed_deviation(frame, "value")[0].value == pytest.approx(math.hypot(seed, run))
        squares.append((seed**2, run**2))
    for found, truth in zip(np.transpose(squares), (4, 1), strict=True):
        assert found.mean() == pytest.approx(truth, abs=4 * found.std() / math.sqrt(200))


def test_a_difference_is_detected_as_often_as_it_says_with_an_estimated_deviation():
    """Two single runs compared by a t test whose deviation comes from 12 degrees of freedom elsewhere."""
    rng, df = np.random.default_rng(3), 12
    sd = 2.0 * np.sqrt(rng.chisquare(df, size=40000) / df)
    gap = minimum_detectable_difference(2.0, df=df)
    noise = 2.0 * math.sqrt(2) * rng.normal(size=40000)
    critical = critical_difference(1.0, df=df) * sd
    assert np.mean(np.abs(gap + noise) > critical) == pytest.approx(0.8, abs=0.02)  # the t for power is approximate
    assert np.mean(np.abs(noise) > critical) == pytest.approx(0.05, abs=4 * math.sqrt(0.05 * 0.95 / 40000))


# --- refusals ---


def test_incomplete_or_ambiguous_grids_are_refused():
    frame = experiment(lambda b, c: c, np.random.default_rng(0), orders=(0, 1), seeds=3)
    with pytest.raises(ValueError, match=r"incomplete: no run for .*seed 2"):
        lower_beyond(frame.drop(index=frame[(frame["seed"] == 2) & (frame["curvature"] == 4)].index), "value", **BAND)
    with pytest.raises(ValueError, match="more than one run"):
        optimum(frame, "value")  # two orders at once
    one = frame[frame["beta"] == 0]
    with pytest.raises(ValueError, match="gaps"):
        optimum(one.assign(value=np.nan), "value")
    with pytest.raises(ValueError, match=r"columns \['robust'\]"):
        optimum(one, "robust")
    with pytest.raises(ValueError, match="3 curvatures and 3 seeds: expected at least 4 and 3"):
        optimum(one[one["curvature"] < 2], "value")
    with pytest.raises(ValueError, match="2 seeds: expected"):
        optimum(one[one["seed"] < 2], "value")
    with pytest.raises(ValueError, match="expected at least two"):
        orders_coincide(one, "value", below=4, margin=1)
    with pytest.raises(ValueError, match="expected at least 3"):
        trend(one[one["curvature"] < 1], "value")
    with pytest.raises(ValueError, match="none beyond"):
        lower_beyond(frame[frame["curvature"] < 10], "value", **BAND)
    with pytest.raises(ValueError, match="margin"):
        paired_difference([1.0, 2.0], [1.0, 2.0], margin=0)
    with pytest.raises(ValueError, match="at least 3 seeds"):
        spearman(frame[frame["seed"] < 2], "value", "value")
    assert isinstance(mean_interval([1.0]), Estimate)
