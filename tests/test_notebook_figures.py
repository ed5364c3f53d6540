"""Synthetic records of known shape go through the figure notebooks; the numbers are read back out of the figures."""

import base64
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml
from synthetic import fill

from rctaf import evidence, figures, records, tables, words
from rctaf.config import Grid
from rctaf.notebooks import execute_notebook
from rctaf.verdicts import ADDED, ADDED_MARK, NEW_SEED, OUTCOMES, Verdict

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "notebooks" / "figures"
CURVATURES = [0.25, 1, 2, 4, 7, 10, 25]
SEEDS = [0, 1, 2, 3, 4]


def numbers(column) -> np.ndarray:
    """A column of a Plotly figure as floats; Plotly writes arrays in base64."""
    if isinstance(column, dict):
        return np.frombuffer(base64.b64decode(column["bdata"]), dtype=column["dtype"]).astype(float)
    return np.asarray(column, dtype=float)


def outputs(path: Path, mime: str) -> list:
    cells = nbformat.read(path, as_version=4).cells
    found = [o["data"][mime] for c in cells if c.cell_type == "code" for o in c.outputs if mime in o.get("data", {})]
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with grids of synthetic records, five seeds each: peak of robustness at 6.5, least Hessian at 1."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RCTAF_RESULTS", str(folder))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name, method in (("known", "trades"), ("standard", "standard"), ("empty", "dkl")):
            axes = {"seed": SEEDS, "beta": [0, 1, 2], "curvature": CURVATURES}
            doc = {
                "name": name, "scale": f"reduced scale: synthetic {name}", "base": {"method": method},
                "blocks": [{"axes": axes}, {"axes": {"seed": SEEDS, "activation": ["relu"]}}],
            }  # fmt: skip
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(doc))
            if name != "empty":
                fill(Grid(**doc), peak=6.5, hessian_least=1.0)
        for name, choices in (("network", ["resnet_small", "resnet18"]), ("method", ["pgd", "mart"])):
            doc = {
                "name": name, "scale": f"synthetic {name}", "base": {"beta": 1},
                "blocks": [{"axes": {"seed": SEEDS, name: choices, "curvature": CURVATURES}}],
            }  # fmt: skip
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(doc))
            fill(Grid(**doc), peak=6.5, hessian_least=1.0)
        yield folder


def traces(figure: dict) -> dict[int, dict]:
    return {int(t["name"][-1]): t for t in figure["data"] if t["name"].startswith("order")}


def expected(folder: Path, name: str, beta: int, read) -> np.ndarray:
    """Mean over seeds for each curvature, by a loop over the files and nothing of the package's table."""
    cells = Grid.load(folder / f"{name}.yaml").cells()
    docs = [json.loads((folder / "local" / run_id / "run.json").read_text()) for run_id in cells]
    means = []
    for c in CURVATURES:
        values = [
            read(d["metrics"]) for d in docs
            if d["config"]["beta"] == beta and d["metrics"]["curvature"] == pytest.approx(c)
        ]  # fmt: skip
        assert len(values) == 5
        means.append(sum(values) / 5)
    return np.array(means)


def ids(folder: Path, name: str, **settings) -> list[str]:
    """The ids of a grid's runs with these settings, in the order of the grid."""
    cells = Grid.load(folder / f"{name}.yaml").cells()
    return [
        run_id for run_id, config in cells.items()
        if all(getattr(config, key) == (pytest.approx(v) if key == "curvature" else v) for key, v in settings.items())
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "low", "high"), [("clean_accuracy", 0.0, 1.0), ("other", -5.4, 7.3)])
def test_interval_of_an_accuracy_stays_within_0_and_1(value, low, high):
    # two seeds, t = 12.7: 0.95 ± 6.35
    frame = pd.DataFrame(
        {"activation": "rct", "beta": 1, "curvature": 2.0, "seed": [0, 1], "id": ["a", "b"], value: [0.45, 1.45]}
    )
    (cell,) = evidence.cells(frame, value).itertuples()
    assert (cell.low, cell.high) == pytest.approx((low, high), abs=0.01)


def test_a_mean_over_seeds_is_of_runs_that_differ_in_nothing_else():
    rows = [
        {
            "activation": "rctaf",
            "beta": 1,
            "curvature": 2.0,
            "seed": seed,
            "method": method,
            "lam": lam,
            "a_accuracy": 0.5,
        }
        for seed in (0, 1)
        for method, lam in (("trades", 6.0), ("pgd", None))
    ]
    frame = pd.DataFrame(rows).assign(id="x", lr_drops=[[75]] * 4)
    with pytest.raises(ValueError, match="would mix different runs, by method, lam: draw a grid for each"):
        evidence.cells(frame, "a_accuracy")
    assert evidence.cells(frame, "a_accuracy", by=["method", "curvature"])["n"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="no record here has 'b_accuracy'; there are a_accuracy"):
        evidence.cells(frame, "b_accuracy")


def test_figure_3(store, tmp_path):
    out = tmp_path / "figure_3.ipynb"
    grids = [str(store / "known.yaml"), str(store / "empty.yaml")]
    execute_notebook(FIGURES / "figure_3.ipynb", out, {"grids": grids})
    # the empty grid draws nothing
    by_alpha, by_curvature, by_attack = outputs(out, "application/vnd.plotly.v1+json")
    for beta in range(3):
        truth = 100 * expected(store, "known", beta, lambda m: m["screening_accuracy"])
        for figure, x in ((by_curvature, CURVATURES), (by_alpha, np.array(CURVATURES) / 2.0 ** (beta - 2))):
            trace = traces(figure)[beta]
            np.testing.assert_allclose(numbers(trace["y"]), truth, rtol=1e-12)
            aside = numbers(trace["x"]) / x  # the intervals of the orders stand beside each other
            np.testing.assert_allclose(aside, aside[0], rtol=1e-9)
            assert [0.95 < aside[0] < 0.99, aside[0] == pytest.approx(1), 1.01 < aside[0] < 1.05].index(True) == beta
            shown = [re.search(r"(?:α|σ″\|)\s([0-9.]+)<br>", text)[1] for text in trace["text"]]
            np.testing.assert_allclose([float(number) for number in shown], x, rtol=1e-3)  # but the reader is told x
            assert all(re.search("<br>mean .* %<br>95 % interval .*<br>5 seeds$", text.replace("\u00a0", " "))
                       for text in trace["text"])  # fmt: skip
            for curvature, runs in zip(CURVATURES, trace["customdata"], strict=True):
                assert runs.split() == ids(store, "known", beta=beta, curvature=curvature)
    baseline = ids(store, "known", activation="relu")
    docs = [json.loads((store / "local" / run_id / "run.json").read_text()) for run_id in baseline]
    scores = [100 * doc["metrics"]["screening_accuracy"] for doc in docs]
    half = 2.776445 * np.std(scores, ddof=1) / 5**0.5  # Student's t for five seeds
    for figure in (by_alpha, by_curvature):
        band, relu = (trace for trace in figure["data"] if trace["name"].startswith("ReLU"))
        assert set(relu["customdata"]) == {" ".join(baseline)}
        np.testing.assert_allclose(relu["y"], np.mean(scores), rtol=1e-9)
        low, high = np.mean(scores) - half, np.mean(scores) + half
        np.testing.assert_allclose(band["y"], [low, low, high, high], rtol=1e-6)
        (name,) = (note for note in figure["layout"]["annotations"] if note["text"] == "ReLU")
        assert (name["x"], name["xanchor"], name["y"]) == (0, "left", pytest.approx(np.mean(scores)))
    places = {("PGD-20", "y"): 0, ("PGD-20", "y2"): 1, ("APGD-CE + APGD-T", "y3"): 2}
    shown = {(trace["name"], trace["yaxis"]): numbers(trace["y"]) for trace in by_attack["data"]}
    for (name, axis), beta in places.items():
        column = {"PGD-20": "pgd20_accuracy", "APGD-CE + APGD-T": "screening_accuracy"}[name]
        truth = 100 * expected(store, "known", beta, lambda m, column=column: m[column])
        np.testing.assert_allclose(shown[name, axis], truth, rtol=1e-12)
    table, unlinked = (box for box in outputs(out, "text/html") if "<details>" in box)
    assert unlinked.count("<tr>") == 1 + 3 * 3 * len(CURVATURES)  # three attacks
    assert "href" not in unlinked
    for beta in range(3):
        for curvature in CURVATURES:
            runs = ids(store, "known", beta=beta, curvature=curvature)
            assert f'href="records.html#{",".join(runs)}">5<' in table
            assert all(f'href="../../records/{run_id}.json">{run_id}<' in table for run_id in runs)
    # the reduced scale is named in each title, and the rest of its words above
    assert by_curvature["layout"]["title"]["text"] == "(b) against max|σ″|: digits, reduced scale"
    assert "reduced scale: synthetic known" in " ".join(outputs(out, "text/markdown"))
    assert by_curvature["layout"]["yaxis"]["title"]["text"] == "accuracy under APGD-CE + APGD-T, %"
    boxes = outputs(out, "text/html")
    verdicts = [box for box in boxes if 'class="verdict"' in box]
    assert len(verdicts) == 7
    assert "Verdict: supported" in verdicts[0]  # the peak was put at 6.5
    assert [ADDED in box for box in verdicts] == [False] * 5 + [True] * 2
    text = " ".join(outputs(out, "text/markdown"))
    assert "none of its 110 runs has a record yet" in text
    assert "the difference between PGD-20 and APGD-CE + APGD-T grows" in text
    assert "With the 500 attacked images as a sample too" in text
    (differences,) = (box for box in boxes if "over seeds and images" in box)
    assert differences.count("<tr>") == 1 + 3  # none of a peak against 7: the highest means are there
    assert "is the same at both budgets" not in text  # no larger budget was measured
    assert "accuracy in training minus accuracy on test images" in text
    assert "all made on this machine" in text


def test_quick_has_no_baselines_and_one_seed(store, tmp_path):
    doc = yaml.safe_load((store / "known.yaml").read_text())
    doc["blocks"] = [{"axes": {"seed": [0], "beta": [0, 1, 2], "curvature": CURVATURES}}]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(doc))
    for figure in ("figure_3", "figure_7"):
        out = tmp_path / f"{figure}.ipynb"
        execute_notebook(FIGURES / f"{figure}.ipynb", out, {"grids": [str(tmp_path / "one.yaml")]})
        assert len(outputs(out, "application/vnd.plotly.v1+json")) >= 2
        html = outputs(out, "text/html")
        assert not any('class="verdict"' in box for box in html)
        tables = [table for table in html if "none of them testable on these runs" in table]
        assert [table.count("not testable") for table in tables] == {"figure_3": [7], "figure_7": [8, 6]}[figure]


def test_figure_7(store, tmp_path):
    out = tmp_path / "figure_7.ipynb"
    parameters = {
        "grids": [str(store / "known.yaml")],
        "inputs_grids": [str(store / "known.yaml")],
        "standard_grids": [str(store / "standard.yaml")],
    }
    execute_notebook(FIGURES / "figure_7.ipynb", out, parameters)
    drawn = outputs(out, "application/vnd.plotly.v1+json")
    clean, adversarial, *scale_free, share, _, spectral, normalised, linearity, standard = drawn
    reads = {
        "hessian_clean": (clean, "known", lambda m: np.log(m["hessian_clean"]["rms"])),
        "hessian_adversarial": (adversarial, "known", lambda m: np.log(m["hessian_adversarial"]["rms"])),
        "scale-free, clean": (scale_free[0], "known", lambda m: np.log(9 * m["hessian_clean"]["rms"])),
        "scale-free, adversarial": (scale_free[1], "known", lambda m: np.log(9 * m["hessian_adversarial"]["rms"])),
        "spectral": (spectral, "known", lambda m: np.log(m["input_curvature"]["spectral_norm"])),
        "normalised": (normalised, "known", lambda m: np.log(m["input_curvature"]["normalised"])),
        "linearity": (linearity, "known", lambda m: np.log(m["input_curvature"]["linearity_error"])),
        "clean_accuracy": (standard, "standard", lambda m: m["clean_accuracy"]),
    }
    for name, (figure, grid, read) in reads.items():
        for beta in range(3):
            got = numbers(traces(figure)[beta]["y"])
            got = got / 100 if name == "clean_accuracy" else np.log(got)  # norms: geometric means
            np.testing.assert_allclose(got, expected(store, grid, beta, read), rtol=1e-12)
    np.testing.assert_allclose([numbers(traces(share)[beta]["y"]) for beta in range(3)], 1.5, rtol=1e-9)
    assert len(share["data"]) == 3  # ReLU has no second derivative
    bars = traces(clean)[1]["error_y"]  # symmetric in the logarithm
    middle = numbers(traces(clean)[1]["y"])
    high, low = middle + numbers(bars["array"]), middle - numbers(bars["arrayminus"])
    np.testing.assert_allclose(high / middle, middle / low, rtol=1e-9)
    assert (high > middle).all()
    text = " ".join(outputs(out, "text/markdown"))
    assert "the first 128 test images; for the attacked loss PGD-20 in ℓ∞ with ε = 0.15; 64 probes" in text
    assert "training in fp32" in text
    verdicts = [box for box in outputs(out, "text/html") if 'class="verdict"' in box]
    assert "The first 64 test images, unchanged." in text
    assert len(verdicts) == 8 + 6 + 5 + 1
    assert "Verdict: supported" in verdicts[0]  # a U
    assert "Verdict: not supported" in verdicts[1]  # whose bottom was put at 1


@pytest.mark.parametrize(
    ("figure", "series"), [("figure_4", "network"), ("figure_5", "method"), ("figure_6", "method")]
)
def test_comparisons(store, tmp_path, figure, series):
    names = {
        "resnet_small": "ResNet-8 (8/16/32 channels)", "resnet18": "ResNet-18", "pgd": "PGD-AT", "mart": "MART",
    }  # fmt: skip
    out = tmp_path / f"{figure}.ipynb"
    execute_notebook(FIGURES / f"{figure}.ipynb", out, {"grids": [str(store / f"{series}.yaml")]})
    (drawn,) = outputs(out, "application/vnd.plotly.v1+json")
    lines = {trace["name"]: numbers(trace["y"]) for trace in drawn["data"]}
    for sign in (lambda t: t["line"]["color"], lambda t: t["line"]["dash"], lambda t: t["marker"]["symbol"]):
        assert len({sign(trace) for trace in drawn["data"]}) == 2  # each alone tells the series apart
    cells = Grid.load(store / f"{series}.yaml").cells()
    for name, line in lines.items():
        for y, c in zip(line, CURVATURES, strict=True):
            chosen = [
                run_id for run_id, config in cells.items()
                if names[getattr(config, series)] == name and config.curvature == pytest.approx(c)
            ]  # fmt: skip
            docs = [json.loads((store / "local" / run_id / "run.json").read_text()) for run_id in chosen]
            assert len(docs) == 5
            assert y == pytest.approx(100 * sum(d["metrics"]["screening_accuracy"] for d in docs) / 5, rel=1e-12)
    assert len(lines) == 2
    boxes = [box for box in outputs(out, "text/html") if 'class="verdict"' in box]
    assert len(boxes) == 3
    assert f"for every {series}, in order 1" in boxes[0]
    assert all("Verdict: supported" in box for box in boxes)  # both peaks were put at 6.5


def test_data_sets_are_compared_at_the_orders_they_share(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    for dataset, orders in (("digits", [0, 1]), ("fashion_mnist", [1, 2])):
        axes = {"seed": SEEDS, "beta": orders, "curvature": CURVATURES}
        doc = {"name": f"of {dataset}", "scale": "synthetic", "base": {"dataset": dataset}, "blocks": [{"axes": axes}]}
        (tmp_path / f"{dataset}.yaml").write_text(yaml.safe_dump(doc))
        fill(Grid(**doc), peak=6.5, hessian_least=1.0)
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(doc | {"name": "none", "base": {"dataset": "cifar10"}}))
    relu = {"name": "relu", "scale": "synthetic", "blocks": [{"axes": {"seed": SEEDS, "activation": ["relu"]}}]}
    (tmp_path / "relu.yaml").write_text(yaml.safe_dump(relu))
    fill(Grid(**relu), peak=6.5, hessian_least=1.0)
    both = [str(tmp_path / f"{name}.yaml") for name in ("digits", "none", "fashion_mnist", "relu")]
    out = tmp_path / "figure_6.ipynb"
    execute_notebook(FIGURES / "figure_6.ipynb", out, {"grids": [], "data_sets": both})
    (drawn,) = outputs(out, "application/vnd.plotly.v1+json")
    assert [trace["name"] for trace in drawn["data"]] == ["Fashion-MNIST (of fashion_mnist)", "digits (of digits)"]
    assert "order β = 1" in drawn["layout"]["title"]["text"]
    (box,) = (box for box in outputs(out, "text/html") if 'class="verdict"' in box)
    assert "for every data set, in order 1" in box
    assert "Verdict: supported" in box

    empty = {both[1]: "none"}
    none = {"adversarial_grids": empty, "standard_grids": [], "comparisons": {}, "data_sets": both}
    execute_notebook(FIGURES / "summary.ipynb", tmp_path / "summary.ipynb", none)
    assert sum("table overview" in box for box in outputs(tmp_path / "summary.ipynb", "text/html")) == 1  # controls
    text = " ".join(outputs(tmp_path / "summary.ipynb", "text/markdown"))
    assert "- Across digits and Fashion-MNIST, one peak between 4 and 10 for every data set: supported" in text


@pytest.mark.parametrize("figure", ["figure_3", "figure_4", "figure_5", "figure_6", "figure_7", "table_1"])
def test_every_page_draws_its_grids_when_they_are_complete(tmp_path, monkeypatch, figure):
    """Of the paper's grids there are no records yet: whoever makes them must get the page."""
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    parameters: dict = {}
    exec(nbformat.read(FIGURES / f"{figure}.ipynb", as_version=4).cells[1].source, parameters)
    paths = [path for name in ("grids", "inputs_grids", "standard_grids") for path in parameters.get(name, [])]
    paper = [path for path in paths if "/paper/" in path]
    assert paper
    for path in paper:
        fill(Grid.load(ROOT / path), peak=6.5, hessian_least=1.0)
    out = tmp_path / f"{figure}.ipynb"
    execute_notebook(FIGURES / f"{figure}.ipynb", out)
    drawn = outputs(out, "application/vnd.plotly.v1+json")
    if figure == "table_1":
        (table,) = (box for box in outputs(out, "text/html") if "<th>AutoAttack %" in box)
        assert "no record" not in table
        assert "robust accuracy (AutoAttack) %" in table
    else:
        assert drawn
        assert figure == "figure_7" or all(
            "(AutoAttack)" in title or title.startswith("order β")  # a panel by attack
            for title in (chart["layout"]["yaxis"]["title"]["text"] for chart in drawn)
        )


def test_a_sweep_whose_first_records_are_baselines_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    axes = {"seed": [0], "activation": ["relu"]}
    frame = records.table(fill(Grid(name="early", scale="s", blocks=[{"axes": axes}]), peak=6.5, hessian_least=1.0))
    points, baselines = (
        evidence.cells(frame[frame["activation"] == name], "screening_accuracy") for name in ("rctaf", "relu")
    )
    for x in ("curvature", "alpha"):
        drawn = figures.curves(points.assign(alpha=[]), "accuracy", "title", x=x)
        assert not figures.add_reference_lines(drawn, baselines).data
    assert frame["id"].item() in tables.runs_table(points, baselines).data
    assert tables.runs_table(points, points).data == ""


def test_figure_5_tells_in_what_the_methods_differ(store, tmp_path):
    doc = {
        "name": "recipes", "scale": "synthetic recipes", "base": {"beta": 1, "curvature": 7}, "blocks": [
            {"base": {"method": "trades"}},
            {"base": {"method": "dajat", "auto_views": 0, "lam": 11, "awp": 0.005, "awp_from": 2}},
        ],
    }  # fmt: skip
    (tmp_path / "recipes.yaml").write_text(yaml.safe_dump(doc))
    fill(Grid(**doc), peak=6.5, hessian_least=1.0)
    out = tmp_path / "figure_5.ipynb"
    execute_notebook(FIGURES / "figure_5.ipynb", out, {"grids": [str(tmp_path / "recipes.yaml")]})
    text = " ".join(outputs(out, "text/markdown"))
    assert "adversarial weight perturbation (ACAT); an average of the weights (none);" in text
    assert "With none of these: TRADES." in text
    (table,) = (box for box in outputs(out, "text/html") if "table recipes" in box)
    rows = re.findall(r"<tr><th scope=.row.[^>]*><code>(\w+)</code>.*?</th>(.*?)</tr>", table)
    settings = {name: re.findall("<td>(.*?)</td>", cells) for name, cells in rows}
    assert settings["lam"] == ["6.0", "11.0"]
    assert settings["awp"] == ["–", "0.005"]
    assert not {"method", "seed", "beta", "alpha", "lr", "epochs"} & settings.keys()


def test_seeds_are_counted_for_each_point(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    base = {"beta": 1, "curvature": 7, "epsilon_eval": "0.1"}
    doc = {"name": "uneven", "scale": "synthetic", "base": base, "blocks": [
        {"base": {"method": "pgd"}, "axes": {"seed": [0, 1, 2]}},
        {"base": {"method": "mart"}, "axes": {"seed": [0]}},
    ]}  # fmt: skip
    (tmp_path / "uneven.yaml").write_text(yaml.safe_dump(doc))
    fill(Grid(**doc), peak=6.5, hessian_least=1.0)
    described = evidence.Evidence.of(tmp_path / "uneven.yaml").describe()
    assert "4 of 4 runs, 1 to 3 seeds per point" in described
    assert "; ℓ∞, ε = 0.1, APGD-CE + APGD-T (screening)." in described  # of the evaluation, not of the training


def test_table_1(store, tmp_path):
    out = tmp_path / "table_1.ipynb"
    execute_notebook(FIGURES / "table_1.ipynb", out, {"grids": [str(store / "known.yaml")]})
    (table,) = (box for box in outputs(out, "text/html") if "as printed" in box)
    rows = {row.split("</td>")[0].removeprefix("<td>"): row for row in table.split("<tr>")}
    assert "no record" in rows["GELU"]
    assert "none (kink)" in rows["ReLU"]
    assert "<td>0.362</td><td>0.644</td>" in rows["Mish"]  # printed, and true
    for beta in range(3):
        mean = 100 * expected(store, "known", beta, lambda m: m["screening_accuracy"])[CURVATURES.index(7)]
        assert f"<td>{mean:.2f} (" in rows[f"RCT-AF β={beta}"]
        assert f"#{','.join(ids(store, 'known', beta=beta, curvature=7))}" in rows[f"RCT-AF β={beta}"]
        assert '">5</a></td>' in rows[f"RCT-AF β={beta}"]  # the seeds have a column
    here, *boxes = [box for box in outputs(out, "text/html") if 'class="verdict"' in box]
    assert "No run here of Leaky ReLU, ELU, GELU, Swish and Mish." in here
    assert [re.search("Printed: ([0-9.]+) points", box)[1] for box in boxes] == ["2.80", "0.22"]
    assert "± 0.97 to ± 0.98 points" in " ".join(outputs(out, "text/markdown"))  # 196 √(p (1 - p) / 10,000)


def test_the_records_page_has_a_row_per_record(store, tmp_path):
    out = tmp_path / "records.ipynb"
    execute_notebook(FIGURES / "records.ipynb", out, {})
    (table,) = (box for box in outputs(out, "text/html") if "<table" in box)
    rows = dict(re.findall(r'<tr id="(\w+)">(.*?)</tr>', table))
    docs = {path.parent.name: json.loads(path.read_text()) for path in store.glob("local/*/run.json")}
    assert rows.keys() == docs.keys()
    for run_id, row in rows.items():
        assert f'href="../../records/{run_id}.json"' in row
        assert f"<td>{100 * docs[run_id]['metrics']['screening_accuracy']:.2f}</td>" in row
    heads = re.findall(r"<th[^>]*>(.*?)</th>", table)
    assert len(heads) == next(iter(rows.values())).count("<td>")
    assert heads.index("clean %") < heads.index("network")  # results come before settings of less interest
    assert f"**{len(docs)} records**, 0 of them committed" in " ".join(outputs(out, "text/markdown"))


def test_the_table_of_records_says_what_differs_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    doc = {"name": "various", "scale": "synthetic", "blocks": [
        {"axes": {"seed": [0, 1], "activation": ["mish", "relu"]}},
        {"base": {"seed": 0, "beta": 1, "curvature": 7, "norm": "none", "gain": None}},
        {"base": {"seed": 0, "beta": 1, "curvature": 7, "network": "wrn_28_10", "width": 8, "method": "dajat",
                  "auto_views": 0}},
        {"base": {"seed": 0, "activation": "gelu", "curvature": 7}},
    ]}  # fmt: skip
    made = fill(Grid(**doc), peak=6.5, hessian_least=1.0)
    text = tables.records_table(made).data
    heads = re.findall(r"<th[^>]*>(.*?)</th>", text)
    rows = [dict(zip(heads, re.findall("<td>(.*?)</td>", row), strict=True)) for row in text.split("<tr id")[1:]]
    assert len(rows) == 7
    for head, name in {"clean": "clean", "APGD-CE + APGD-T": "screening", "PGD-20": "pgd20"}.items():
        assert [row[f"{head} %"] for row in rows] == [f"{100 * r.metrics[f'{name}_accuracy']:.2f}" for r in made]
    assert min(len({row[head] for row in rows}) for head in heads) > 1  # what is the same everywhere is said above
    same = re.search("<p>The same in all records: (.*?)</p>", text)[1]
    assert {"data: digits", "threads: 1", "kept: made here."} <= set(same.split("; "))
    assert [row["max|σ″|"] for row in rows if row["activation"] == "Mish"] == ["0.644"] * 2
    assert [row["max|σ″|"] for row in rows if row["activation"] == "ReLU"] == ["none (kink)"] * 2
    (gelu,) = (row for row in rows if row["activation"] == "GELU")
    assert (gelu["max|σ″|"], gelu["other settings"]) == ("7.000", "sharpness 8.773")
    names = [(row["network"], row["method"], row["α"], row["order β"]) for row in rows if row["activation"] == "RCT-AF"]
    assert sorted(names) == [
        ("ResNet-8 (8/16/32 channels)", "TRADES", "14", "1"),
        ("WRN-28-0.5 (8/16/32 channels)", "ACAT", "14", "1"),
    ]
    assert "None" not in text
    assert sum("norm none" in row["other settings"] for row in rows) == 1


def test_the_axis_has_ticks_at_both_ends_of_what_was_tested():
    for tested, wanted in (
        ([0.25, 1, 4, 7], [0.25, 1, 4, 7]),
        ([0.25 * 2**k for k in range(14)], [0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2048]),
    ):
        frame = pd.DataFrame(
            {"beta": 1, "curvature": tested, "mean": 0.5, "low": 0.4, "high": 0.6, "n": 2, "runs": "a"}
        )
        assert figures.curves(frame, "accuracy", "title").layout.xaxis.tickvals == pytest.approx(wanted, rel=2e-3)


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.008, 0.06, [0.01, 0.02, 0.05]),
        (0.0028, 0.0054, [0.003, 0.004, 0.005]),
        (2.2, 9.6, [3, 4, 5, 6, 8]),
        (0.9, 600, [1, 2, 5, 10, 20, 50, 100, 200, 500]),
        (1.1, 1.4, None),
    ],
)
def test_a_logarithmic_y_axis_has_three_ticks(low, high, wanted):
    cells = pd.DataFrame(
        {"beta": 1, "curvature": [1.0, 2.0], "mean": [low, high], "low": low, "high": high, "n": 1, "runs": "a"}
    )
    drawn = figures.curves(cells, "norm", "title", percent=False)
    assert figures.add_reference_lines(drawn, cells[:0]).layout.yaxis.tickvals is None
    drawn.update_yaxes(type="log", dtick="D2")
    axis = figures.add_reference_lines(drawn, cells[:0]).layout.yaxis
    if wanted is None:
        assert (axis.tickvals, axis.dtick) == (None, None)
    else:
        assert [tick for tick in axis.tickvals if low <= tick <= high] == pytest.approx(wanted)


def test_bars_and_lines_stand_where_their_numbers_are():
    cells = pd.DataFrame({"beta": 1, "curvature": [1.0, 2.0], "mean": [10.0, 20.0], "low": [8.0, 19.0],
                          "high": [15.0, 40.0], "n": 3, "runs": "a"})  # fmt: skip
    line = cells[:1].assign(activation="relu")
    for kind, place in (("linear", 10), ("log", 1)):
        drawn = figures.curves(cells, "norm", "title", percent=False)
        drawn.update_yaxes(type=kind)
        drawn = figures.add_reference_lines(drawn, line, percent=False)
        (name,) = (note for note in drawn.layout.annotations if note.text == "ReLU")
        assert name.y == pytest.approx(place)  # Plotly takes exponents on a logarithmic axis
    bars = drawn.data[0].error_y
    assert (list(bars.array), list(bars.arrayminus)) == ([5, 20], [2, 1])


def test_the_numbers_of_a_figure_stand_below_their_headings():
    frame = pd.DataFrame(
        {"activation": "rctaf", "beta": 1, "curvature": 2.0, "seed": [0, 1, 2], "id": ["a", "b", "c"], "x": [4, 5, 6]}
    )
    for percent, unit, numbers in (
        (False, "", ("5", "2.516\u00a0to\u00a07.484")),  # 4.3027 / √3, Student's t for three seeds
        (True, " %", ("500", "251.6\u00a0to\u00a0748.4")),
    ):
        text = tables.runs_table(evidence.cells(frame, "x"), percent=percent).data
        head, row = text.split("</thead>")
        cells = [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)]
        assert dict(zip(re.findall("<th>(.*?)</th>", head), cells, strict=True)) == {
            "activation": "RCT-AF", "order β": "1", "max|σ″|": "2", f"mean{unit}": numbers[0],
            "95\u00a0% interval": numbers[1], "seeds": "3", "records": "a b c",
        }  # fmt: skip


def test_a_claim_and_what_was_measured_are_not_taken_for_each_other():
    verdict = Verdict("a < b", "b < a", "not supported")
    said = ["a &lt; b", "b &lt; a"]
    box = [re.sub("<.*?>", "", line) for line in re.findall("<p>(.*?)</p>", tables.verdict_box(verdict).data)]
    assert box == [f"Claim. {said[0]}", f"Measured here. {said[1]}", "Verdict: not supported."]
    found = tables.verdict_table([verdict]).data
    assert re.findall("<th>(.*?)</th>", found) == ["claim of the paper", "measured here", "verdict"]
    assert [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", found)] == [*said, "● not supported"]


def test_geometric_means_are_those_of_the_logarithms():
    norms = [1.0, 2.0, 8.0]
    frame = pd.DataFrame(
        {"activation": "rctaf", "beta": 1, "curvature": 2.0, "seed": [0, 1, 2], "id": "a", "norm": norms}
    )
    (cell,) = evidence.cells(frame, "norm", log=True).itertuples()
    interval = scipy.stats.ttest_1samp(np.log(norms), 0).confidence_interval()
    assert cell.mean == pytest.approx(scipy.stats.gmean(norms))
    assert (cell.low, cell.high) == pytest.approx((np.exp(interval.low), np.exp(interval.high)))


@pytest.mark.parametrize(
    ("attacks", "column"),
    [(["standard"], "robust_accuracy"), (["screening"], "screening_accuracy"),
     (["standard", "screening"], "screening_accuracy")],
)  # fmt: skip
def test_a_grid_is_measured_by_what_all_its_runs_have(attacks, column):
    grid = Grid(name="g", scale="s", blocks=[{"axes": {"autoattack": attacks}}])
    assert evidence.Evidence(grid, len(attacks), []).robustness == column


def test_table_1_counts_the_runs_of_its_curvature_that_were_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    blocks = [
        {"axes": {"seed": [0, 1, 2], "beta": [1], "curvature": [6.5, 7, 7.5]}},
        {"axes": {"seed": [0], "activation": ["elu"]}},
    ]
    frame = records.table(fill(Grid(name="g", scale="s", blocks=blocks), peak=6.5, hessian_least=1.0))
    seven = frame[np.isclose(frame["curvature"], 7)]
    frame.loc[seven.index[-1], "screening_accuracy"] = np.nan
    text = tables.table_1(frame, "screening_accuracy").data
    heads = ["clean %", "AutoAttack %", "max|σ″|", "max|σ″|", "clean %", "accuracy under APGD-CE + APGD-T %", "seeds"]
    assert re.findall(r"<th\b[^>]*>(.*?)</th>", text) == ["activation", "as printed", "here", *heads]
    rows = {row.split("</td>")[0].removeprefix("<td>"): row for row in text.split("<tr>")}
    assert f'records.html#{",".join(seven["id"][:2])}">2</a>' in rows["RCT-AF β=1"]
    columns = [f"{100 * seven[name][:2].mean():.2f}" for name in ("clean_accuracy", "screening_accuracy")]
    assert re.findall(r"<td>([0-9.]+) \(", rows["RCT-AF β=1"]) == columns
    assert "<td>1.000</td>" in rows["ELU"]  # reached from the left: a jump of σ″, and no kink


def test_the_table_of_records_marks_uncommitted_code(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    grid = Grid(name="g", scale="s", blocks=[{"axes": {"seed": [0, 1]}}])
    made = [
        replace(record, provenance=record.provenance | {"git_commit": 12 * "ab", "git_dirty": record.config.seed == 1})
        for record in fill(grid, peak=6.5, hessian_least=1.0)
    ]
    text = tables.records_table(made).data
    rows = [row.split("</tr>")[0] for row in text.split("<tr id")[1:]]
    assert [re.search(r"<td>ababababab(\+?)</td>", row)[1] for row in rows] == ["", "+"]
    assert all(
        f"<td>{100 * record.metrics['clean_accuracy']:.2f}</td>" in row for record, row in zip(made, rows, strict=True)
    )


@pytest.mark.parametrize(
    ("plain", "typeset"),
    [
        ("-0.5 (-1 to 4-10), APGD-CE", "\u22120.5 (\u22121 to 4-10), APGD-CE"),
        ("PGD-20 of 2026-11-22: 95 % of 1e-13", "PGD-20 of 2026-11-22: 95\u00a0% of 1e-13"),
    ],
)
def test_minus_and_percent_are_typeset(plain, typeset):
    assert words.typeset(plain) == typeset


def test_figure_3_refuses_a_misspelt_parameter(tmp_path):
    with pytest.raises(Exception, match="unknown parameter grid; it takes grids, autoattack_grids, value"):
        execute_notebook(FIGURES / "figure_3.ipynb", tmp_path / "out.ipynb", {"grid": []})


def test_summary_has_a_row_per_claim(store, tmp_path):
    out = tmp_path / "summary.ipynb"
    grids = {str(store / f"{name}.yaml"): name for name in ("known", "empty")}
    parameters = {
        "adversarial_grids": grids,
        "standard_grids": [str(store / "standard.yaml")],
        "comparisons": {str(store / "network.yaml"): "network", str(store / "empty.yaml"): "method"},
        "table_1_grid": str(store / "empty.yaml"),
    }
    execute_notebook(FIGURES / "summary.ipynb", out, parameters)
    tables = [box for box in outputs(out, "text/html") if "table verdicts" in box]
    assert [table.count("<tr>") - 1 for table in tables] == [7 + 8 + 1, 1, 1, 2]  # the last: Table 1 as printed
    assert "supported</td>" in tables[0].split("<tr>")[2]  # the peak was put at 6.5
    paper, printed, controls = (box for box in outputs(out, "text/html") if "table overview" in box)
    heads = re.findall(r"<th scope=.col.>(.*?)</th>", paper)
    # a scale without records has no column
    assert heads == ["claim", "known (110 of 110 runs)", "digits (180 of 180 runs)"]
    assert printed.count("<tr>") - 1 == 2
    cells = {
        topic: re.findall(r"<td[^>]*>(.*?)</td>", row)
        for topic, row in re.findall(r"<tr><th scope=.row.[^>]*>(.*?)</th>(.*?)</tr>", paper)
    }
    assert len(cells) == 18
    assert cells[f"Fig. 3: a hill (both ends lower) {ADDED_MARK}"] == ["supported", "–"]
    assert cells["Fig. 3: peak between 4 and 10"] == ["supported", "–"]
    assert cells[f"Fig. 7, clean loss: a U (both ends higher) {ADDED_MARK}"] == ["supported", "–"]
    assert cells["Fig. 7, clean loss: Hessian least between 4 and 10"] == ["not supported", "–"]
    assert cells["Figs. 4 to 6: one peak between 4 and 10 for every network"] == ["–", "supported"]
    assert cells[f"Fig. 7: clean accuracy falls below 4 {ADDED_MARK}"] == ["–", "supported"]
    assert controls.count("<tr>") - 1 == controls.count("not testable</td>")  # none of their runs is in this store
    text = " ".join(outputs(out, "text/markdown"))
    for place, column in enumerate(("known", "digits")):
        found = re.search(rf"- {column} \(.*\): (\d+) supp.* (\d+) not supp.* (\d+) und.* (\d+) not t", text).groups()
        assert [int(n) for n in found] == [sum(row[place] == outcome for row in cells.values()) for outcome in OUTCOMES]
    # every line that the critical reading takes from here finds its topic; no method was run
    elsewhere = re.findall("<li>(.*?)</li>", "".join(outputs(out, "application/papermill.record/text/html")))
    assert len(elsewhere) == 17 + 3 + 8 + 9 + 6  # of the figures, and of controls (a), (f), (g) and (h)
    assert [line for line in elsewhere if "no run yet" in line] == [
        f"Figs. 4 to 6: one peak between 4 and 10 for every {series}: no run yet." for series in ("method", "data set")
    ]
    assert not [line for line in elsewhere if ".:" in line]  # some topics are sentences
    assert "Fig. 3: peak between 4 and 10: supported on known." in elsewhere
    assert f"{ADDED_MARK} Made or changed on 2026-11-30" in text
    assert "No experiment is simulated here yet" in text
    assert "Networks attacked: ResNet-18; " not in text
    assert "ResNet-8 (8/16/32 channels) on digits in ℓ∞ with ε = 0.15" in text
    assert "**Not run so far:** empty (110 runs), empty (110 runs), empty (110 runs)." in text
    (short,) = (box for box in outputs(out, "text/html") if "in-short" in box)
    assert "From 110 of the 110 runs of known" in short
    assert "all 3 intervals lie inside it" in short  # the peak was put at 6.5
    assert "No record holds a result of the standard version of AutoAttack yet" in text


def test_summary_judges_later_seeds_by_themselves(tmp_path, monkeypatch):
    """Ten seeds that peak at 1, but for the five that the rules had seen, which peak at 6.5."""
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    doc = {"name": "two halves", "scale": "synthetic", "base": {"beta": 1}}
    for seeds, peak in ((range(NEW_SEED), 6.5), (range(NEW_SEED, 10), 1.0)):
        axes = {"seed": list(seeds), "curvature": CURVATURES}
        fill(Grid(**doc, blocks=[{"axes": axes}]), peak=peak, hessian_least=1.0)
    (tmp_path / "halves.yaml").write_text(
        yaml.safe_dump(doc | {"blocks": [{"axes": {"seed": list(range(10)), "curvature": CURVATURES}}]})
    )
    shutil.copy(ROOT / "results" / "power.json", tmp_path)
    out = tmp_path / "summary.ipynb"
    grids = {str(tmp_path / "halves.yaml"): "halves"}
    execute_notebook(
        FIGURES / "summary.ipynb", out, {"adversarial_grids": grids, "standard_grids": [], "comparisons": {}}
    )
    later, everything, _ = (box for box in outputs(out, "text/html") if "table verdicts" in box)
    assert [box.count(ADDED) for box in (later, everything)] == [0, 2]  # rules that had seen these seeds are left out
    (peaks,) = re.findall(r"Place of the peak: order 1: ([0-9.]+)[^;]*; 5 seeds.*?(not supported|supported)<", later)
    assert (float(peaks[0]), peaks[1]) == (pytest.approx(1.0, rel=0.05), "not supported")
    assert "10 seeds" in everything
    assert "35 runs with seed 5 or higher" in " ".join(outputs(out, "text/markdown"))
    assert sum("table power" in box for box in outputs(out, "text/html")) == 1


def test_figure_3_and_summary_say_what_the_whole_of_autoattack_takes(store, tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    axes = {"seed": [0, 1, 2], "beta": [0, 1, 2], "curvature": CURVATURES}
    doc = {"name": "all four", "scale": "synthetic", "base": {"autoattack": "standard"}, "blocks": [{"axes": axes}]}
    (tmp_path / "four.yaml").write_text(yaml.safe_dump(doc))
    made = fill(Grid(**doc), peak=6.5, hessian_least=1.0)
    taken = [0.01 if record in (made[0], made[-1]) else 0.002 for record in made]  # two tie
    for record, less in zip(made, taken, strict=True):
        robust = record.metrics["screening_accuracy"] - less
        records.write(replace(record, metrics=record.metrics | {"robust_accuracy": robust}))
    said = (
        f"{len(made)} records hold a result of the standard version of AutoAttack. After the {{term}}`screening`, its "
        f"last two attacks took another {100 * np.mean(taken):.2f} points of accuracy on average, and at most 1.00 "
        "points (in 2 runs)."
    )

    empty = str(store / "empty.yaml")
    parameters = {"grids": [empty], "autoattack_grids": [str(tmp_path / "four.yaml")]}
    execute_notebook(FIGURES / "figure_3.ipynb", tmp_path / "figure_3.ipynb", parameters)
    figure, by_attack = outputs(tmp_path / "figure_3.ipynb", "application/vnd.plotly.v1+json")
    assert len({trace["name"] for trace in by_attack["data"]}) == 4
    for beta in range(3):
        shown = numbers(traces(figure)[beta]["y"])
        for curvature, mean in zip(CURVATURES, shown, strict=True):
            cell = [
                record.metrics["screening_accuracy"] - less
                for record, less in zip(made, taken, strict=True)
                if (record.config.beta, record.config.curvature) == (beta, pytest.approx(curvature))
            ]
            assert mean == pytest.approx(100 * sum(cell) / 3, rel=1e-12)
    assert said in " ".join(outputs(tmp_path / "figure_3.ipynb", "text/markdown"))
    (table,) = (box for box in outputs(tmp_path / "figure_3.ipynb", "text/html") if "table verdicts" in box)
    assert table.count("<tr>") - 1 == 7
    assert table.count("not testable</td>") >= 1  # three seeds: too few for the place of a peak

    none = {"adversarial_grids": {empty: "none"}, "standard_grids": [], "comparisons": {}}
    execute_notebook(FIGURES / "summary.ipynb", tmp_path / "summary.ipynb", none)
    assert said in " ".join(outputs(tmp_path / "summary.ipynb", "text/markdown"))


def test_colours_stand_out_from_the_page_in_both_themes():
    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    for colour in figures.COLOURS.values():
        assert luminance("#ffffff") + 0.05 >= 3 * (luminance(colour) + 0.05)
        assert luminance(colour) + 0.05 >= 3 * (luminance("#121212") + 0.05)
