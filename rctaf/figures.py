"""Plotly figures of the book, drawn from records and from nothing else."""

from __future__ import annotations

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io._base_renderers import MimetypeRenderer

BAND = (4.0, 10.0)  # the paper's optimal range of max|sigma''|
COLOURS = {0: "#0072b2", 1: "#d55e00", 2: "#009e73", 3: "#cc79a7", 4: "#e69f00", None: "#888888"}  # Okabe-Ito
GRID_COLOUR = "rgba(128,128,128,0.25)"  # readable on white and on black


class _BookRenderer(MimetypeRenderer):
    """A figure as plain HTML that expects one plotly.min.js on the page: no address outside the book."""

    def to_mimebundle(self, fig_dict: dict) -> dict[str, str]:
        html = pio.to_html(
            fig_dict,
            include_plotlyjs=False,
            include_mathjax=False,
            full_html=False,
            auto_play=False,
            config={"responsive": True, "displaylogo": False},
            default_height=fig_dict.get("layout", {}).get("height", 420),
            validate=False,
        )
        return {"text/html": html}


def use_book_renderer() -> None:
    """Draw Plotly figures so that JupyterLab and the static book both show them; set the house style."""
    axis = {"gridcolor": GRID_COLOUR, "zerolinecolor": GRID_COLOUR, "linecolor": GRID_COLOUR, "automargin": True}
    pio.templates["rctaf"] = go.layout.Template(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 14, "color": "#777777"},
            "colorway": [COLOURS[beta] for beta in range(5)],
            "xaxis": axis,
            "yaxis": axis,
            "margin": {"l": 60, "r": 20, "t": 60, "b": 50},
            "hoverlabel": {"align": "left"},
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        }
    )
    pio.templates.default = "rctaf"
    pio.renderers["book"] = _BookRenderer()
    pio.renderers.default = "plotly_mimetype+book"  # JupyterLab shows the first, the built book the second
