"""Table 2: synthetic benchmark records go through the page and come back; the benchmark itself on tiny shapes."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn

from rctaf import costs
from rctaf.names import activation_name
from rctaf.notebooks import execute_notebook
from rctaf.paper import TABLE_2

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "bench_activations.py"


@pytest.fixture(scope="module")
def bench():
    """The benchmark's functions; benchmarks/ is no package."""
    spec = importlib.util.spec_from_file_location("bench_activations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(what: str, device_type: str, time, peak) -> dict:
    """A record whose row i has the median ``time(i, mode)`` over ReLU and the peak ``peak(i, mode)`` in MiB."""
    rows = []
    for i, name in enumerate(TABLE_2):
        for mode in costs.MODES:
            if mode != "naive" or name not in costs.NAIVE_IS_EAGER:
                t = time(i, mode)
                ratio = {"median": t, "quartiles": [0.9 * t, 1.1 * t]}
                rows.append({"activation": name, "mode": mode, "time_over_relu": ratio, "peak_mib": peak(i, mode)})
    return {
        "benchmark": what, "device_type": device_type, "shape": [128, 3, 32, 32], "dtype": "float32", "rounds": 15,
        "cores": 2, "load_before": 1.25, "rows": rows,
        "provenance": {
            "device": f"synthetic {device_type}", "threads": 1, "activation_kernel": "C", "packages": {"torch": "2.0"},
            "started": "2026-01-02T03:04:05Z",
        },
    }  # fmt: skip


def test_page_shows_what_the_records_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    mode_at = dict(zip(costs.MODES, (0.5, 0.25, 0.125), strict=True))
    made = record(
        "training_step", "cuda", lambda i, mode: 1 + i * mode_at[mode], lambda i, mode: 100 * (1 + i * mode_at[mode])
    )
    flat = record("activation", "cpu", lambda i, mode: 1.0, lambda i, mode: 64.0)
    (folder / "training_step_card.json").write_text(json.dumps(made))
    (folder / "activation_cpu_1t.json").write_text(json.dumps(flat))
    (folder / "pages.json").write_text("{}")  # another benchmark's
    out = tmp_path / "table_2.ipynb"
    execute_notebook(ROOT / "notebooks" / "figures" / "table_2.ipynb", out)

    cells = [c for c in nbformat.read(out, as_version=4).cells if c.cell_type == "code"]
    seen = [output["data"] for cell in cells for output in cell.outputs if "data" in output]
    words = [data["text/markdown"] for data in seen if "text/markdown" in data]
    assert "3.15 times the memory of ReLU and 1.51 times" in words[0]  # 2.30 / 0.73 and 8.86 / 5.88
    headings = [w for w in words if w.startswith("## ")]
    assert len(headings) == 4
    missing = [words[i - 1] for i, w in enumerate(words) if w.startswith("No record yet") and "make bench" in w]
    assert missing == [headings[0], headings[3]]  # the step on a CPU, the activation on a GPU
    assert any("**synthetic cuda**" in w and "load average of 1.2" in w and "128 × 3 × 32 × 32" in w for w in words)

    tables = [data["text/html"] for data in seen if "as printed" in data.get("text/html", "")]
    assert len(tables) == 4
    for table, quantity in zip(tables[:2], ("memory", "time"), strict=True):
        unit, extra = {"memory": ("GB", "GB"), "time": ("min", "quartiles")}[quantity]
        heads = [quantity, "as printed", f"here, over ReLU ({extra})", unit, "over ReLU", *costs.MODES.values()]
        assert re.findall(r"<th\b[^>]*>(.*?)</th>", table) == heads
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in table.split("<tr>")[3:]]
        assert [r[0] for r in rows] == [activation_name(name) for name in TABLE_2]
        for i, (name, r) in enumerate(zip(TABLE_2, rows, strict=True)):
            printed, first, second = r[1:3], r[-2], r[-1]
            pair = TABLE_2[name][quantity == "time"], TABLE_2["relu"][quantity == "time"]
            assert [float(p) for p in printed] == pytest.approx([pair[0], pair[0] / pair[1]], abs=0.005)
            for cell, mode in ((first, "eager"), (second, "compiled")):
                ratio = 1 + i * mode_at[mode]
                assert float(cell.split()[0]) == pytest.approx(ratio, abs=0.005)
                if quantity == "memory":
                    gigabytes = float(cell.split("(")[1][:-1])
                    assert gigabytes == pytest.approx(100 * ratio * 2**20 / 1e9, rel=0.005)
                else:
                    assert re.findall(r"[\d.]+", cell)[1:] == [f"{0.9 * ratio:.2f}", f"{1.1 * ratio:.2f}"]
            assert len(rows[i]) == (5 if name in costs.NAIVE_IS_EAGER else 6)  # one cell in two columns
        assert float(rows[-1][3].split()[0]) == pytest.approx(1 + 10 * 0.5, abs=0.005)  # naive order 2

    verdicts = [data["text/html"] for data in seen if "verdicts" in data.get("text/html", "")]
    assert [re.findall(r"</span> ([a-z ]+)</td>", v) for v in verdicts] == [
        ["not supported", "undecided"],  # not the printed memory; more of it, but quartiles of the times overlap
        ["undecided"] * 2,  # this package and compiled, apart from the paper's claims
        ["not supported"],
        ["not supported"] * 2,
    ]


def test_verdict_on_order_2():
    def judged(times, peaks):
        made = record(
            "activation", "cpu", lambda i, mode: times[i - 8] if i >= 8 else 1, lambda i, m: peaks[max(i - 8, 0)]
        )
        return costs.order_2_costs_more(made, "naive").outcome

    assert judged((1, 1.2, 2), (64, 96, 256)) == "supported"
    assert judged((1, 1.2, 1.1), (64, 96, 256)) == "undecided"
    assert judged((1, 2, 1.5), (64, 96, 256)) == judged((2, 1, 1.5), (64, 96, 256)) == "undecided"
    assert judged((1, 1.2, 2), (64, 64, 64)) == "undecided"
    assert judged((1, 1.2, 2), (256, 64, 96)) == judged((1, 1.2, 2), (64, 256, 96)) == "undecided"
    assert judged((1, 2, 1.5), (64, 64, 64)) == judged((2, 1, 1.5), (64, 64, 64)) == "not supported"
    assert judged((1.5, 1.2, 1.4), (64, 64, 64)) == "not supported"
    few = record("activation", "cpu", lambda i, mode: 2.0**i, lambda i, mode: 64 + i)
    few["rounds"] = costs.MIN_ROUNDS
    assert costs.order_2_costs_more(few, "naive").outcome == "supported"
    few["rounds"] -= 1
    assert costs.order_2_costs_more(few, "naive").outcome == "undecided"
    assert "only 4 rounds were timed" in costs.order_2_costs_more(few, "naive").measured
    without = record("activation", "cpu", lambda i, mode: 1, lambda i, mode: 64)
    without["rows"] = [r for r in without["rows"] if r["mode"] != "compiled"]
    assert costs.order_2_costs_more(without, "compiled").outcome == "not testable"
    assert "<td>–</td>" in costs.table_2(without, "time").data


def test_verdict_on_the_printed_memory():
    def judged(change):
        names = list(TABLE_2)
        made = record(
            "training_step", "cuda", lambda i, m: 1, lambda i, m: 700 * change(names[i]) * TABLE_2[names[i]][0]
        )
        return costs.memory_as_printed(made)

    assert judged(lambda name: 1).outcome == "supported"
    assert judged(lambda name: 1.09 if name == "mish" else 1).outcome == "supported"
    low = judged(lambda name: 0.89 if name == "gelu" else 1)
    assert low.outcome == "not supported"
    assert "\u221211.0\u00a0% (GELU)" in low.measured
    without = record("training_step", "cuda", lambda i, m: 1, lambda i, m: 700)
    without["rows"] = [r for r in without["rows"] if r["mode"] != "naive"]
    assert costs.memory_as_printed(without).outcome == "not testable"


def test_committed_records_are_complete():
    for what in costs.WHAT:
        for device_type in costs.DEVICES:
            for made in costs.load(what, device_type):
                assert costs.describe(made)
                for name in TABLE_2:
                    assert costs.row(made, name, "eager")["peak_mib"] > 0
                for mode in ("naive", "eager"):
                    assert costs.order_2_costs_more(made, mode).outcome != "not testable"


def test_benchmark_writes_a_record_that_the_page_reads(tmp_path, monkeypatch):
    command = [sys.executable, str(SCRIPT), "--what", "activation", "--device", "cpu", "--batch", "1", "--rounds", "1"]
    environment = {**os.environ, "RCTAF_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--modes", "naive", "eager"], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"rctaf β=1 +eager +[\d.]+ x \([\d.]+ to [\d.]+; committed: [\d.]+\) ReLU, peak \d+ MiB", done.stdout
    )
    monkeypatch.setenv("RCTAF_RESULTS", str(tmp_path))
    (made,) = costs.load("activation", "cpu")
    assert made["shape"] == [1, 64, 32, 32]
    assert (made["rounds"], made["provenance"]["threads"]) == (1, 1)
    tensor = 64 * 32 * 32 * 4 / 2**20
    # what Table 2 is about, and no matter of timing: output and outgoing gradient, nothing else, in every order
    for name in ("relu", "rctaf β=0", "rctaf β=1", "rctaf β=2"):
        kept = costs.row(made, name, "eager")
        assert kept["saved_mib"] == (tensor if name in ("rctaf β=1", "rctaf β=2") else 0)  # x: here the caller's
        if made["provenance"]["activation_kernel"] == "C":
            assert kept["peak_mib"] == 2 * tensor
    assert costs.row(made, "rctaf β=2", "naive")["saved_mib"] == 6 * tensor
    assert "<td>RCT-AF β=2</td><td>2.30</td><td>3.15</td>" in costs.table_2(made, "memory").data


def test_memory_of_a_training_step_counts_weights_gradients_momentum(bench):
    cpu = torch.device("cpu")
    chosen = {("relu", "eager"): nn.ReLU, ("rctaf β=2", "naive"): lambda: bench.Naive(7.0, 2)}
    relu, naive = bench.measure("training_step", cpu, (2, 3, 32, 32), 1, chosen)
    weights = 11_173_962 * 4 / 2**20  # ResNet-18's parameters in float32
    assert relu["peak_mib"] > 3 * weights
    assert naive["peak_mib"] > relu["peak_mib"] > 0
    assert relu["time_over_relu"]["median"] == 1


def test_peak_and_rest_of_known_allocations(bench):
    def work():
        first = torch.empty(1 << 20, dtype=torch.uint8)
        second = torch.empty(2 << 20, dtype=torch.uint8)
        del first
        return second

    _, held, peak = bench.traced(work, torch.device("cpu"))
    assert (held, peak) == (2 << 20, 3 << 20)


@pytest.mark.parametrize(("size", "number"), [("small", 10), ("large", 6)])
def test_training_benchmark_compares_each_step_with_its_absence(size, number, tmp_path):
    environment = {**os.environ, "RCTAF_RESULTS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = str(SCRIPT.with_name("bench_training.py"))
    command = [sys.executable, script, "--rounds", "1", "--batch", "16", "--width", "4", "--eager", "--size", size]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "benchmarks").iterdir()
    made = json.loads(path.read_text())
    assert len(made["rows"]) == number - done.stdout.count("left out")  # where Fashion-MNIST cannot be had
    for row in made["rows"]:
        low, high = row["without_over_with"]["quartiles"]
        assert 0 < low <= row["without_over_with"]["median"] <= high
        assert f"{row['step']} " in done.stdout
        # more than one convolution can do is not possible but for the clock, which sees a millisecond here
        assert size == "small" or 0 < row["of_fastest_convolution"] < 2
