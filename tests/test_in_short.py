"""The short answers must follow the records: known truths go in, and the sentences must name them."""

import re

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from synthetic import fill, harmed_runs, longer_runs, other_runs

from rctaf import controls, in_short
from rctaf.config import Grid
from rctaf.records import table
from rctaf.statistics import optimum
from rctaf.verdicts import Place, places

CURVATURES = [0.25, 0.5, 1, 2, 4, 7, 10, 15, 25, 50]
GRID = Grid(
    name="synthetic",
    scale="synthetic",
    base={"dataset": "digits"},
    blocks=[
        {"axes": {"seed": list(range(6)), "beta": [0, 1, 2], "curvature": CURVATURES}},
        {"axes": {"seed": list(range(6)), "activation": ["relu"]}},
    ],
)
VALUE = "screening_accuracy"


@pytest.fixture
def frame(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    return lambda **truth: table(fill(GRID, **truth))


def said(rows, head):
    return dict(in_short.answers(rows, VALUE))[head]


@pytest.mark.parametrize(("peak", "side"), [(6.5, "inside"), (1.0, "below"), (30.0, "above")])
def test_the_peak_is_where_the_records_have_it(frame, peak, side):
    words = said(frame(peak=peak, hessian_least=6.5), "The peak")
    found = re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\) in order (\d)", words)
    assert [order for *_, order in found] == ["0", "1", "2"]
    for place, low, high, _ in found:
        assert float(place) == pytest.approx(peak, rel=0.1)
        assert float(low) < peak < float(high)
    assert f"all 3 intervals lie {side} it" in words
    assert "over 6 seeds, widened by other fits or to half-way to the tested neighbours." in words


def test_a_bracket_that_is_not_widened_does_not_say_so(frame, monkeypatch):
    rows = frame(peak=6.5, hessian_least=6.5)
    made = [Place(0, 6, 5, 8, "", True), Place(1, 6, 4.5, 9, ""), Place(2, 6, 5, 8, "", True)]
    for found, words in (
        (made, "over 6 seeds, widened in orders 0 and 2 by other fits or to half-way to the tested neighbours. The"),
        (made[:2], "over 6 seeds, widened in order 0 by other fits or to half-way to the tested neighbours. The"),
        (made[1:2], "over 6 seeds. The"),
    ):
        monkeypatch.setattr(in_short, "places", lambda *_, found=found: found)
        assert words in said(rows, "The peak")
    monkeypatch.undo()
    wide = frame(peak=6.5, hessian_least=6.5, noise=0.03)  # wider over seeds than the spacing
    for place in places(wide[wide["activation"] == "rctaf"], VALUE, "max"):
        over_seeds = optimum(wide[wide["beta"] == place.order], VALUE).curvature
        assert place.widened == (place.low < over_seeds.low or place.high > over_seeds.high)


@pytest.mark.parametrize(
    ("peak", "words"),
    [
        (6.5, "As in the paper, robustness is a hill in every order: it is lower at both ends than inside."),
        (1.0, "As in the paper, though elsewhere, robustness is a hill in every order: it is lower"),
        (200, "Robustness is not a hill in every order: an end lies above the inside."),
    ],
)
def test_the_hill(frame, peak, words):
    rows = frame(peak=peak, hessian_least=6.5)
    assert said(rows, "The hill").startswith(words)
    one = rows[rows["beta"] == 1]
    assert " in order 1: " in said(one, "The hill")
    flat = one.assign(**{VALUE: 0.6 + 0.01 * np.random.default_rng(0).standard_normal(len(one))})
    assert said(flat, "The hill") == "That robustness is a hill in order 1 is not shown."
    assert "The hill" not in dict(in_short.answers(one[one["curvature"].isin([2, 7])], VALUE))


def test_orders_on_different_sides_are_told_apart(frame):
    rows = frame(peak=6.5, hessian_least=6.5)
    low = frame(peak=1.0, hessian_least=6.5)
    mixed = rows.assign(**{VALUE: rows[VALUE].where(rows["beta"] != 2, low[VALUE])})
    words = said(mixed, "The peak")
    assert "the intervals of orders 0 and 1 lie inside it, that of order 2 lies below it" in words
    assert in_short.side(Place(0, 4.0, 3.0, 5.0, "")) == "across an edge of"
    assert in_short.side(Place(0, 6.0, 4.0, 10.0, "")) == "inside"


def test_a_hill_that_is_where_the_paper_has_it_in_some_orders_only(frame):
    rows = frame(peak=6.5, hessian_least=6.5)
    assert "though" not in said(rows, "The hill")
    moved = frame(peak=1.0, hessian_least=6.5)
    assert "As in the paper, though elsewhere, robustness is a hill" in said(moved, "The hill")
    mixed = pd.concat([rows[rows["beta"] != 2], moved[moved["beta"] == 2]], ignore_index=True)
    assert "though not in every order where it has the peak" in said(mixed, "The hill")


def test_too_few_seeds_are_said_to_be_too_few(frame):
    assert in_short.answers(frame(peak=6.5, hessian_least=6.5, seeds=1), VALUE) == [
        ("Too early", "There is 1 complete seed so far.")
    ]
    rows = frame(peak=6.5, hessian_least=6.5, seeds=4)
    assert said(rows, "The peak").startswith("Not testable: 5 seeds")
    assert "Hessian diagonal" not in dict(in_short.answers(rows, VALUE))


def test_the_largest_difference_between_orders(frame):
    rows = frame(peak=6.5, hessian_least=6.5)
    words = said(rows, "Orders at equal max|σ″|")
    assert words.startswith("They coincide within 1 point, and lie closer than along α. Largest")
    lower = rows[VALUE] - 0.05 * ((rows["beta"] == 2) & np.isclose(rows["curvature"], 15))
    words = said(rows.assign(**{VALUE: lower}), "Orders at equal max|σ″|")
    assert words.startswith("They do not coincide, but lie closer than along α. Largest")
    (difference,) = re.findall(r"difference: \+([\d.]+) points \([^)]*\), order [01] vs 2 at max\|σ″\| = 15\.", words)
    assert float(difference) == pytest.approx(5, abs=0.3)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(rows))
    apart = said(rows.assign(**{VALUE: 0.6 + 0.03 * rows["beta"] + noise}), "Orders at equal max|σ″|")
    assert apart.startswith("They do not coincide. Largest")
    higher = rows[VALUE] + 0.05 * ((rows["beta"] == 2) & np.isclose(rows["curvature"], 15))
    words = said(rows.assign(**{VALUE: higher}), "Orders at equal max|σ″|")
    assert re.search(r"difference: \u2212[45]\.\d+ points \([^)]*\), order [01] vs 2 at max\|σ″\| = 15\.", words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (-0.05, "is lower in every order that was run. It changes by"),
        (0.05, "is not lower in every order: a rise is shown"),
        (0.0, "is not shown to be lower in every order"),
    ],
)
def test_beyond_10(frame, change, words):
    rows = frame(peak=6.5, hessian_least=6.5)
    noise = 0.01 * np.random.default_rng(0).standard_normal(len(rows))
    found = said(rows.assign(**{VALUE: 0.6 + noise + change * (rows["curvature"] > 10)}), "Beyond 10")
    assert f"Against 4 to 10, robustness {words}" in found
    (estimate,) = re.findall(r"([+\u2212][\d.]+) points \([^)]*\) in order 1", found)
    assert float(estimate.replace("\u2212", "-")) == pytest.approx(100 * change, abs=1)


def test_against_relu(frame):
    rows = frame(peak=6.5, hessian_least=6.5)
    shift = {0: 0.04, 1: 0.0, 2: -0.04}
    noise = 0.01 * np.random.default_rng(1).standard_normal(len(rows))
    level = 0.6 + noise + rows["beta"].map(shift).fillna(0)
    words = said(rows.assign(**{VALUE: level}), "Against ReLU")
    (gain,) = re.findall(r"order 0 is more robust, \+([\d.]+) points", words)
    assert float(gain) == pytest.approx(4, abs=1)
    assert "order 1 is not told apart, " in words
    assert "order 2 is less robust, \u2212" in words
    assert "Against ReLU" not in dict(in_short.answers(rows[rows["activation"] == "rctaf"], VALUE))


def test_the_hessian(frame):
    rows = frame(peak=6.5, hessian_least=6.5)  # least where robustness peaks; ReLU's norm is 2/3 of that
    words = said(rows, "Hessian diagonal")
    assert words.startswith(
        "The norm is U-shaped for both losses. That it is least between 4 and 10 is supported for both losses."
    )
    assert "with more robustness for the clean loss (rank correlations by order \u2212" in words
    assert " and for the loss on attacked images (\u2212" in words
    family = rows[rows["activation"] == "rctaf"]
    means = family.groupby(["beta", "curvature"])[["hessian_clean.rms", VALUE]].mean()
    each = ", ".join(f"{scipy.stats.spearmanr(means.loc[b]).statistic:.2f}" for b in range(3)).replace("-", "\u2212")
    assert f"by order {each})" in words
    ((ratio, low, high),) = re.findall(r"smaller for the clean loss \(([\d.]+) times, ([\d.]+) to ([\d.]+)\)", words)
    assert 0.6 < float(low) <= float(ratio) <= float(high) < 2 / 3 + 0.005  # of the least in the band, in two digits
    few = rows[(rows["activation"] != "relu") | (rows["seed"] < 3)]
    assert "ReLU's norm" in said(few, "Hessian diagonal")  # three seeds of it are enough
    assert "ReLU's norm" not in said(few[(few["activation"] != "relu") | (few["seed"] < 2)], "Hessian diagonal")
    opposed = rows.assign(**{VALUE: 1 - rows[VALUE]})
    assert "with less robustness for the clean loss (rank correlations by order 1.00, 1.00, 1.00)" in said(
        opposed, "Hessian diagonal"
    )
    sharp = rows["hessian_clean.rms"].where(rows["activation"] != "relu", 1.0)
    words = said(rows.assign(**{"hessian_clean.rms": sharp}), "Hessian diagonal")
    assert "is larger for the clean loss" in words
    rising = said(rows.assign(**{"hessian_clean.rms": rows["curvature"].fillna(1.0)}), "Hessian diagonal")
    assert rising.startswith(
        "The norm is not U-shaped for the clean loss and U-shaped for the loss on attacked images. That it is least "
        "between 4 and 10 is not supported for the clean loss and supported for the loss on attacked images."
    )
    assert "smaller for the loss on attacked images" in words


def test_the_papers_scale_counts_every_run_once(frame):
    cifar = Grid(
        name="c", scale="c", base={"dataset": "cifar10"}, blocks=[{"axes": {"curvature": [1, 7], "seed": [0]}}]
    )
    ((head, words),) = in_short.at_paper_scale([(cifar, []), (cifar, []), (GRID, [])])
    assert head == "At the paper's scale"
    assert words == "None of the 2 planned runs on CIFAR-10 is recorded; what happens there is not decided here."
    made = fill(cifar, peak=6.5, hessian_least=6.5)
    for some, words in (
        (made[:1], "1 of the 2 planned runs on CIFAR-10 is"),
        ([*made[:1], *fill(GRID, peak=6.5, hessian_least=6.5, seeds=1)], "1 of the 2 planned runs on CIFAR-10 is"),
        (made, "2 of the 2 planned runs on CIFAR-10 are"),
    ):
        assert in_short.at_paper_scale([(cifar, some)]) == [(head, f"{words} recorded.")]
    assert in_short.at_paper_scale([(GRID, made)]) == []


def test_the_list_escapes_what_it_is_given():
    assert in_short.as_list("a < b", [("x & y", "1 < 2")]).data == (
        '<p>a &lt; b</p><ul class="in-short"><li><strong>x &amp; y.</strong> 1 &lt; 2</li></ul>'
    )


def others_in_short(others, family):
    return in_short.other_functions(others, family, VALUE, controls.other_functions(others, family, VALUE))


def at_equal_rms(others, family):
    judged = controls.other_functions_at_equal_rms(others, family, VALUE)
    return in_short.other_functions_at_equal_rms(others, family, VALUE, judged)


def longer_in_short(rows):
    return in_short.longer(rows, VALUE, controls.longer(rows, VALUE, "some data"))


def test_functions_outside_the_family():
    others, family = other_runs(VALUE, {"elu": -0.03}, peak=1)
    ((head, words),) = others_in_short(others, family)
    assert head == "Outside the family"
    assert re.search(
        r"ELU and RCT-AF are not equally robust \(largest mean difference, ELU minus RCT-AF, \u2212(2\.9|3\.[01]) ",
        words,
    )
    assert "GELU and RCT-AF are equally robust" in words
    assert re.search(r"Most robust are ELU at (0\.9\d?|1|1\.\d) \(0\.71 to 1\.4\) and GELU at ", words)
    assert words.endswith("lie closer to one curve along max|σ″| than along the rms curvature (of normal inputs).")
    ((_, by_rms),) = others_in_short(*other_runs(VALUE, {}, peak=1, label="rms_start"))
    assert by_rms.endswith("lie closer to one curve along the rms curvature (of normal inputs) than along max|σ″|.")
    flat = "; a plateau or at the edge of the grid)"
    assert flat not in words
    ((_, words),) = others_in_short(*other_runs(VALUE, {}))  # no curve has a top
    assert words.count(flat) == 2
    assert "\u22120.0 points" not in words
    assert others_in_short(others.iloc[:0], family) == []
    assert others_in_short(others[others["seed"] < 4], family) == []  # a peak needs five


def test_functions_outside_the_family_at_equal_rms_curvature():
    others, family = other_runs(VALUE, {"elu": -0.03}, 1, "rms_start", at_equal_rms=True)
    ((head, words),) = at_equal_rms(others, family)
    assert head == "Outside the family, at equal rms curvature"
    assert re.match(
        r"ELU and RCT-AF are not equally robust \(largest mean difference, ELU minus RCT-AF, "
        r"\u2212(2\.9|3\.[01]) points, at (0\.5|1|2|4)\) and GELU and RCT-AF are equally robust \(largest",
        words,
    )
    few = family[family["seed"] < 2]
    assert at_equal_rms(others, few) == []


def test_longer_training():
    def world(long_peak, catches_up):
        return longer_runs(VALUE, long_peak, catches_up)

    few = world(1, 0)
    assert longer_in_short(few[few["seed"] < 2]) == []
    ((head, same),) = longer_in_short(few)
    assert head == "Longer training, digits"
    ((_, four),) = longer_in_short(few[few["seed"] < 4])  # a peak needs five
    assert "The fitted best" in same
    assert "The fitted best" not in four
    assert "(5 seeds)" in same
    eight = r"\u2212(7\.9|8\.[01])"
    eights = f"{eight}, {eight} and {eight}"
    assert re.search(
        rf"are not shown to gain on those at 1, nor to lose, in orders 0, 1 and 2 \(from {eights} to {eights} points\)",
        same,
    )
    one = r"(0\.9\d?|1|1\.\d)"
    assert re.search(rf"then {one}, {one} and {one} in orders 0, 1 and 2, in place of {one}, {one} and {one}\.", same)
    ((_, moved),) = longer_in_short(world(0.25, 1))
    assert re.search(
        rf"networks at max\|σ″\| = 0\.25 gain on those at 1 in orders 0, 1 and 2 \(from {eights} to \+", moved
    )
    assert "then 0.25, 0.25 and 0.25 in orders" in moved
    assert "; in orders 0, 1 and 2 this is a plateau or the edge of the grid." in moved
    ((head, fashion),) = longer_in_short(longer_runs(VALUE, 0.25, 1, "fashion"))
    assert head == "Longer training, Fashion-MNIST"
    assert "Trained for 40 epochs in place of 10" in fashion
    assert "at max|σ″| = 0.25 gain on those at 1 in order 1 (from" in fashion
    lost = [-2 * np.mean([np.log2(c / at) ** 2 - np.log2(1 / at) ** 2 for c in (4, 7, 10)]) for at in (1, 0.25)]
    band = re.search(r"from 4 to 10 lose against those at 1 in order 1 \(from (\S+) to (\S+) points\)", fashion)
    assert [float(x.replace("\u2212", "-")) for x in band.groups()] == pytest.approx(lost, abs=0.15)
    mixed = pd.concat([few[few["beta"] < 2], world(1, -0.5)[lambda rows: rows["beta"] == 2]])
    ((_, worse),) = longer_in_short(mixed)
    assert "nor to lose, in orders 0 and 1 (from" in worse
    assert "lose against those at 1 in order 2 (from" in worse
    hill = "Robustness is then a hill, not rising up to 4 and lower beyond 10 in every order."
    assert same.endswith(hill)
    assert moved.endswith("Robustness is then not a hill, not rising up to 4 and lower beyond 10 in every order.")
    cell = few["epochs"].eq(80) & few["beta"].eq(0)
    band = few[cell & few["curvature"].between(4, 10)].groupby("seed")[VALUE].mean()
    about = few["seed"].map(band) + 0.01 * (-1.0) ** few["seed"]  # now above, now below
    flat = few.assign(**{VALUE: few[VALUE].where(~(cell & (few["curvature"] > 10)), about)})
    ((_, some),) = longer_in_short(flat)
    assert some.endswith("and lower beyond 10 in orders 1 and 2 (not shown in order 0).")
    assert "Robustness is then" in fashion
    assert "beyond 10" not in fashion.partition("Robustness is then")[2]  # not run there
    later = longer_in_short(world(6.3, 0))[0][1]
    assert later.endswith("Robustness is then a hill, higher at 4 than below and lower beyond 10 in every order.")
    assert re.search(rf"lose against those at 1 in order 2 \(from {eight} to \u221212\.\d points\)", worse)


def test_harm_of_longer_training():
    def answer(single, stronger, seeds=5):
        lost = dict(zip((controls.AS_BEFORE, *controls.CHANGES), (0.3, single, stronger, 0.2), strict=True))
        rows = harmed_runs(VALUE, lost)[lambda made: made["seed"] < seeds]
        return in_short.harm(rows, VALUE, controls.harm(rows, VALUE))

    assert answer(0, 0, seeds=2) == []
    ((head, mended),) = answer(0.02, 0.3)
    assert head == "Harm of longer training, Fashion-MNIST"
    thirty = r"\u2212(29\.9|30\.[01])"
    assert re.search(
        r"After 40 epochs networks of max\|σ″\| = 7 differ from those of 1 "
        rf"by {thirty} points \(order 1, TRADES in bf16, 5 attack steps\); "
        rf"with single precision \u2212(1\.9|2\.[01]) \(less harm\), with 10 attack steps {thirty} "
        r"\(neither less harm nor more is shown\) and with PGD \u2212(19\.9|20\.[01]) \(less harm\)\.",
        mended,
    )
    ((_, worse),) = answer(0.4, 0.1)
    assert "(more harm), with 10 attack steps" in worse
    assert "(less harm). Of the networks of 7, 0 of 5 have a robustness below 40\u00a0%, and" in worse
    ends = "and 5 of 5 with single precision, 0 of 5 with 10 attack steps and 0 of 5 with PGD."
    assert worse.endswith(ends)  # at 1 robustness is 70 to 74 %
