"""Records of known shape, to see whether figures and verdicts read back what was put in."""

import base64
import math

import numpy as np
import pandas as pd

from rctaf import controls
from rctaf.config import Grid
from rctaf.records import ROOT, Record, write

PROVENANCE = {
    "git_commit": "0" * 40,
    "git_dirty": False,
    "wall_s": 30.0,
    "device": "x86_64 CPU",
    "threads": 1,
    "activation_kernel": "C",
    "packages": {"torch": "2.13.0"},
}


def record_of(config, clean=0.8, **metrics):
    history = {"epoch": [1, 2], "loss": [1.5, 1.25], "seconds": [2.0, 2.0]}
    return Record(config, {"clean_accuracy": clean, "n_test": 500, **metrics}, history, dict(PROVENANCE))


def estimate(rms: float) -> dict:
    """The entry of one Hessian estimate, as far as figures read it."""
    square = 100 * (9 * rms) ** 2  # weights of size 3: the scale-free norm is 9 times the other
    interval = [0.95 * rms, 1.05 * rms]
    parts = {"gauss_newton_square": 100 * rms**2, "remainder_square": 225 * rms**2}  # the second is 1.5 times as long
    estimate = {
        "rms": rms,
        "rms_interval": interval,
        "probes": 64,
        "images": 128,
        "parameters": 100,
        "scale_free_square": square,
    }
    return estimate | parts


def attacked(config, value: float) -> dict:
    """The entry of AutoAttack, as far as figures read it: some images are hard for every run, and ``value`` survive."""
    n, rng = 500, np.random.default_rng([config.seed, int(1e6 * abs(value))])
    hardness = np.arange(n) + 50 * rng.standard_normal(n)
    robust = max(0, round(n * value))
    left = {"apgd-ce": robust + 10, "apgd-t": robust}
    if config.autoattack == "standard":
        robust -= 2
        left |= {"fab-t": robust + 1, "square": robust}
    mask = base64.b64encode(np.packbits(hardness.argsort().argsort() < robust).tobytes()).decode()
    waterfall = [{"attack": attack, "robust": number} for attack, number in left.items()]
    return {"version": config.autoattack, "n": n, "robust": robust, "waterfall": waterfall, "mask": mask}


def accuracy(config, peak: float, noise: float) -> float:
    """A parabola in log curvature with its top at ``peak``, plus a seed effect and noise; all but RCT-AF are flat."""
    rng = np.random.default_rng([config.seed, int(1000 * (config.alpha or 0)), config.beta or 0])
    shape = 0.0 if config.beta is None else -0.03 * math.log(config.curvature / peak) ** 2
    return 0.6 + shape + 0.01 * np.random.default_rng(config.seed).standard_normal() + noise * rng.standard_normal()


def fill(grid: Grid, *, peak: float, hessian_least: float, noise: float = 0.002, seeds: int = 10) -> list[Record]:
    """Write a record for every run of a grid whose seed is below ``seeds``, into the store of the environment."""
    made = []
    for config in grid.cells().values():
        if config.seed >= seeds:
            continue
        value = accuracy(config, peak, noise)
        c = config.curvature
        rms = 0.02 if c is None else 0.03 * math.exp(0.2 * math.log(c / hessian_least) ** 2)
        rms *= math.exp(5 * (value - accuracy(config, peak, 0)))
        metrics = {
            "curvature": c,
            "n_test": 500,
            "n_eval": 500,
            "clean_accuracy": value + 0.3,
            "pgd20_accuracy": value + 0.05,
            "autoattack": attacked(config, value),
            "screening_accuracy": value,
            "hessian_clean": estimate(rms),
            "hessian_adversarial": estimate(2 * rms),
            "input_curvature": {"images": 64, "spectral_norm": 5 * rms, "normalised": 7 * rms, "linearity_error": rms},
        }
        if config.autoattack == "standard":
            metrics["robust_accuracy"] = value - 0.004
        provenance = {"git_commit": None, "device": "synthetic", "threads": 1, "wall_s": 1.0, "packages": {}}
        history = {"epoch": [1.0], "seconds": [1.0]}
        if config.method != "standard":
            history["train_robust_accuracy"] = [value + 0.2]
        record = Record(config, metrics, history, provenance)
        write(record)
        made.append(record)
    return made


def longer_runs(value: str, long_peak: float, catches_up: float, data: str = "digits") -> pd.DataFrame:
    """Runs of control (f). Short ones peak at 1. Long: the peak elsewhere, and a share of what lies below it back."""
    cells = Grid.load(ROOT / f"grids/{data}/controls/longer.yaml").cells().values()
    frame = pd.DataFrame([(c.dataset, c.activation, c.beta, c.curvature, c.seed, c.epochs) for c in cells])
    frame.columns = ["dataset", "activation", "beta", "curvature", "seed", "epochs"]
    noise = np.random.default_rng(0).normal(0, 5e-4, len(frame)) + 0.01 * frame["seed"]
    long = frame["epochs"] == frame["epochs"].max()
    distance = np.log2(frame["curvature"] / np.where(long, long_peak, 1))
    lost = 0.02 * np.where(long & (distance < 0), 1 - catches_up, 1)
    return frame.assign(**{value: 0.7 - lost * distance**2 + noise})


def other_runs(
    value: str, offset: dict, peak: float | None = None, label: str = "curvature", at_equal_rms: bool = False
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Runs of control (g) and of the family: a parabola in log label; some lie ``offset`` away, at every curvature."""

    def frame(path, chosen):
        cells = [c for c in Grid.load(ROOT / path).cells().values() if chosen(c)]
        rows = controls.with_rms_at_start(
            pd.DataFrame([{**c.model_dump(mode="json"), "curvature": c.equal_curvature} for c in cells])
        )
        distance = np.log2(rows[label] / peak) if peak else 0.0
        noise = np.random.default_rng(0).normal(0, 1e-3, len(rows)) + 0.01 * rows["seed"]
        return rows.assign(**{value: 0.7 - 0.02 * distance**2 + rows["activation"].map(offset).fillna(0.0) + noise})

    if at_equal_rms:
        paths = "grids/digits/controls/other_functions_rms.yaml", "grids/digits/controls/rms_curvature.yaml"
        return frame(paths[0], bool), frame(paths[1], bool)
    path = "grids/digits/controls/other_functions.yaml"
    of_family = controls.twins(Grid.load(ROOT / path))
    return frame(path, bool), frame("grids/digits/figure_3.yaml", of_family)


def harmed_runs(value: str, lost: dict) -> pd.DataFrame:
    """Five seeds of control (h): in each arm networks of max|sigma''| = 7 are a share ``lost`` below those of 1."""
    cells = [c for c in Grid.load(ROOT / "grids/fashion/controls/harm.yaml").cells().values() if c.seed < 5]
    frame = pd.DataFrame([{**c.model_dump(mode="json"), "curvature": c.equal_curvature} for c in cells])
    frame = controls.harm_arms(frame)
    noise = np.random.default_rng(1).normal(0, 5e-4, len(frame)) + 0.01 * frame["seed"]
    return frame.assign(**{value: 0.7 - frame["arm"].map(lost) * (frame["curvature"] > 1) + noise})
