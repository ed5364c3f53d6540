"""The widget of the book: sliders for α and β and a choice of baseline; σ, σ′, σ″ and max|σ″| drawn in the browser.

No kernel is needed: the controls are linked to the curves on the browser's side (`jslink`), and the formulas are
JavaScript printed from SymPy by `rctaf.symbolic.javascript`. So one object serves JupyterLab and the published page.
"""

import json
from pathlib import Path

import anywidget
import ipywidgets
import traitlets

from rctaf.names import ACTIVATIONS
from rctaf.symbolic import BASELINES, javascript

ORDERS = (0, 1, 2, 3, 4)
ALPHAS = (0.1, 100.0)  # the range of the slider
LABELS = {name: ACTIVATIONS[name] for name in BASELINES}


def source() -> str:
    """The widget's JavaScript module: the printed formulas in front of explorer.js."""
    names = json.dumps([[None, "none"], *([name, LABELS[name]] for name in BASELINES)], ensure_ascii=False)
    drawing = (Path(__file__).parent / "explorer.js").read_text(encoding="utf-8")
    return f"{javascript(ORDERS)}const BASELINES = {names};\n{drawing}"


class Curves(anywidget.AnyWidget):
    """The drawing alone. `baseline` counts the entries of the choice: 0 is none, then `BASELINES` in order."""

    _esm = source()
    alpha = traitlets.Float(1.0).tag(sync=True)
    beta = traitlets.Int(1).tag(sync=True)
    baseline = traitlets.Int(0).tag(sync=True)


def explorer(alpha: float = 1.0, beta: int = 1) -> ipywidgets.VBox:
    """Sliders for α (logarithmic, 0.1 to 100) and β (0 to 4), a choice of baseline, and the curves.

    Raises:
        ValueError: if alpha or beta lies outside the sliders' ranges.
    """
    if not ALPHAS[0] <= alpha <= ALPHAS[1]:
        raise ValueError(f"alpha must lie in [{ALPHAS[0]}, {ALPHAS[1]}], the range of the slider, got {alpha!r}")
    if beta not in ORDERS:
        raise ValueError(f"beta must be one of {ORDERS}, got {beta!r}")
    layout = {"style": {"description_width": "8.5em"}, "layout": {"width": "min(100%, 34em)"}}
    sharpness = ipywidgets.FloatLogSlider(
        value=alpha,
        min=-1,
        max=2,
        step=1e-6,  # in the exponent, and a typed number is rounded to it; explorer.js gives the keys a longer one
        readout_format=".3g",
        description="α (sharpness)",
        **layout,
    )
    order = ipywidgets.IntSlider(value=beta, min=ORDERS[0], max=ORDERS[-1], description="β (order)", **layout)
    baseline = ipywidgets.Dropdown(options=["none", *LABELS.values()], description="compare with", **layout)
    curves = Curves(alpha=alpha, beta=beta)
    ipywidgets.jslink((sharpness, "value"), (curves, "alpha"))
    ipywidgets.jslink((order, "value"), (curves, "beta"))
    ipywidgets.jslink((baseline, "index"), (curves, "baseline"))
    box = ipywidgets.VBox([sharpness, order, baseline, curves])
    box.add_class("rctaf-box")
    return box
