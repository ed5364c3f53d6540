"""The generated sentences that are no verdicts: every number in them against one computed here from the records."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic import fill

from rctaf import figures, remarks
from rctaf.config import Grid
from rctaf.records import table

CURVATURES = [0.5, 1, 4, 7, 25]
SEEDS = [0, 1, 2, 3, 4]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))


def grid(**base) -> Grid:
    axes = {"seed": SEEDS, "beta": [0, 2], "curvature": CURVATURES}
    blocks = [{"axes": axes}, {"axes": {"seed": SEEDS, "activation": ["relu"]}}]
    return Grid(name="some", scale="synthetic", base=base, blocks=blocks)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[+-]?\d+(?:\.\d+)?", text.replace("\u2212", "-"))]


def of(records, beta, c, read) -> np.ndarray:
    """What ``read`` finds in the records of a cell, by seed."""
    found = {
        r.config.seed: read(r) for r in records if r.config.beta == beta and r.config.curvature == pytest.approx(c)
    }
    return np.array([found[seed] for seed in sorted(found)])


def interval(values) -> list[float]:
    """Mean and 95 % interval in percentage points, to two places."""
    v = 100 * np.asarray(values)
    half = stats.t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / len(v) ** 0.5
    return [round(float(x), 2) for x in (v.mean(), v.mean() - half, v.mean() + half)]


def varied(records) -> None:
    """PGD-20 leaves more at a larger curvature and, in order 2, much more in the middle; each seed a little else."""
    for r in records:
        c, m = r.config.curvature or 1, r.metrics
        gap = 0.02 + 0.001 * c + 0.001 * np.sin(3 * r.config.seed + c) + 0.2 * (r.config.beta == 2 and c == 7)
        m["pgd20_accuracy"] = m["screening_accuracy"] + gap
        m["autoattack"]["waterfall"][0]["robust"] = round(500 * (m["pgd20_accuracy"] - 0.3 * gap))


def test_strength_of_the_attack():
    made = fill(grid(), peak=1.0, hessian_least=1.0)
    varied(made)
    frame = remarks.by_strength(made)
    first = [r.metrics["autoattack"]["waterfall"][0]["robust"] / 500 for r in made]
    assert frame["apgd_ce_accuracy"].tolist() == first
    text = remarks.strength(frame, "screening_accuracy")
    head, bullets, own = text.split("\n\n")
    assert "grows in orders 0 and 2 (95\u00a0% interval above 0; since the most robust" in head
    assert ": a part of the fall in orders 0 and 2 shows only under APGD-CE + APGD-T." in head
    assert head.endswith("5 seeds:")

    def weak(r):
        return r.metrics["pgd20_accuracy"]

    def strong(r):
        return r.metrics["screening_accuracy"]

    for line, beta, places in zip(bullets.splitlines(), (0, 2), ([0.5, 1, 25], [0.5, 1, 7, 25]), strict=True):
        assert line.startswith(f"- order {beta}: ")
        gaps = {c: of(made, beta, c, weak) - of(made, beta, c, strong) for c in CURVATURES}
        wanted = [number for c in places for number in (*interval(gaps[c]), c)]
        changes = [interval(of(made, beta, 25, read) - of(made, beta, 1, read)) for read in (weak, strong)]
        told, change = line.removeprefix(f"- order {beta}: ").split(". From ")
        assert numbers(told) == wanted
        assert numbers(change.replace("PGD-20", "")) == [1, 25, *changes[0], *changes[1]]
        largest = "highest and largest difference" if beta == 0 else "largest difference"
        assert re.search(rf"at {places[-1] if beta == 0 else 7} \({largest}\)", told)
        assert "at 0.5 (lowest)" in told
        assert "at 1 (most robust)" in told

    def ce(r):
        return r.metrics["autoattack"]["waterfall"][0]["robust"] / 500

    means = [np.mean([of(made, b, c, weak) - of(made, b, c, ce) for b in (0, 2)], axis=0) for c in (0.5, 1, 25)]
    assert numbers(own.replace("PGD-20", "")) == [number for values in means for number in interval(values)]

    assert "3 are needed" in remarks.strength(frame[frame["seed"] < 2], "screening_accuracy")
    for r in made:  # the accuracies scatter so much at the end that no fall is shown; the difference stays
        if r.config.curvature == pytest.approx(25):
            for name in ("screening_accuracy", "pgd20_accuracy"):
                r.metrics[name] += 0.3 * np.cos(2 * r.config.seed)
    head = remarks.strength(remarks.by_strength(made), "screening_accuracy")
    assert "grows in orders 0 and 2" in head
    assert "a part of the fall" not in head
    assert remarks.strength(frame, "robust_accuracy") == ""  # not measured
    assert remarks.strength(frame.assign(pgd20_larger_accuracy=0.1), "pgd20_larger_accuracy") == ""  # another budget
    assert remarks.strength(frame, "pgd20_accuracy") == ""  # against itself
    for r in made:  # the difference shrinks; at the end of order 2 it is larger on average, but not in every seed
        c = r.config.curvature or 1
        last = 0.006 + 0.02 * np.cos(3 * r.config.seed) if r.config.beta == 2 and c > 20 else 0
        r.metrics["pgd20_accuracy"] = r.metrics["screening_accuracy"] + 0.03 + (last or -0.001 * c)
    assert "grows in no order" in remarks.strength(remarks.by_strength(made), "screening_accuracy")
    for r in made:  # the stronger attack alone sees a fall
        level = 0.6 + 0.01 * np.sin(r.config.seed)
        r.metrics.update(pgd20_accuracy=level, screening_accuracy=level - 0.002 * (r.config.curvature or 1))
    head = remarks.strength(remarks.by_strength(made), "screening_accuracy")
    assert "a part of the fall in orders 0 and 2 shows only under APGD-CE + APGD-T." in head


def test_panels_show_every_attack_that_was_run():
    made = fill(grid(autoattack="standard"), peak=1.0, hessian_least=1.0)
    varied(made)
    frame = remarks.by_strength(made)
    points = figures.attack_cells(frame)
    assert list(dict.fromkeys(points["attack"])) == ["PGD-20", "APGD-CE", "APGD-CE + APGD-T", "AutoAttack"]
    fig = figures.attack_panels(points, "title")
    assert len(fig.data) == 4 * 2
    assert sum(trace.showlegend for trace in fig.data) == 4
    for axis, beta in ((None, 0), ("y2", 2)):
        lines = {trace.name: trace for trace in fig.data if trace.yaxis in (axis, axis or "y")}
        for name, column in {"PGD-20": "pgd20_accuracy", "AutoAttack": "robust_accuracy"}.items():
            wanted = [100 * of(made, beta, c, lambda r, column=column: r.metrics[column]).mean() for c in CURVATURES]
            assert list(lines[name].y) == pytest.approx(wanted)
        assert len({trace.line.color for trace in lines.values()} | {figures.COLOURS[beta] for beta in range(3)}) == 7
    screened = [replace(r, metrics={k: v for k, v in r.metrics.items() if k != "robust_accuracy"}) for r in made]
    assert set(figures.attack_cells(remarks.by_strength(screened))["attack"]) == set(points["attack"]) - {"AutoAttack"}


def test_what_the_last_attacks_take():
    made = fill(grid(autoattack="standard"), peak=1.0, hessian_least=1.0)
    for r in made:
        late = (r.config.curvature or 0) > 10
        for entry, robust in zip(r.metrics["autoattack"]["waterfall"], (310, 300, 298, 297 - 5 * late), strict=True):
            entry["robust"] = robust
    said = remarks.last_attacks(made)
    # FAB 2 of 500 images; Square 1, and 6 at one of the five curvatures
    assert numbers(said) == [50, 0.4, 0.4, 0.4, 1.2, 0.2, 10, 1.2, 10]
    assert said.startswith("In 50 runs of RCT-AF")
    few = [r for r in made if r.config.curvature in (CURVATURES[0], CURVATURES[-1])]
    said = remarks.last_attacks(few)
    assert numbers(said)[-4:] == [0.2, CURVATURES[0], 1.2, CURVATURES[-1]]
    screened = fill(grid(), peak=1.0, hessian_least=1.0)
    assert remarks.last_attacks(screened).startswith("No record holds")


def test_the_larger_budget():
    made = fill(grid(epsilon="0.1", epsilon_larger="0.3"), peak=1.0, hessian_least=1.0)
    for r in made:
        peak = 4 if r.config.beta == 2 else 1  # at the larger budget, in order 2 only
        far = abs(np.log((r.config.curvature or 1) / peak))
        r.metrics["pgd20_larger_accuracy"] = 0.4 - 0.05 * far + 0.001 * np.sin(7 * r.config.seed)
    said = remarks.larger_budget(table(made))
    assert "differs between the two budgets in order 2." in said
    main, larger = said.split("\n\n")[1].splitlines()
    assert main.startswith("- ε = 0.1: order 0: ")
    assert larger.startswith("- ε = 0.3: order 0: ")
    assert re.findall(r"highest mean at ([0-9.]+)", main) == ["1", "1"]
    assert re.findall(r"highest mean at ([0-9.]+)", larger) == ["1", "4"]
    same = [r for r in made if r.config.beta != 2]
    assert "is the same at both budgets in every order" in remarks.larger_budget(table(same))
    evaluated = fill(grid(epsilon="0.1", epsilon_eval="0.2"), peak=1.0, hessian_least=1.0)
    for r in evaluated:
        r.metrics["pgd20_larger_accuracy"] = r.metrics["pgd20_accuracy"]
    assert "- ε = 0.2: order 0" in remarks.larger_budget(table(evaluated))
    assert remarks.larger_budget(table(fill(grid(), peak=1.0, hessian_least=1.0))) == ""
    few = [r for r in made if r.config.curvature in (0.5, 1)]
    assert "at only 2 curvatures; 4 are needed." in remarks.larger_budget(table(few))


def test_tuned_by_earlier_seeds_against_a_loop():
    """Each seed is compared where the seeds before it have their highest mean, though its own may lie elsewhere."""
    blocks = [{"axes": {"seed": SEEDS, "activation": ["relu", "gelu"]}}]
    made = fill(grid(), peak=1.0, hessian_least=1.0, noise=0.03)
    made += [r for r in fill(Grid(name="more", scale="s", blocks=blocks), peak=1.0, hessian_least=1.0) if r not in made]
    made = list({r.run_id: r for r in made}.values())

    def robust(r):
        return r.metrics["screening_accuracy"]

    head, bullets = remarks.tuned_by_earlier_seeds(table(made), "screening_accuracy").split("\n\n")
    assert head == "95\u00a0% intervals over 4 seeds:"
    common = {name: [robust(r) for r in made if r.config.activation == name] for name in ("relu", "gelu")}
    assert {len(values) for values in common.values()} == {5}
    ranked = sorted(common.values(), key=np.mean, reverse=True)
    elsewhere = 0
    for line, beta in zip(bullets.splitlines(), (0, 2), strict=True):
        runs = {c: of(made, beta, c, robust) for c in CURVATURES}
        chosen = [max(CURVATURES, key=lambda c, s=s: runs[c][:s].mean()) for s in range(1, 5)]
        elsewhere += sum(runs[c][s] < max(r[s] for r in runs.values()) for s, c in enumerate(chosen, 1))
        tuned = np.array([runs[c][s] for s, c in enumerate(chosen, 1)])
        told, differences = line.removeprefix(f"- order {beta}, at ").split(": ")
        assert numbers(told) == sorted(set(chosen))
        assert numbers(differences) == [x for values in ranked for x in interval(tuned - np.array(values[1:]))]
    assert elsewhere > 0
    few = [r for r in made if r.config.activation != "relu" and r.config.activation != "gelu"]
    assert remarks.tuned_by_earlier_seeds(table(few), "screening_accuracy").startswith("No common activation")


def test_training_and_test():
    made = fill(grid(), peak=1.0, hessian_least=1.0)
    for r in made:
        c = r.config.curvature or 1
        r.history["train_robust_accuracy"][:] = [0.1, 0.7 + 0.01 * abs(np.log(c)) + 0.01 * np.cos(r.config.seed * c)]
    frame = remarks.training_and_test(made)
    text = remarks.gap(frame, "screening_accuracy")
    head, bullets = text.split("\n\n")
    assert "grows in orders 0 and 2 (95\u00a0% interval above 0; since" in head
    assert head.endswith("; 5 seeds:")

    def read(r):
        return r.history["train_robust_accuracy"][-1] - r.metrics["pgd20_accuracy"]

    for line, beta in zip(bullets.splitlines(), (0, 2), strict=True):
        gaps = {c: of(made, beta, c, read) for c in CURVATURES}
        largest = max(gaps, key=lambda c: gaps[c].mean())
        wanted = [number for c in sorted({0.5, 1, 25, largest}) for number in (*interval(gaps[c]), c)]
        told, change = line.removeprefix(f"- order {beta}: ").split("; from ")
        assert numbers(told) == wanted
        assert numbers(change) == [1, 25, *interval(gaps[25] - gaps[1])]
    by_strong = remarks.training_and_test(made, "screening_accuracy")
    assert (by_strong["robust_gap"] - frame["robust_gap"]).to_numpy() == pytest.approx(
        (frame["pgd20_accuracy"] - frame["screening_accuracy"]).to_numpy()
    )
    standard = fill(grid(method="standard"), peak=1.0, hessian_least=1.0)
    assert "3 are needed" in remarks.gap(remarks.training_and_test(standard), "screening_accuracy")


def test_the_share_of_the_second_derivative():
    made = fill(grid(), peak=1.0, hessian_least=1.0)
    for r in made:
        c, estimate = r.config.curvature, r.metrics["hessian_clean"]
        estimate["gauss_newton_square"] = 4.0
        share = 0.01 if c is None else (0.5 if r.config.beta == 0 and c == 1 else 1 + c) * np.exp(0.1 * r.config.seed)
        estimate["remainder_square"] = -0.08 if c is None else 4 * share**2
    frame = remarks.with_sigma_shares(table(made))
    relu = frame[frame["activation"] == "relu"]
    assert relu["hessian_clean.sigma_share"].isna().all()  # a negative square has no root

    def read(r):
        estimate = r.metrics["hessian_clean"]
        return np.log(estimate["remainder_square"] / estimate["gauss_newton_square"]) / 2

    def ratio(logs) -> list[float]:
        half = stats.t.ppf(0.975, 4) * np.std(logs, ddof=1) / 5**0.5
        return [float(f"{np.exp(x):.3g}") for x in (np.mean(logs), np.mean(logs) - half, np.mean(logs) + half)]

    def region(curvatures) -> list[float]:
        return ratio(np.mean([of(made, beta, c, read) for beta in (0, 2) for c in curvatures], axis=0))

    said = remarks.sigma_share(frame, "clean")
    wanted = [*region([0.5, 1]), 4, *region([4, 7]), 4, 10, *region([25]), 10]
    wanted += [*ratio(of(made, 0, 1, read)), 0, 1, *ratio(of(made, 0, 25, read)), 0, 25]  # order 2 has the same there
    wanted += [95, 5, 9, 10, 1, -0.02, -0.02, -0.02]
    assert numbers(said.replace("order 2 at 25", "order 0 at 25")) == pytest.approx(wanted)
    assert said.startswith("Clean loss: ")
    assert "3 are needed" in remarks.sigma_share(frame[frame["seed"] < 2], "clean")
    unmeasured = table(made).drop(columns=["hessian_clean.remainder_square", "hessian_clean.gauss_newton_square"])
    assert "3 are needed" in remarks.sigma_share(remarks.with_sigma_shares(unmeasured), "clean")
