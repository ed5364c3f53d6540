"""Numbers as printed in arXiv 2603.23860, for comparison only: nothing here is a result of this book."""

from __future__ import annotations

# Table 1 (CIFAR-10, ResNet-18, one run per row): clean %, AutoAttack %, max|sigma''| digit by digit.
# Which of its three RCT-AF rows is which order is our reading of their order in the table.
TABLE_1: dict[str, tuple[float, float, str | None]] = {
    "relu": (85.23, 51.37, None),
    "leaky_relu": (84.52, 51.24, None),
    "elu": (78.39, 43.11, "1.0"),
    "gelu": (84.88, 51.69, "0.798"),
    "swish": (82.53, 48.08, "0.5"),
    "mish": (82.63, 48.75, "0.362"),
    "rctaf β=0": (86.65, 54.57, "7.0"),
    "rctaf β=1": (87.24, 54.79, "7.0"),
    "rctaf β=2": (86.08, 54.49, "7.0"),
}
